"""Files and folders of this machine on their way into an import."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from app.cli.files import import_file, packing
from app.models import Project, Split
from app.processes.connect import Refused
from app.services.prompts.decoding import ACCEPTED
from tests import factories
from tests.app.services.imports.importing import prompts_of
from tests.app.services.imports.tables.tables import as_xlsx
from tests.conftest import CommittedDatabase


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    with committed_db.sessions.begin() as session:
        return factories.make_project(session, slug="scenes")


def take_in(path: Path, **options: object) -> tuple[int, list[str], list[str]]:
    """Import; the exit code, what was said, and what was warned of."""
    said: list[str] = []
    warned: list[str] = []
    code = import_file.import_file("scenes", path, say=said.append, warn=warned.append, **options)  # type: ignore[arg-type]
    return code, said, warned


class TestImportFile:
    def test_a_folder(self, committed_db: CommittedDatabase, project: Project, tmp_path: Path) -> None:
        (tmp_path / "set" / "images").mkdir(parents=True)
        (tmp_path / "secret.png").write_bytes(factories.image_bytes())
        (tmp_path / "set" / "images" / "1.png").write_bytes(factories.image_bytes())
        rows = "image,question,answer\nimages/1.png,q,a\n../secret.png,q,a\nnone.png,q,a\n"
        (tmp_path / "set" / "prompts.csv").write_text(rows)
        code, said, warned = take_in(tmp_path / "set")
        assert (code, said[-1]) == (1, "1 added, 0 unchanged, 2 rejected.")
        assert [line.split(":")[0] for line in warned] == ["line 3", "line 4"]
        assert "points outside" in warned[0]

    def test_a_folder_of_prompts_in_parts(
        self, committed_db: CommittedDatabase, project: Project, tmp_path: Path
    ) -> None:
        (tmp_path / "images").mkdir()
        for name in ("1.png", "2.png"):
            (tmp_path / "images" / name).write_bytes(factories.image_bytes())
        pictures = [{"type": "image", "image": f"images/{name}"} for name in ("1.png", "2.png")]
        text = {"type": "text", "text": "then"}
        row = {"external_id": "a", "parts": [pictures[0], text, pictures[1]]}
        (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
        code, said, warned = take_in(tmp_path)
        assert (code, said[-1], warned) == (0, "1 added, 0 unchanged, 0 rejected.", [])
        [prompt] = prompts_of(committed_db, project)
        assert prompt.parts is not None
        assert [part["type"] for part in prompt.parts] == ["image", "text", "image"]

    def test_a_workbook_and_a_text_beside_their_images(
        self, committed_db: CommittedDatabase, project: Project, tmp_path: Path
    ) -> None:
        (tmp_path / "tür.png").write_bytes(factories.image_bytes())
        rows = [["image", "question"], ["tür.png", "Was trägt er?"]]
        (tmp_path / "t.xlsx").write_bytes(as_xlsx(rows))
        code, said, warned = take_in(tmp_path / "t.xlsx")
        assert (code, said[-1], warned) == (0, "1 added, 0 unchanged, 0 rejected.", [])
        (tmp_path / "t.csv").write_text("\n".join("|".join(row) for row in rows), encoding="cp1252")
        code, said, warned = take_in(tmp_path / "t.csv")
        assert said[0] == "The text is taken to be Western European (Windows-1252); --encoding says otherwise."
        assert (code, said[-1], warned) == (0, "1 added, 0 unchanged, 0 rejected.", [])
        code, said, warned = take_in(tmp_path / "t.csv", encoding="cp850")
        assert (code, said[-1]) == (1, "0 added, 0 unchanged, 1 rejected.")
        assert "There is no" in warned[0]
        assert [one.question for one in prompts_of(committed_db, project)] == ["Was trägt er?"] * 2

    def test_vqa_x_with_a_folder_of_images(
        self, committed_db: CommittedDatabase, project: Project, tmp_path: Path
    ) -> None:
        folder = tmp_path / "coco" / "val2014"
        folder.mkdir(parents=True)
        (folder / "COCO_val2014_000000456558.jpg").write_bytes(factories.image_bytes(kind="JPEG"))
        (folder / "COCO_val2014_000000000001.jpg").write_bytes(b"not named by any row, so never read")
        columns = {
            "image_id": [456558],
            "question_id": [1],
            "question": ["q"],
            "multiple_choice_answer": ["a"],
            "explanation": ["e"],
        }
        (tmp_path / "val_exp.json").write_text(json.dumps(columns))
        code, said, _ = take_in(tmp_path / "val_exp.json", images=tmp_path / "coco", split=Split.val)
        assert (code, said[-1]) == (0, "1 added, 0 unchanged, 0 rejected.")
        assert prompts_of(committed_db, project)[0].split is Split.val

    def test_a_zip_of_images_and_a_mapping(
        self, committed_db: CommittedDatabase, project: Project, tmp_path: Path
    ) -> None:
        with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
            archive.writestr("deep/1.png", factories.image_bytes())
        (tmp_path / "t.jsonl").write_text(json.dumps({"pic": "1.png", "frage": "q"}))
        mapping = {"pic": "image", "frage": "question"}
        assert take_in(tmp_path / "t.jsonl", images=tmp_path / "i.zip", mapping=mapping)[0] == 0

    @pytest.mark.usefixtures("project")
    def test_large_images_of_a_folder_are_scaled_down_where_that_is_asked_for(self, tmp_path: Path) -> None:
        Image.new("L", (8_200, 5_000), 90).save(tmp_path / "1.png", compress_level=1)
        (tmp_path / "t.jsonl").write_text(json.dumps({"images": ["1.png"], "question": "q"}))
        code, said, warned = take_in(tmp_path / "t.jsonl")
        assert (code, said[-1]) == (1, "0 added, 0 unchanged, 1 rejected.")
        assert "The import can scale such images down." in warned[0]
        code, said, _ = take_in(tmp_path / "t.jsonl", scale_down=True)
        assert (code, said[-1]) == (0, "1 added, 0 unchanged, 0 rejected.")


class TestLinks:
    """What lies outside the folder, or is no image, never enters the store."""

    def test_images_that_are_links(self, committed_db: CommittedDatabase, project: Project, tmp_path: Path) -> None:
        outside, folder = tmp_path / "outside", tmp_path / "set"
        outside.mkdir()
        (folder / "images").mkdir(parents=True)
        (outside / "secret.png").write_bytes(factories.image_bytes())
        (folder / "1.png").symlink_to(outside / "secret.png")
        (folder / "deep").symlink_to(outside)
        (folder / "text.png").write_bytes(b"root:x:0:0:root")
        (folder / "images" / "2.png").write_bytes(factories.image_bytes())
        (folder / "3.png").symlink_to(folder / "images" / "2.png")
        names = ("1.png", "deep/secret.png", "text.png", "3.png", "IMAGES/2.PNG")
        (folder / "prompts.csv").write_text("image,question\n" + "".join(f"{name},q\n" for name in names))
        for images in (None, folder):
            with packing.opened(folder, images) as packed:
                assert packed.images is not None
                with zipfile.ZipFile(packed.images) as archive:
                    assert set(archive.namelist()) == {"3.png", "IMAGES/2.PNG"}
                assert set(packed.refused) == {"1.png", "deep/secret.png", "text.png"}
        code, said, warned = take_in(folder)
        assert (code, said[-1]) == (1, "2 added, 0 unchanged, 3 rejected.")
        assert "1.png: this is a link that leads out of the folder." in warned
        assert f"text.png: This is not an image of a format that is read: {ACCEPTED}." in warned
        assert [prompt.question for prompt in prompts_of(committed_db, project)] == ["q", "q"]

    def test_a_table_that_is_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "outside.csv").write_text("question\nq\n")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "prompts.csv").symlink_to(tmp_path / "outside.csv")
        with pytest.raises(Refused, match="is a link that leads out of the folder"), packing.opened(tmp_path / "set"):
            pass


class TestOpened:
    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").touch()
        (tmp_path / "b.csv").touch()
        for path, word in ((tmp_path, r"holds: a\.csv, b\.csv"), (tmp_path / "none.csv", "could not be read")):
            with pytest.raises(Refused, match=word), packing.opened(path):
                pass
