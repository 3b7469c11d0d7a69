"""Snapshots: which rows are chosen, how they are kept, what they change."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Forbidden, NotFound
from app.models import (
    Image,
    Project,
    Prompt,
    PromptImage,
    PromptState,
    Round,
    RoundState,
    Snapshot,
    SnapshotItem,
    Split,
    Verdict,
)
from app.services.acceptance import rules
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.store import get_store
from app.services.projects import projects
from app.services.projects.projects import settings_of
from app.services.rounds import estimate, rounds, snapshots, training_set
from app.services.rounds.training_set import SnapshotRow
from tests import factories
from tests.app.services.feedback import accept_by_machine, choose_rows, judge, prepare, start_prepared
from tests.app.services.judged import NASTY, make_judged


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, guard_per_rationale=2, eval_prompts=3)


@pytest.fixture
def critic(session: Session, project: Project) -> Actor:
    return factories.make_critic(session, project)


def add_val(session: Session, project: Project, *, count: int, references: bool = True) -> list[Prompt]:
    words = ["because it is"] if references else []
    return [factories.make_prompt(session, project, split=Split.val, references=words) for _ in range(count)]


def end(session: Session, found: Round) -> None:
    found.state = RoundState.succeeded
    session.flush()


def prompts_of(rows: tuple[SnapshotRow, ...]) -> set[int]:
    return {row.prompt.id for row in rows}


class TestChooseRows:
    def test_rationales_guard_and_val(self, session: Session, project: Project, critic: Actor) -> None:
        judged = [judge(session, project, critic, picks=2) for _ in range(2)]
        others = [factories.make_prompt(session, project) for _ in range(5)]
        factories.make_prompt(session, project, state=PromptState.held)
        factories.make_prompt(session, project, answer=None)
        add_val(session, project, count=5)
        chosen = choose_rows(session, project)
        assert chosen.metric == "rouge_l"
        assert prompts_of(chosen.rationales) == {one.id for one in judged}
        assert len(chosen.rationales) == 4
        # Twice as many as rationales were asked for; prompts without an accepted rationale come first.
        assert len(chosen.guard) == 7
        assert {row.prompt.id for row in chosen.guard[:5]} == {one.id for one in others}
        assert all(row.rationale is None and row.answer == "a red umbrella" for row in chosen.guard)
        assert len(chosen.val) == 3
        assert chosen.heldout == ()
        assert choose_rows(session, project) == chosen

    def test_val_prompts_need_an_answer_and_references(self, session: Session, project: Project) -> None:
        [good] = add_val(session, project, count=1)
        add_val(session, project, count=2, references=False)
        factories.make_prompt(session, project, split=Split.val, answer=None, references=["x"])
        factories.make_prompt(session, project, split=Split.test, references=["x"])
        assert prompts_of(choose_rows(session, project).val) == {good.id}

    def test_verdicts_on_val_prompts_are_never_trained_on(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        [val] = add_val(session, project, count=1)
        trained, judged = (judge(session, project, critic, split=split) for split in (Split.train, Split.val))
        assert judged.has_accepted
        assert [one.fresh for one in (trained, judged)] == [True, False]
        chosen = choose_rows(session, project)
        assert prompts_of(chosen.rationales) == {trained.id}
        assert prompts_of(chosen.guard) == {trained.id}
        assert prompts_of(chosen.val) == {val.id}

    def test_without_references_rationales_are_held_out_by_image(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        shared = [factories.make_image(session)]
        judged = [judge(session, project, critic, images=shared) for _ in range(2)]
        judged += [judge(session, project, critic) for _ in range(30)]
        chosen = choose_rows(session, project)
        assert chosen.metric == "heldout"
        assert len(prompts_of(chosen.heldout)) in (15, 16)  # half of 32, or one less where the pair would be cut
        trained = {image for row in chosen.rationales + chosen.guard for image in row.prompt.images}
        assert not trained & {image for row in chosen.heldout for image in row.prompt.images}
        assert prompts_of(chosen.rationales) | prompts_of(chosen.heldout) == {one.id for one in judged}

    @pytest.mark.parametrize(("n_val", "of_train"), [(0, 10), (4, 6), (10, 0), (12, 0)])
    def test_judged_val_prompts_are_held_out_and_spare_train_prompts(
        self, session: Session, critic: Actor, n_val: int, of_train: int
    ) -> None:
        project = factories.make_project(session, guard_per_rationale=2)
        critic = factories.make_critic(session, project)
        train = {judge(session, project, critic).id for _ in range(20)}
        val = {judge(session, project, critic, split=Split.val).id for _ in range(n_val)}
        factories.make_prompt(session, project, split=Split.val)  # not judged
        chosen = choose_rows(session, project)
        assert chosen.metric == "heldout"
        held = prompts_of(chosen.heldout)
        assert val <= held
        assert len(held & train) == of_train
        assert prompts_of(chosen.rationales) == train - held
        assert all(row.role == "heldout" and row.rationale for row in chosen.heldout)
        # Those of val are scored in every round, as those of train that were held out before.
        end(session, start_prepared(session, project))
        assert held <= prompts_of(choose_rows(session, project).heldout)

    def test_a_judged_val_prompt_whose_image_is_trained_on_is_not_scored(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        shared, other = [factories.make_image(session)], [factories.make_image(session)]
        judge(session, project, critic, images=shared)
        judge(session, project, critic)
        factories.make_prompt(session, project, images=other)  # would be a guard row
        judge(session, project, critic, split=Split.val, images=shared)
        apart = judge(session, project, critic, split=Split.val, images=other)
        chosen = choose_rows(session, project)
        assert prompts_of(chosen.heldout) == {apart.id}
        trained = {image for row in chosen.rationales + chosen.guard for image in row.prompt.images}
        assert {one.sha256 for one in shared} <= trained
        assert not trained & {one.sha256 for one in other}

    def test_a_large_project_estimates_what_a_round_holds_out(
        self, session: Session, critic: Actor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project = factories.make_project(session)
        critic = factories.make_critic(session, project)
        for split, n in ((Split.train, 20), (Split.val, 4)):
            for _ in range(n):
                judge(session, project, critic, split=split)
        settings = settings_of(session, project)
        exact = estimate.size_of(session, project, settings).counts
        assert (exact["rationale"], exact["heldout"]) == (14, 10)
        monkeypatch.setattr(estimate, "COUNTED_PROMPTS", 0)
        guessed = estimate.size_of(session, project, settings)
        assert not guessed.exact
        assert {key: guessed.counts[key] for key in ("rationale", "heldout", "val")} == {
            key: exact[key] for key in ("rationale", "heldout", "val")
        }

    def test_what_one_round_holds_out_the_next_holds_out_too(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        """From two prompts on, of which one is taken for want of a better, while better ones come."""
        judge(session, project, critic)
        held: set[int] = set()
        for _ in range(12):
            judge(session, project, critic)
            chosen = choose_rows(session, project)
            assert held <= prompts_of(chosen.heldout)
            assert not held & prompts_of(chosen.rationales)
            held = prompts_of(chosen.heldout)
            end(session, start_prepared(session, project))

    def test_until_thirty_are_held_out_then_a_tenth(self, session: Session, project: Project, critic: Actor) -> None:
        made: list[Prompt] = []
        for judged, held in ((10, 5), (40, 20), (60, 30), (90, 30)):
            made += [judge(session, project, critic) for _ in range(judged - len(made))]
            assert len(choose_rows(session, project).heldout) == held
        targets = {n: training_set.target_held_out(n) for n in (1, 3, 59, 60, 300, 1000)}
        assert targets == {1: 0, 3: 1, 59: 29, 60: 30, 300: 30, 1000: 100}

    def test_what_was_trained_on_is_not_held_out_later_and_half_of_what_is_new_is_trained_on(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        for _ in range(10):
            judge(session, project, critic)
        trained = prompts_of(choose_rows(session, project).rationales)
        end(session, start_prepared(session, project))
        new = {judge(session, project, critic).id for _ in range(10)}
        chosen = choose_rows(session, project)
        assert trained <= prompts_of(chosen.rationales)
        assert len(new & prompts_of(chosen.rationales)) == len(new & prompts_of(chosen.heldout)) == 5

    def test_what_was_trained_on_because_of_a_machine_is_not_held_out_later(self, session: Session) -> None:
        """Whoever judges it since, be it a prompt or another about its image, train or val."""
        accepts = {"critic": "verifier", "precision": 0.9}
        project = factories.make_project(session, machine_critic="verifier", machine_accepts=accepts)
        critic = factories.make_critic(session, project)
        for _ in range(4):
            judge(session, project, critic)
        offered = [accept_by_machine(session, project) for _ in range(4)]
        done = start_prepared(session, project)
        assert session.get_one(Snapshot, done.snapshot_id).counts["machine"] == 4
        end(session, done)
        projects.update_project(session, SYSTEM, project.slug, {"machine_accepts": None})
        seen: set[int] = set()
        for one in offered[:3]:
            picks = [factories.candidates_of(session, one)[0].id]
            factories.make_verdict(session, factories.make_assignment(session, one, critic), picks=picks)
            session.get_one(Prompt, one.prompt_id).state = PromptState.judged
            session.flush()
            rules.refresh_prompt(session, one.prompt_id)
            seen.add(one.prompt_id)
        shown = select(Image).join(PromptImage, PromptImage.sha256 == Image.sha256)
        shared = list(session.scalars(shown.where(PromptImage.prompt_id == offered[3].prompt_id)))
        seen.add(judge(session, project, critic, images=shared).id)
        of_val = judge(session, project, critic, split=Split.val, images=shared)
        apart = judge(session, project, critic, split=Split.val)
        new = {judge(session, project, critic).id for _ in range(6)}
        chosen = choose_rows(session, project)
        held = prompts_of(chosen.heldout)
        assert seen <= prompts_of(chosen.rationales)
        assert not (seen | {of_val.id}) & held
        assert apart.id in held
        assert new & held

    def test_at_least_one_rationale_is_held_out(self, session: Session, project: Project, critic: Actor) -> None:
        for _ in range(2):
            judge(session, project, critic)
        chosen = choose_rows(session, project)
        assert len(chosen.heldout) == len(chosen.rationales) == 1

    def test_never_all_are_held_out(
        self, session: Session, project: Project, critic: Actor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training_set, "HELDOUT_SHARE", 1.0)
        judged = [judge(session, project, critic) for _ in range(3)]
        chosen = choose_rows(session, project)
        assert (len(chosen.heldout), len(chosen.rationales)) == (2, 1)
        assert prompts_of(chosen.rationales) | prompts_of(chosen.heldout) == {one.id for one in judged}

    def test_a_project_may_name_its_metric(self, session: Session, critic: Actor) -> None:
        for name, metric in (("loglik", "heldout"), ("rouge_l", "rouge_l")):
            project = factories.make_project(session, primary_metric=name)
            add_val(session, project, count=1, references=name == "loglik")
            assert choose_rows(session, project).metric == metric

    def test_the_models_own_answer_stands_where_there_is_no_gold_one(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        judge(session, project, critic, answer=None)
        [row] = choose_rows(session, project).rationales
        assert row.answer == "an own answer"


class TestRejections:
    """Prompts in turns: one picked of four, two, none, two and a text that was edited from the third."""

    @pytest.fixture
    def judged(self, session: Session) -> Project:
        project, _ = make_judged(session, prompts=8)
        projects.update_project(session, SYSTEM, project.slug, {"objective": "picks_and_rejections"})
        add_val(session, project, count=1)
        rules.refresh_prompts(session, project.id)
        return project

    def test_picks_alone_leave_them_out(self, session: Session) -> None:
        project, _ = make_judged(session, prompts=4)
        rules.refresh_prompts(session, project.id)
        assert choose_rows(session, project).rejections == ()
        assert "rejection" not in prepare(session, rounds.start(session, SYSTEM, project)).counts

    def test_each_stands_beside_what_was_accepted_of_its_set(self, session: Session, judged: Project) -> None:
        chosen = choose_rows(session, judged)
        accepted: dict[int, set[str]] = {}
        for one in rules.accepted_rationales(session, judged):
            accepted.setdefault(one.prompt_id, set()).add(one.text)
        assert chosen.rejections
        for row in chosen.rejections:
            of_prompt = accepted.get(row.prompt.id, set())
            assert row.rationale not in of_prompt
            assert (row.accepted is None) == (not of_prompt)
            assert row.accepted is None or row.accepted in of_prompt
            assert (row.verdict_id is None) == (row.accepted is None)
        assert chosen.pairs == sum(row.accepted is not None for row in chosen.rejections)
        assert 0 < chosen.pairs < len(chosen.rejections)

    def test_what_was_edited_gives_way_to_the_edit(self, session: Session, judged: Project) -> None:
        pairs = [(row.rationale, row.accepted) for row in choose_rows(session, judged).rejections]
        assert (NASTY[2], "better: " + NASTY[5]) in pairs

    def test_none_of_a_held_out_prompt(self, session: Session, judged: Project) -> None:
        projects.update_project(session, SYSTEM, judged.slug, {"primary_metric": "loglik"})
        chosen = choose_rows(session, judged)
        assert chosen.heldout
        assert prompts_of(chosen.rejections).isdisjoint(prompts_of(chosen.heldout))

    def test_a_snapshot_keeps_them(self, session: Session, judged: Project) -> None:
        taken = prepare(session, rounds.start(session, SYSTEM, judged))
        rows = [row for row in snapshots.read(taken) if row.role == "rejection"]
        assert taken.counts["rejection"] == len(rows)
        assert taken.counts["pairs"] == sum(row.accepted is not None for row in rows)
        query = select(SnapshotItem).where(SnapshotItem.snapshot_id == taken.id, SnapshotItem.role == "rejection")
        items = session.scalars(query.order_by(SnapshotItem.position)).all()
        assert [(one.prompt_id, one.candidate_id) for one in items] == [
            (row.prompt.id, row.candidate_id) for row in rows
        ]

    def test_only_what_most_critics_who_read_all_left_out(self, session: Session, judged: Project) -> None:
        """A verdict given on a single pick says nothing of the others."""
        verdicts = session.scalars(select(Verdict).where(Verdict.project_id == judged.id)).all()
        for verdict in verdicts:
            verdict.exhaustive = False
        session.flush()
        edited = {verdict.prompt_id for verdict in verdicts if verdict.edited_from}
        assert prompts_of(choose_rows(session, judged).rejections) <= edited


class TestMake:
    def test_fixes_rows_settings_and_seed(self, session: Session, project: Project, critic: Actor) -> None:
        judged = judge(session, project, critic)
        add_val(session, project, count=1)
        taken = prepare(session, rounds.start(session, SYSTEM, project))
        assert taken.counts == {"prompts": 1, "rationale": 1, "guard": 1, "val": 1, "heldout": 0}
        rows = snapshots.read(taken)
        assert [row.role for row in rows] == ["rationale", "guard", "val"]
        assert rows[0].prompt.id == judged.id
        assert rows[0].rationale == "it stands in the sand"
        plan = snapshots.plan_of(taken)
        assert (plan.parent_id, plan.base_model, plan.metric) == (project.active_version_id, "starter", "rouge_l")
        assert plan.settings["guard_per_rationale"] == 2
        items = session.scalars(select(SnapshotItem).where(SnapshotItem.snapshot_id == taken.id)).all()
        assert sorted((one.position, one.role) for one in items) == [(0, "rationale"), (1, "guard"), (2, "val")]
        assert items[0].verdict_id == rows[0].verdict_id

    def test_the_file_is_named_by_its_hash_and_the_same_again(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        judge(session, project, critic)
        first = snapshots.freeze(session, SYSTEM, project)
        lines = get_store().read_bytes(first.sha256).splitlines()
        assert json.loads(lines[0])["settings"] == first.settings
        assert lines == [json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode() for line in lines]

    def test_of_a_round_it_ends_freshness(self, session: Session, project: Project, critic: Actor) -> None:
        judge(session, project, critic)
        snapshots.freeze(session, SYSTEM, project)
        assert rules.fresh_count(session, project) == 1
        taken = prepare(session, rounds.start(session, SYSTEM, project))
        assert rules.fresh_count(session, project) == 0
        assert taken.number == 2
        judge(session, project, critic)
        assert rules.fresh_count(session, project) == 1

    def test_rows_stay_when_the_prompt_changes(self, session: Session, project: Project, critic: Actor) -> None:
        judged = judge(session, project, critic)
        taken = prepare(session, rounds.start(session, SYSTEM, project))
        judged.question = "Another question?"
        session.flush()
        assert snapshots.read(taken)[0].prompt.question == "What is on the beach?"

    def test_needs_an_admin(self, session: Session, project: Project, critic: Actor) -> None:
        with pytest.raises(Forbidden):
            snapshots.freeze(session, critic, project)


class TestListSnapshots:
    def test_pages_newest_first(self, session: Session, project: Project, critic: Actor) -> None:
        taken: list[Snapshot] = [snapshots.freeze(session, SYSTEM, project, name=f"n{number}") for number in range(3)]
        page = snapshots.list_snapshots(session, SYSTEM, project, limit=2)
        assert [one.name for one in page.items] == ["n2", "n1"]
        rest = snapshots.list_snapshots(session, SYSTEM, project, limit=2, cursor=page.next)
        assert ([one.name for one in rest.items], rest.next) == (["n0"], None)
        assert snapshots.get_snapshot(session, SYSTEM, taken[0].id) is taken[0]
        with pytest.raises(NotFound):
            snapshots.get_snapshot(session, factories.actor_of(factories.make_user(session)), taken[0].id)
