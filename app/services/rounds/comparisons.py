"""Blind comparisons: critics choose between two versions' rationales without knowing which version wrote which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import Select, exists, func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from app.db.sessions import database_now
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.models import (
    Comparison,
    ComparisonPair,
    ComparisonState,
    ModelVersion,
    Preference,
    Preferred,
    Project,
    Prompt,
    PromptState,
    Round,
)
from app.services.kernel import audit
from app.services.kernel.actors import SYSTEM, Actor, require
from app.services.kernel.rights import Right
from app.services.projects.policies import answer_fields_of, hides_answers
from app.services.projects.projects import settings_of
from app.services.prompts import prompts
from app.services.rounds import versions
from app.services.rounds.side_by_side import side_by_side
from illume.evaluation.activation import Outcome, opening, outcome_of
from illume.evaluation.metrics import Interval, bootstrap_interval
from illume.phrases import Phrase, _, followed_by, kept, ngettext, said_by, stored_of
from illume.records import stable_seed
from illume.texts import normalise_rationale

MOST_PAIRS = 200
MOST_CRITICS = 20
VALUES = {Preferred.old: 0.0, Preferred.neither: 0.5, Preferred.new: 1.0}
MAY_CHANGE_FOR = timedelta(minutes=10)
"""How long the judgement that completed a comparison may be changed."""
OUT_OF_USE = (PromptState.held, PromptState.retired)
Side = Literal["left", "right", "neither"]
EARLIER_OUTCOMES = ("Critics clearly prefer ", "Critics prefer neither clearly")


@dataclass(frozen=True, slots=True)
class PairShown:
    """A pair as a critic sees it. `to_judge` is the number of pairs that wait for them, including this one.

    `said` is what this critic preferred before; None for a pair that is new to them.
    """

    id: int
    prompt: Prompt
    answer: str | None
    left: str
    right: str
    to_judge: int
    said: Side | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """The current result of a comparison.

    `rate` is how often the new version was preferred, over judged and identical pairs, with a tie as one half, and its
    95 % bootstrap interval. `done` of `wanted` judgements are given.
    """

    new: int
    old: int
    neither: int
    alike: int
    pairs: int
    done: int
    wanted: int
    rate: Interval | None

    @property
    def outcome(self) -> Outcome | None:
        """What critics say of the new version; None without judgements."""
        rate = self.rate
        return None if rate is None else outcome_of(rate.low, rate.high, rate.n, neutral=0.5)


# Starting


def start(
    session: Session,
    actor: Actor,
    project: Project,
    *,
    old: ModelVersion,
    new: ModelVersion,
    pairs: int = 50,
    each: int = 1,
    gate: bool = False,
) -> Comparison:
    """Start a comparison of both versions' greedy texts for at most `pairs` prompts, each judged by `each` critics.

    With `gate`, the new version is activated if critics find it better. Raises `Invalid`, and `Conflict` if the two
    were not evaluated on a common prompt, if all their texts are identical, or if they are being compared already.
    """
    require(session, actor, project, Right.administers)
    if old.id == new.id:
        raise Invalid(_("Choose two different versions."), field="new")
    if not 1 <= pairs <= MOST_PAIRS:
        raise Invalid(_("Choose from 1 to %(most_pairs)s pairs.", most_pairs=MOST_PAIRS), field="pairs")
    if not 1 <= each <= MOST_CRITICS:
        raise Invalid(_("Choose from 1 to %(most_critics)s critics.", most_critics=MOST_CRITICS), field="each")
    versions.lock_project(session, project)
    going_on = select(Comparison.number).where(
        Comparison.project_id == project.id,
        Comparison.state == ComparisonState.open,
        Comparison.old_id == old.id,
        Comparison.new_id == new.id,
    )
    if (number := session.scalar(going_on)) is not None:
        raise Conflict(_("Comparison %(number)s of these two versions is still open.", number=number))
    found = side_by_side(session, actor, project, old=old, new=new, style="greedy")
    chosen = sorted(found.pairs, key=lambda one: stable_seed("comparison", one.prompt_id))[:pairs]
    texts = [(one, one.old.texts[0], one.new.texts[0]) for one in chosen if one.old.texts and one.new.texts]
    rows = [
        (one, before, after, normalise_rationale(before) == normalise_rationale(after)) for one, before, after in texts
    ]
    if all(alike for *_rest, alike in rows):
        raise Conflict(
            _("There is nothing to compare: the two versions share no scored prompts, or they wrote the same texts.")
        )
    last = session.scalar(select(func.max(Comparison.number)).where(Comparison.project_id == project.id)) or 0
    made = Comparison(
        project_id=project.id,
        number=last + 1,
        old_id=old.id,
        new_id=new.id,
        each=each,
        gate=gate,
        created_by=actor.stored_id,
    )
    session.add(made)
    session.flush()
    session.add_all(
        ComparisonPair(
            comparison_id=made.id,
            position=position,
            prompt_id=one.prompt_id,
            answer=one.answer,
            old_text=before,
            new_text=after,
            alike=alike,
        )
        for position, (one, before, after, alike) in enumerate(rows)
    )
    session.flush()
    session.refresh(made)
    audit.record(
        session, actor, "comparison.start", f"comparison:{made.id}", project.id, number=made.number, pairs=len(rows)
    )
    return made


# Judging


def next_pair(session: Session, actor: Actor, project: Project) -> PairShown | None:
    """The next pair for this critic, from the oldest comparison, in an order that depends on the critic."""
    require(session, actor, project, Right.judges)
    order = func.md5(func.concat(ComparisonPair.id, "-", actor.user_id))
    waiting = _waiting(actor, project).order_by(ComparisonPair.comparison_id, order)
    found = session.scalars(waiting.limit(1)).first()
    return None if found is None else _show_pair(session, actor, project, found)


def last_pair(session: Session, actor: Actor, project: Project) -> PairShown | None:
    """The pair that this critic judged last, as long as they may still change it.

    That is while its comparison is open, and where they completed it, as `may_reopen` says.
    """
    require(session, actor, project, Right.judges)
    newest_of_each = session.execute(
        select(ComparisonPair, Preference, Comparison)
        .join(Preference, Preference.pair_id == ComparisonPair.id)
        .join(Comparison, Comparison.id == ComparisonPair.comparison_id)
        .join(Prompt, Prompt.id == ComparisonPair.prompt_id)
        .where(
            Comparison.project_id == project.id,
            or_(Comparison.state == ComparisonState.open, Comparison.closed_at > func.now() - MAY_CHANGE_FOR),
            Prompt.state.not_in(OUT_OF_USE),
            Preference.critic_id == actor.user_id,
        )
        .ext(distinct_on(Comparison.id))
        .order_by(Comparison.id, Preference.id.desc())
    )
    changeable = (
        (pair, given)
        for pair, given, found in sorted(newest_of_each, key=lambda row: row[1].id, reverse=True)
        if found.state is ComparisonState.open or may_reopen(session, project, found, given)
    )
    newest = next(changeable, None)
    if newest is None:
        return None
    pair, given = newest
    said: Side = "neither" if given.preferred is Preferred.neither else "right"
    return _show_pair(session, actor, project, pair, said="left" if given.preferred is given.left else said)


def may_reopen(session: Session, project: Project, found: Comparison, given: Preference) -> bool:
    """Whether the judgement `given`, which completed a comparison, may still be changed.

    It may for `MAY_CHANGE_FOR`, unless the comparison has activated its new version or that version is active by now.
    One that an admin closed stays closed.
    """
    newest = (
        select(func.max(Preference.id))
        .join(ComparisonPair, ComparisonPair.id == Preference.pair_id)
        .where(ComparisonPair.comparison_id == found.id)
    )
    recent = select(Comparison.id).where(Comparison.id == found.id, Comparison.closed_at > func.now() - MAY_CHANGE_FOR)
    if session.scalar(newest) != given.id or session.scalar(recent) is None:
        return False
    session.refresh(project, ["active_version_id"])
    standing = standing_of(session, found)
    decided = found.gate and (standing.outcome == "better" or project.active_version_id == found.new_id)
    return standing.done >= standing.wanted and not decided


def _show_pair(
    session: Session, actor: Actor, project: Project, pair: ComparisonPair, *, said: Side | None = None
) -> PairShown:
    left = _left(pair.id, actor)
    is_hidden = hides_answers(answer_fields_of(settings_of(session, project)))
    texts = {Preferred.old: pair.old_text, Preferred.new: pair.new_text}
    return PairShown(
        id=pair.id,
        prompt=prompts.load_prompts(session, [pair.prompt_id])[0],
        answer=None if is_hidden else pair.answer,
        left=texts[left],
        right=texts[_other(left)],
        to_judge=pairs_for(session, actor, project),
        said=said,
    )


def pairs_for(session: Session, actor: Actor, project: Project) -> int:
    """The number of pairs that wait for this critic."""
    return session.scalar(select(func.count()).select_from(_waiting(actor, project).subquery())) or 0


def _waiting(actor: Actor, project: Project) -> Select[ComparisonPair]:
    given = aliased(Preference)
    taken = select(func.count()).where(given.pair_id == ComparisonPair.id).correlate(ComparisonPair).scalar_subquery()
    mine = exists().where(Preference.pair_id == ComparisonPair.id, Preference.critic_id == actor.user_id)
    return (
        select(ComparisonPair)
        .join(Comparison, Comparison.id == ComparisonPair.comparison_id)
        .join(Prompt, Prompt.id == ComparisonPair.prompt_id)
        .where(
            Comparison.project_id == project.id,
            Comparison.state == ComparisonState.open,
            Prompt.state.not_in(OUT_OF_USE),
            ~ComparisonPair.alike,
            taken < Comparison.each,
            ~mine,
        )
    )


def _left(pair_id: int, actor: Actor) -> Preferred:
    """The version on the left for this critic, drawn by hash, so that a reload shows the same."""
    return Preferred.old if stable_seed("side", pair_id, actor.user_id) % 2 else Preferred.new


def _other(one: Preferred) -> Preferred:
    return Preferred.new if one is Preferred.old else Preferred.old


def prefer(
    session: Session,
    actor: Actor,
    project: Project,
    pair_id: int,
    side: Side,
    *,
    seconds: float | None = None,
    again: bool = False,
) -> Comparison:
    """Store which text of a pair is better. A second preference is ignored, unless the critic changes it with `again`.

    Raises `NotFound`, and `Conflict` where the comparison is closed; `may_reopen` says when its last judgement may be
    changed nevertheless.
    """
    require(session, actor, project, Right.judges)
    pair = session.get(ComparisonPair, pair_id)
    # Locked, so that the last two judgements cannot both miss that the comparison is complete.
    found = session.scalar(
        select(Comparison)
        .where(Comparison.id == (pair.comparison_id if pair else 0), Comparison.project_id == project.id)
        .with_for_update()
    )
    if pair is None or found is None:
        raise NotFound(_("There is no such pair in this project."))
    if pair.alike:
        raise Forbidden(_("The two texts of this pair are identical, so there is nothing to choose."))
    known = session.scalar(
        select(Preference).where(Preference.pair_id == pair.id, Preference.critic_id == actor.user_id)
    )
    if known is not None and not again:
        return found
    is_closed = found.state is ComparisonState.closed
    if is_closed and (known is None or not may_reopen(session, project, found, known)):
        raise Conflict(_("This comparison is closed and needs no more judgements. Thank you."))
    left = _left(pair.id, actor)
    preferred = {"left": left, "right": _other(left), "neither": Preferred.neither}[side]
    if known is not None:
        known.preferred, known.left, known.seconds = preferred, left, seconds
        session.flush()
        if is_closed:
            _close(session, SYSTEM, found, standing_of(session, found))
        return found
    session.add(Preference(pair_id=pair.id, critic_id=actor.user_id, preferred=preferred, left=left, seconds=seconds))
    session.flush()
    standing = standing_of(session, found)
    if standing.done >= standing.wanted:
        _close(session, SYSTEM, found, standing)
    return found


# The outcome


def standing_of(session: Session, found: Comparison) -> Standing:
    """Compute the current result of a comparison."""
    pairs = list(session.scalars(select(ComparisonPair).where(ComparisonPair.comparison_id == found.id)))
    given: dict[int, list[Preferred]] = {pair.id: [] for pair in pairs}
    rows = session.execute(
        select(Preference.pair_id, Preference.preferred)
        .join(ComparisonPair, ComparisonPair.id == Preference.pair_id)
        .where(ComparisonPair.comparison_id == found.id)
    )
    for pair_id, preferred in rows:
        given[pair_id].append(Preferred(preferred))
    said = [one for row in given.values() for one in row]
    asked = [pair for pair in pairs if not pair.alike]
    return Standing(
        new=said.count(Preferred.new),
        old=said.count(Preferred.old),
        neither=said.count(Preferred.neither),
        alike=len(pairs) - len(asked),
        pairs=len(pairs),
        done=sum(min(len(given[pair.id]), found.each) for pair in asked),
        wanted=len(asked) * found.each,
        rate=rate_of([given[pair.id] for pair in asked], alike=len(pairs) - len(asked)),
    )


def rate_of(given: Sequence[Sequence[Preferred]], *, alike: int) -> Interval | None:
    """The win rate: the mean preference of each judged pair, and one half for each identical pair.

    None without judgements.
    """
    judged = [sum(VALUES[one] for one in row) / len(row) for row in given if row]
    return bootstrap_interval([*judged, *([0.5] * alike)], seed=0) if judged else None


def close(session: Session, actor: Actor, project: Project, number: int) -> Comparison:
    """Close a comparison early; given judgements count. Raises `Conflict` if it is already closed."""
    require(session, actor, project, Right.administers)
    found = get_comparison(session, actor, project, number)
    session.refresh(found, with_for_update=True)
    if found.state is ComparisonState.closed:
        raise Conflict(_("Comparison %(number)s is already closed.", number=found.number))
    _close(session, actor, found, standing_of(session, found))
    return found


def _close(session: Session, actor: Actor, found: Comparison, standing: Standing) -> None:
    # Where the last judgement was changed, the time to change it runs from the first one.
    found.state, found.closed_at = ComparisonState.closed, found.closed_at or database_now(session)
    found.outcome = describe_outcome(standing)
    session.flush()
    audit.record(session, actor, "comparison.close", f"comparison:{found.id}", found.project_id, outcome=found.outcome)
    if found.gate:
        _pass_gate(session, found, standing)


def describe_outcome(standing: Standing) -> str:
    """The outcome in a sentence."""
    if standing.rate is None or standing.outcome is None:
        return _("Nobody judged any pairs.")
    rate, low, high = (f"{100 * one:.0f}" for one in (standing.rate.mean, standing.rate.low, standing.rate.high))
    n = standing.rate.n
    outcome = opening(standing.outcome, n)
    if standing.outcome == "too few to tell":
        return ngettext(
            "%(outcome)s: critics preferred the new version in %(rate)s %% of %(num)s pair.",
            "%(outcome)s: critics preferred the new version in %(rate)s %% of %(num)s pairs.",
            n,
            outcome=outcome,
            rate=rate,
        )
    return ngettext(
        "%(outcome)s: critics preferred the new version in %(rate)s %% (95 %% interval %(low)s to %(high)s %%)"
        " of %(num)s pair.",
        "%(outcome)s: critics preferred the new version in %(rate)s %% (95 %% interval %(low)s to %(high)s %%)"
        " of %(num)s pairs.",
        n,
        outcome=outcome,
        rate=rate,
        low=low,
        high=high,
    )


def outcome_text(found: Comparison, standing: Standing) -> str:
    """The outcome of a closed comparison in a sentence; one that was stored in earlier words is put into today's."""
    if found.outcome.startswith(EARLIER_OUTCOMES):
        return describe_outcome(standing)
    return kept(found.outcome, found.outcome_phrase)


