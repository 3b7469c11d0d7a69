"""The reviewers' queue: disagreements, flags and late verdicts. A reviewer's decision counts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.db.judging_pool import statement
from app.errors import Conflict, Invalid, NotFound
from app.models import Project, Review, ReviewKind, ReviewState
from app.services.acceptance.overlap import FIELDS_DIFFER
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import Right
from app.services.prompts.prompts import IMAGE_JSON, PARTS_JSON, POLICY_JSON, get_prompt, images_path
from illume.phrases import _

OPEN_STATES = (ReviewState.open, ReviewState.sent_back)
# Whether the critics of the set `s` picked different candidates, or gave different values for a field of its answers.
CRITICS_DIFFER = f"""
({FIELDS_DIFFER} OR (
    SELECT count(DISTINCT ARRAY(SELECT k.candidate_id FROM picks k WHERE k.verdict_id = v.id ORDER BY 1)) > 1
    FROM verdicts v
    WHERE v.candidate_set_id = s.id AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
))
"""  # noqa: S608 - constants only
IS_DECIDED = "EXISTS (SELECT FROM verdicts w WHERE w.candidate_set_id = s.id AND w.current AND w.state = 'decided')"
OPEN_REVIEW = statement("""
INSERT INTO reviews (project_id, candidate_set_id, verdict_id, kind)
SELECT v.project_id, v.candidate_set_id, v.id, :kind FROM verdicts v WHERE v.id = CAST(:verdict AS bigint)
ON CONFLICT DO NOTHING
RETURNING id
""")
OPEN_DISAGREEMENT = f"""
INSERT INTO reviews (project_id, candidate_set_id, kind)
SELECT s.project_id, s.id, 'disagreement' FROM candidate_sets s
WHERE s.id = :set AND {CRITICS_DIFFER} AND NOT {IS_DECIDED}
ON CONFLICT DO NOTHING
"""  # noqa: S608 - constants only
ASK_FOR_REVIEW = """
WITH newest AS (
    SELECT s.project_id, s.id FROM candidate_sets s
    WHERE s.prompt_id = :prompt AND s.state IN ('ready', 'judged')
      AND NOT EXISTS (SELECT FROM gold_prompts g WHERE g.candidate_set_id = s.id)
    ORDER BY s.id DESC LIMIT 1
), asked AS (
    INSERT INTO reviews (project_id, candidate_set_id, kind)
    SELECT project_id, id, 'asked' FROM newest ON CONFLICT DO NOTHING
)
SELECT count(*) FROM newest
"""
# After a verdict was changed: the critics may agree now, the flag may be gone, and a note is answered.
SETTLE_REVIEWS = f"""
WITH answered AS (
    UPDATE returned_verdicts b SET answered_at = now() WHERE b.verdict_id = :verdict AND b.answered_at IS NULL
    RETURNING b.review_id
), back AS (
    UPDATE reviews r SET state = 'open' FROM answered WHERE r.id = answered.review_id AND r.state = 'sent_back'
)
UPDATE reviews r SET state = 'dismissed', decided_at = now()
FROM candidate_sets s
WHERE s.id = :set AND r.candidate_set_id = s.id AND r.state IN ('open', 'sent_back')
  AND ((r.kind = 'disagreement' AND NOT {CRITICS_DIFFER}) OR r.verdict_id = :verdict)
