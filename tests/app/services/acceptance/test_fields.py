"""Structured answers: what SQL decides and accepts is what `illume.fields.accepting` says, in rounds and in exports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from app.models import (
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    Pick,
    Project,
    SettingRevision,
    SnapshotItemRole,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import Moment
from app.services.exports import plan as export_plan
from app.services.exports.plan import ExportRequest
from app.services.exports.shapes import Format, Task
from app.services.projects.projects import settings_of
from app.services.rounds.row_files import parse_row, row_json
from app.services.rounds.training_set import RowSelection, accepted_rows, rejected_rows
from illume.fields.accepting import accepted_answers, decide_fields
from illume.fields.answers import Values, answer_json
from illume.fields.definitions import read_answer_fields
from tests import factories
from tests.conftest import CommittedDatabase

FIELDS = read_answer_fields(factories.ANSWER_FIELDS)
OWN, OTHER = factories.CATEGORIES
TEXTS = (
    factories.answer("a cat", category=OWN),
    factories.answer("a cat", rating="Safe", category="NA"),
    factories.answer('a "dog",\nin the kitchen', category=OTHER),
    '{"rating": "Uns',
)
VALUES: list[Values | None] = [orjson.loads(text) for text in TEXTS[:3]] + [None]
Fields = dict[str, str | None]


@dataclass(frozen=True)
class Said:
    """A verdict of a critic, or a reviewer's decision."""

    picks: frozenset[int]
    fields: Fields
    kind: str = "picked"


said = st.builds(
    lambda picks, fields, kind: Said(picks if kind == "picked" else frozenset(), fields, kind),
    st.frozensets(st.integers(0, 2), min_size=1, max_size=3),
    st.fixed_dictionaries(
        {}, optional={"rating": st.sampled_from(["Unsafe", "Safe"]), "category": st.sampled_from([OWN, OTHER, "NA"])}
    ),
    st.sampled_from(("picked", "picked", "picked", "none_fit", "skipped")),
)
critics = st.lists(st.lists(said, min_size=1, max_size=2), min_size=1, max_size=4)


def make_project(session: Session, **wanted: Any) -> tuple[Project, CandidateSet]:
    """A structured project with a judged set."""
    project, policy = factories.structured_project(session, **wanted)
    prompt = factories.make_prompt(session, project, policy=policy, answer=None)
    made = factories.make_candidate_set(
        session, project, prompt=prompt, texts=TEXTS, state=CandidateSetState.judged, slots=4
    )
    return project, made


def store(
    session: Session, offered: CandidateSet, given: Said, *, slot: int, state: str, before: Verdict | None
) -> Any:
    """A verdict with its fields, or a change of one."""
    if before is None:
        critic = factories.make_admin(session)
        ended = AssignmentState.judged if state == "counted" else AssignmentState.released
        assignment = factories.make_assignment(session, offered, critic, state=ended, slot=slot)
        assignment_id, critic_id, shown = assignment.id, critic.user_id, assignment.shown
    else:
        before.current = False
        session.flush()
        assignment_id, critic_id, shown = before.assignment_id, before.critic_id, before.shown
    made = factories.add(
        session,
        Verdict(
            project_id=offered.project_id,
            assignment_id=assignment_id,
            candidate_set_id=offered.id,
            prompt_id=offered.prompt_id,
            critic_id=critic_id,
            kind=VerdictKind(given.kind),
            state=VerdictState(state),
            supersedes=None if before is None else before.id,
            shown=shown,
            fields=given.fields or None,
        ),
    )
    candidates = factories.candidates_of(session, offered)
    session.add_all(Pick(verdict_id=made.id, candidate_id=candidates[pick].id) for pick in given.picks)
    session.flush()
    return made


