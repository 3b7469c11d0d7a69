"""Imports: files of prompts, good and bad lines, broken off and gone on with."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import Import, ImportState, Project, Prompt, PromptImage
from app.services import images, imports
from app.services.actors import SYSTEM
from tests import factories
from tests.conftest import CommittedDatabase


def table(*items: Any) -> bytes:
    return b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items)


def archive(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in files.items():
            made.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return file.getvalue()


def run(db: CommittedDatabase, project: Project, data: bytes, filename: str = "prompts.jsonl") -> Import:
    with db.sessions() as session:
        made = imports.create_import(session, SYSTEM, project, filename=filename, source=io.BytesIO(data))
        session.commit()
    imports.run(made.id, worker="w", check=lambda: None)
    with db.sessions() as session:
        return imports.get_import(session, SYSTEM, made.id)


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    with committed_db.sessions() as session:
        project = factories.make_project(session)
        session.commit()
    return project


def problems(db: CommittedDatabase, found: Import) -> list[tuple[int, str | None]]:
    with db.sessions() as session:
        return [(one.line, one.field) for one in imports.problems_of(session, found)]


class TestRun:
    def test_a_zip_with_images(self, committed_db: CommittedDatabase, project: Project) -> None:
        good = {"external_id": "a", "images": ["images/1.png"], "question": "q"}
        data = archive(
            set__prompts_dot_jsonl=table(
                good,
                b"{broken",
                {"images": ["images/none.png"], "question": "q"},
                {"images": ["images/bad.png"], "question": "q"},
                {"images": ["../../secret"], "question": "q"},
                [1],
                {"images": ["images/1.png"], "question": "q", "candidates": ["made elsewhere"]},
            ),
            set__images__1_dot_png=factories.image_bytes(),
            set__images__bad_dot_png=b"no image",
        )
        found = run(committed_db, project, data, "my/set.zip")
        assert found.state is ImportState.succeeded
        assert (found.filename, found.total, found.done) == ("set.zip", 7, 7)
        assert (found.added, found.rejected, found.unchanged) == (2, 5, 0)
        assert problems(committed_db, found) == [(2, None), (3, "images"), (4, "image"), (5, "images"), (6, None)]
        again = run(committed_db, project, data)
        assert (again.added, again.unchanged) == (1, 1)  # the one with an external id is known
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count(PromptImage.sha256.distinct()))) == 1

    def test_a_table_naming_uploaded_images(self, committed_db: CommittedDatabase, project: Project) -> None:
        with committed_db.sessions() as session:
            sha256 = images.add_image(session, SYSTEM, factories.image_bytes()).sha256
            session.commit()
        items = [{"external_id": str(number), "images": [sha256], "question": "q"} for number in range(120)]
        found = run(committed_db, project, table(*items, {"images": ["x.png"], "question": "q"}))
        assert (found.state, found.added, found.rejected) == (ImportState.succeeded, 120, 1)
        assert problems(committed_db, found) == [(121, "images")]

    def test_a_line_without_end(
        self, committed_db: CommittedDatabase, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(imports, "MAX_LINE", 100)
        found = run(committed_db, project, b"x" * 1000 + b"\n" + b"{}\n")
        assert (found.state, found.total, found.rejected) == (ImportState.succeeded, 2, 2)

    @pytest.mark.parametrize(
        "data",
        [
            archive(a_dot_jsonl=b"{}", b_dot_jsonl=b"{}"),
            archive(readme=b"x"),
            archive(a_dot_jsonl=b"{}" * 99)[:60] + b"PK",
        ],
    )
    def test_a_file_that_cannot_be_read(self, committed_db: CommittedDatabase, project: Project, data: bytes) -> None:
        found = run(committed_db, project, data)
        assert found.state in (ImportState.failed, ImportState.succeeded)
        assert found.error or found.rejected == found.total

    def test_goes_on_where_it_was_broken_off(self, committed_db: CommittedDatabase, project: Project) -> None:
        class Stopping(Exception):
            pass

        calls = 0

        def stop_at_the_second() -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise Stopping

        with committed_db.sessions() as session:
            sha256 = images.add_image(session, SYSTEM, factories.image_bytes()).sha256
            items = [{"images": [sha256], "question": str(number)} for number in range(2 * imports.PIECE)]
            made = imports.create_import(session, SYSTEM, project, filename="x", source=io.BytesIO(table(*items)))
            session.commit()
        with pytest.raises(Stopping):
            imports.run(made.id, worker="one", check=stop_at_the_second)
        imports.run(made.id, worker="two", check=lambda: None)  # still leased by `one`
        with committed_db.sessions() as session:
            broken = session.get_one(Import, made.id)
            assert (broken.state, broken.done) == (ImportState.running, imports.PIECE)
            broken.beats_at = None
            session.commit()
        imports.run(made.id, worker="two", check=lambda: None)
        imports.run(made.id, worker="three", check=lambda: None)  # a doubled message does no harm
        with committed_db.sessions() as session:
            assert session.get_one(Import, made.id).state is ImportState.succeeded
            assert session.scalar(select(func.count()).select_from(Prompt)) == len(items)


class TestCreateImport:
    def test_an_empty_file(self, session: Session) -> None:
        with pytest.raises(Invalid):
            imports.create_import(session, SYSTEM, factories.make_project(session), filename="x", source=io.BytesIO())
