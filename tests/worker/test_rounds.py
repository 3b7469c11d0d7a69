"""Running a round: the tuning process is real, its model tiny."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select, update

from app.db.sessions import session_scope
from app.models import (
    CandidateSetState,
    Evaluation,
    ModelVersion,
    Project,
    Prompt,
    PromptState,
    Round,
    RoundState,
    Snapshot,
    Split,
)
from app.processes.connect import forget_settings
from app.processes.embedded import Embedded
from app.services.candidates import candidates
from app.services.kernel import workers
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import get_store
from app.services.rounds import lease, rounds, versions
from app.services.rounds.lease import RoundClaim
from app.settings import get_settings
from illume.errors import VlmError
from illume.tuning.job import TuningJob, read_json
from tests.conftest import MIGRATED, copy_database
from tests.worker import loop
from worker import model_cache, round_folder
from worker import rounds as worker_rounds
from worker.filling import fill_pool
from worker.model_cache import ModelCache
from worker.process import Stopping, WorkerProcess, make_process
from worker.rounds import run_next_round

LONGER: dict[str, Any] = {"epochs": 12}
AFTER_A_ROUND = "after_a_round"  # the database that tests of what follows a round copy


@dataclass(frozen=True)
class Ran:
    """A round that has run to its end: its project's id and its own, and what it left in the data directory."""

    project_id: int
    round_id: int
    data: Path


@pytest.fixture(scope="module")
def first_round(embedded: Embedded, models: ModelCache, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The only round of a project, run once for all tests that begin after it."""
    data = tmp_path_factory.mktemp("first-round") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ILLUME_DATABASE_URL", copy_database(embedded, AFTER_A_ROUND, MIGRATED))
        patch.setenv("ILLUME_DATA_DIR", str(data))
        patch.setenv("ILLUME_DEVICE", "cpu")
        patch.setenv("ILLUME_REDIS_URL", "")
        forget_settings()
        process = make_process(("model",), device="cpu")
        try:
            project_id, round_id = loop.project_with_a_round(base)
            run_next_round(process, models)
        finally:
            process.heartbeat.stop()
    forget_settings()
    return Ran(project_id, round_id, data)


@pytest.fixture
def template(request: pytest.FixtureRequest) -> str:
    """The database to copy for the test: the one after a round for tests that ask for `ran`."""
    if "ran" not in request.fixturenames:
        return MIGRATED
    request.getfixturevalue("first_round")
    return AFTER_A_ROUND


@pytest.fixture
def ran(process: WorkerProcess, first_round: Ran) -> Ran:
    """A project whose first round has run, in the test's own database and data directory."""
    shutil.copytree(first_round.data, get_settings().data_dir, dirs_exist_ok=True)
    return first_round


def folder_of(round_id: int) -> Path:
    return round_folder.folder_of(RoundClaim(round_id, 0, 0))


def epochs_in(folder: Path) -> list[int]:
    """The epochs whose end the event file notes, in order."""
    path = folder / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["epoch"] for line in lines if line["kind"] == "epoch"]


def child_of(folder: Path) -> int | None:
    path = folder / "process.json"
    return int(json.loads(path.read_text())[0]["pid"]) if path.exists() else None


def kill_child(folder: Path) -> None:
    pid = child_of(folder)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def when(condition: Callable[[], bool], deed: Callable[[], object]) -> threading.Thread:
    """Do `deed` from another thread once `condition` holds."""

    def wait_and_do() -> None:
        loop.wait_until(condition)
        deed()

    thread = threading.Thread(target=wait_and_do)
    thread.start()
    return thread