def expected(given: list[list[Said]], decision: Said | None, aggregation: str) -> dict[str, frozenset[str]]:
    """The accepted answers with the names of their masked fields, by the library."""
    in_force = [one[-1] for one in given] if decision is None else [decision]
    judged = [one for one in in_force if one.kind in ("picked", "none_fit")]
    decided, _ = decide_fields([one.fields for one in judged], FIELDS)
    slots = max(4, len(judged))
    votes = {index: sum(index in one.picks for one in judged) for index in range(3)}
    needed = {"any": 1, "majority": slots // 2 + 1, "all": slots}["any" if decision else aggregation]
    picked = [index for index, n in votes.items() if n >= needed]
    return {one.text: one.masked for one in accepted_answers(VALUES, picked, decided, FIELDS)}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(critics, st.none() | said, st.sampled_from(("any", "majority", "all")), st.randoms(use_true_random=False))
@example(
    [[Said(frozenset({0}), {"rating": "Safe"})], [Said(frozenset({0, 1}), {"rating": "Unsafe"})]], None, "any", None
)
def test_any_order_of_verdicts_corrections_and_decisions(
    session: Session, critics: list[list[Said]], decision: Said | None, aggregation: str, order: Any
) -> None:
    if decision is not None and decision.kind == "skipped":
        decision = None
    with session.begin_nested() as undone:
        project, offered = make_project(session, aggregation=aggregation)
        turns = [critic for critic, one in enumerate(critics) for _ in one]
        turns += [-1] if decision is not None else []
        if order is not None:
            order.shuffle(turns)
        newest: dict[int, Verdict] = {}
        done = dict.fromkeys(range(-1, len(critics)), 0)
        for critic in turns:
            if critic < 0 and decision is not None:
                store(session, offered, decision, slot=9, state="decided", before=None)
                continue
            one = critics[critic][done[critic]]
            done[critic] += 1
            before = newest.get(critic)
            newest[critic] = store(session, offered, one, slot=critic + 1, state="counted", before=before)
        wanted = expected(critics, decision, aggregation)
        found = rules.accepted_rationales(session, project)
        name = FIELDS.rationale.name
        made = {answer_json({**(one.values or {}), name: one.text}, FIELDS): one.masked for one in found}
        assert made == wanted
        rows = accepted_rows(session, project, prompt_ids=[offered.prompt_id])
        assert len(rows) == len(wanted)
        assert [parse_row(orjson.loads(orjson.dumps(row_json(row)))) for row in rows] == rows
        undone.rollback()


def exported(session: Session, project: Project, **wanted: Any) -> list[dict[str, Any]]:
    session.commit()
    found = export_plan.plan_export(session, factories.make_admin(session), project, ExportRequest(**wanted))
    session.commit()
    return [orjson.loads(line) for page in export_plan.line_pages(found) for line in page.splitlines()]


class TestRows:
    def test_a_right_answer_but_for_one_field_is_a_pair_in_that_field_alone(self, session: Session) -> None:
        project, offered = make_project(session, objective="picks_and_rejections")
        store(
            session,
            offered,
            Said(frozenset({0}), {"rating": "Unsafe", "category": OTHER}),
            slot=1,
            state="counted",
            before=None,
        )
        moment = Moment(current_position(session), project.revision_id or 0)
        selection = RowSelection(project, settings_of(session, project), moment, 0)
        rows = rejected_rows(session, selection, prompt_ids=[offered.prompt_id])
        assert all(row.role is SnapshotItemRole.rejection for row in rows)
        pairs = {(row.rationale, row.accepted): (row.values, row.accepted_values) for row in rows}
        corrected = {"rating": "Unsafe", "category": OTHER}
        assert pairs[("a cat", "a cat")] == ({"rating": "Unsafe", "category": OWN}, corrected)
        assert pairs[('a "dog",\nin the kitchen', "a cat")] == (corrected, corrected)
        assert len(pairs) == 2  # the other candidate has the accepted rationale

    def test_an_own_rationale_goes_with_its_critics_values(self, session: Session) -> None:
        project, offered = make_project(session)
        made = store(
            session,
            offered,
            Said(frozenset(), {"rating": "Safe", "category": "NA"}),
            slot=1,
            state="counted",
            before=None,
        )
        made.rationale, made.rationale_key = "nobody is there", "nobody is there"
        session.flush()
        [one] = rules.accepted_rationales(session, project)
        assert (one.text, one.values, one.masked) == (
            "nobody is there",
            {"rating": "Safe", "category": "NA"},
            frozenset(),
        )

    def test_before_the_project_had_fields_there_were_none(self, session: Session) -> None:
        project, offered = make_project(session)
        store(session, offered, Said(frozenset({0}), {"rating": "Safe"}), slot=1, state="counted", before=None)
        plain = factories.add(
            session, SettingRevision(project_id=project.id, number=9, settings={"aggregation": "any"})
        )
        at = Moment(current_position(session), plain.id)
        assert rules.fields_at(session, project, at) is None


class TestExports:
    """The first candidate is picked, and one of its fields corrected; the others are not.

    The second one has the accepted rationale with other fields, the third one has the right fields, and the last one is
    invalid.
    """

    GOOD = factories.answer("a cat", category=OTHER)
    CORRECTED = TEXTS[0]
    UNPICKED = TEXTS[2]

    @pytest.fixture
    def session(self, committed_db: CommittedDatabase) -> Iterator[Session]:
        """Exports are read in sessions of their own."""
        with committed_db.sessions() as session:
            yield session

    @pytest.fixture
    def project(self, session: Session) -> Project:
        project, offered = make_project(session)
        said = Said(frozenset({0}), {"rating": "Unsafe", "category": OTHER})
        store(session, offered, said, slot=1, state="counted", before=None)
        return project

    def texts(self, session: Session, project: Project, form: Format, task: Task = Task.sft) -> list[tuple[Any, ...]]:
        """What is to be learnt from each row."""

        def text_of(said: Any) -> Any:
            """The text of one turn: of messages, or as LLaMA-Factory has it."""
            if isinstance(said, dict):
                return said["value"]
            return said[-1]["content"][0]["text"] if isinstance(said, list) and "content" in said[-1] else said

        columns = {"completion", "chosen", "rejected", "label"}
        return [
            tuple(text_of(value) for name, value in row.items() if name in columns)
            or (row["conversations"][-1]["value"],)
            for row in exported(session, project, format=form, task=task)
        ]

    def test_completions_are_json_in_the_order_of_the_fields(self, session: Session, project: Project) -> None:
        assert self.texts(session, project, Format.sft) == [(self.GOOD,)]
        assert self.texts(session, project, Format.sharegpt) == [(self.GOOD,)]
        [row] = exported(session, project, format=Format.sft)
        prompt = "".join(part["text"] or "" for part in row["prompt"][0]["content"])
        assert f"{OTHER} (default): {OTHER} is default." in prompt

    def test_pairs_differ_in_one_field_or_in_the_rationale(self, session: Session, project: Project) -> None:
        wanted = {(self.GOOD, self.CORRECTED), (self.GOOD, self.UNPICKED)}
        assert set(self.texts(session, project, Format.preference)) == wanted
        assert set(self.texts(session, project, Format.sharegpt, Task.preference)) == wanted
        for chosen, rejected in wanted:
            one, other = orjson.loads(chosen), orjson.loads(rejected)
            assert sum(one[name] != other[name] for name in FIELDS.names) == 1

    def test_what_is_not_decided_is_the_same_on_both_sides(self, session: Session) -> None:
        project, offered = make_project(session)
        for slot, category in enumerate((OWN, OTHER), start=1):
            said = Said(frozenset({0}), {"rating": "Unsafe", "category": category})
            store(session, offered, said, slot=slot, state="counted", before=None)
        rejected = factories.answer('a "dog",\nin the kitchen', category=OWN)
        assert self.texts(session, project, Format.preference) == [(TEXTS[0], rejected)]

    def test_labels(self, session: Session, project: Project) -> None:
        wanted = {(self.GOOD, True), (self.CORRECTED, False), (self.UNPICKED, False)}
        found = self.texts(session, project, Format.kto)
        assert (set(found), len(found)) == (wanted, 3)  # no text has both labels
        rows = exported(session, project, format=Format.sharegpt, task=Task.kto)
        assert {(row["conversations"][-1]["value"], row["label"]) for row in rows} == wanted

    def test_a_row_for_each_verdict_and_field(self, session: Session, project: Project) -> None:
        rows = exported(session, project, format=Format.fields)
        assert [(row["field"], row["model"], row["critic"], row["accepted"], row["gold"]) for row in rows] == [
            ("rating", "Unsafe", "Unsafe", "Unsafe", None),
            ("category", OWN, OTHER, OTHER, None),
        ]
        assert len({(row["prompt"], row["verdict"], row["policy"], row["image"]) for row in rows}) == 1
