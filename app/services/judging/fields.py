"""The fields of structured answers in judging: what a critic says blind, and what their verdict corrects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.orm import Session

from app.db.batches import Row
from app.db.judging_pool import Transaction, Value, statement
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.models import Assignment, AssignmentState, Role
from app.services.judging.claim import EXTEND, GET_CLAIM, Claim
from app.services.kernel.actors import Actor, check_rights
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import VerdictIn
from app.services.projects.policies import UNRATED, check_blind, check_judged, make_policy, read_fields
from app.services.prompts.prompts import images_path
from illume.fields.answers import find_inconsistencies
from illume.fields.definitions import AnswerFields
from illume.fields.policies import Policy
from illume.phrases import _

CONTEXT = statement("""
SELECT a.critic_id, a.state, a.is_blind, a.blind, r.settings -> 'answer_fields' AS answer_fields, j.slug, m.role,
    po.name, pv.number, pv.header, pv.categories
FROM assignments a
JOIN candidate_sets s ON s.id = a.candidate_set_id
JOIN prompts p ON p.id = s.prompt_id
JOIN projects j ON j.id = a.project_id
JOIN setting_revisions r ON r.id = j.revision_id
LEFT JOIN memberships m ON m.project_id = a.project_id AND m.user_id = CAST(:critic AS bigint)
LEFT JOIN policy_versions pv ON pv.id = p.policy_version_id
LEFT JOIN policies po ON po.id = pv.policy_id
WHERE a.id = CAST(:assignment AS bigint)
""")
# Stored once: whoever comes second finds them there.
STORE = statement("""
UPDATE assignments SET blind = CAST(:blind AS jsonb), blind_at = now()
WHERE id = CAST(:assignment AS bigint) AND critic_id = CAST(:critic AS bigint) AND state = 'open' AND is_blind
  AND blind IS NULL
RETURNING id
""")


@dataclass(frozen=True, slots=True)
class Revealed:
    """A claim with its candidates; `created`: the blind values were stored by this request."""

    claim: Claim
    created: bool


async def store_blind(
    transaction: Transaction, actor: Actor, assignment_id: int, values: Mapping[str, str | None]
) -> Revealed:
    """Store what a critic says of a picture before any candidate is shown, and reveal the candidates.

    The same values again change nothing. Raises `Conflict` for other values, and where nothing is to be said;
    `Invalid`, naming the field; `NotFound`, `Forbidden`.
    """
    row = await _context(transaction, actor, assignment_id)
    fields, policy = _fields_of(row), _policy_of(row)
    if fields is None or not row["is_blind"]:
        raise Conflict(_("This assignment asks for no fields: its explanations came with it."))
    given = check_blind(values, fields, policy)
    known = _loaded(row["blind"])
    if known is None and row["state"] != AssignmentState.open:
        raise Conflict(_("This assignment is %(value)s: claim another one.", value=row["state"]))
    key: dict[str, Value] = {"assignment": assignment_id, "critic": str(actor.user_id)}
    stored = None
    if known is None:
        key_values = {**key, "assignment": str(assignment_id), "blind": orjson.dumps(given).decode()}
        [stored] = await transaction.run((STORE, key_values))
    claim = (await transaction.run((EXTEND, key), (GET_CLAIM, {**key, "images": images_path()})))[-1]
    if claim is None:
        raise NotFound(_("There is no such assignment."))
    body: dict[str, Any] = _loaded(claim["body"])
    if stored is None and body["fields"] != given:
        raise Conflict(
            _("Your values for this assignment are stored already, and they are others. Correct them by a verdict.")
        )
    content = orjson.dumps({**body, "warnings": find_inconsistencies(given, fields, policy)})
    # Who has rated a picture has looked at it: it is not blurred again.
    shown = Claim(assignment_id, claim["expires_at"], True, content, is_blurred=False, language=claim["language"])
    return Revealed(shown, stored is not None)


async def check_corrections(
    transaction: Transaction, actor: Actor, assignment_id: int, values: Mapping[str, str | None]
) -> None:
    """Raise `Invalid`, naming the field, unless these are values of the assignment's fields, without a rationale."""
    row = await _context(transaction, actor, assignment_id)
    check_judged(values, _require_fields(_fields_of(row)), _policy_of(row))


def check_change(session: Session, assignment: Assignment, verdict: VerdictIn) -> None:
    """The same for a change or a decision. Raises `Conflict` where a critic judges without having rated."""
    if assignment.is_blind and assignment.blind is None and verdict.uses_slot:
        raise Conflict(UNRATED)
    if verdict.fields:
        values = {"assignment": str(assignment.id), "critic": str(assignment.critic_id)}
        row = dict(session.execute(CONTEXT.clause, values).mappings().one())
        check_judged(verdict.fields, _require_fields(_fields_of(row)), _policy_of(row))


async def _context(transaction: Transaction, actor: Actor, assignment_id: int) -> Row:
    values = {"assignment": str(assignment_id), "critic": str(actor.user_id)}
    [row] = await transaction.run((CONTEXT, values))
    if row is None:
        raise NotFound(_("There is no such assignment."))
    if row["critic_id"] != actor.user_id:
        raise Forbidden(_("This is another critic's assignment."))
    if not actor.is_admin:
        if row["role"] is None:
            raise NotFound(_("There is no such assignment."))
        check_rights(Role(row["role"]), Right.judges, slug=row["slug"])
    return row


def _require_fields(fields: AnswerFields | None) -> AnswerFields:
    if fields is None:
        raise Invalid(_("fields: the project has no answer_fields."), field="fields")
    return fields


def _fields_of(row: Mapping[str, Any]) -> AnswerFields | None:
    found = _loaded(row["answer_fields"])
    return read_fields(orjson.dumps(found)) if found else None


def _policy_of(row: Mapping[str, Any]) -> Policy | None:
    return None if row["categories"] is None else make_policy(row, _loaded(row["categories"]))


def _loaded(value: Any) -> Any:
    """JSON of the judging pool, which gives it out as bytes, or of a session."""
    return orjson.loads(value) if isinstance(value, bytes) else value
