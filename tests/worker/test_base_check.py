"""What a worker says of a base model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.db.sessions import session_scope
from app.models import BaseCheck, CheckState
from app.services.rounds.base_checks import reads_pictures_first
from app.settings import get_settings
from tests.illume.families import LLAVA_1_5
from tests.worker.loop import make_check
from worker import model_cache
from worker.base_check import check_base
from worker.model_cache import ModelCache
from worker.process import WorkerProcess


@pytest.mark.parametrize("is_allowed", [False, True])
def test_pickles_need_the_setting(
    process: WorkerProcess, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_allowed: bool
) -> None:
    folder = shutil.copytree(base, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(get_settings(), "allow_pickle_weights", is_allowed)
    check_id = make_check(str(folder))
    check_base(check_id)
    with session_scope() as session:
        found = session.get_one(BaseCheck, check_id)
        assert found.state is (CheckState.passed if is_allowed else CheckState.failed)
        assert ("only pickle files" in found.detail) is not is_allowed
    if is_allowed:
        asked: list[bool] = []
        monkeypatch.setattr(model_cache, "check_in_child", lambda *_, **how: asked.append(how["allow_pickle"]))
        assert ModelCache().get(str(folder), None).base == str(folder)
        assert asked == [True]


def test_its_answer_is_stored(process: WorkerProcess, base: Path, tmp_path: Path) -> None:
    for folder, state, words in ((base, CheckState.passed, "llava"), (tmp_path / "no", CheckState.failed, "no model")):
        check_id = make_check(str(folder))
        check_base(check_id)
        with session_scope() as session:
            found = session.get_one(BaseCheck, check_id)
            assert found.state is state
            assert words in found.detail
            assert found.pictures_first is (False if state is CheckState.passed else None)


def test_where_it_reads_pictures_is_stored(process: WorkerProcess, base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "first")
    (folder / "chat_template.jinja").write_text(LLAVA_1_5)
    check_id = make_check(str(folder))
    check_base(check_id)
    with session_scope() as session:
        assert session.get_one(BaseCheck, check_id).pictures_first is True
        assert reads_pictures_first(session, str(folder))