def _pass_gate(session: Session, found: Comparison, standing: Standing) -> None:
    """Activate the new version if it won and the old one is still active. Record the outcome in its round."""
    project = session.get_one(Project, found.project_id)
    versions.lock_project(session, project)
    passes = standing.outcome == "better" and project.active_version_id == found.old_id
    new = session.get_one(ModelVersion, found.new_id)
    reason: str = _(
        "Blind comparison %(number)s: %(outcome)s",
        number=found.number,
        outcome=kept(found.outcome, found.outcome_phrase),
    )
    if standing.outcome == "better" and not passes:
        reason = followed_by(reason, _("Not activated: another version became active in the meantime."))
    made_by = session.get(Round, new.round_id) if new.round_id is not None else None
    if made_by is not None:
        # A comparison whose last judgement was changed decides again.
        earlier = kept(made_by.decision.get("reason"), made_by.reason_phrase)
        reason = followed_by(_without_ending(earlier, f"Blind comparison {found.number}: "), reason)
        made_by.decision = {
            **made_by.decision,
            "activate": passes,
            "outcome": standing.outcome,
            "reason": reason,
        }
        made_by.reason_phrase = stored_of(reason)
    if passes:
        versions.put_in_force(session, SYSTEM, project, new)
    session.flush()


def _without_ending(reason: str, ending: str) -> str:
    """The part of a reason before the sentence that begins with `ending`."""
    if isinstance(reason, Phrase) and str(reason.values.get("second", "")).startswith(ending):
        first: str = reason.values["first"]
        return first
    before, found, _rest = reason.partition(ending)
    return before.strip() if found else reason


