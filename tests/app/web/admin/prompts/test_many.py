"""The list of prompts: acting on many at once, sorting, and the grid of images."""

from __future__ import annotations

import html
import re

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import CandidateSetState, Project, Prompt, PromptState, Review, ReviewKind, Role, Split, User, Verdict
from app.models.states import VerdictState
from app.web.admin.prompts import many
from tests import factories
from tests.app.web.conftest import Browser, person

BASE = "/admin/projects/scenes/prompts"


def shown(text: str) -> list[str]:
    """The questions of the list, from top to bottom."""
    return [html.unescape(one) for one in re.findall(r'aria-label="Select: ([^"]*)"', text)]


def apply(browser: Browser, prompts: list[Prompt], **fields: str) -> str:
    """Apply an action to prompts, and return the page that answers."""
    answer = browser.post(f"{BASE}/many", {"prompts": [str(one.id) for one in prompts], "here": "?per=200", **fields})
    assert answer.status_code == 200
    return re.findall(r'<section class="note[^>]*>(.*?)</section>', answer.text, re.DOTALL)[0]


@pytest.fixture
def three(session: Session, project: Project) -> list[Prompt]:
    return [
        factories.make_prompt(session, project, question=f"question {name}?", external_id=name, priority=priority)
        for name, priority in (("b", 1), ("C", 5), ("a", 3))
    ]


@pytest.mark.usefixtures("admin")
class TestMany:
    def test_archived_and_brought_back(self, browser: Browser, session: Session, three: list[Prompt]) -> None:
        browser.get(BASE)
        assert "2 prompts archived." in apply(browser, three[:2], action="archive")
        session.expire_all()
        assert [one.state for one in three] == [PromptState.retired, PromptState.retired, PromptState.waiting]
        assert "2 prompts restored." in apply(browser, three[:2], action="restore")
        session.expire_all()
        assert {one.state for one in three} == {PromptState.waiting}

    def test_priority_and_split(
        self, browser: Browser, session: Session, project: Project, three: list[Prompt]
    ) -> None:
        browser.get(BASE)
        factories.make_candidate_set(session, project, prompt=three[0])
        assert "3 prompts set to priority -7." in apply(browser, three, action="priority", priority="-7")
        text = apply(browser, three, action="split", split="val")
        assert "2 prompts moved to val. 1 could not be changed:" in text
        assert f"/prompts/{three[0].id}" in text
        assert "The split can no longer change: the prompt has explanations." in text
        session.expire_all()
        assert [(one.priority, one.split) for one in three] == [(-7, Split.train), (-7, Split.val), (-7, Split.val)]

    def test_blurred_and_shown_again(self, browser: Browser, session: Session, three: list[Prompt]) -> None:
        three[0].extra = {"scene": 1, "blur": "yes"}
        browser.get(BASE)
        assert "3 prompts blurred" in apply(browser, three, action="blur")
        session.expire_all()
        assert [one.extra for one in three] == [{"scene": 1, "blur": True}, {"blur": True}, {"blur": True}]
        assert "1 prompt no longer blurred." in apply(browser, three[:1], action="unblur")
        session.expire_all()
        assert three[0].extra == {"scene": 1}

    def test_sent_to_review_once(
        self, browser: Browser, session: Session, project: Project, three: list[Prompt]
    ) -> None:
        browser.get(BASE)
        sets = [factories.make_candidate_set(session, project, prompt=one) for one in three[:2]]
        sets[1].state = CandidateSetState.failed
        for _ in range(2):
            text = apply(browser, three, action="review")
            assert "1 prompt sent to review. 2 could not be changed:" in text
            assert text.count("The prompt has no explanations yet") == 2
        assert session.scalars(select(Review.kind)).all() == [ReviewKind.asked]
        queue = browser.get("/admin/projects/scenes/review?kind=asked").text
        assert "question b?" in queue
        review = session.scalars(select(Review)).one()
        pick = factories.candidates_of(session, sets[0])[0].id
        answer = browser.post(f"/admin/projects/scenes/review/{review.id}", {"action": "decide", "picks": str(pick)})
        assert answer.status_code == 303
        session.expire_all()
        assert session.scalars(select(Verdict.state)).all() == [VerdictState.decided]
        assert three[0].has_accepted

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"action": ""}, "Choose what to do"),
            ({"action": "priority", "priority": "high"}, "priority: enter a whole number."),
            ({"action": "split", "split": "x"}, "split: choose train, val or test."),
        ],
    )
    def test_an_action_that_says_too_little(
        self, browser: Browser, session: Session, three: list[Prompt], fields: dict[str, str], said: str
    ) -> None:
        browser.get(BASE)
        assert said in apply(browser, three, **fields)
        assert "Select at least one prompt." in apply(browser, [], action="archive")

    def test_for_reviewers_and_their_project_only(
        self, browser: Browser, session: Session, project: Project, three: list[Prompt]
    ) -> None:
        other = factories.make_prompt(session, factories.make_project(session))
        browser.get(BASE)
        assert "There is no such prompt in this project." in apply(browser, [other], action="archive")
        assert other.state == PromptState.waiting
        viewer = factories.make_member(session, project, Role.viewer, user=person(session, role=Role.viewer))
        browser.sign_in(viewer)
        assert 'name="prompts"' not in browser.get(BASE).text
        assert browser.post(f"{BASE}/many", {"prompts": str(three[0].id), "action": "archive"}).status_code == 403