class TestRunNextRound:
    def test_from_the_snapshot_to_a_version(self, process: WorkerProcess, ran: Ran) -> None:
        project_id, round_id = ran.project_id, ran.round_id
        done = loop.round_now(round_id)
        assert (done.state, done.error) == (RoundState.succeeded, None)
        with session_scope() as session:
            version = session.get_one(ModelVersion, done.version_id)
            assert (version.number, version.round_id, version.parent_id) == (1, round_id, done.parent_id)
            assert 0 <= version.metrics["score"] <= 1
            assert version.metrics["metric"] == "rouge_l"
            assert set(version.metrics["change"]["score"]) == {"mean", "low", "high", "n"}
            assert {"greedy_rouge_l", "sampled_rouge_l", "answer_accuracy", "sampled_bleu_4"} <= set(
                version.metrics["means"]
            )
            events = rounds.events(session, done)
            assert [one.data["epoch"] for one in events if one.kind == "epoch"] == [1, 2, 3]
            assert session.scalar(select(func.count()).select_from(Evaluation)) == 2
            assert workers.device_holder(session, process.device_key) is None
        assert done.decision["reason"]
        assert done.metrics["seconds"] > 0
        assert done.progress["fraction"] == 1.0
        # Candidates first: critics have something to do while the round trains.
        assert [one.state for one in loop.sets_now(project_id)].count(CandidateSetState.ready) == 2
        assert not folder_of(round_id).exists()

    def test_its_version_writes_the_next_candidates_and_is_the_next_parent(
        self, process: WorkerProcess, models: ModelCache, ran: Ran
    ) -> None:
        project_id = ran.project_id
        with session_scope() as session:
            first = loop.round_now(ran.round_id)
            assert first.version_id is not None
            versions.activate(session, SYSTEM, first.version_id)
        assert fill_pool(process, models, project_id) > 0
        assert loop.sets_now(project_id)[-1].version_id == first.version_id
        with session_scope() as session:
            second = rounds.start(session, SYSTEM, session.get_one(Project, project_id)).id
        loop.prepare(second)
        run_next_round(process, models)
        done = loop.round_now(second)
        assert (done.state, done.parent_id) == (RoundState.succeeded, first.version_id)

    def test_a_rerun_is_bit_equal(self, process: WorkerProcess, models: ModelCache, ran: Ran) -> None:
        with session_scope() as session:
            again = rounds.rerun(session, SYSTEM, ran.round_id).id
        run_next_round(process, models)
        with session_scope() as session:
            adapters = session.scalars(select(ModelVersion.adapter).where(ModelVersion.number > 0)).all()
        assert loop.round_now(again).state == RoundState.succeeded
        assert len(adapters) == 2
        assert len(set(adapters)) == 1

    def test_one_lost_image_and_one_that_cannot_be_read_are_left_out(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        _, round_id = loop.project_with_a_round(base, waiting=3, epochs=1)
        with session_scope() as session:
            [lost] = session.scalars(select(Prompt).where(Prompt.split == Split.val).limit(1)).all()
            guards = select(Prompt).where(Prompt.split == Split.train, Prompt.state == PromptState.waiting)
            torn = session.scalars(guards.order_by(Prompt.id)).all()
            data = candidates.load_prompts_data(session, [lost.id, *(one.id for one in torn)])
        get_store().local_path(data[lost.id].images[0], Path()).unlink()
        for one in torn:
            get_store().local_path(data[one.id].images[0], Path()).write_bytes(b"torn")
        run_next_round(process, models)
        done = loop.round_now(round_id)
        assert (done.state, done.error) == (RoundState.succeeded, None)
        left_out = {(entry["role"], entry["prompt"]): entry["reason"] for entry in done.metrics["left_out"]}
        assert left_out["val", str(lost.id)] == (
            "An image is missing in the store that this machine uses (ILLUME_STORE_URL)."
        )
        # The judged prompts show the same images.
        assert {role for role, _ in left_out} == {"val", "guard", "rationale"}
        assert all("cannot be read" in reason for (role, _), reason in left_out.items() if role != "val")

    def test_without_references_by_held_out_rationales(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        _, round_id = loop.project_with_a_round(base, primary_metric="loglik", epochs=1)
        run_next_round(process, models)
        done = loop.round_now(round_id)
        assert done.state == RoundState.succeeded
        assert done.metrics["metric"] == "heldout"
        assert done.metrics["score"] < 0

    def test_it_learns_from_what_was_turned_down_too(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        _, round_id = loop.project_with_a_round(base, objective="picks_and_rejections", epochs=1)
        run_next_round(process, models)
        done = loop.round_now(round_id)
        assert (done.state, done.error) == (RoundState.succeeded, None)
        assert done.metrics["n_pairs"] > 0
        with session_scope() as session:
            snapshot = session.get_one(Snapshot, done.snapshot_id)
            assert snapshot.counts["pairs"] == done.metrics["n_pairs"]
            steps = [one.data for one in rounds.events(session, done) if one.kind == "step"]
        assert all(step["accepted_logprob"] < 0 for step in steps)

    def test_a_doubled_message_does_nothing(self, process: WorkerProcess, models: ModelCache, ran: Ran) -> None:
        before = loop.round_now(ran.round_id)
        run_next_round(process, models)
        assert loop.round_now(ran.round_id).fence == before.fence
        with session_scope() as session:
            assert session.scalar(select(func.count()).select_from(ModelVersion)) == 2

    def test_a_model_that_cannot_be_loaded_fails_it_with_the_reason(
        self, process: WorkerProcess, models: ModelCache, base: Path, tmp_path: Path
    ) -> None:
        _, round_id = loop.project_with_a_round(tmp_path / "nowhere", waiting=0)
        run_next_round(process, models)
        done = loop.round_now(round_id)
        assert done.state == RoundState.failed
        assert done.error is not None
        assert "no model folder" in done.error
        with session_scope() as session:
            assert rounds.retry(session, SYSTEM, round_id).state == RoundState.queued

    def test_a_model_that_hangs_as_it_is_opened_fails_it_before_it_trains(
        self, process: WorkerProcess, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def hang(*_: object, **__: object) -> str:
            raise VlmError("its chat template may loop")

        monkeypatch.setattr(model_cache, "check_in_child", hang)
        _, round_id = loop.project_with_a_round(base)
        run_next_round(process, ModelCache())
        done = loop.round_now(round_id)
        assert (done.state, done.error) == (RoundState.failed, "its chat template may loop")
        assert epochs_in(folder_of(round_id)) == []


class TestTurns:
    def test_a_round_makes_room_for_critics_of_others_and_goes_on(
        self, process: WorkerProcess, models: ModelCache, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, round_id = loop.project_with_a_round(base, **LONGER)
        folder = folder_of(round_id)
        others: list[int] = []

        def add_other() -> None:
            with session_scope() as session:
                other = loop.make_project(session, base, pool_for_round=2)
                loop.add_prompts(session, other, count=2)
                others.append(other.id)

        monkeypatch.setattr(worker_rounds, "TURN_SECONDS", 0.0)
        monkeypatch.setattr(worker_rounds, "ASK_SECONDS", 0.0)
        adder = when(lambda: len(epochs_in(folder)) >= 1, add_other)
        run_next_round(process, models)
        adder.join()
        done = loop.round_now(round_id)
        assert (done.state, done.error, done.tries) == (RoundState.succeeded, None, 1)
        assert [one.state for one in loop.sets_now(others[0])] == ["ready"] * 2
        assert done.finished_at is not None
        assert loop.sets_now(others[0])[0].created_at < done.finished_at
        assert "seconds" not in done.metrics  # an interrupted round says nothing about the next one's duration

    def test_a_tuning_process_that_is_stuck_fails_its_round(
        self, process: WorkerProcess, models: ModelCache, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, round_id = loop.project_with_a_round(base, **LONGER)
        folder = folder_of(round_id)

        def make_stuck() -> None:
            os.kill(child_of(folder) or 0, signal.SIGSTOP)
            monkeypatch.setattr(get_settings(), "step_seconds", 1.0)

        stopper = when(lambda: len(epochs_in(folder)) >= 1, make_stuck)
        run_next_round(process, models)
        stopper.join()
        done = loop.round_now(round_id)
        assert done.state is RoundState.failed
        assert done.error == "the tuning process made no progress for 1 s and was ended"


class TestBrokenOff:
    def test_its_process_killed_it_goes_on_from_the_last_epoch(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        _, round_id = loop.project_with_a_round(base, **LONGER)
        folder = folder_of(round_id)
        killer = when(lambda: len(epochs_in(folder)) >= 2, lambda: kill_child(folder))
        run_next_round(process, models)
        killer.join()
        put_back = loop.round_now(round_id)
        assert (put_back.state, put_back.worker) == (RoundState.queued, None)
        assert put_back.error == "the tuning process ended with SIGKILL"
        before = len(epochs_in(folder))
        seen: list[int] = []
        watcher = when(lambda: bool(seen) or len(epochs_in(folder)) > before, lambda: seen.extend(epochs_in(folder)))
        run_next_round(process, models)
        watcher.join()
        done = loop.round_now(round_id)
        assert (done.state, done.tries) == (RoundState.succeeded, 1)
        with session_scope() as session:
            epochs = [one.data["epoch"] for one in rounds.events(session, done) if one.kind == "epoch"]
        assert epochs == list(range(1, LONGER["epochs"] + 1))

    def test_told_to_stop_it_checkpoints_and_is_put_back(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        _, round_id = loop.project_with_a_round(base, **LONGER)
        folder = folder_of(round_id)
        stopper = when(lambda: len(epochs_in(folder)) >= 1, process.stop.set)
        with pytest.raises(Stopping):
            run_next_round(process, models)
        stopper.join()
        pid = child_of(folder)
        assert pid is not None
        assert not psutil.pid_exists(pid)
        put_back = loop.round_now(round_id)
        assert (put_back.state, put_back.worker, put_back.tries) == (RoundState.queued, None, 0)
        assert (folder / "checkpoints").is_dir()

    def test_cancelled_it_ends_within_seconds(self, process: WorkerProcess, models: ModelCache, base: Path) -> None:
        _, round_id = loop.project_with_a_round(base, **LONGER)
        folder = folder_of(round_id)
        at: list[float] = []

        def cancel() -> None:
            with session_scope() as session:
                rounds.cancel(session, SYSTEM, round_id)
            at.append(time.monotonic())

        canceller = when(lambda: len(epochs_in(folder)) >= 1, cancel)
        run_next_round(process, models)
        canceller.join()
        assert time.monotonic() - at[0] < 10  # the issue's own limit
        assert loop.round_now(round_id).state == RoundState.cancelled
        with session_scope() as session:
            rounds.retry(session, SYSTEM, round_id)
        assert len(epochs_in(folder)) >= 1

    def test_whoever_lost_the_lease_ends_its_process_and_writes_nothing(
        self, process: WorkerProcess, models: ModelCache, base: Path
    ) -> None:
        _, round_id = loop.project_with_a_round(base, **LONGER)
        folder = folder_of(round_id)

        def take_over() -> None:
            with session_scope() as session:
                session.execute(update(Round).values(beats_at=None))
                claim = lease.claim_round(session, worker="another")
                assert claim is not None

        thief = when(lambda: len(epochs_in(folder)) >= 1, take_over)
        run_next_round(process, models)
        thief.join()
        pid = child_of(folder)
        assert pid is not None
        assert not psutil.pid_exists(pid)
        theirs = loop.round_now(round_id)
        assert (theirs.worker, theirs.state) == ("another", RoundState.preparing)


class TestForgetOld:
    def test_only_folders_of_rounds_that_need_them_no_more(self, process: WorkerProcess, base: Path) -> None:
        folders = {}
        for state in (RoundState.succeeded, RoundState.failed, RoundState.cancelled):
            _, round_id = loop.project_with_a_round(base)
            with session_scope() as session:
                claim = lease.claim_round(session, worker=process.name)
                assert claim is not None
                inputs = round_folder.read_inputs(session, claim)
            folders[state] = round_folder.folder_of(claim)
            round_folder.prepare(inputs, folders[state])
            with session_scope() as session:
                done = session.get_one(Round, round_id)
                days = 8 if state is RoundState.failed else 0
                done.state, done.finished_at = state, datetime.now(UTC) - timedelta(days=days, seconds=1)
        unknown = round_folder.rounds_dir() / "10000"
        unknown.mkdir()
        (unknown / "round.json").write_text(json.dumps({"round": 10000, "created_at": "", "snapshot": ""}))
        with session_scope() as session:
            assert round_folder.remove_old_folders(session) == 2
        assert [folder.exists() for folder in folders.values()] == [False, False, True]
        assert unknown.exists()


class TestPrepare:
    def claimed(self, process: WorkerProcess, base: Path, **settings: Any) -> RoundClaim:
        loop.project_with_a_round(base, **settings)
        with session_scope() as session:
            claim = lease.claim_round(session, worker=process.name)
        assert claim is not None
        return claim

    def inputs(self, claim: RoundClaim) -> round_folder.RoundInputs:
        with session_scope() as session:
            return round_folder.read_inputs(session, claim)

    def test_a_folder_of_the_same_round_stays(self, process: WorkerProcess, base: Path) -> None:
        claim = self.claimed(process, base)
        folder = round_folder.folder_of(claim)
        assert round_folder.prepare(self.inputs(claim), folder)
        (folder / "checkpoints").mkdir()
        assert not round_folder.prepare(self.inputs(claim), folder)
        assert (folder / "checkpoints").exists()

    def test_a_round_goes_on_by_the_present_settings_of_the_machine(
        self, process: WorkerProcess, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim = self.claimed(process, base)
        folder = round_folder.folder_of(claim)
        round_folder.prepare(self.inputs(claim), folder)
        before = TuningJob.from_json(read_json(folder / "job.json"))
        (folder / "checkpoints").mkdir()
        monkeypatch.setattr(get_settings(), "attn_implementation", "eager")
        monkeypatch.setattr(get_settings(), "accelerate_config", "/etc/illume/accelerate.yaml")
        assert not round_folder.prepare(self.inputs(claim), folder)
        after = TuningJob.from_json(read_json(folder / "job.json"))
        settings = dataclasses.replace(before.settings, attn_implementation="eager")
        expected = dataclasses.replace(before, settings=settings, accelerate_config="/etc/illume/accelerate.yaml")
        assert after == expected
        monkeypatch.setattr(get_settings(), "accelerate_config", "")
        assert not round_folder.prepare(self.inputs(claim), folder)
        assert read_json(folder / "job.json")["accelerate_config"] is None
        assert (folder / "checkpoints").exists()

    def test_a_round_begins_anew_with_other_bits_unless_it_is_done(
        self, process: WorkerProcess, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim = self.claimed(process, base)
        folder = round_folder.folder_of(claim)
        round_folder.prepare(self.inputs(claim), folder)
        (folder / "result.json").write_text("{}")
        monkeypatch.setattr(get_settings(), "quantization", "4bit")
        assert not round_folder.prepare(self.inputs(claim), folder)
        (folder / "result.json").unlink()
        (folder / "checkpoints").mkdir()
        assert round_folder.prepare(self.inputs(claim), folder)
        assert not (folder / "checkpoints").exists()
        assert read_json(folder / "job.json")["settings"]["quantization"] == "4bit"
        monkeypatch.setattr(get_settings(), "dtype", "bfloat16")
        assert round_folder.prepare(self.inputs(claim), folder)

    def test_a_folder_of_another_round_or_half_written_goes(self, process: WorkerProcess, base: Path) -> None:
        claim = self.claimed(process, base)
        folder = round_folder.folder_of(claim)
        round_folder.prepare(self.inputs(claim), folder)
        (folder / "round.json").write_text(json.dumps({"round": claim.round_id, "snapshot": "of another database"}))
        (folder / "result.json").write_text("{}")
        assert round_folder.prepare(self.inputs(claim), folder)
        assert not (folder / "result.json").exists()
        (folder / "job.json").unlink()
        assert round_folder.prepare(self.inputs(claim), folder)

    def test_what_saves_memory_reaches_the_job(
        self, process: WorkerProcess, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in (("dtype", "bfloat16"), ("attn_implementation", "eager"), ("quantization", "4bit")):
            monkeypatch.setattr(get_settings(), name, value)
        inputs = self.inputs(self.claimed(process, base, gradient_checkpointing=True))
        settings = round_folder.make_job(inputs, []).settings
        assert (settings.gradient_checkpointing, settings.dtype) == (True, "bfloat16")
        assert (settings.attn_implementation, settings.quantization) == ("eager", "4bit")
        assert round_folder.make_job(inputs, []).accelerate_config is None
        monkeypatch.setattr(get_settings(), "accelerate_config", "/etc/illume/accelerate.yaml")
        assert round_folder.make_job(inputs, []).accelerate_config == "/etc/illume/accelerate.yaml"
        del inputs.plan.settings["gradient_checkpointing"]  # as in snapshots from before there was the setting
        assert not round_folder.make_job(inputs, []).settings.gradient_checkpointing

    def test_the_parents_scores_are_handed_on(self, process: WorkerProcess, ran: Ran) -> None:
        with session_scope() as session:
            rounds.rerun(session, SYSTEM, ran.round_id)
            claim = lease.claim_round(session, worker=process.name)
        assert claim is not None
        folder = round_folder.folder_of(claim)
        round_folder.prepare(self.inputs(claim), folder)
        scores = json.loads((folder / "job.json").read_text())["parent_scores"]
        assert len(scores["prompts"]) == 3
