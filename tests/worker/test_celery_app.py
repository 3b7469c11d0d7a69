"""The Celery application: its tasks are those that `app.queue` names, sent to the queues it names."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import time_machine
from celery.beat import ScheduleEntry

from app import queue
from app.db import migrations
from app.db.sessions import database_now, session_scope
from app.processes.connect import forget_settings
from app.services import sweep
from app.services.integrations import webhooks
from app.services.kernel import secret_key, workers
from app.settings import ROOT, get_settings
from illume.model import machine
from tests.worker import loop
from worker.__main__ import _model_problem, main
from worker.celery_app import make_celery
from worker.process import WorkerProcess

JUMPS = (timedelta(days=-400), timedelta(hours=1))


class TestMakeCelery:
    def test_names_and_tasks_are_the_same_set(self, process: WorkerProcess) -> None:
        celery = make_celery(process)
        assert {name for name in celery.tasks if not name.startswith("celery.")} == set(queue.TASK_QUEUES)

    def test_beat_sends_the_sweep(self, process: WorkerProcess) -> None:
        [entry] = make_celery().conf.beat_schedule.values()
        assert (entry["task"], entry["schedule"].run_every) == (queue.SWEEP, timedelta(seconds=5))
        assert entry["options"] == {"queue": "default"}

    @pytest.mark.parametrize("jump", JUMPS)
    def test_a_clock_that_jumps_holds_no_sweep_up(self, process: WorkerProcess, jump: timedelta) -> None:
        celery = make_celery()
        [entry] = celery.conf.beat_schedule.values()
        scheduled = ScheduleEntry("sweep", app=celery, **entry)
        with time_machine.travel(datetime.now(UTC) + jump):
            soon = scheduled.is_due()
        assert not soon.is_due
        assert soon.next <= 5

    def test_a_heap_of_sweeps_is_one(self, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        swept: list[bool] = []
        monkeypatch.setattr(sweep, "run", lambda: swept.append(True))
        task = make_celery(process).tasks[queue.SWEEP]
        for _ in range(3):
            task.apply(throw=True)
        assert swept == [True]
        monkeypatch.setenv("ILLUME_SWEEP_SECONDS", "0.001")
        forget_settings()
        time.sleep(0.01)
        task.apply(throw=True)
        assert swept == [True, True]

    @pytest.mark.parametrize("jump", JUMPS)
    def test_what_the_sweep_sent_is_dropped_by_the_database_clock_alone(
        self, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch, jump: timedelta
    ) -> None:
        done: list[int] = []
        monkeypatch.setattr(webhooks, "deliver", done.append)
        with session_scope() as session:
            now = database_now(session).timestamp()
        task = make_celery(process).tasks[queue.DELIVER]
        with time_machine.travel(datetime.now(UTC) + jump):
            task.apply(args=[1], kwargs={"until": now + 60}, throw=True)
            task.apply(args=[2], kwargs={"until": now - 1}, throw=True)
            task.apply(args=[3], throw=True)
        assert done == [1, 3]

    @pytest.mark.slow  # quick in test_processes.py, in whole workers
    def test_tasks_do_their_work(self, process: WorkerProcess, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tasks = make_celery(process).tasks
        project_id, round_id = loop.project_with_a_round(base, waiting=1, epochs=1)
        swept: list[bool] = []
        monkeypatch.setattr(sweep, "run", lambda: swept.append(True))
        tasks[queue.SWEEP].apply(throw=True)
        assert swept == [True]
        tasks[queue.RUN_ROUND].apply(args=[round_id], throw=True)
        assert loop.round_now(round_id).state == "succeeded"
        tasks[queue.FILL_POOL].apply(args=[project_id], throw=True)
        tasks[queue.RUN_IMPORT].apply(args=[10**9], throw=True)

    def test_a_task_that_is_told_to_stop_ends_quietly(self, process: WorkerProcess, base: Path) -> None:
        tasks = make_celery(process).tasks
        _, round_id = loop.project_with_a_round(base)
        process.stop.set()
        tasks[queue.RUN_ROUND].apply(args=[round_id], throw=True)
        assert loop.round_now(round_id).state == "queued"

    def test_without_a_database_a_task_says_so_in_a_line(
        self, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        tasks = make_celery(process).tasks
        monkeypatch.setenv("ILLUME_DATABASE_URL", "postgresql://illume@127.0.0.1:1/none")
        forget_settings()
        tasks[queue.RUN_ROUND].apply(args=[1], throw=True)
        assert "run_round: no database, the sweep sends it again: (psycopg.OperationalError)" in caplog.text
        assert len(caplog.records) == 1


class TestMain:
    def test_an_unknown_queue_is_refused(
        self, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("ILLUME_REDIS_URL", "redis://127.0.0.1:1/0")
        forget_settings()
        assert main(["--queues", "default,mdoel"]) == 2
        assert "There is no queue 'mdoel': use default, model." in capsys.readouterr().err

    def test_a_worker_needs_a_broker(self, process: WorkerProcess, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--queues", "default"]) == 2
        assert "ILLUME_REDIS_URL" in capsys.readouterr().err

    def test_a_worker_needs_a_store_that_can_be(
        self, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("ILLUME_REDIS_URL", "redis://127.0.0.1:1/0")
        monkeypatch.setenv("ILLUME_STORE_URL", "nonsense://host/store")
        forget_settings()
        assert main(["--queues", "default"]) == 2
        assert capsys.readouterr().err == "ILLUME_STORE_URL=nonsense://host/store: Protocol not known: nonsense.\n"

    @pytest.mark.parametrize("web_key", ["another", "the same", "none stored", "tables of before"])
    def test_a_worker_needs_the_secret_key_of_the_web_server(
        self,
        web_key: str,
        process: WorkerProcess,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        if web_key in ("another", "the same"):
            secret_key.store_check()
        if web_key == "another":
            monkeypatch.setenv("ILLUME_SECRET_KEY", "made on this machine")
        if web_key == "tables of before":
            migrations.downgrade(get_settings().database_url, "0047")
        monkeypatch.setenv("ILLUME_REDIS_URL", "redis://127.0.0.1:1/0")
        forget_settings()
        monkeypatch.setattr("worker.__main__._model_problem", lambda: "It went on.")
        assert main(["--queues", "model"]) == 2
        refusal = f"This worker has another secret key than the web server. {secret_key.REMEDY}\n"
        assert capsys.readouterr().err == (refusal if web_key == "another" else "It went on.\n")

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("attn_implementation", "flash_attention_2", "flash_attention_2 needs a CUDA device, and this is cpu."),
            ("accelerate_config", "/nowhere/a.yaml", "/nowhere/a.yaml cannot be read: No such file or directory."),
            ("device", "toaster", "unknown device toaster: use auto, cpu, cuda, cuda:1 ... or mps."),
        ],
    )
    def test_a_worker_for_models_names_the_setting_that_this_machine_cannot_meet(
        self,
        name: str,
        value: str,
        reason: str,
        process: WorkerProcess,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("ILLUME_REDIS_URL", "redis://127.0.0.1:1/0")
        monkeypatch.setenv(f"ILLUME_{name.upper()}", value)
        forget_settings()
        assert main(["--queues", "model"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"ILLUME_{name.upper()}")
        assert said.endswith(f": {reason}\n")

    def test_a_worker_for_models_counts_the_cards_of_its_machine(
        self, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = tmp_path / "accelerate.yaml"
        path.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
        monkeypatch.setattr(get_settings(), "accelerate_config", str(path))
        monkeypatch.setattr(machine, "count_cards", lambda device: 2)
        assert _model_problem().endswith("num_processes is 4, and this machine has only 2 graphics cards.")
        monkeypatch.setattr(machine, "count_cards", lambda device: 4)
        assert _model_problem() == ""

    def test_a_worker_that_still_loads_torch_is_listed(
        self, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def look() -> str:
            until = time.monotonic() + 30
            while time.monotonic() < until:
                with session_scope() as session:
                    found = [one.doing for one in workers.list_workers(session, queue="model")]
                if "starting" in found:
                    return "it was listed"
                time.sleep(0.05)
            return "it was not listed"

        monkeypatch.setenv("ILLUME_REDIS_URL", "redis://127.0.0.1:1/0")
        forget_settings()
        monkeypatch.setattr("worker.__main__._model_problem", look)
        assert main(["--queues", "model"]) == 2
        assert capsys.readouterr().err == "it was listed\n"
        with session_scope() as session:
            assert workers.list_workers(session, queue="model") == []

    def test_a_worker_of_other_queues_loads_no_torch(self) -> None:
        program = "import sys, worker.__main__; print('torch' in sys.modules)"
        told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == "False"