def hidden_fields(text: str) -> dict[str, object]:
    """The fields of the form that asks for the next step; empty when there is none."""
    form = re.search(r'<form[^>]*hx-trigger="load".*?</form>', text, re.DOTALL)
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', form[0] if form else ""):
        found.setdefault(name, []).append(html.unescape(value))
    return dict(found)


@pytest.mark.usefixtures("admin")
class TestAllThatMatch:
    @pytest.fixture
    def many_prompts(self, session: Session, project: Project, monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
        """Seven that match `?q=boat`, of which one has candidates, and one that does not; three are changed a step."""
        monkeypatch.setattr(many, "STEP", 3)
        found = [factories.make_prompt(session, project, question=f"boat {n}?") for n in range(7)]
        factories.make_candidate_set(session, project, prompt=found[1])
        return [*found, factories.make_prompt(session, project, question="car?")]

    def run(self, browser: Browser, **fields: str) -> tuple[list[str], str]:
        """Ask for a change of all that match, take all steps, and return what each said and the last answer."""
        data: dict[str, object] = {"all": "yes", "here": "?q=boat&sort=-added", **fields}
        said: list[str] = []
        while data:
            answer = browser.post(f"{BASE}/many", data, headers={"HX-Request": "true"} if said else {})
            assert answer.status_code == 200
            said += re.findall(r'role="status"[^>]*>\s*<p>(.*?)</p>', answer.text)
            data = hidden_fields(answer.text)
        return said, answer.text

    def test_in_steps_with_progress(self, browser: Browser, session: Session, many_prompts: list[Prompt]) -> None:
        browser.get(BASE)
        said, last = self.run(browser, action="split", split="val")
        assert [one.partition(".")[0] for one in said] == [
            "3 of 7 prompts done",
            "6 of 7 prompts done",
            "6 prompts moved to val",
        ]
        assert "1 could not be changed:" in last
        assert f"/prompts/{many_prompts[1].id}" in last
        assert "<html" not in last
        assert shown(last) == [f"boat {n}?" for n in reversed(range(7))]
        session.expire_all()
        splits = [one.split for one in many_prompts]
        assert splits == [Split.val, Split.train, *[Split.val] * 5, Split.train]

    def test_a_change_that_ends_the_match(self, browser: Browser, session: Session, many_prompts: list[Prompt]) -> None:
        browser.get(BASE)
        said, _ = self.run(browser, here="?q=boat&state=waiting", action="archive")
        assert said[-1] == "6 prompts archived."
        session.expire_all()
        assert [one.state for one in many_prompts].count(PromptState.retired) == 6

    def test_no_more_than_allowed(
        self, browser: Browser, session: Session, many_prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(many, "MOST_MATCHES", 4)
        browser.get(BASE)
        assert "Select the first 4 that match" in browser.get(f"{BASE}/matches?here=%3Fq%3Dboat").text
        assert self.run(browser, action="priority", priority="9")[0][-1] == "4 prompts set to priority 9."
        session.expire_all()
        assert [one.priority for one in many_prompts] == [9, 9, 9, 9, 0, 0, 0, 0]

    def test_the_offer_counts_what_matches(self, browser: Browser, many_prompts: list[Prompt]) -> None:
        assert "Select all 7 that match" in browser.get(f"{BASE}/matches?here=%3Fq%3Dboat").text
        assert "Select all 8 that match" in browser.get(f"{BASE}/matches").text

    def test_for_reviewers_only(
        self, browser: Browser, session: Session, project: Project, many_prompts: list[Prompt]
    ) -> None:
        browser.sign_in(factories.make_member(session, project, Role.viewer, user=person(session, role=Role.viewer)))
        browser.get(BASE)
        assert browser.get(f"{BASE}/matches").status_code == 403
        assert browser.post(f"{BASE}/many", {"all": "yes", "action": "archive"}).status_code == 403
        step = {"all": "yes", "action": "archive", "after": "1", "total": "8", "changed": "1", "kept": "0"}
        assert browser.post(f"{BASE}/many", dict(step)).status_code == 403


class TestOrder:
    @pytest.mark.parametrize(
        ("sort", "names"),
        [
            ("", "bCa"),
            ("-added", "aCb"),
            ("question", "abC"),
            ("-external_id", "Cba"),
            ("priority", "baC"),
            ("-priority", "Cab"),
            ("state", "bCa"),
            ("accepted", "bCa"),
            ("-accepted", "aCb"),
            ("nonsense", "bCa"),
        ],
    )
    def test_by_a_column(self, browser: Browser, admin: User, three: list[Prompt], sort: str, names: str) -> None:
        text = browser.get(f"{BASE}?sort={sort}").text
        assert shown(text) == [f"question {name}?" for name in names]
        if sort not in ("", "nonsense"):
            assert f'aria-sort="{"descending" if sort.startswith("-") else "ascending"}"' in text

    def test_page_by_page(self, browser: Browser, session: Session, project: Project, admin: User) -> None:
        for number in range(120):
            factories.make_prompt(
                session, project, question=f"q{number % 7}", answer=None, images=[], priority=number % 3
            )
        by_priority = select(Prompt.question).order_by(Prompt.priority.desc(), Prompt.id.desc())
        by_words = select(Prompt.question).order_by(func.lower(Prompt.question), Prompt.id)
        for sort, expected in (("-priority", by_priority), ("question", by_words), ("answer", select(Prompt.question))):
            found, address = [], f"?sort={sort}&q=q&split=train"
            while address:
                text = browser.get(BASE + address).text
                found += shown(text)
                following = re.search(r'href="([^"]*)">Next page', text)
                address = html.unescape(following[1]) if following else ""
            wanted = session.scalars(expected.order_by(Prompt.id) if sort == "answer" else expected).all()
            assert found == list(wanted)

    def test_the_cursor_of_another_order_is_refused(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        for _ in range(51):
            factories.make_prompt(session, project, images=[])
        following = re.search(r'href="([^"]*)">Next page', browser.get(f"{BASE}?sort=priority").text)
        assert following is not None
        for other in ("sort=-priority", "sort=accepted"):
            assert browser.get(BASE + html.unescape(following[1]).replace("sort=priority", other)).status_code == 422


@pytest.mark.usefixtures("admin")
class TestGrid:
    def test_shows_images_and_keeps_the_filters(self, browser: Browser, three: list[Prompt]) -> None:
        text = browser.get(f"{BASE}?view=grid&sort=-priority&state=waiting").text
        assert shown(text) == [f"question {name}?" for name in "Cab"]
        assert "<table" not in text
        assert all(f"/api/v1/images/{one.images[0].sha256}" in text for one in three)
        addresses = [html.unescape(one) for one in re.findall(r'href="(\?[^"]*)"', text)]
        assert addresses
        assert all("state=waiting" in one for one in addresses)
