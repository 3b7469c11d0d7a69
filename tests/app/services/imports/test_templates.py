"""The sample photographs are imported whole, can be judged at once, and are free to ship."""

from __future__ import annotations

from pathlib import Path

import orjson
import PIL.Image
import pytest

from app.errors import NotFound
from app.models import ImportState, PromptState
from app.services.imports.templates import sample_photographs
from app.settings import ROOT
from tests import factories
from tests.app.services.imports.importing import prompts_of, run
from tests.conftest import CommittedDatabase

FOLDER = ROOT / "starter" / "photographs"


class TestSamplePhotographs:
    def test_are_imported_and_can_be_judged_at_once(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions.begin() as session:
            project = factories.make_project(session)
        for unchanged in (0, 8):
            done = run(committed_db, project, sample_photographs(FOLDER), "photographs.zip")
            assert (done.state, done.unchanged, done.rejected) == (ImportState.succeeded, unchanged, 0)
        assert [prompt.state for prompt in prompts_of(committed_db, project)] == [PromptState.ready] * 8

    def test_are_small_and_credited(self) -> None:
        prompts = [orjson.loads(line) for line in (FOLDER / "prompts.jsonl").read_bytes().splitlines()]
        pictures = sorted(FOLDER.glob("images/*"))
        assert sorted(name for prompt in prompts for name in prompt["images"]) == [
            f"images/{path.name}" for path in pictures
        ]
        assert sum(path.stat().st_size for path in pictures) < 600_000
        notice = (ROOT / "NOTICE").read_text()
        for path in pictures:
            with PIL.Image.open(path) as picture:
                assert picture.format == "JPEG"
                assert max(picture.size) <= 640
            assert f"  {path.name}: " in notice

    def test_are_missing_where_the_starter_was_left_out(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="not installed"):
            sample_photographs(tmp_path)