"""  # noqa: S608 - constants only
# A critic's verdicts that were sent back and not answered, in reviews that nobody has settled meanwhile.
RETURNED_OF = """
(
    SELECT b.* FROM returned_verdicts b JOIN reviews r ON r.id = b.review_id AND r.state IN ('open', 'sent_back')
    WHERE b.critic_id = CAST(:critic AS bigint) AND b.project_id = {project} AND b.answered_at IS NULL
) b
"""
REVIEW_JSON = f"""
jsonb_build_object(
    'id', r.id::text,
    'kind', r.kind,
    'state', r.state,
    'note', r.note,
    'verdict', r.verdict_id::text,
    'candidate_set', s.id::text,
    'created_at', to_char(r.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'prompt', jsonb_build_object(
        'id', p.id::text, 'state', p.state, 'question', p.question, 'answer', coalesce(p.answer, s.answer),
        'images', (
            SELECT jsonb_agg({IMAGE_JSON} ORDER BY x.position)
            FROM prompt_images x JOIN images i ON i.sha256 = x.sha256 WHERE x.prompt_id = p.id
        ),
        'parts', {PARTS_JSON}
    ),
    'candidates', (
        SELECT jsonb_agg(jsonb_build_object('id', c.id::text, 'text', c.text) ORDER BY c.position)
        FROM candidates c WHERE c.candidate_set_id = s.id AND NOT c.spare
    ),
    'verdicts', (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'id', v.id::text, 'critic', u.email, 'kind', v.kind, 'state', v.state, 'reason', v.reason,
            'rationale', v.rationale, 'comment', v.comment, 'seconds', v.seconds,
            'picks', ARRAY(SELECT k.candidate_id::text FROM picks k WHERE k.verdict_id = v.id ORDER BY k.candidate_id),
            'note', (
                SELECT b.note FROM returned_verdicts b WHERE b.verdict_id = v.id ORDER BY b.id DESC LIMIT 1
            ),
            'returned_at', (
                SELECT to_char(b.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM returned_verdicts b
                WHERE b.verdict_id = v.id AND b.answered_at IS NULL
            )
        ) || CASE WHEN v.fields IS NULL THEN '{{}}'::jsonb ELSE jsonb_build_object('fields', v.fields) END
        ORDER BY v.id), '[]'::jsonb)
        FROM verdicts v JOIN users u ON u.id = v.critic_id
        WHERE v.candidate_set_id = s.id AND v.current AND v.state IN ('counted', 'kept_aside', 'decided')
    )
) || CASE WHEN p.policy_version_id IS NULL THEN '{{}}'::jsonb ELSE jsonb_build_object('policy', {POLICY_JSON}) END
"""  # noqa: S608 - constants only
LIST_REVIEWS = f"""
SELECT r.id, {REVIEW_JSON} AS body
FROM reviews r JOIN candidate_sets s ON s.id = r.candidate_set_id JOIN prompts p ON p.id = s.prompt_id
WHERE r.project_id = :project AND r.state = :state AND r.id > :after
  AND (CAST(:kind AS text) IS NULL OR r.kind = :kind)
