"""What a round trains on is what `sft` exports of the same verdicts, and what rules say of votes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from app.models import (
    AssignmentState,
    CandidateSetState,
    Pick,
    Project,
    Prompt,
    PromptState,
    SettingRevision,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.acceptance.counting import Aggregation
from app.services.acceptance.outcomes import CountingRules, count_records
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import Moment
from app.services.exports import plan as export_plan
from app.services.exports.plan import ExportRequest
from app.services.exports.shapes import Format, counting_rules, make_rows
from app.services.machine_critics.judged import judged_of
from app.services.projects.projects import settings_of
from app.services.rounds.training_set import RowSelection, accepted_rows, rejected_rows
from illume.texts import normalise_rationale
from tests import factories
from tests.conftest import CommittedDatabase

CANDIDATES = ("It is red", "it stands in the sand", "umbrellas are umbrellas")
OWN = ("mine", "Mine.", "it is  red!", "it, is red", "...", None)
PROMPTS = 4
AGGREGATIONS = ("any", "majority", "all")
weights = st.sampled_from((1.0, 0.75, 0.5, 0.25, 0.0625))


@dataclass(frozen=True)
class Vote:
    """A verdict: who gave it goes by its place."""

    kind: str
    picks: tuple[int, ...] = ()
    own: str | None = None
    edited_from: int | None = None
    weight: float = 1
    state: str = "counted"
    exhaustive: bool = True


@dataclass(frozen=True)
class Judged:
    """The verdicts on one set of a prompt, one a critic, and a reviewer's decision."""

    prompt: int
    slots: int
    votes: tuple[Vote, ...]
    decision: Vote | None = None


@st.composite
def votes(draw: st.DrawFn, *, state: str | None = None) -> Vote:
    """A verdict of any kind, mostly one that judges."""
    picks = tuple(sorted(draw(st.sets(st.integers(0, 2), max_size=2))))
    own = draw(st.sampled_from(OWN))
    kind = draw(st.sampled_from(("picked", "picked", "picked", "none_fit", "skipped", "flagged")))
    if state == "decided" and kind not in ("picked", "none_fit"):
        kind = "none_fit"
    if kind == "picked" and not picks and own is None:
        kind = "none_fit"
    return Vote(
        kind,
        picks if kind == "picked" else (),
        own,
        draw(st.integers(0, 2) | st.none()) if own is not None else None,
        draw(weights),
        state or draw(st.sampled_from((*["counted"] * 7, "kept_aside", "gold", "repeat"))),
        draw(st.booleans()),
    )


@st.composite
def judged_sets(draw: st.DrawFn) -> Judged:
    """A set of one of the prompts, judged by up to as many critics as it has slots."""
    slots = draw(st.integers(1, 4))
    given = tuple(draw(st.lists(votes(), min_size=min(slots, 2), max_size=slots)))
    return Judged(draw(st.integers(0, PROMPTS - 1)), slots, given, draw(st.none() | st.none() | votes(state="decided")))


def store(session: Session, project: Project, sets: Sequence[Judged], states: Sequence[PromptState]) -> list[Prompt]:
    """Everything as rows: prompts, sets, and the verdicts in turns over all sets, so that their order is mixed."""
    image = factories.make_image(session)
    prompts = [factories.make_prompt(session, project, images=[image], state=state) for state in states]
    critics = [factories.make_critic(session, project) for _ in range(5)]
    offered = [
        factories.make_candidate_set(
            session,
            project,
            prompt=prompts[one.prompt],
            texts=CANDIDATES,
            state=CandidateSetState.judged,
            slots=one.slots,
        )
        for one in sets
    ]
    for prompt, state in zip(prompts, states, strict=True):
        prompt.state = state
    for turn in range(5):
        for judged, candidate_set in zip(sets, offered, strict=True):
            is_decision = turn == 4
            vote = judged.decision if is_decision else next(iter(judged.votes[turn : turn + 1]), None)
            if vote is None:
                continue
            ended = AssignmentState.released if is_decision else AssignmentState.judged
            assignment = factories.make_assignment(session, candidate_set, critics[turn], state=ended, slot=turn + 1)
            shown = sorted(assignment.shown)
            verdict = Verdict(
                project_id=project.id,
                assignment_id=assignment.id,
                candidate_set_id=candidate_set.id,
                prompt_id=candidate_set.prompt_id,
                critic_id=critics[turn].user_id,
                kind=VerdictKind(vote.kind),
                state=VerdictState(vote.state),
                rationale=vote.own,
                edited_from=None if vote.edited_from is None else shown[vote.edited_from],
                shown=shown,
                weight=vote.weight,
                exhaustive=vote.exhaustive,
            )
            factories.add(session, verdict)
            session.add_all(Pick(verdict_id=verdict.id, candidate_id=shown[pick]) for pick in vote.picks)
    session.flush()
    return prompts


