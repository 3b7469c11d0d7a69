"""What a worker says of a base model."""

from __future__ import annotations

from pathlib import Path

from app.db.sessions import session_scope
from app.models import BaseCheck, CheckState
from tests.worker.loop import make_check
from worker.base_check import check_base
from worker.process import WorkerProcess


def test_its_answer_is_stored(process: WorkerProcess, base: Path, tmp_path: Path) -> None:
    for folder, state, words in ((base, CheckState.passed, "llava"), (tmp_path / "no", CheckState.failed, "no model")):
        check_id = make_check(str(folder))
        check_base(check_id)
        with session_scope() as session:
            found = session.get_one(BaseCheck, check_id)
            assert found.state is state
            assert words in found.detail
