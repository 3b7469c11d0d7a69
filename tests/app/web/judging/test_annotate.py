"""The critic's routes: the next prompt, verdicts and their repeats, and who may not."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import (
    Assignment,
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    Project,
    PromptState,
    Role,
    RoundState,
    User,
    Verdict,
    VerdictKind,
    Worker,
)
from app.services.projects import pauses, projects
from tests import factories
from tests.app.web.conftest import Browser, person

FRAGMENT = {"HX-Request": "true"}


@pytest.fixture
def project(session: Session) -> Project:
    """A project with three sets ready to judge."""
    project = factories.make_project(session, slug="scenes", name="Scenes")
    for number in range(3):
        prompt = factories.make_prompt(session, project, question=f"What is <b>{number}</b>?")
        factories.make_candidate_set(session, project, prompt=prompt)
    return project


@pytest.fixture
def critic(session: Session, project: Project, browser: Browser) -> User:
    """A critic who is signed in."""
    user = factories.make_member(session, project, user=person(session, role=Role.critic))
    browser.sign_in(user)
    return user


def assignment_in(text: str) -> str:
    """The id of the assignment on a page or in a fragment."""
    found = re.search(r'data-assignment="(\d+)"', text)
    assert found
    return found.group(1)


def picks_in(text: str) -> list[str]:
    """The ids of the candidates on a page."""
    return re.findall(r'name="picks" value="(\d+)"', text)


def count(session: Session) -> int:
    """How many verdicts there are."""
    return session.scalar(select(func.count()).select_from(Verdict)) or 0


@pytest.mark.usefixtures("critic")
class TestJudge:
    def test_text_is_text(self, browser: Browser) -> None:
        page = browser.get("/annotate/scenes").text
        assert "What is &lt;b&gt;0&lt;/b&gt;?" in page
        assert "<b>0" not in page

    def test_keys_of_ones_own_are_kept(self, browser: Browser) -> None:
        browser.get("/annotate/scenes")
        headers = FRAGMENT
        assert browser.post("/annotate/scenes/keys", {"none": '"'}, headers=headers).status_code == 204
        assert browser.post("/annotate/scenes/keys", {"skip": "f"}, headers=headers).status_code == 422
        assert 'data-chosen=\'{"none": "\\""}\'' in browser.get("/annotate/scenes").text

    def test_a_reload_shows_the_same_prompt(self, browser: Browser) -> None:
        first = assignment_in(browser.get("/annotate/scenes").text)
        assert assignment_in(browser.get("/annotate/scenes").text) == first

    def test_next_is_another_and_not_a_known_one(self, browser: Browser) -> None:
        first = assignment_in(browser.get("/annotate/scenes").text)
        second = assignment_in(browser.post("/annotate/scenes/next", {"known": first}).text)
        assert second != first
        # After a reload the page knows the first only: the second, held already, comes again.
        assert assignment_in(browser.post("/annotate/scenes/next", {"known": first}).text) == second

    def test_no_more_than_one_may_hold(self, browser: Browser) -> None:
        known = [assignment_in(browser.get("/annotate/scenes").text)]
        for _ in range(2):
            known.append(assignment_in(browser.post("/annotate/scenes/next", {"known": known}).text))
        response = browser.post("/annotate/scenes/next", {"known": known})
        assert (response.status_code, response.text) == (204, "")

    def test_says_what_happens_when_there_is_nothing(self, browser: Browser, session: Session) -> None:
        empty = factories.make_project(session, slug="empty")
        factories.make_prompt(session, empty)
        factories.make_prompt(session, empty)
        factories.make_member(session, empty, user=session.scalars(select(User)).first())
        page = browser.get("/annotate/empty")
        assert page.status_code == 200
        assert "No model worker is running" in page.text
        assert "2 prompts are waiting for explanations, and nothing can write them" in page.text
        factories.add(session, Worker(name="here:1", queues="model", device="cpu"))
        page = browser.get("/annotate/empty")
        assert "Explanations are being written" in page.text
        assert "2 prompts are waiting for explanations" in page.text
        assert "the model loads" in page.text
        done = factories.make_candidate_set(session, empty)
        done.state, done.source = CandidateSetState.judged, CandidateSource.model
        done.created_at = datetime.now(UTC) - timedelta(seconds=20)
        session.flush()
        found = re.search(r"Each takes about (\d+) s, all of them about (\d+) s", browser.get("/annotate/empty").text)
        assert found
        assert 10 <= int(found.group(1)) <= 20
        assert abs(int(found.group(2)) - 2 * int(found.group(1))) <= 1


class TestNothingToJudge:
    def seen_by(self, browser: Browser, session: Session, project: Project, role: Role) -> str:
        """The judging page of a new member."""
        browser.sign_in(factories.make_member(session, project, role, user=person(session, role=role)))
        return browser.get(f"/annotate/{project.slug}").text

    def test_an_empty_project_is_not_done(self, browser: Browser, session: Session) -> None:
        empty = factories.make_project(session, slug="empty")
        page = self.seen_by(browser, session, empty, Role.critic)
        assert "No prompts yet" in page
        assert "All done" not in page
        assert "Add prompts" not in page
        browser.client.cookies.clear()
        page = self.seen_by(browser, session, empty, Role.admin)
        assert '<a class="button main" href="/admin/projects/empty/imports">Add prompts</a>' in page

    def test_neither_is_one_whose_prompts_are_all_archived(self, browser: Browser, session: Session) -> None:
        stored = factories.make_project(session, slug="stored")
        factories.make_prompt(session, stored, state=PromptState.retired)
        page = self.seen_by(browser, session, stored, Role.critic)
        assert "Nothing to judge" in page
        assert "on hold, archived or set aside" in page

    def test_below_the_threshold_an_admin_may_start_a_round(self, browser: Browser, session: Session) -> None:
        done = factories.make_project(session, slug="done", round_every=20)
        for _ in range(2):
            prompt = factories.make_prompt(session, done, state=PromptState.judged)
            prompt.has_accepted = prompt.fresh = True
        session.flush()
        page = self.seen_by(browser, session, done, Role.critic)
        assert "All done" in page
        assert "newly accepted" not in page  # a count that would tell check questions from others
        assert "Start now" not in page
        browser.client.cookies.clear()
        page = self.seen_by(browser, session, done, Role.admin)
        assert "2 of 20 newly accepted prompts" in page
        assert 'href="/admin/projects/done/rounds/preview">Start now with 2 of 20</a>' in page
        overview = browser.get("/admin/projects/done").text
        assert "Start now with 2 of 20</a>" in overview

    def test_the_overview_of_an_empty_project_leads_to_prompts(self, browser: Browser, session: Session) -> None:
        empty = factories.make_project(session, slug="empty")
        self.seen_by(browser, session, empty, Role.admin)
        overview = browser.get("/admin/projects/empty").text
        assert "There are no prompts yet" in overview
        assert "Every prompt is judged" not in overview
        assert 'href="/admin/projects/empty/imports">Add prompts</a>' in overview

    def test_says_what_the_worker_does_for_others(self, browser: Browser, session: Session) -> None:
        waiting = factories.make_project(session, slug="waiting")
        factories.make_prompt(session, waiting)
        factories.add(session, Worker(name="here:1", queues="model", device="cpu"))
        other = factories.make_project(session, slug="other")
        training = factories.make_round(session, other, state=RoundState.training)
        training.progress = {"fraction": 0.42, "eta_seconds": 720}
        training.worker, training.beats_at = "here:1", datetime.now(UTC)
        session.flush()
        page = self.seen_by(browser, session, waiting, Role.critic)
        assert "The model is busy with another project" in page
        assert "A training round of another project is running: training, 42 %, about 12 min left" in page
        assert "in progress" not in page
        training.state = RoundState.succeeded
        writing = factories.make_candidate_set(session, other)
        writing.state, writing.worker, writing.beats_at = CandidateSetState.sampling, "here:1", datetime.now(UTC)
        session.flush()
        page = browser.get("/annotate/waiting").text
        assert "It is writing explanations for another project; projects take turns" in page

    def test_only_an_admin_is_told_why_the_model_cannot_be_used(self, browser: Browser, session: Session) -> None:
        stopped = factories.make_project(session, slug="stopped")
        factories.make_prompt(session, stopped)
        pauses.pause(session, stopped.id, stopped.active_version_id or 0, "/srv/models/<a> lacks a shard")
        for role in (Role.critic, Role.reviewer):
            page = self.seen_by(browser, session, stopped, role)
            assert "The model cannot be used" in page
            assert "/srv/models" not in page
            assert "Ask an admin to look at it" in page
            assert "Explanations are being written" not in page
            browser.client.cookies.clear()
        page = self.seen_by(browser, session, stopped, Role.admin)
        assert "No explanations can be written: /srv/models/&lt;a&gt; lacks a shard" in page
        assert '<a class="button main" href="/admin/projects/stopped">Go to the project</a>' in page

    @pytest.mark.parametrize(
        ("case", "title", "asked_of_admins", "link"),
        [
            ("no worker", "No model worker is running", "Start a worker: illume worker", ""),
            ("stalled round", "Training round 1 is waiting for a worker", "Start a worker: illume worker", ""),
            ("no pool", "No explanations are being written", "Change the setting", "/settings#field-pool_target"),
            ("all failed", "No explanations could be written", "page says why", "/prompts?state=waiting"),
        ],
    )
    def test_what_is_missing_and_who_can_mend_it(
        self, browser: Browser, session: Session, case: str, title: str, asked_of_admins: str, link: str
    ) -> None:
        stuck = factories.make_project(session, slug="stuck", pool_target=0 if case == "no pool" else 40)
        prompt = factories.make_prompt(session, stuck)
        if case in ("no pool", "all failed"):
            factories.add(session, Worker(name="here:1", queues="model", device="cpu"))
        if case == "stalled round":
            stalled = factories.make_round(session, stuck, state=RoundState.training)
            stalled.worker, stalled.beats_at = "gone:1", datetime.now(UTC) - timedelta(hours=1)
        if case == "all failed":
            failed = factories.make_candidate_set(session, stuck, prompt=prompt)
            failed.state, failed.version_id = CandidateSetState.failed, stuck.active_version_id
            prompt.state = PromptState.waiting
        session.flush()
        page = self.seen_by(browser, session, stuck, Role.critic)
        assert title in page
        assert "1 prompt is waiting for explanations" in page
        assert "Explanations are being written" not in page
        assert "dmin" in page  # who to ask
        assert "illume worker" not in page
        assert "/admin/" not in page
        browser.client.cookies.clear()
        page = self.seen_by(browser, session, stuck, Role.admin)
        assert asked_of_admins in page
        assert f'href="/admin/projects/stuck{link}"' in page
        overview = browser.get("/admin/projects/stuck").text
        assert "data-lack" in overview
        assert "1 prompt is waiting for explanations" in overview
        assert ("<code>illume worker</code>" in overview) is (not link)


@pytest.mark.usefixtures("critic")
class TestVerdict:
    def give(self, browser: Browser, key: str = "k1", **fields: object) -> tuple[int, str]:
        """Judge the prompt on the page."""
        page = browser.get("/annotate/scenes").text
        url = f"/annotate/scenes/assignments/{assignment_in(page)}/verdict"
        chosen = {"kind": "picked", "picks": picks_in(page)[:1], "seconds": "2.5", **fields}
        response = browser.post(url, chosen, headers={**FRAGMENT, "Idempotency-Key": key})
        return response.status_code, response.text

    def test_is_answered_with_the_figures(self, browser: Browser, session: Session) -> None:
        status, text = self.give(browser)
        assert status == 201
        assert '<strong class="numbers">1</strong> today' in text
        assert count(session) == 1

    def test_its_answer_brings_the_next_prompt_where_there_is_room(self, browser: Browser) -> None:
        page = browser.get("/annotate/scenes").text
        first = assignment_in(page)
        second = assignment_in(browser.post("/annotate/scenes/next", {"known": first}).text)
        url = f"/annotate/scenes/assignments/{first}/verdict"
        fields = {"kind": "none_fit", "room": "yes", "known": [first, second]}
        headers = {**FRAGMENT, "Idempotency-Key": "once"}
        third = assignment_in(browser.post(url, fields, headers=headers).text)
        assert third not in (first, second)
        # The answer was lost: the same verdict again is no second one, and the claim it brought is no new one.
        again = browser.post("/annotate/scenes/next", {"known": [first, second]}, headers=FRAGMENT).text
        assert assignment_in(again) == third
        url = f"/annotate/scenes/assignments/{second}/verdict"
        last = browser.post(url, {"kind": "none_fit", "room": "yes", "known": [second, third]}, headers=FRAGMENT)
        assert "data-assignment" not in last.text

    def test_what_is_held_comes_before_a_new_claim(self, browser: Browser) -> None:
        first = assignment_in(browser.get("/annotate/scenes").text)
        second = assignment_in(browser.post("/annotate/scenes/next", {"known": first}).text)
        # After a reload the page sends the verdict that waited, and does not know that it holds the second one.
        url = f"/annotate/scenes/assignments/{first}/verdict"
        answer = browser.post(url, {"kind": "none_fit", "room": "yes", "known": [first]}, headers=FRAGMENT)
        assert assignment_in(answer.text) == second

    def test_what_was_submitted_by_the_first_pick_is_not_exhaustive(self, browser: Browser, session: Session) -> None:
        self.give(browser)
        self.give(browser, key="k2", exhaustive="no")
        assert session.scalars(select(Verdict.exhaustive).order_by(Verdict.id)).all() == [True, False]

    def test_the_same_key_again_is_the_same_verdict(self, browser: Browser, session: Session) -> None:
        page = browser.get("/annotate/scenes").text
        url = f"/annotate/scenes/assignments/{assignment_in(page)}/verdict"
        fields = {"kind": "none_fit", "seconds": "1"}
        headers = {**FRAGMENT, "Idempotency-Key": "again"}
        assert [browser.post(url, fields, headers=headers).status_code for _ in range(2)] == [201, 201]
        assert count(session) == 1

    def test_given_twice_is_a_toast(self, browser: Browser, session: Session) -> None:
        page = browser.get("/annotate/scenes").text
        url = f"/annotate/scenes/assignments/{assignment_in(page)}/verdict"
        browser.post(url, {"kind": "none_fit"}, headers=FRAGMENT)
        response = browser.post(url, {"kind": "none_fit"}, headers=FRAGMENT)
        assert response.status_code == 409
        assert response.headers["hx-retarget"] == "#toasts"
        assert "data-text" in response.text
        assert "<html" not in response.text

    def test_what_was_taken_back_too_late_is_changed_once(self, browser: Browser, session: Session) -> None:
        page = browser.get("/annotate/scenes").text
        url = f"/annotate/scenes/assignments/{assignment_in(page)}/verdict"
        fields: dict[str, object] = {"kind": "none_fit", "seconds": "1"}
        browser.post(url, fields, headers={**FRAGMENT, "Idempotency-Key": "first"})
        fields = {"kind": "picked", "picks": picks_in(page)[:1], "seconds": "3", "again": "yes"}
        headers = {**FRAGMENT, "Idempotency-Key": "second"}
        assert [browser.post(url, fields, headers=headers).status_code for _ in range(2)] == [201, 201]
        assert count(session) == 2
        [stands] = session.scalars(select(Verdict).where(Verdict.current))
        assert stands.kind is VerdictKind.picked
        change = f"/annotate/scenes/verdicts/{stands.supersedes}"
        assert browser.post(change, {"kind": "none_fit"}, headers=FRAGMENT).status_code == 409
        assert browser.post(change, {"kind": "none_fit", "again": "yes"}, headers=FRAGMENT).status_code == 201
        assert session.scalars(select(Verdict).where(Verdict.current)).one().supersedes == stands.id

    def test_a_candidate_of_another_set(self, browser: Browser, session: Session, project: Project) -> None:
        other = factories.make_candidate_set(session, project)
        stranger = str(factories.candidates_of(session, other)[0].id)
        assert self.give(browser, picks=[stranger])[0] == 422
        assert count(session) == 0

    def test_anothers_assignment(self, browser: Browser, session: Session, project: Project) -> None:
        critic = factories.make_critic(session, project)
        made = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
        url = f"/annotate/scenes/assignments/{made.id}/verdict"
        assert browser.post(url, {"kind": "none_fit"}, headers=FRAGMENT).status_code == 403

    def test_a_late_one_is_kept_aside_and_says_so(self, browser: Browser, session: Session, project: Project) -> None:
        page = browser.get("/annotate/scenes").text
        mine = session.get_one(Assignment, int(assignment_in(page)))
        mine.state = AssignmentState.lapsed
        session.flush()
        other = factories.make_critic(session, project)
        session.add(
            Assignment(
                project_id=project.id,
                candidate_set_id=mine.candidate_set_id,
                critic_id=other.user_id,
                slot=1,
                state=AssignmentState.open,
                shown=mine.shown,
                expires_at=mine.expires_at,
            )
        )
        session.flush()
        url = f"/annotate/scenes/assignments/{mine.id}/verdict"
        response = browser.post(url, {"kind": "none_fit"}, headers=FRAGMENT)
        assert response.status_code == 202
        assert "only counts if a reviewer accepts it" in response.text

    def test_a_change_that_finds_no_slot_is_kept_aside_and_says_so(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        page = browser.get("/annotate/scenes").text
        mine = session.get_one(Assignment, int(assignment_in(page)))
        url = f"/annotate/scenes/assignments/{mine.id}/verdict"
        skipped = {"kind": "skipped", "reason": "Unclear image"}
        assert browser.post(url, skipped, headers=FRAGMENT).status_code == 201
        offered = session.get_one(CandidateSet, mine.candidate_set_id, populate_existing=True)
        factories.make_assignment(session, offered, factories.make_critic(session, project))
        offered.taken = offered.slots
        session.flush()
        response = browser.post(url, {"kind": "none_fit", "again": "yes"}, headers=FRAGMENT)
        assert response.status_code == 201
        assert "only counts if a reviewer accepts it" in response.text

    def test_without_the_form_token(self, browser: Browser, session: Session) -> None:
        page = browser.get("/annotate/scenes").text
        browser.token = "made up"
        url = f"/annotate/scenes/assignments/{assignment_in(page)}/verdict"
        assert browser.post(url, {"kind": "none_fit"}, headers=FRAGMENT).status_code == 403
        assert count(session) == 0

    def test_tags_and_what_was_edited_come_along(self, browser: Browser, session: Session) -> None:
        page = browser.get("/annotate/scenes").text
        first, second, _ = picks_in(page)
        status, _ = self.give(
            browser,
            picks=[second],
            rationale="red all over",
            edited_from=first,
            tags=[f"{first} contradicts the image", f"{first} badly written"],
        )
        assert status == 201
        given = session.scalars(select(Verdict)).one()
        assert given.edited_from == int(first)
        assert given.tags == {first: ["contradicts the image", "badly written"]}
        again = browser.get("/annotate/scenes/back", headers=FRAGMENT).text
        assert f'data-edited-from="{first}"' in again
        assert """data-tags='["contradicts the image", "badly written"]'""" in again

    def test_an_ended_session_is_401_and_no_redirect(self, browser: Browser) -> None:
        page = browser.get("/annotate/scenes").text
        browser.client.cookies.delete("illume_session")
        url = f"/annotate/scenes/assignments/{assignment_in(page)}/verdict"
        assert browser.post(url, {"kind": "none_fit"}, headers=FRAGMENT).status_code == 401


@pytest.mark.usefixtures("critic")
class TestChange:
    def judge(self, browser: Browser) -> None:
        """Say that none fits."""
        page = browser.get("/annotate/scenes").text
        url = f"/annotate/scenes/assignments/{assignment_in(page)}/verdict"
        assert browser.post(url, {"kind": "none_fit"}, headers=FRAGMENT).status_code == 201

    def test_a_repeat_whose_answer_was_lost(self, browser: Browser, session: Session) -> None:
        self.judge(browser)
        card = browser.get("/annotate/scenes/back", headers=FRAGMENT).text
        found = re.search(r'data-verdict="(\d+)"', card)
        assert found
        url = f"/annotate/scenes/verdicts/{found.group(1)}"
        fields = {"kind": "picked", "picks": picks_in(card)[0], "seconds": "3.25"}
        assert [browser.post(url, fields, headers=FRAGMENT).status_code for _ in range(2)] == [201, 201]
        assert count(session) == 2
        assert browser.post(url, {**fields, "seconds": "9"}, headers=FRAGMENT).status_code == 409

    def test_nothing_to_go_back_to(self, browser: Browser) -> None:
        response = browser.get("/annotate/scenes/back", headers=FRAGMENT)
        assert response.status_code == 404
        assert "no earlier verdict" in response.text

    def test_another_change_by_tags_alone_is_no_repeat(self, browser: Browser) -> None:
        self.judge(browser)
        card = browser.get("/annotate/scenes/back", headers=FRAGMENT).text
        found = re.search(r'data-verdict="(\d+)"', card)
        assert found
        url = f"/annotate/scenes/verdicts/{found.group(1)}"
        fields = {"kind": "none_fit", "tags": f"{picks_in(card)[0]} incomplete"}
        assert [browser.post(url, fields, headers=FRAGMENT).status_code for _ in range(2)] == [201, 201]
        fields["tags"] = f"{picks_in(card)[0]} badly written"
        assert browser.post(url, fields, headers=FRAGMENT).status_code == 409

    def test_the_list_is_searched(self, browser: Browser) -> None:
        self.judge(browser)
        self.judge(browser)
        path = "/annotate/scenes/history"
        assert browser.get(path, params={"words": "is <B>1</b>"}).text.count("Change the verdict on") == 1
        assert browser.get(path, params={"kind": "none_fit"}).text.count("Change the verdict on") == 2
        nothing = browser.get(path, params={"kind": "flagged", "words": 'x" y'}).text
        assert "No matches" in nothing
        assert 'value="x&#34; y"' in nothing

    def test_the_list_holds_only_ones_own(self, browser: Browser, session: Session, project: Project) -> None:
        self.judge(browser)
        other = factories.make_critic(session, project)
        made = factories.make_assignment(
            session,
            factories.make_candidate_set(
                session, project, prompt=factories.make_prompt(session, project, question="Whose is this?")
            ),
            other,
        )
        factories.make_verdict(session, made)
        text = browser.get("/annotate/scenes/history").text
        assert "Whose is this?" not in text
        assert text.count("Change the verdict on") == 1


class TestHeartbeat:
    def test_names_what_is_lost(self, browser: Browser, critic: User, session: Session, project: Project) -> None:
        mine = assignment_in(browser.get("/annotate/scenes").text)
        other = factories.make_critic(session, project)
        theirs = factories.make_assignment(session, factories.make_candidate_set(session, project), other)
        response = browser.post("/annotate/scenes/heartbeat", {"held": [mine, str(theirs.id), "x"]}, headers=FRAGMENT)
        assert response.text == f"{theirs.id} x"


@pytest.mark.usefixtures("critic")
class TestInstructions:
    def test_only_a_change_of_theirs_is_a_new_version(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        admin = factories.make_admin(session)
        assert "Version 1, written" in browser.get("/annotate/scenes").text
        projects.update_project(session, admin, "scenes", {"overlap": 2})
        assert "Version 1, written" in browser.get("/annotate/scenes/instructions").text
        examples = ["+ it has <i>stripes</i> | they are seen"]
        projects.update_project(session, admin, "scenes", {"instruction_examples": examples})
        text = browser.get("/annotate/scenes/instructions").text
        assert "Version 2, updated" in text
        assert "it has &lt;i&gt;stripes&lt;/i&gt;" in text
        assert "<html" not in text

    def test_images_are_blurred_where_the_project_says_so(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        assert 'class="work"' in browser.get("/annotate/scenes").text
        projects.update_project(session, factories.make_admin(session), "scenes", {"blur_images": True})
        assert 'class="work blurred"' in browser.get("/annotate/scenes").text

    def test_texts_say_their_language(self, browser: Browser, session: Session, project: Project) -> None:
        assert browser.get("/annotate/scenes").text.count(" lang=") == 1  # the page's own
        projects.update_project(session, factories.make_admin(session), "scenes", {"language": "zh-Hant"})
        page = browser.get("/annotate/scenes").text
        assert '<span class="folds as-typed" dir="auto" lang="zh-Hant">' in page
        assert '<textarea class="input" dir="auto" lang="zh-Hant"' in page

    @pytest.mark.parametrize(
        ("given", "shown"), [("de", "de"), ('de" onload="x', "zh-Hant"), (7, "zh-Hant"), (None, "zh-Hant")]
    )
    def test_or_that_which_their_prompt_names(
        self, browser: Browser, session: Session, project: Project, given: object, shown: str
    ) -> None:
        projects.update_project(session, factories.make_admin(session), "scenes", {"language": "zh-Hant"})
        prompt = factories.make_prompt(session, project, extra={"language": given})
        factories.make_candidate_set(session, project, prompt=prompt, priority=9)
        page = browser.get("/annotate/scenes").text
        assert f'data-prompt="{prompt.id}"' in page
        assert f'<span class="folds as-typed" dir="auto" lang="{shown}">' in page

    @pytest.mark.parametrize(("given", "blurred"), [(True, True), ("yes", True), (False, False), ("often", False)])
    def test_or_where_its_prompt_says_so(
        self, browser: Browser, session: Session, project: Project, given: object, blurred: bool
    ) -> None:
        prompt = factories.make_prompt(session, project, extra={"blur": given})
        factories.make_candidate_set(session, project, prompt=prompt, priority=9)
        page = browser.get("/annotate/scenes").text
        assert f'data-prompt="{prompt.id}"' in page
        assert ('class="work blurred"' in page) is blurred


@pytest.mark.usefixtures("critic")
class TestDay:
    def test_says_what_there_is(self, browser: Browser, session: Session, project: Project, critic: User) -> None:
        made = factories.make_assignment(
            session, factories.make_candidate_set(session, project), factories.actor_of(critic)
        )
        factories.make_verdict(session, made, kind=VerdictKind.none_fit).seconds = 4.25
        session.flush()
        text = browser.get("/annotate/scenes/day").text
        assert "1 verdict, 1 in the last hour" in text
        assert "No training round has used your picks yet" in text
        assert "in a row" not in text


class TestAccess:
    def test_a_viewer_does_not_judge(self, browser: Browser, session: Session, project: Project) -> None:
        user = factories.make_member(session, project, Role.viewer, user=person(session, role=Role.viewer))
        browser.sign_in(user)
        response = browser.get("/annotate/scenes")
        assert response.status_code == 403
        assert "needs the role &#39;critic&#39;" in response.text

    def test_a_critic_does_not_see_the_admins_pages(self, browser: Browser, critic: User) -> None:
        for path in ("", "/prompts", "/critics", "/versions", "/rounds"):
            assert browser.get(f"/admin/projects/scenes{path}").status_code == 403
        assert browser.get("/admin").status_code == 403
        assert browser.get("/admin/users").status_code == 403
