"""Verdicts as pages show them."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.models import Project, VerdictKind
from app.services.judging import change
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import VerdictIn
from app.services.read_models import overviews
from tests import factories, judging


@pytest.fixture
def project(session: Session) -> Project:
    """A project."""
    return factories.make_project(session)


def judged(session: Session, project: Project, critic: Actor, verdict: VerdictIn | None = None) -> int:
    """A verdict made by the service, by default `none_fit`. Returns its id."""
    made = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
    out = judging.give(session, critic, made.id, verdict or VerdictIn(kind=VerdictKind.none_fit))
    return int(out.body["id"])


class TestOwnVerdicts:
    def test_newest_first_and_only_ones_own(self, session: Session, project: Project) -> None:
        ada, ben = factories.make_critic(session, project), factories.make_critic(session, project)
        first, _, last = judged(session, project, ada), judged(session, project, ben), judged(session, project, ada)
        assert [line.id for line in overviews.list_own_verdicts(session, ada, project)] == [last, first]
        assert [line.id for line in overviews.list_own_verdicts(session, ada, project, before=last)] == [first]

    def test_picks_have_their_texts(self, session: Session, project: Project) -> None:
        ada = factories.make_critic(session, project)
        made = factories.make_candidate_set(session, project, texts=("one", "two", "three"))
        picks = [str(one.id) for one in factories.candidates_of(session, made)[1:]]
        assignment = factories.make_assignment(session, made, ada)
        judging.give(session, ada, assignment.id, VerdictIn(kind=VerdictKind.picked, picks=picks, rationale="four"))
        [line] = overviews.list_own_verdicts(session, ada, project)
        assert (line.picks, line.rationale, line.kind) == (("two", "three"), "four", VerdictKind.picked)
        assert line.image is not None

    def test_superseded_verdicts_are_left_out(self, session: Session, project: Project) -> None:
        ada = factories.make_critic(session, project)
        old = judged(session, project, ada)
        new = int(change.change(session, ada, old, VerdictIn(kind=VerdictKind.skipped, reason="dark"))["id"])
        assert [line.id for line in overviews.list_own_verdicts(session, ada, project)] == [new]
        assert overviews.get_own_verdict(session, ada, project, old) is None

    def test_search_goes_in_steps(self, session: Session, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(overviews, "SEARCH_DEPTH", 2)
        ada = factories.make_critic(session, project)
        ids = [judged(session, project, ada) for _ in range(5)]
        word = "umbrella"  # occurs in every answer
        seen, before = [], None
        for _ in range(3):
            seen.append(
                [line.id for line in overviews.list_own_verdicts(session, ada, project, words=word, before=before)]
            )
            before = overviews.find_search_floor(session, ada, project, before=before)
        assert seen == [ids[4:2:-1], ids[2:0:-1], ids[:1]]
        assert before is None

    def test_search_covers_all_texts(self, session: Session, project: Project) -> None:
        ada = factories.make_critic(session, project)

        def given(question: str, *texts: str, rationale: str | None = None) -> int:
            prompt = factories.make_prompt(session, project, question=question, answer="100 %")
            made = factories.make_candidate_set(session, project, prompt=prompt, texts=texts)
            assignment = factories.make_assignment(session, made, ada)
            return factories.make_verdict(session, assignment, rationale=rationale).id

        striped = given("what stands there?", "a striped umbrella", "a kite")
        own = given("what flies there?", "a bird", "a plane", rationale="the Kite has a string")

        def found(words: str, kind: VerdictKind | None = None) -> list[int]:
            return [line.id for line in overviews.list_own_verdicts(session, ada, project, words=words, kind=kind)]

        assert found("UMBRELLA") == [striped]
        assert found("kite") == [own]  # the other's kite was not picked
        assert found("there flies") == [own]
        assert found("100 %") == [own, striped]
        assert found("_tands") == []
        assert found("there", VerdictKind.skipped) == []

    def test_a_stranger(self, session: Session, project: Project) -> None:
        stranger = factories.actor_of(factories.make_user(session))
        with pytest.raises(NotFound):
            overviews.list_own_verdicts(session, stranger, project)


class TestWasAlreadyChangedTo:
    def test_the_same_change_only(self, session: Session, project: Project) -> None:
        ada, ben = factories.make_critic(session, project), factories.make_critic(session, project)
        old = judged(session, project, ada)
        wanted = VerdictIn(kind=VerdictKind.skipped, reason="dark", seconds=2.5)
        assert not overviews.was_already_changed_to(session, ada, old, wanted)
        change.change(session, ada, old, wanted)
        assert overviews.was_already_changed_to(session, ada, old, wanted)
        assert not overviews.was_already_changed_to(session, ben, old, wanted)
        assert not overviews.was_already_changed_to(
            session, ada, old, VerdictIn(kind=VerdictKind.none_fit, seconds=2.5)
        )


class TestListCandidateSets:
    def test_candidates_with_how_often_they_were_picked(self, session: Session, project: Project) -> None:
        ada, ben = factories.make_critic(session, project), factories.make_critic(session, project)
        prompt = factories.make_prompt(session, project)
        made = factories.make_candidate_set(session, project, prompt=prompt, slots=2)
        [first, second, _] = factories.candidates_of(session, made)
        for slot, (critic, picks) in enumerate(((ada, [first, second]), (ben, [second])), start=1):
            assignment = factories.make_assignment(session, made, critic, slot=slot)
            chosen = VerdictIn(kind=VerdictKind.picked, picks=[str(one.id) for one in picks])
            judging.give(session, critic, assignment.id, chosen)
        [line] = overviews.list_candidate_sets(session, factories.make_admin(session), project, prompt)
        assert [one.picked for one in line.candidates] == [1, 2, 0]
        assert [one.critic for one in line.verdicts] == [ada.email, ben.email]
        assert line.version == 0


class TestListCritics:
    def test_sums(self, session: Session, project: Project) -> None:
        ada = factories.make_critic(session, project)
        for seconds in (1.0, 3.0, 20.0):
            judged(session, project, ada, VerdictIn(kind=VerdictKind.none_fit, seconds=seconds))
        judged(session, project, ada, VerdictIn(kind=VerdictKind.skipped, reason="dark"))
        [line] = overviews.list_critics(session, factories.make_admin(session), project)
        assert (line.email, line.verdicts, line.today) == (ada.email, 4, 4)
        assert (line.none_fit, line.skipped, line.picks_each, line.median_seconds) == (0.75, 0.25, 0.0, 3.0)
        assert overviews.load_activity(session, project) == overviews.Activity(today=4, hour=4)
