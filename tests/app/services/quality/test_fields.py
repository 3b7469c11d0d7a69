"""How critics judge each field: agreement, check questions and repeats."""

from __future__ import annotations

from collections.abc import Mapping

import krippendorff
import pytest
from sqlalchemy.orm import Session

from app.models import CandidateSet, Project, Purpose, SettingRevision, Verdict, VerdictState
from app.services.kernel.actors import Actor
from app.services.quality.fields import load_field_quality
from tests import factories

OWN, OTHER = factories.CATEGORIES
LEVELS = ("Safe", "Mild", "Severe", "Unsafe")
ORDINAL = [
    {**factories.ANSWER_FIELDS[0], "choices": list(LEVELS), "ordinal": True},
    *factories.ANSWER_FIELDS[1:],
]


@pytest.fixture
def project(session: Session) -> Project:
    """A project whose ratings are in order."""
    return factories.structured_project(session, answer_fields=ORDINAL, overlap=3)[0]


def offer(session: Session, project: Project, **gold: str | None) -> CandidateSet:
    prompt = factories.make_prompt(session, project, answer=None, fields=dict(gold) if gold else None)
    return factories.make_candidate_set(session, project, prompt=prompt, texts=[factories.answer("a cat")], slots=3)


def judge(
    session: Session,
    offered: CandidateSet,
    critic: Actor,
    fields: Mapping[str, str],
    *,
    state: VerdictState = VerdictState.counted,
) -> Verdict:
    purpose = {"counted": Purpose.work, "gold": Purpose.gold, "repeat": Purpose.repeat}[state.value]
    assignment = factories.make_assignment(session, offered, critic, slot=offered.taken + 1, purpose=purpose)
    made = factories.make_verdict(session, assignment)
    made.fields, made.state = dict(fields), state
    session.flush()
    return made


def test_alpha_is_that_of_the_kept_library(session: Session, project: Project) -> None:
    said = (("Safe", "Safe", "Mild"), ("Severe", "Unsafe", "Severe"), ("Unsafe", "Unsafe"), ("Mild", "Safe"))
    critics = [factories.make_critic(session, project) for _ in range(3)]
    for ratings in said:
        offered = offer(session, project)
        for number, level in enumerate(ratings):
            judge(session, offered, critics[number], {"rating": level, "category": OWN if number < 2 else OTHER})
    # Nobody else judged this one, and what a critic has changed since does not count.
    alone = judge(session, offer(session, project), critics[0], {"rating": "Severe"})
    alone.current = False
    session.flush()
    table = [[LEVELS.index(row[k]) if k < len(row) else float("nan") for row in said] for k in range(3)]
    found = load_field_quality(session, project)
    rating, category = found["rating"], found["category"]
    expected = krippendorff.alpha(table, level_of_measurement="ordinal", value_domain=list(range(4)))
    assert rating.alpha == pytest.approx(expected)
    assert (rating.ordinal, rating.sets) == (True, 4)
    names = [[(0.0 if k < 2 else 1.0) if k < len(row) else float("nan") for row in said] for k in range(3)]
    assert category.alpha == pytest.approx(krippendorff.alpha(names, level_of_measurement="nominal"))
    assert (category.ordinal, category.sets) == (False, 4)
    assert list(found) == ["rating", "category"]  # rationales are picked


def test_check_questions_and_repeats_are_counted_by_field(session: Session, project: Project) -> None:
    critic = factories.make_critic(session, project)
    gold = offer(session, project, rating="Unsafe", category=OWN)
    judge(session, gold, critic, {"rating": "Unsafe", "category": OTHER}, state=VerdictState.gold)
    work = offer(session, project)
    judge(session, work, critic, {"rating": "Safe", "category": "NA"})
    judge(session, work, critic, {"rating": "Mild", "category": "NA"}, state=VerdictState.repeat)
    found = load_field_quality(session, project)
    assert {name: (one.gold, one.gold_right, one.repeats, one.repeats_same) for name, one in found.items()} == {
        "rating": (1, 1, 1, 0),
        "category": (1, 0, 1, 1),
    }


def test_answers_without_fields_have_none(session: Session, project: Project) -> None:
    plain = factories.add(session, SettingRevision(project_id=project.id, number=2, settings={}))
    project.revision_id = plain.id
    session.flush()
    assert load_field_quality(session, project) == {}