def hold_at_gate(session: Session, project: Project, *, old: ModelVersion, new: ModelVersion) -> str:
    """Start a comparison that decides whether `new` becomes active. Returns a sentence for the round's decision."""
    try:
        with session.begin_nested():
            made = start(session, SYSTEM, project, old=old, new=new, gate=True)
    except (Conflict, IntegrityError) as error:
        reason = _("Not activated: no blind comparison could be started.")
        return followed_by(reason, said_by(error)) if isinstance(error, Conflict) else reason
    return _("Blind comparison %(number)s decides: waiting for critics.", number=made.number)


# Looking


def list_comparisons(session: Session, actor: Actor, project: Project) -> list[Comparison]:
    """The comparisons of a project, newest first."""
    require(session, actor, project, Right.sees_model, Right.sees_others)
    query = select(Comparison).where(Comparison.project_id == project.id).order_by(Comparison.number.desc())
    return list(session.scalars(query.limit(200)))


def get_comparison(session: Session, actor: Actor, project: Project, number: int) -> Comparison:
    """The comparison `number` of a project. Raises `NotFound`."""
    require(session, actor, project, Right.sees_model, Right.sees_others)
    found = session.scalar(select(Comparison).where(Comparison.project_id == project.id, Comparison.number == number))
    if found is None:
        raise NotFound(_("There is no comparison %(number)s in this project.", number=number))
    return found


