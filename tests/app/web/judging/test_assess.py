"""Structured answers on the critic's page: rated blind, then picked and corrected; and where their fields are shown."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Assignment, PolicyVersion, Project, Review, Role, User, Verdict, VerdictKind
from app.web.judging.assess import assessment_of, find_clashes
from illume.fields.definitions import read_answer_fields
from illume.fields.policies import Policy, PolicyCategory
from tests import factories
from tests.app.web.conftest import Browser, person
from tests.app.web.judging.test_annotate import assignment_in, count, picks_in

OWN, OTHER = factories.CATEGORIES
BLIND = {"rating": "Unsafe", "category": OWN}
TEXTS = (factories.answer("a cat, “asleep”\nand more"), factories.answer("a dog", rating="Safe", category=OTHER))
FIELDS = read_answer_fields(factories.ANSWER_FIELDS)
HERE = "/annotate/rules"


@pytest.fixture
def structured(session: Session) -> tuple[Project, PolicyVersion]:
    """A project whose answers are structured, with two sets ready to judge under a policy that is strict about O1."""
    settings = {"round_every": 1000, "flag_reasons": ["The policy is unclear here"]}
    project, _first = factories.structured_project(session, slug="rules", **settings)
    policy = factories.make_policy(session, project, O1="strict")
    for number in range(2):
        prompt = factories.make_prompt(session, project, policy=policy, answer=None, question=f"Fine {number}?")
        factories.make_candidate_set(session, project, prompt=prompt, texts=TEXTS)
    return project, policy


@pytest.fixture
def critic(session: Session, structured: tuple[Project, PolicyVersion], browser: Browser) -> User:
    """A critic who is signed in."""
    user = factories.make_member(session, structured[0], user=person(session, role=Role.critic))
    browser.sign_in(user)
    return user


def send_values(browser: Browser, assignment: str, values: Any) -> Any:
    return browser.post(f"{HERE}/assignments/{assignment}/fields", {"fields": json.dumps(values)})


def give(browser: Browser, assignment: str, kind: str, **fields: Any) -> Any:
    return browser.post(f"{HERE}/assignments/{assignment}/verdict", {"kind": kind, **fields})


@pytest.mark.usefixtures("critic")
class TestJudging:
    def test_the_page_has_the_policy_and_no_explanation_before_the_rating(
        self, browser: Browser, session: Session
    ) -> None:
        text = browser.get(HERE).text
        assert not picks_in(text)
        assert "a dog" not in text
        assert re.search(r'<article class="work" data-blind id="work"', text)
        assert f"{OWN} is strict." in html.unescape(text)
        assert re.findall(r'data-default="([^"]*)"', text) == [html.escape(f"{OWN} is default.")]
        assert re.findall(r'<li class="differs warn">', text) == ['<li class="differs warn">']
        assert re.findall(r'name="value-2" value="([^"]*)"', text) == [html.escape(one) for one in (OWN, OTHER, "NA")]
        early = give(browser, assignment_in(text), "none_fit")
        assert (early.status_code, count(session)) == (409, 0)

    def test_the_rating_shows_the_explanations_and_a_verdict_corrects_it(
        self, browser: Browser, session: Session
    ) -> None:
        assignment = assignment_in(browser.get(HERE).text)
        shown = send_values(browser, assignment, BLIND)
        assert shown.status_code == 200, shown.text
        assert len(picks_in(shown.text)) == 2
        assert "data-blind" not in shown.text
        assert html.escape("a cat, “asleep”\nand more", quote=False) in shown.text
        assert shown.text.count('data-told-field="rating"') == 2
        assert picks_in(browser.get(HERE).text) == picks_in(shown.text)  # a reload shows them as well
        given = give(
            browser, assignment, "picked", picks=picks_in(shown.text)[0], fields=json.dumps({"category": OTHER})
        )
        assert given.status_code == 201
        verdict = session.scalars(select(Verdict)).one()
        assert verdict.fields == {"rating": "Unsafe", "category": OTHER}
        back = browser.get(f"{HERE}/back").text
        assert f'value="{html.escape(OTHER)}" checked' in back
        changed = browser.post(
            f"{HERE}/verdicts/{verdict.id}", {"kind": "none_fit", "fields": json.dumps({**BLIND, "category": "NA"})}
        )
        assert changed.status_code == 201, changed.text
        newest = session.scalars(select(Verdict).order_by(Verdict.id.desc())).first()
        assert newest is not None
        assert newest.fields == {"rating": "Unsafe", "category": "NA"}
        listed = html.unescape(browser.get(f"{HERE}/history").text)
        assert re.search(r"rating</span> <strong[^>]*>Unsafe</strong> · ", listed)
        assert '{"rating"' not in listed

    def test_a_repeat_of_the_same_verdict_changes_nothing(self, browser: Browser, session: Session) -> None:
        assignment = assignment_in(browser.get(HERE).text)
        send_values(browser, assignment, BLIND)
        assert send_values(browser, assignment, BLIND).status_code == 200
        fields = {"fields": json.dumps({"category": OTHER}), "seconds": "3", "again": "yes"}
        assert give(browser, assignment, "none_fit", **fields).status_code == 201
        assert give(browser, assignment, "none_fit", **fields).status_code == 201
        assert count(session) == 1
        other = {**fields, "fields": json.dumps({"category": "NA"})}
        assert give(browser, assignment, "none_fit", **other).status_code == 201
        assert count(session) == 2

    @pytest.mark.parametrize("values", [{"rating": "Unsafe"}, {**BLIND, "rating": "unsafe"}, "x", None])
    def test_what_is_wrong_or_missing_is_refused(self, browser: Browser, session: Session, values: Any) -> None:
        assignment = assignment_in(browser.get(HERE).text)
        assert send_values(browser, assignment, values).status_code == 422
        assert session.get_one(Assignment, int(assignment)).blind is None

    def test_an_unclear_policy_goes_to_review_without_a_rating(self, browser: Browser, session: Session) -> None:
        text = browser.get(HERE).text
        assert 'data-reason="The policy is unclear here"' in text
        flagged = give(browser, assignment_in(text), "flagged", reason="The policy is unclear here")
        assert flagged.status_code == 201
        assert session.scalars(select(Review)).one().kind == "flag"
        assert session.scalars(select(Verdict)).one().kind is VerdictKind.flagged
        back = browser.get(f"{HERE}/back").text
        assert "You did not rate this picture" in back
        assert not picks_in(back)


def test_elsewhere_nothing_is_asked(browser: Browser, session: Session) -> None:
    project = factories.make_project(session, slug="rules")
    factories.make_candidate_set(session, project)
    browser.sign_in(factories.make_member(session, project, user=person(session, role=Role.critic)))
    text = browser.get(HERE).text
    assert "data-assess" not in text
    assert send_values(browser, assignment_in(text), BLIND).status_code == 409


class TestAssessment:
    def policy(self, **statuses: Any) -> Policy:
        return Policy(
            categories=tuple(
                PolicyCategory(name=name, status=statuses.get(name, "default"), default="d", allowed="a", strict="s")
                for name in ("A", "B")
            )
        )

    def test_clashes_are_those_of_the_rules(self) -> None:
        assert find_clashes(FIELDS, self.policy(A="allowed", B="strict")) == {
            "rating": "rating",
            "category": "category",
            "pairs": {"Unsafe": {"A": "allowed", "NA": "none"}, "Safe": {"B": "strict"}},
        }
        assert find_clashes(FIELDS, None) == {}

    def test_a_policy_without_such_a_field_is_shown_as_rules(self) -> None:
        claim = {
            "candidates": [],
            "policy": {
                "name": "P",
                "number": 3,
                "preamble": "",
                "categories": [{"name": "A", "status": "allowed", "text": "fine"}],
            },
        }
        fields = read_answer_fields([factories.ANSWER_FIELDS[0], factories.ANSWER_FIELDS[2]])
        found = assessment_of(claim, fields, {"rating": "Safe"})
        assert found is not None
        assert [(one.value, one.text, one.tone) for one in found.rules] == [("A", "fine", "good")]
        assert [one.is_chosen for one in found.fields[0].choices] == [False, True]
        assert not found.is_blind
        assert assessment_of({"candidates": []}, None, None) is None