ORDER BY r.id LIMIT :limit
"""  # noqa: S608 - constants only
GET_REVIEW = f"""
SELECT {REVIEW_JSON} AS body
FROM reviews r JOIN candidate_sets s ON s.id = r.candidate_set_id JOIN prompts p ON p.id = s.prompt_id
WHERE r.id = :review
"""  # noqa: S608 - constants only
COUNT_OPEN_REVIEWS = """
SELECT CASE WHEN state = 'open' THEN kind ELSE state END, count(*) FROM reviews
WHERE project_id = :project AND state IN ('open', 'sent_back') GROUP BY 1
"""


def open_review(session: Session, verdict_id: int, kind: ReviewKind) -> None:
    """Put a verdict before the reviewers: it was a flag, or came too late."""
    session.execute(OPEN_REVIEW.clause, {"verdict": verdict_id, "kind": kind.value})


def open_review_if_disagreeing(session: Session, set_id: int) -> None:
    """Open a review of a set if its critics judged it differently."""
    session.execute(text(OPEN_DISAGREEMENT), {"set": set_id})


def ask_for_review(session: Session, actor: Actor, project: Project, prompt_id: int) -> None:
    """Send a prompt to the reviewers: its newest set that critics may see. Once while such a review is open.

    Needs the role reviewer. Raises `NotFound`, and `Conflict` for a prompt without candidates.
    """
    require(session, actor, project, Right.reviews)
    prompt = get_prompt(session, actor, prompt_id, Right.reviews)
    if prompt.project_id != project.id:
        raise NotFound(_("There is no such prompt in this project."))
    found = session.scalar(text(ASK_FOR_REVIEW), {"prompt": prompt.id})
    if not found:
        raise Conflict(_("The prompt has no explanations yet, so there is nothing to decide."))
    audit.record(session, actor, "review.ask", f"prompt:{prompt.id}", project.id)


def settle_reviews(session: Session, set_id: int, verdict_id: int) -> None:
    """After a verdict was superseded: close the reviews it settled, and reopen those that waited for it."""
    session.execute(text(SETTLE_REVIEWS), {"set": set_id, "verdict": verdict_id})


def list_reviews(
    session: Session,
    actor: Actor,
    project: Project,
    *,
    state: ReviewState = ReviewState.open,
    kind: ReviewKind | None = None,
    limit: int = 20,
    cursor: str | None = None,
) -> Page[dict[str, Any]]:
    """List reviews, oldest first, each with its prompt, candidates and verdicts. Needs the role reviewer."""
    require(session, actor, project, Right.reviews)
    check_limit(limit)
    rows = session.execute(
        text(LIST_REVIEWS),
        {
            "project": project.id,
            "state": ReviewState(state).value,
            "kind": None if kind is None else ReviewKind(kind).value,
            "after": 0 if cursor is None else decode_cursor(cursor, int)[0],
            "limit": limit + 1,
            "images": images_path(),
        },
    ).all()
    more = len(rows) > limit
    return Page([row.body for row in rows[:limit]], encode_cursor(rows[limit - 1].id) if more else None)


def count_open_reviews(session: Session, actor: Actor, project: Project) -> dict[str, int]:
    """The number of open reviews, by kind, and of those that wait for a critic (`sent_back`)."""
    require(session, actor, project, Right.reviews)
    found = {
        str(kind): int(count) for kind, count in session.execute(text(COUNT_OPEN_REVIEWS), {"project": project.id})
    }
    return {one.value: found.get(one.value, 0) for one in (*ReviewKind, ReviewState.sent_back)}


def review_json(session: Session, review_id: int) -> dict[str, Any]:
    """A review as JSON."""
    body: dict[str, Any] = session.execute(
        text(GET_REVIEW), {"review": review_id, "images": images_path()}
    ).scalar_one()
    return body


def get_review(session: Session, actor: Actor, review_id: int) -> dict[str, Any]:
    """A review with its prompt, candidates and verdicts. Raises `NotFound`, `Forbidden`."""
    row = session.get(Review, review_id)
    project = None if row is None else session.get(Project, row.project_id)
    if row is None or project is None:
        raise NotFound(_("There is no such review."))
    require(session, actor, project, Right.reviews)
    return review_json(session, review_id)


def lock_review(session: Session, actor: Actor, review_id: int, need: Right = Right.reviews) -> tuple[Review, Project]:
    """Lock an open or sent-back review. Returns it with its project. Raises `NotFound`, `Forbidden`, `Conflict`."""
    row = session.scalar(
        select(Review).where(Review.id == review_id).with_for_update().execution_options(populate_existing=True)
    )
    project = None if row is None else session.get(Project, row.project_id)
    if row is None or project is None:
        raise NotFound(_("There is no such review."))
    require(session, actor, project, need)
    if row.state not in OPEN_STATES:
        raise Conflict(_("This review is already %(value)s.", value=row.state.value))
    return row, project


def check_note(note: str | None, *, needed: bool = False) -> str | None:
    """Return a note without surrounding blanks. Raises `Invalid` if it is too long, or `needed` and empty."""
    note = (note or "").replace("\0", "").strip()
    if len(note) > 4000:
        raise Invalid(_("A note has at most 4,000 characters."), field="note")
    if needed and not note:
        raise Invalid(_("Say in a note what the critic should reconsider."), field="note")
    return note or None
