"""The size of a round: counted exactly in a small project, estimated in a large one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.models import Project, Prompt, Split
from app.services.acceptance.counting import OUT_OF_USE
from app.services.acceptance.machine import count_machine_accepted
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import Moment
from app.services.kernel import counters as counts
from app.services.projects.projects import ProjectSettings
from app.services.rounds.row_files import write_rows
from app.services.rounds.training_set import Metric, RowSelection, accepted_rows, query_val_prompts, target_held_out

COUNTED_PROMPTS = 5000
"""Up to this many train prompts in use, the rows are selected as for a round, and counted."""
SAMPLE = 300
PREVIEW_SEED = 0
# Prompts with an accepted rationale, among those of the newest verdicts.
RECENT_PROMPTS = """
SELECT p.id FROM (
    SELECT prompt_id, max(id) AS last FROM (
        SELECT v.prompt_id, v.id FROM verdicts v WHERE v.project_id = :project AND v.current
        ORDER BY v.xid DESC, v.id DESC LIMIT 2000
    ) newest GROUP BY 1
) judged CROSS JOIN LATERAL (SELECT * FROM prompts x WHERE x.id = judged.prompt_id LIMIT 1) p
WHERE p.has_accepted AND p.split = 'train' AND p.state NOT IN ('held', 'retired')
ORDER BY judged.last DESC LIMIT :sample
"""


@dataclass(frozen=True, slots=True)
class RoundSize:
    """The number of rows by role, and the metric. `exact` is False for estimates."""

    counts: dict[str, int]
    metric: Metric
    exact: bool


def size_of(session: Session, project: Project, settings: ProjectSettings) -> RoundSize:
    """The size of a round that would start now."""
    usable = [one for one in counts.prompt_counts(session, project) if one.state not in OUT_OF_USE]
    train = [one for one in usable if one.split is Split.train]
    n_train, n_accepted = sum(one.n for one in train), sum(one.n for one in train if one.has_accepted)
    if n_train > COUNTED_PROMPTS:
        n_val = sum(one.n for one in usable if one.split is Split.val and one.has_accepted)
        return _estimate(session, project, settings, n_train=n_train, n_accepted=n_accepted, n_val=n_val)
    moment = Moment(current_position(session), project.revision_id or 0)
    selection = RowSelection(project, settings, moment, PREVIEW_SEED)
    with tempfile.TemporaryFile() as file:
        written = write_rows(file, selection, head=lambda _: {}, n_prompts=n_train, session=session)
    return RoundSize(written.counts, written.metric, exact=True)


def _estimate(
    session: Session, project: Project, settings: ProjectSettings, *, n_train: int, n_accepted: int, n_val: int
) -> RoundSize:
    """Estimate the number of rationales from the number of prompts and a sample of recent ones.

    `n_accepted` train prompts and `n_val` val prompts have an accepted rationale.
    """
    ids = list(session.scalars(text(RECENT_PROMPTS), {"project": project.id, "sample": SAMPLE})) if n_accepted else []
    each = len(accepted_rows(session, project, prompt_ids=ids)) / len(ids) if ids else 1.0
    rationales = round(each * n_accepted)
    query, metric = query_val_prompts(session, project, settings)
    n_val = min(n_val, settings.eval_prompts) if metric == "heldout" else 0
    heldout = round(each * max(0, target_held_out(n_accepted) - n_val)) if metric == "heldout" else 0
    machine = {} if settings.machine_accepts is None else {"machine": count_machine_accepted(session, project)}
    limited = query.with_only_columns(Prompt.id).order_by(None).limit(settings.eval_prompts).subquery()
    return RoundSize(
        counts={
            "prompts": n_accepted,
            "rationale": rationales - heldout,
            "guard": min(settings.guard_per_rationale * (rationales - heldout), n_train),
            "val": session.scalar(select(func.count()).select_from(limited)) or 0,
            "heldout": heldout + round(each * n_val),
            **machine,
        },
        metric=metric,
        exact=False,
    )
