"""Which candidates form a set: what the machine critic chooses, what nobody is shown, and what the choice does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.errors import Forbidden, Invalid
from app.models import (
    Assignment,
    Candidate,
    CandidateSet,
    CandidateSetState,
    ModelVersion,
    Project,
    Prompt,
    Selection,
)
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import Moment, set_texts
from app.services.candidates import batches, choosing
from app.services.candidates.batches import claim_batch, store_set
from app.services.exports import plan as export_plan
from app.services.exports.plan import ExportRequest
from app.services.exports.shapes import Format
from app.services.judging.claim import FIRST_UNLOCKED
from app.services.kernel.actors import SYSTEM
from app.services.machine_critics import accepting, scores
from app.services.projects import pauses, projects
from app.services.quality import agreement, gold
from illume.critics.choosing import stays_unselected
from illume.records import Rationale
from tests import factories, judging
from tests.conftest import CommittedDatabase

SPREAD = {"of": 5, "select": "spread"}
USUAL: dict[str, Any] = {
    "machine_critic": "verifier",
    "show": SPREAD,
    "temperatures": [[0.0, 1], [0.7, 2]],
    "auto_rounds": False,
}
TEXTS = ("one", "two", "three", "four", "five")
RISING = (1.0, 2.0, 3.0, 4.0, 5.0)


def make_critic(session: Session, project: Project, **metrics: Any) -> ModelVersion:
    return factories.make_machine_critic(session, project, {"critic": "verifier", **metrics})


def make_project(session: Session, **settings: Any) -> Project:
    return factories.make_project(session, **{**USUAL, **settings})


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session)


def offer(session: Session, project: Project, *, selected: bool | None = None, **how: Any) -> CandidateSet:
    """A set of five candidates, three of them shown; one that the critic chooses from, or is left as it is."""
    while True:
        made = factories.make_candidate_set(session, project, texts=TEXTS, shown=3, **how)
        if selected is None or stays_unselected(made.id) is not selected:
            return made
        session.execute(update(CandidateSet).where(CandidateSet.id == made.id).values(state=CandidateSetState.replaced))


def rate(
    session: Session,
    project: Project,
    critic: ModelVersion,
    offered: CandidateSet,
    values: Sequence[float | None] = RISING,
) -> CandidateSet:
    ids = [one.id for one in factories.candidates_of(session, offered)]
    scores.store(session, project, critic, {offered.id: dict(zip(ids, values, strict=True))})
    session.expire_all()
    return offered


def shown_of(session: Session, offered: CandidateSet) -> set[str]:
    query = select(Candidate.text).where(Candidate.candidate_set_id == offered.id, ~Candidate.spare)
    return set(session.scalars(query))


class TestChoose:
    def test_the_best_the_lowest_and_the_middle_and_some_are_left_to_compare_with(
        self, session: Session, project: Project
    ) -> None:
        critic = make_critic(session, project)
        chosen = [rate(session, project, critic, offer(session, project)) for _ in range(25)]
        for one in chosen:
            assert one.selected_by == critic.id
            is_left = stays_unselected(one.id)
            assert one.selection is (Selection.unselected if is_left else Selection.selected)
            assert shown_of(session, one) == ({"one", "two", "three"} if is_left else {"one", "three", "five"})
        assert len({one.doubt for one in chosen}) == 1, "how unsure the critic is does not depend on the choice"

    def test_a_newer_critic_chooses_anew_until_somebody_has_seen_the_set(
        self, session: Session, project: Project
    ) -> None:
        first, newer = make_critic(session, project), make_critic(session, project)
        offered = rate(session, project, first, offer(session, project, selected=True))
        rate(session, project, newer, offered, (5.0, 2.0, 1.0, 3.0, 4.0))
        assert (offered.selected_by, shown_of(session, offered)) == (newer.id, {"one", "three", "four"})
        claimed = judging.claim(session, factories.make_critic(session, project), project)
        assert claimed is not None
        assert {one["text"] for one in claimed.candidates} == {"one", "three", "four"}
        session.execute(text("UPDATE assignments SET state = 'lapsed'"))
        session.execute(text("UPDATE candidate_sets SET taken = 0"))
        rate(session, project, make_critic(session, project), offered)
        assert (offered.selected_by, shown_of(session, offered)) == (newer.id, {"one", "three", "four"})

    def test_what_is_left_as_it_was_stays_so(self, session: Session, project: Project) -> None:
        offered = offer(session, project, selected=False)
        for _ in range(2):
            critic = make_critic(session, project)
            rate(session, project, critic, offered, (5.0, 1.0, 2.0, 3.0, 4.0))
            assert (offered.selection, offered.selected_by) == (Selection.unselected, critic.id)
            assert shown_of(session, offered) == {"one", "two", "three"}

    def test_nothing_is_chosen_where_there_is_nothing_to_choose_or_nothing_known(
        self, session: Session, project: Project
    ) -> None:
        critic = make_critic(session, project)
        all_shown = factories.make_candidate_set(session, project, texts=TEXTS)
        replaced = offer(session, project, state=CandidateSetState.replaced)
        unknown = offer(session, project)
        rate(session, project, critic, all_shown)
        rate(session, project, critic, replaced)
        rate(session, project, critic, unknown, (1.0, 2.0, 3.0, 4.0, None))
        projects.update_project(session, SYSTEM, project.slug, {"show": {"of": 5, "select": "all"}})
        switched_off = rate(session, project, critic, offer(session, project))
        for one in (all_shown, replaced, unknown, switched_off):
            assert (one.selection, one.selected_by, one.rated_by) == (None, None, critic.id)
        assert shown_of(session, unknown) == shown_of(session, switched_off) == {"one", "two", "three"}

    def test_a_claim_passes_over_a_set_that_was_chosen_since_its_snapshot(
        self, session: Session, project: Project
    ) -> None:
        """The statement that locks a set, with what a snapshot from before the choice says of it."""
        offered = rate(session, project, make_critic(session, project), offer(session, project))

        def lock(selected_by: int | None) -> list[int]:
            seen = "(SELECT CAST(:id AS bigint) AS id, 0 AS taken, CAST(:by AS bigint) AS selected_by)"
            statement = text(FIRST_UNLOCKED.format(of=seen, condition="true"))
            return [row.id for row in session.execute(statement, {"id": offered.id, "by": selected_by})]

        assert lock(None) == []
        assert lock(offered.selected_by) == [offered.id]


class TestSpare:
    def test_they_are_nowhere_but_where_the_model_is_looked_at(self, committed_db: CommittedDatabase) -> None:
        """Neither offered nor turned down, in no export, review, agreement or check question, nor accepted."""
        with committed_db.sessions() as session:
            project = make_project(
                session, overlap=2, machine_accepts={"critic": "verifier", "precision": 0.9}, aggregation="any"
            )
            shown = {"mean": 0.95, "low": 0.9, "high": 0.98, "n": 44}
            critic = make_critic(
                session, project, precision=0.9, threshold={"score": 1.0, "shown": shown, "too_few": False}
            )
            left = offer(session, project, selected=False, slots=2)
            rate(session, project, critic, left, (0.0, 2.0, 0.0, 9.0, 9.0))
            accepting.accept_sets(session, project, [left.id])
            accepted = session.execute(text("SELECT score FROM machine_accepts")).scalars().all()
            assert accepted == [2.0]
            for _ in range(2):
                person = factories.make_critic(session, project)
                claimed = judging.claim(session, person, project)
                assert claimed is not None
                assert {one["text"] for one in claimed.candidates} == {"one", "two", "three"}
                assert "four" not in claimed.content.decode()
                first = factories.candidates_of(session, left)[0].id
                factories.make_verdict(session, session.get_one(Assignment, claimed.assignment_id), picks=[first])
            session.commit()
            at = Moment(current_position(session), project.revision_id or 0)
            texts = set_texts(session, project, prompt_ids=[left.prompt_id], at=at)
            assert [(one.text, one.is_accepted) for one in texts] == [("one", True), ("two", False), ("three", False)]
            assert len(agreement.load_votes(session, project)) == 6
            prompt = session.get_one(Prompt, left.prompt_id)
            assert gold.list_candidate_texts(session, prompt) == ["one", "two", "three"]
            session.commit()
            for form in (Format.records, Format.sft, Format.preference, Format.kto):
                plan = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=form))
                session.commit()
                said = b"".join(export_plan.file_pages(plan))
                assert b"one" in said
                assert b"four" not in said, form


class TestSampling:
    def made(self, n: int) -> list[Rationale]:
        return [Rationale("x", f"because {number}", 0.7, number, -1.0, 3, "red", "gold") for number in range(n)]

    def test_more_are_sampled_and_the_first_are_shown_until_the_critic_has_chosen(
        self, session: Session, project: Project
    ) -> None:
        make_critic(session, project)
        factories.make_prompt(session, project)
        batch = claim_batch(session, project, project.active_version_id or 0, worker="w", target=1, limit=1)
        assert batch is not None
        assert batch.sampling.temperatures == ((0.0, 1), (0.7, 2), (0.7, 2))
        assert (batch.of, batch.shown) == (5, 3)
        assert store_set(session, batch, batch.claims[0], self.made(5))
        stored = session.get_one(CandidateSet, batch.claims[0].set_id, populate_existing=True)
        assert shown_of(session, stored) == {"because 0", "because 1", "because 2"}
        assert len(factories.candidates_of(session, stored)) == 5
        assert stored.selection is None

    def test_without_a_critic_that_can_be_used_it_does_nothing(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        settings = projects.settings_of(session, project)
        assert choosing.count_to_sample(session, project, settings) is None
        critic = make_critic(session, project)
        assert choosing.count_to_sample(session, project, settings) == 5
        pauses.pause(session, project.id, critic.id, "its folder is gone")
        assert choosing.count_to_sample(session, project, settings) is None
        batch = claim_batch(session, project, project.active_version_id or 0, worker="w", target=1, limit=1)
        assert batch is not None
        assert batch.sampling == batches.sampling_settings(settings)
        assert store_set(session, batch, batch.claims[0], self.made(3))
        stored = session.get_one(CandidateSet, batch.claims[0].set_id, populate_existing=True)
        assert len(shown_of(session, stored)) == 3


class TestEffect:
    def test_in_how_many_something_fitted_with_intervals(self, session: Session, project: Project) -> None:
        person = factories.make_critic(session, project)
        assert choosing.load_effect(session, SYSTEM, project) is None
        critic = make_critic(session, project)

        def judge(selected: bool, picks: int, state: str = "counted") -> None:
            offered = rate(session, project, critic, offer(session, project, selected=selected))
            first = factories.candidates_of(session, offered)[0].id
            verdict = factories.make_verdict(
                session, factories.make_assignment(session, offered, person), picks=[first][:picks]
            )
            session.execute(
                text("UPDATE verdicts SET state = :state WHERE id = :id"), {"state": state, "id": verdict.id}
            )

        for picks in (1, 1, 1, 0):
            judge(True, picks)
        judge(True, 0, "kept_aside")  # it does not count
        rate(session, project, critic, offer(session, project, selected=True))  # nobody judged it
        alone = choosing.load_effect(session, SYSTEM, project)
        assert alone is not None
        assert alone.selected is not None
        assert (alone.selected.mean, alone.selected.n, alone.unselected, alone.difference) == (0.75, 4, None, None)
        judge(False, 0)
        judge(False, 1)
        found = choosing.load_effect(session, SYSTEM, project)
        assert found is not None
        assert found.unselected is not None
        assert found.difference is not None
        assert (found.unselected.mean, found.unselected.n) == (0.5, 2)
        assert found.difference.mean == 0.25
        assert found.difference.low < 0 < found.difference.high
        with pytest.raises(Forbidden):
            choosing.load_effect(session, person, project)
        assert choosing.load_effect(session, SYSTEM, make_project(session)) is None


class TestSetting:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"show": {"of": 3, "select": "spread"}}, "more explanations have to be written than are shown"),
            ({"temperatures": [[0.7, 5]]}, "the temperatures give 5"),
            ({"temperatures": [[0.7, 1]]}, "they would see only the best"),
            ({"show": {"of": 200, "select": "spread"}}, "show.of"),
            ({"show": {"select": "best"}}, "show.select"),
            ({"show": {"of": 9, "choose": "spread"}}, "show.choose"),
        ],
    )
    def test_what_does_not_go_together(
        self, session: Session, project: Project, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(Invalid, match=message) as error:
            projects.update_project(session, SYSTEM, project.slug, changes)
        assert (error.value.field or "").startswith("show")
        with pytest.raises(Invalid, match=message):
            projects.create_project(session, SYSTEM, slug="other", name="Other", settings=USUAL | changes)

    def test_where_all_are_shown_anything_goes(self, session: Session, project: Project) -> None:
        projects.update_project(session, SYSTEM, project.slug, {"show": {"of": 3, "select": "all"}})
        projects.update_project(session, SYSTEM, project.slug, {"temperatures": [[0.7, 9]]})
        assert projects.settings_of(session, project).show.of == 3