def comparison_by_id(session: Session, actor: Actor, comparison_id: int) -> Comparison:
    """A comparison. Raises `NotFound`."""
    found = session.get(Comparison, comparison_id)
    if found is None:
        raise NotFound(_("There is no such comparison, or you are not a member of its project."))
    require(session, actor, session.get_one(Project, found.project_id), Right.sees_model, Right.sees_others)
    return found


def pairs_of(
    session: Session, actor: Actor, project: Project, found: Comparison
) -> list[tuple[ComparisonPair, Prompt, list[Preferred]]]:
    """The pairs of a comparison in order, each with its prompt and the preferences given."""
    require(session, actor, project, Right.sees_model, Right.sees_others)
    pairs = list(
        session.scalars(
            select(ComparisonPair).where(ComparisonPair.comparison_id == found.id).order_by(ComparisonPair.position)
        )
    )
    said: dict[int, list[Preferred]] = {pair.id: [] for pair in pairs}
    rows = select(Preference).where(Preference.pair_id.in_(said)).order_by(Preference.id)
    for one in session.scalars(rows):
        said[one.pair_id].append(Preferred(one.preferred))
    shown = prompts.load_prompts(session, [pair.prompt_id for pair in pairs])
    return [(pair, prompt, said[pair.id]) for pair, prompt in zip(pairs, shown, strict=True)]