def exported(session: Session, project: Project, **wanted: Any) -> tuple[export_plan.ExportPlan, list[dict[str, Any]]]:
    """The rows of an export, and what was planned for it."""
    admin = factories.make_admin(session)
    session.commit()
    found = export_plan.plan_export(session, admin, project, ExportRequest(**wanted))
    return found, [orjson.loads(line) for page in export_plan.line_pages(found) for line in page.splitlines()]


def taught(rows: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """The prompts and texts of rows of `sft`."""
    return sorted((int(row["prompt_id"]), row["completion"][0]["content"][0]["text"]) for row in rows)


# What few random sets come to: equal texts of different wording, weights that turn a majority, a decision, a slot left.
SUBTLE = (
    Judged(0, 2, (Vote("picked", (), "Mine."), Vote("picked", (), "mine", 1))),
    Judged(1, 3, (Vote("picked", (0,)), Vote("picked", (1,), weight=0.25), Vote("picked", (1,), weight=0.25))),
    Judged(2, 2, (Vote("picked", (0,)), Vote("picked", (0,))), Vote("picked", (2,), state="decided")),
    Judged(3, 3, (Vote("picked", (0,), "It is red!"), Vote("none_fit"))),
    Judged(3, 1, (Vote("picked", (0,)),)),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sets=st.lists(judged_sets(), min_size=6, max_size=10),
    last=st.sampled_from((PromptState.judged, PromptState.judged, PromptState.held, PromptState.retired)),
)
@example(sets=[*SUBTLE, *SUBTLE], last=PromptState.judged)
def test_a_round_trains_on_what_sft_exports(
    committed_db: CommittedDatabase, sets: list[Judged], last: PromptState
) -> None:
    with committed_db.sessions() as session:
        project = factories.make_project(session, overlap=4)
        prompts = store(session, project, sets, (*[PromptState.judged] * (PROMPTS - 1), last))
        for aggregation, weigh in itertools.product(AGGREGATIONS, (False, True)):
            check_agreement(session, project, prompts, aggregation, weigh=weigh)


def check_agreement(
    session: Session, project: Project, prompts: Sequence[Prompt], aggregation: str, *, weigh: bool
) -> None:
    """By these settings rounds, exports, records of a snapshot and the marks of prompts say the same."""
    revision = session.get_one(SettingRevision, project.revision_id)
    revision.settings = {**revision.settings, "aggregation": aggregation, "weigh_reliability": weigh}
    session.flush()
    rules.refresh_prompts(session, project.id)
    accepted = accepted_rows(session, project, prompt_ids=[prompt.id for prompt in prompts])
    trained_on = sorted((row.prompt.id, row.rationale or "") for row in accepted)
    found, rows = exported(session, project, format=Format.sft)
    assert taught(rows) == trained_on

    _, records = exported(session, project)
    outcomes = count_records(session, records, counting_rules(found.shape, weigh=weigh))
    again = []
    for prompt in prompts:
        of_prompt = [one for one in records if one["prompt"] == str(prompt.id)]
        own = {one["candidate_set"] for one in of_prompt}
        again += make_rows(of_prompt, [one for one in outcomes if one.ballot in own], found.shape) if own else []
    assert again == rows

    check_rejections(session, project, prompts)
    with_some = {prompt_id for prompt_id, _ in trained_on}
    in_use = [prompt for prompt in prompts if prompt.state is PromptState.judged]
    for prompt in in_use:
        session.refresh(prompt)
    assert {prompt.id for prompt in in_use if prompt.has_accepted} == with_some
    assert {prompt.id for prompt in in_use if prompt.fresh} <= with_some


def check_rejections(session: Session, project: Project, prompts: Sequence[Prompt]) -> None:
    """The objective, a verifier, and the exports `kto` and `preference` call the same texts rejected."""
    labelled: dict[bool, set[tuple[int, str]]] = {True: set(), False: set()}
    for row in exported(session, project, format=Format.kto)[1]:
        labelled[row["label"]].add((int(row["prompt_id"]), key_of(row["completion"])))
    assert labelled[True].isdisjoint(labelled[False])

    moment, ids = Moment(current_position(session), project.revision_id or 0), [prompt.id for prompt in prompts]
    judged = judged_of(session, project, [one.id for one in prompts if one.state is PromptState.judged], moment)
    verified = {(int(one.example.id), normalise_rationale(one.rationale)) for one in judged if not one.picked}
    assert verified == labelled[False]

    texts = rules.set_texts(session, project, prompt_ids=ids, at=moment)
    edited = {(one.prompt_id, normalise_rationale(one.original)) for one in texts if one.original is not None}
    down = labelled[False] | edited - labelled[True]
    chosen = RowSelection(project, settings_of(session, project), moment, seed=0)
    learnt = rejected_rows(session, chosen, prompt_ids=ids)
    assert {(row.prompt.id, normalise_rationale(row.rationale or "")) for row in learnt} <= down
    # Of critics who gave the same text, a round knows the first one alone, and an export whoever edited a candidate.
    for row in exported(session, project, format=Format.records)[1]:
        originals = [one["text"] for one in row["candidates"] if one["id"] == row["edited_from"]]
        down |= {(int(row["prompt"]), normalise_rationale(text)) for text in originals} - labelled[True]
    _, pairs = exported(session, project, format=Format.preference)
    assert {(int(row["prompt_id"]), key_of(row["rejected"])) for row in pairs} <= down


def key_of(messages: Sequence[dict[str, Any]]) -> str:
    """The text of an answer of an export, as texts are compared."""
    return normalise_rationale(messages[0]["content"][0]["text"])


def rule_in_words(votes: Sequence[Vote], slots: int, aggregation: str, *, weigh: bool) -> tuple[set[Any], set[int]]:
    """What is accepted of a set, candidates by number and own texts by key, and what is turned down of it."""

    def share(some: Sequence[Vote]) -> float:
        return sum(one.weight if weigh else 1 for one in some)

    def is_accepted(voters: Sequence[Vote]) -> bool:
        if aggregation == "majority":
            return 2 * share(voters) > share(votes) + max(slots - len(votes), 0)
        return len(voters) >= (slots if aggregation == "all" else 1)

    def is_turned_down(number: int) -> bool:
        voters = [one for one in votes if number in one.picks]
        others = [one for one in votes if number not in one.picks]
        if 2 * share([one for one in others if one.exhaustive]) <= share(votes):
            return False
        if aggregation == "majority":
            return 2 * share(others) >= share(votes) + max(slots - len(votes), 0)
        return bool(others) if aggregation == "all" else not voters

    keys = {normalise_rationale(one.own) for one in votes if one.own is not None}
    of_candidates: dict[int | str, list[Vote]] = {
        number: [one for one in votes if number in one.picks] for number in range(3)
    }
    of_texts: dict[int | str, list[Vote]] = {
        key: [one for one in votes if one.own is not None and normalise_rationale(one.own) == key] for key in keys
    }
    accepted = {key for key, voters in {**of_candidates, **of_texts}.items() if voters and is_accepted(voters)}
    return accepted, {number for number in range(3) if is_turned_down(number)}


def records_of(votes: Sequence[Vote], slots: int) -> list[dict[str, Any]]:
    """The records of one set."""
    return [
        {
            "id": str(number),
            "prompt": "5",
            "candidate_set": "7",
            "kind": vote.kind,
            "slots": slots,
            "prompt_state": "judged",
            "critic_weight": vote.weight,
            "exhaustive": vote.exhaustive,
            "rationale": vote.own,
            "candidates": [{"id": str(one), "picked": one in vote.picks} for one in range(3)],
        }
        for number, vote in enumerate(votes, 1)
    ]


judging_votes = votes(state="counted").filter(lambda vote: vote.kind in ("picked", "none_fit"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.lists(judging_votes, min_size=1, max_size=5),
    open_slots=st.integers(0, 3),
    aggregation=st.sampled_from(AGGREGATIONS),
    weigh=st.booleans(),
)
def test_the_rule_in_words(session: Session, said: list[Vote], open_slots: int, aggregation: str, weigh: bool) -> None:
    slots = len(said) + open_slots
    rules = CountingRules(Aggregation(aggregation), weigh=weigh)
    outcomes = count_records(session, records_of(said, slots), rules)
    keys = {str(number): vote.own for number, vote in enumerate(said, 1)}
    accepted = {
        int(one.candidate) if one.candidate is not None else normalise_rationale(keys[str(one.verdict)] or "")
        for one in outcomes
        if one.is_accepted
    }
    turned_down = {int(one.candidate or -1) for one in outcomes if not one.is_accepted}
    assert (accepted, turned_down) == rule_in_words(said, slots, aggregation, weigh=weigh)
    assert not accepted & turned_down
