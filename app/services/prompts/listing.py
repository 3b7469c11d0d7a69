"""Which prompts match: lists of them, page by page, and their ids for changes of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from app.models import Project, Prompt
from app.services.kernel.actors import Actor, require
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import Right
from app.services.projects.policies import answer_fields_of, hides_answers
from app.services.projects.projects import settings_of
from app.services.prompts import filters
from app.services.prompts.filters import FeedbackFilter, PromptQuery
from app.services.prompts.many import PromptOrder
from app.services.prompts.prompts import WITH_IMAGES

IN_ORDER_ADDED = PromptOrder()
EVERY_PROMPT = PromptQuery()


def list_prompts(
    session: Session,
    actor: Actor,
    project: Project,
    wanted: PromptQuery = EVERY_PROMPT,
    *,
    limit: int = 100,
    cursor: str | None = None,
    order: PromptOrder = IN_ORDER_ADDED,
) -> Page[Prompt]:
    """List prompts with their images, by default in the order they were added. Raises as `select_prompts`."""
    check_limit(limit)
    by_id = order == IN_ORDER_ADDED  # as the filters' indexes have them
    after = 0 if cursor is None or not by_id else decode_cursor(cursor, int)[0]
    found = select_prompts(session, actor, project, wanted, after=after)
    if not by_id:
        rows = session.execute(
            order.apply(found.add_columns(order.key.label("sorted_by")), cursor).limit(limit + 1).options(*WITH_IMAGES)
        ).all()
        following = order.cursor(rows[limit - 1][1], rows[limit - 1][0].id) if len(rows) > limit else None
        return Page([row[0] for row in rows[:limit]], following)
    items = list(session.scalars(found.order_by(Prompt.id).limit(limit + 1).options(*WITH_IMAGES)))
    return Page(items[:limit], encode_cursor(items[limit - 1].id) if len(items) > limit else None)


def count_matching(session: Session, actor: Actor, project: Project, wanted: PromptQuery, *, limit: int) -> int:
    """How many prompts match, counted up to `limit`. Raises `Forbidden` as `select_prompts`."""
    ids = select_prompts(session, actor, project, wanted).with_only_columns(Prompt.id).limit(limit)
    return session.scalar(select(func.count()).select_from(ids.subquery())) or 0


def next_matching(
    session: Session, actor: Actor, project: Project, wanted: PromptQuery, *, after: int, limit: int
) -> list[int]:
    """The ids of at most `limit` prompts that match, after one. Raises `Forbidden` as `select_prompts`."""
    found = select_prompts(session, actor, project, wanted, after=after).with_only_columns(Prompt.id)
    return list(session.scalars(found.order_by(Prompt.id).limit(limit)))


def select_prompts(
    session: Session, actor: Actor, project: Project, wanted: PromptQuery, *, after: int = 0
) -> Select[Prompt]:
    """A query of the prompts that match, with an id beyond `after`.

    Filters by state, feedback and version are for those who may see what they tell. Words are not looked for in answers
    that the actor does not see. Raises `Forbidden`.
    """
    rights = require(session, actor, project)
    if wanted.state is not None or wanted.said is not None:
        require(session, actor, project, Right.sees_others)
    if wanted.version is not None:
        require(session, actor, project, Right.sees_model)
    found = select(Prompt).where(Prompt.project_id == project.id, Prompt.id > after)
    columns = ((Prompt.split, wanted.split), (Prompt.state, wanted.state), (Prompt.external_id, wanted.external_id))
    for column, value in columns:
        if value is not None:
            found = found.where(column == value)
    said = wanted.said
    if said in (FeedbackFilter.accepted, FeedbackFilter.open):
        found = found.where(Prompt.has_accepted.is_(said is FeedbackFilter.accepted))
    elif said is not None:
        found = _restrict(found, FEEDBACK_QUERIES[said](project, after))
    if wanted.version is not None:
        found = _restrict(found, filters.prompts_written_by(session, project, wanted.version, after))
    if wanted.query:
        found = _restrict(found, filters.prompts_mentioning(session, project, wanted.query, after))
        if hides_answers_from(session, project, rights):
            seen = (Prompt.question, Prompt.external_id)
            found = found.where(or_(*(one.icontains(wanted.query, autoescape=True) for one in seen)))
    return found


def hides_answers_from(session: Session, project: Project, rights: Set[Right]) -> bool:
    """Whether a member with these rights does not see the answers of the project's prompts."""
    return Right.sees_references not in rights and hides_answers(answer_fields_of(settings_of(session, project)))


FEEDBACK_QUERIES: Mapping[FeedbackFilter, Callable[[Project, int], Select[int]]] = {
    FeedbackFilter.flagged: filters.flagged_prompts,
    FeedbackFilter.apart: filters.disagreeing_prompts,
    FeedbackFilter.alike: filters.agreeing_prompts,
    FeedbackFilter.machine: filters.machine_accepted_prompts,
}


def _restrict(wanted: Select[Prompt], ids: Select[int]) -> Select[Prompt]:
    """Restrict `wanted` to prompts with these ids."""
    fits = ids.subquery()
    return wanted.join(fits, fits.c.prompt_id == Prompt.id)
