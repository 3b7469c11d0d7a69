"""Practice before the work: what is right is told at once, and where answers have fields the picture is rated first."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, Invalid
from app.models import PracticeAnswer, Project
from app.services.kernel.actors import Actor
from app.services.quality import gold, practice
from tests import factories, judging
from tests.app.services.judging.test_claim_order import dice, project_with
from tests.app.services.quality.test_gold import add

__all__ = ["dice"]
OWN, OTHER = factories.CATEGORIES
RIGHT: dict[str, str | None] = {"rating": "Unsafe", "category": OWN}
WRONG: dict[str, str | None] = {"rating": "Safe", "category": "NA"}


class TestPicks:
    def test_comes_before_the_work_with_feedback(self, session: Session) -> None:
        project = project_with(session, practice_prompts=2)
        for number in range(3):
            add(session, project, practice=True, explanation=f"because {number}")
        factories.make_candidate_set(session, project)
        critic = factories.make_critic(session, project)
        with pytest.raises(Forbidden, match="practice") as refused:
            judging.claim(session, critic, project)
        assert refused.value.extra["reason"] == "practice"
        first = practice.next_practice(session, critic, project)
        assert first is not None
        assert first["left"] == 2
        assert "fits" not in first["candidates"][0]
        wrong = next(one["id"] for one in first["candidates"] if one["text"] == "it does not")
        told = practice.answer_practice(session, critic, project, int(first["id"]), [wrong])
        assert (told.score, told.left, len(told.wrong)) == (0.0, 1, 2)
        assert told.explanation == "because 0"
        again = practice.answer_practice(session, critic, project, int(first["id"]), [])
        assert again.left == 1  # the first answer remains
        second = practice.next_practice(session, critic, project)
        assert second is not None
        assert second["id"] != first["id"]
        assert practice.answer_practice(session, critic, project, int(second["id"]), []).left == 0
        assert practice.next_practice(session, critic, project) is None
        assert judging.claim(session, critic, project) is not None

    def test_no_practice_without_practice_prompts(self, session: Session) -> None:
        project = project_with(session, practice_prompts=5)
        factories.make_candidate_set(session, project)
        assert judging.claim(session, factories.make_critic(session, project), project) is not None

    def test_practice_is_not_mixed_in(self, session: Session, dice: dict[str, float]) -> None:
        dice["gold_draw"] = 0.0
        project = project_with(session, gold_share=0.5)
        add(session, project, practice=True)
        assert judging.claim(session, factories.make_critic(session, project), project) is None


@pytest.fixture
def project(session: Session) -> Project:
    """A project whose answers are structured, with a practice prompt whose right values are known."""
    project, policy = factories.structured_project(session, practice_prompts=1)
    strict = factories.make_policy(session, project, O1="strict")
    assert strict.number > policy.number
    prompt = factories.make_prompt(session, project, policy=strict, answer=None, fields=dict(RIGHT))
    add(session, project, prompt=prompt, practice=True)
    factories.make_candidate_set(session, project, texts=[factories.answer("a cat")])
    return project


@pytest.fixture
def critic(session: Session, project: Project) -> Actor:
    return factories.make_critic(session, project)


def following(session: Session, critic: Actor, project: Project) -> dict[str, Any]:
    item = practice.next_practice(session, critic, project)
    assert item is not None
    return item


class TestFields:
    def test_no_candidate_comes_before_the_rating(self, session: Session, critic: Actor, project: Project) -> None:
        item = following(session, critic, project)
        assert (item["candidates"], item["fields"], item["left"]) == (None, None, 1)
        assert item["policy"]["categories"] == [
            {"name": OWN, "status": "strict", "text": f"{OWN} is strict.", "default": f"{OWN} is default."},
            {"name": OTHER, "status": "default", "text": f"{OTHER} is default."},
        ]
        gold_id = int(item["id"])
        with pytest.raises(Conflict, match="Rate the picture first"):
            practice.answer_practice(session, critic, project, gold_id, [])
        practice.rate_practice(session, critic, project, gold_id, WRONG)
        practice.rate_practice(session, critic, project, gold_id, WRONG)  # sent twice
        with pytest.raises(Conflict, match="stored already"):
            practice.rate_practice(session, critic, project, gold_id, RIGHT)
        rated = following(session, critic, project)
        assert (rated["id"], rated["fields"], rated["left"]) == (item["id"], WRONG, 1)
        assert {json.loads(one["text"])["rationale"] for one in rated["candidates"]} == {"it fits", "it does not"}
        # Who has only rated a picture has not practised yet, nor answered a check question.
        assert not practice.has_practised(session, critic, project)
        assert gold.gold_json(session, gold_id)["answered"] == 0
        with pytest.raises(Forbidden, match="practice"):
            judging.claim(session, critic, project)

    @pytest.mark.parametrize(
        ("corrected", "wrong"),
        [({}, ("rating", "category")), ({"rating": "Unsafe"}, ("category",)), (RIGHT, ())],
    )
    def test_the_values_are_compared_with_the_right_ones(
        self,
        session: Session,
        critic: Actor,
        project: Project,
        corrected: dict[str, str | None],
        wrong: tuple[str, ...],
    ) -> None:
        gold_id = int(following(session, critic, project)["id"])
        practice.rate_practice(session, critic, project, gold_id, WRONG)
        rated = following(session, critic, project)
        pick = next(one["id"] for one in rated["candidates"] if "it fits" in one["text"])
        told = practice.answer_practice(session, critic, project, gold_id, [pick], corrected)
        assert (told.fields, told.gold, told.wrong_fields) == ({**WRONG, **corrected}, RIGHT, wrong)
        assert (told.score, told.wrong, told.left) == (1.0, (), 0)
        again = practice.answer_practice(session, critic, project, gold_id, [], {})
        assert again.left == 0
        stored = session.scalars(select(PracticeAnswer)).one()
        assert (stored.fields, stored.score) == ({**WRONG, **corrected}, 1.0)  # the first answer remains
        assert judging.claim(session, critic, project) is not None

    def test_an_optional_field_that_is_left_out_is_not_right(self, session: Session) -> None:
        rating, category, *others = factories.ANSWER_FIELDS
        optional = [rating, {**category, "required": False}, *others]
        project, policy = factories.structured_project(session, answer_fields=optional, practice_prompts=1)
        prompt = factories.make_prompt(session, project, policy=policy, answer=None, fields=dict(RIGHT))
        gold_id = int(add(session, project, prompt=prompt, practice=True)["id"])
        critic = factories.make_critic(session, project)
        practice.rate_practice(session, critic, project, gold_id, {"rating": "Unsafe"})
        told = practice.answer_practice(session, critic, project, gold_id, [])
        assert (told.fields, told.gold, told.wrong_fields) == ({"rating": "Unsafe"}, RIGHT, ("category",))

    @pytest.mark.parametrize(
        ("values", "place"),
        [
            ({"rating": "Unsafe"}, "fields.category"),
            ({**RIGHT, "category": "O9"}, "fields.category"),
            ({**RIGHT, "mood": "x"}, "fields.mood"),
            ({**RIGHT, "rationale": "a cat"}, "fields.rationale"),
        ],
    )
    def test_values_that_are_none_are_refused(
        self, session: Session, critic: Actor, project: Project, values: dict[str, str | None], place: str
    ) -> None:
        gold_id = int(following(session, critic, project)["id"])
        with pytest.raises(Invalid) as refused:
            practice.rate_practice(session, critic, project, gold_id, values)
        assert refused.value.field == place
        assert session.scalar(select(func.count()).select_from(PracticeAnswer)) == 0

    def test_a_project_without_fields_asks_for_none(self, session: Session) -> None:
        plain = project_with(session, practice_prompts=1)
        made = add(session, plain, practice=True)
        critic = factories.make_critic(session, plain)
        assert "fields" not in following(session, critic, plain)
        with pytest.raises(Conflict, match="asks for no fields"):
            practice.rate_practice(session, critic, plain, int(made["id"]), RIGHT)
        with pytest.raises(Invalid, match="no answer_fields"):
            practice.answer_practice(session, critic, plain, int(made["id"]), [], RIGHT)
