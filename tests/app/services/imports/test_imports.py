"""Imports: files of prompts, good and bad lines, interruption and resumption."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app import queue
from app.errors import Conflict, DomainError, Forbidden, Invalid
from app.models import Import, ImportState, Project, Prompt, PromptImage, Role, Split
from app.processes.connect import forget_settings
from app.processes.embedded import free_port
from app.services import sweep
from app.services.imports import imports, opened
from app.services.imports.cells import MISSING_WORDS
from app.services.imports.layouts import ImportPlan, Target
from app.services.imports.opened import Source
from app.services.imports.reading import BATCH_ROWS
from app.services.imports.running import run_import
from app.services.imports.tables.rows import MAX_COLUMNS
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import StoreAway
from app.services.kernel.text_rules import MAX_JSON_BYTES
from app.services.prompts.prompts import PromptIn
from app.services.prompts.val_split import place_by_image
from app.settings import ROOT
from tests import factories
from tests.app.services.imports.importing import archive, make, problems, prompts_of, run, stored_image, table
from tests.app.services.imports.tables.tables import as_xlsx
from tests.conftest import CommittedDatabase


def reasons(db: CommittedDatabase, found: Import) -> list[tuple[int, str | None, str]]:
    return [(one.line, one.field, one.reason) for one in problems(db, found)]


class TestRun:
    def test_what_was_done_to_images_is_counted(self, committed_db: CommittedDatabase, project: Project) -> None:
        turned = PIL.Image.Exif()
        turned[0x0112] = 6
        files = {f"{number}.jpg": picture(number, "JPEG", exif=turned) for number in range(3)}
        files |= {"logo.bmp": picture(9, "BMP"), "plain.png": picture(10, "PNG")}
        rows = [{"images": [name], "question": "q"} for name in files]
        found = run(committed_db, project, archive({"prompts.jsonl": table(*rows), **files}), "set.zip")
        assert found.added == 5
        assert imports.image_changes(found) == {"turned": 3, "recoded": 1}

    def test_a_zip_with_images(self, committed_db: CommittedDatabase, project: Project) -> None:
        good = {"external_id": "a", "images": ["images/1.png"], "question": "q"}
        lines = table(
            good,
            b"{broken",
            {"images": ["images/none.png"], "question": "q"},
            {"images": ["images/bad.png"], "question": "q"},
            {"images": ["../../secret"], "question": "q"},
            [1],
            {"images": ["images/1.png"], "question": "q", "candidates": ["made elsewhere"]},
        )
        data = archive(
            {"set/prompts.jsonl": lines, "set/images/1.png": factories.image_bytes(), "set/images/bad.png": b"no image"}
        )
        found = run(committed_db, project, data, "my/set.zip")
        assert found.state is ImportState.succeeded
        assert (found.filename, found.total, found.done) == ("set.zip", 7, 7)
        assert (found.added, found.rejected, found.unchanged) == (2, 5, 0)
        told = reasons(committed_db, found)
        assert [(line, field) for line, field, _ in told] == [
            (2, None),
            (3, "images"),
            (4, "images"),
            (5, "images"),
            (6, None),
        ]
        assert "not valid JSON" in told[0][2]
        assert "images/none.png" in told[1][2]
        assert "points outside" in told[3][2]
        again = run(committed_db, project, data)
        assert (again.added, again.unchanged) == (1, 1)  # the one with an external id is known
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count(PromptImage.sha256.distinct()))) == 1

    def test_a_table_naming_uploaded_images(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        items = [{"external_id": str(number), "images": [sha256], "question": "q"} for number in range(420)]
        data = table(*items, {"images": ["x.png"], "question": "q"})
        found = run(committed_db, project, data)
        assert (found.state, found.added, found.rejected) == (ImportState.succeeded, 420, 1)
        assert reasons(committed_db, found)[0][:2] == (421, "images")
        again = run(committed_db, project, data)
        assert (again.added, again.unchanged, again.rejected) == (0, 420, 1)

    def test_resumes_where_it_was_interrupted(self, committed_db: CommittedDatabase, project: Project) -> None:
        class Stopping(Exception):
            pass

        sha256 = stored_image(committed_db)
        items = [{"images": [sha256], "question": str(number)} for number in range(3 * BATCH_ROWS)]
        made = make(committed_db, project, table(*items), "x.jsonl")

        def stop_in_the_second_batch() -> None:
            with committed_db.sessions() as session:
                if session.get_one(Import, made).done:
                    raise Stopping

        with pytest.raises(Stopping):
            run_import(made, worker="one", check=stop_in_the_second_batch)
        run_import(made, worker="two", check=lambda: None)  # still leased to `one`
        with committed_db.sessions() as session:
            broken = session.get_one(Import, made)
            assert (broken.state, broken.done) == (ImportState.running, BATCH_ROWS)
            broken.beats_at = None
            session.commit()
        run_import(made, worker="two", check=lambda: None)
        run_import(made, worker="three", check=lambda: None)  # a duplicate message does no harm
        with committed_db.sessions() as session:
            assert session.get_one(Import, made).state is ImportState.succeeded
            assert session.scalar(select(func.count()).select_from(Prompt)) == len(items)

    def test_yields_to_other_tasks(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        items = [{"images": [sha256], "question": str(number)} for number in range(2 * BATCH_ROWS)]
        made = make(committed_db, project, table(*items), "x.jsonl")
        states = []
        for _ in range(2):
            run_import(made, worker="one", check=lambda: None, seconds=0.0)
            with committed_db.sessions() as session:
                found = session.get_one(Import, made)
                states.append((found.state, found.done, found.added))
        assert states == [
            (ImportState.running, BATCH_ROWS, BATCH_ROWS),
            (ImportState.succeeded, 2 * BATCH_ROWS, 2 * BATCH_ROWS),
        ]

    def test_waits_while_the_store_is_away(
        self, committed_db: CommittedDatabase, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = make(committed_db, project, table({"images": [stored_image(committed_db)], "question": "q"}), "x.jsonl")
        with monkeypatch.context() as away:
            away.setenv("ILLUME_STORE_URL", f"ftp://127.0.0.1:{free_port()}/store")
            forget_settings()
            for _ in range(6):
                with pytest.raises(StoreAway):
                    run_import(made, worker="one", check=lambda: None)
        forget_settings()
        with committed_db.sessions() as session:
            assert made in [number for task, number in sweep.sweep(session) if task == queue.RUN_IMPORT]
            assert session.get_one(Import, made).error is None
        run_import(made, worker="one", check=lambda: None)
        with committed_db.sessions() as session:
            assert session.get_one(Import, made).state is ImportState.succeeded

    def test_an_import_without_progress_fails(self, committed_db: CommittedDatabase, project: Project) -> None:
        made = make(committed_db, project, table({"question": "q"}), "x.jsonl")
        with committed_db.sessions() as session:
            session.get_one(Import, made).tries = 5
            session.commit()
        run_import(made, worker="w", check=lambda: None)
        with committed_db.sessions() as session:
            found = session.get_one(Import, made)
            assert found.state is ImportState.failed
            assert "Stopped 5 times" in str(found.error)

    def test_a_worker_that_lost_its_lease_writes_nothing(
        self, committed_db: CommittedDatabase, project: Project
    ) -> None:
        sha256 = stored_image(committed_db)
        made = make(committed_db, project, table({"images": [sha256], "question": "q"}), "x.jsonl")

        def overtake() -> None:
            with committed_db.sessions() as session:
                session.get_one(Import, made).fence += 1
                session.commit()

        run_import(made, worker="w", check=overtake)
        with committed_db.sessions() as session:
            assert session.get_one(Import, made).state is ImportState.running
        assert prompts_of(committed_db, project) == []

    def test_killed_in_the_middle(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        items: list[Any] = [{"images": [sha256], "question": f"question {number}"} for number in range(2000)]
        for bad in range(50, 2000, 100):
            items[bad] = {"images": [sha256], "question": ""}
        made = make(committed_db, project, table(*items), "x.jsonl")
        program = [sys.executable, "-c", DIE_IN_THE_MIDDLE, str(made)]
        assert subprocess.run(program, cwd=ROOT, check=False).returncode == -9
        with committed_db.sessions() as session:
            broken = session.get_one(Import, made)
            assert 0 < broken.done < len(items)
            broken.beats_at = None
            session.commit()
        run_import(made, worker="two", check=lambda: None)
        with committed_db.sessions() as session:
            found = session.get_one(Import, made)
        assert (found.state, found.added, found.rejected) == (ImportState.succeeded, 1980, 20)
        questions = [prompt.question for prompt in prompts_of(committed_db, project)]
        assert questions == [item["question"] for item in items if item["question"]]  # none twice, none missing
        assert [line for line, _, _ in reasons(committed_db, found)] == list(range(51, 2001, 100))


DIE_IN_THE_MIDDLE = """
import os, sys
from app.services.imports import reading
from app.services.imports.running import run_import

calls = 0

def die():
    global calls
    calls += 1
    if calls > 4 * reading.BATCH_ROWS // reading.PARSE_THREADS:
        os.kill(os.getpid(), 9)

run_import(int(sys.argv[1]), worker="doomed", check=die)
"""


BAD_LINES: list[tuple[Any, str | None, str]] = [
    (b"x" * (5 << 20), None, "over 4 MB"),
    (b'{"question": "caf\xe9"}', None, "not UTF-8"),
    ({"question": "", "images": ["SHA"]}, "question", "at least 1 character"),
    ({"question": "   ", "images": ["SHA"]}, "question", "at least 1 character"),
    ({"question": "q" * 16_001, "images": ["SHA"]}, "question", "at most 16000"),
    ({"question": "q", "answer": ["a", {}], "metadata": [1], "images": ["SHA"]}, "metadata", "not a valid JSON object"),
    ({"question": "q", "answer": "a" * 4001, "images": ["SHA"]}, "answer", "at most 4000"),
    ({"question": "a\x00b", "images": ["SHA"]}, "question", "NUL"),
    ({"question": "q", "images": ["SHA"], "metadata": {"a\x00": 1}}, "metadata", "NUL"),
    ({"question": "q", "images": ["SHA"], "anwser": "a"}, "anwser", "no such field"),
    ({"question": "q", "images": []}, "images", "at least 1 item"),
    ({"question": "q", "images": [17]}, "images", "17"),
    ({"question": "q", "images": ["svg.png"]}, "images", "This is SVG"),
    ({"question": "q", "images": ["html.png"]}, "images", "This is HTML"),
    ({"question": "q", "images": ["bomb.png"]}, "images", "megapixels"),
    ({"question": "q", "images": ["/etc/passwd"]}, "images", "points outside"),
    ({"question": "q", "images": ["a/../../b.png"]}, "images", "points outside"),
    ({"question": "q", "images": ["c:\\b.png"]}, "images", "points outside"),
    ({"question": "q", "images": ["file:///etc/passwd"]}, "images", "must begin with https"),
    ({"question": "q", "images": ["SHA"], "split": "other"}, "split", "train"),
    (b'{"question": "q", "metadata": ' + b'{"a":' * 900 + b"1" + b"}" * 901, "metadata", "too deeply"),
    ({"question": "q", "images": ["SHA"], "metadata": {"a": "x" * MAX_JSON_BYTES}}, "metadata", "over 256 kB"),
]


class TestRefusals:
    """Refused input gets a clear reason; good rows are kept."""

    def test_lines(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        lines = [
            line if isinstance(line, bytes) else json.dumps(line).replace('"SHA"', f'"{sha256}"').encode()
            for line, _, _ in BAD_LINES
        ]
        files = {
            "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
            "html.png": b"\n<!DOCTYPE html><script>alert(1)</script>",
            "bomb.png": bomb(),
        }
        good = {"question": "good", "images": [sha256]}
        found = run(committed_db, project, archive({"t.jsonl": table(*lines, good), **files}), "t.zip")
        assert (found.state, found.added, found.rejected) == (ImportState.succeeded, 1, len(BAD_LINES))
        told = reasons(committed_db, found)
        assert [(number, field) for number, field, _ in told] == [
            (number, field) for number, (_, field, _) in enumerate(BAD_LINES, 1)
        ]
        for (_, _, reason), (_, _, word) in zip(told, BAD_LINES, strict=True):
            assert word in reason
            assert "Value error" not in reason

    @pytest.mark.parametrize(
        ("data", "name", "word"),
        [
            (b"", "x.jsonl", "empty"),
            (b"\xd0\xcf\x11\xe0 and more", "x.xls", "save it as .xlsx"),
            (b"\xd0\xcf\x11\xe0 and more", "x.xlsx", "has a password"),
            (
                archive({"mimetype": b"x", "content.xml": b"<x/>", "META-INF/manifest.xml": b"<x/>"}),
                "x.ods",
                "OpenDocument",
            ),
            (b"", "x.zip", "empty"),
            (archive({"a.jsonl": b"{}", "b.jsonl": b"{}"}), "x.zip", "holds 2: a.jsonl, b.jsonl"),
            (archive({"readme": b"x"}), "x.zip", "holds 0"),
            (archive({"../a.jsonl": b"{}"}), "x.zip", "points outside"),
            (archive({"a.jsonl": b"{}", "/etc/x.png": b"{}"}), "x.zip", "points outside"),
            (archive({"a.jsonl": b"0" * (80 << 20)}, method=8), "x.zip", "this is refused"),
            (archive({"a.jsonl": b"{}" * 99})[:60] + b"PK", "x.zip", "cannot be read"),
            (b"PAR1 and nothing", "x.parquet", "Parquet file cannot be read"),
            (b'{"question": [1, 2], "answer": [1]}', "x.json", "different lengths"),
            (b'{"question": [1, 2', "x.json", "not valid JSON"),
            (b'{"question": "caf\xe9"}', "x.json", "not UTF-8"),
            (b'"text"', "x.json", "no list of rows"),
            (b"question,question\na,b\n", "x.csv", "twice"),
            (b"\n", "x.csv", "no header"),
        ],
    )
    def test_a_whole_file(self, session: Session, data: bytes, name: str, word: str) -> None:
        with pytest.raises(Invalid) as caught:
            imports.create_import(
                session, SYSTEM, factories.make_project(session), filename=name, source=io.BytesIO(data)
            )
        assert word in caught.value.detail
        assert caught.value.field == "file"

    def test_the_same_id_twice_in_a_file(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        lines = [{"external_id": str(number), "images": [sha256], "question": "q"} for number in range(600)]
        lines[450] = lines[3]
        lines[599] = {**lines[3], "question": "another"}
        found = run(committed_db, project, table(*lines))
        assert (found.added, found.rejected) == (598, 2)
        assert [(line, field) for line, field, _ in reasons(committed_db, found)] == [
            (451, "external_id"),
            (600, "external_id"),
        ]
        assert "occurs twice: first in line 4" in reasons(committed_db, found)[0][2]

    def test_an_image_in_two_splits(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256, other = stored_image(committed_db), stored_image(committed_db)
        data = table(
            {"images": [sha256], "question": "one", "split": "train"},
            {"images": [sha256], "question": "two", "split": "train"},
            {"images": [sha256], "question": "three", "split": "val"},
            {"images": [other, sha256], "question": "four", "split": "test"},
            {"images": [other], "question": "five", "split": "val"},
        )
        found = run(committed_db, project, data)
        assert (found.added, found.rejected) == (3, 2)
        assert [(line, field) for line, field, _ in reasons(committed_db, found)] == [(3, "split"), (4, "split")]
        assert "already in the split 'train'" in reasons(committed_db, found)[0][2]
        later = run(committed_db, project, table({"images": [sha256], "question": "six", "split": "val"}))
        assert (later.added, later.rejected) == (0, 1)

    def test_rows_that_only_the_database_refuses(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        items = [{"images": [sha256], "question": f"q{number}"} for number in range(4)]
        with committed_db.engine.begin() as connection:
            connection.execute(
                text(
                    "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.question = 'q2' THEN "
                    "RAISE EXCEPTION 'not this' USING ERRCODE = '22000'; END IF; RETURN NEW; END $$"
                )
            )
            connection.execute(text("CREATE TRIGGER no BEFORE INSERT ON prompts FOR EACH ROW EXECUTE FUNCTION no()"))
        found = run(committed_db, project, table(*items))
        assert (found.state, found.added, found.rejected, found.done) == (ImportState.succeeded, 3, 1, 4)
        assert reasons(committed_db, found)[0][0] == 3


class TestLargeImages:
    @pytest.mark.parametrize(("scale_down", "added"), [(False, 0), (True, 2)])
    def test_they_are_scaled_down_where_that_is_asked_for(
        self, committed_db: CommittedDatabase, project: Project, scale_down: bool, added: int
    ) -> None:
        large = io.BytesIO()
        PIL.Image.new("L", (8_200, 5_000), 90).save(large, "PNG", compress_level=1)
        rows = table(*({"images": [name], "question": "q"} for name in ("big.png", "https://pictures.example/big.png")))
        found = run(
            committed_db,
            project,
            archive({"prompts.jsonl": rows, "big.png": large.getvalue()}),
            "set.zip",
            scale_down=scale_down,
            fetch=lambda _: large.getvalue(),
        )
        assert found.added == added
        assert imports.image_changes(found) == ({"scaled_down": 1} if scale_down else {})
        said = [reason for _, _, reason in reasons(committed_db, found)]
        assert len(said) == 2 - added
        assert all("41.0 megapixels" in one and one.endswith("The import can scale such images down.") for one in said)

    def test_what_cannot_be_scaled_down_is_not_said_to_be(
        self, committed_db: CommittedDatabase, project: Project
    ) -> None:
        rows = table({"images": ["bomb.png"], "question": "q"})
        data = archive({"prompts.jsonl": rows, "bomb.png": bomb()})
        for scale_down, most in ((False, 40), (True, 250)):
            found = run(committed_db, project, data, "set.zip", scale_down=scale_down)
            [(_, _, reason)] = reasons(committed_db, found)
            assert f"{most} megapixels" in reason
            assert "can scale" not in reason


def bomb() -> bytes:
    """A small file that claims to be an image of 400 megapixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 19_999, 19_999, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


class TestColumns:
    @pytest.mark.parametrize(("n", "fits"), [(MAX_COLUMNS, True), (MAX_COLUMNS + 1, False), (20_000, False)])
    def test_the_first_rows_have_so_many_different_ones_at_most(self, tmp_path: Path, n: int, fits: bool) -> None:
        file = tmp_path / "many.jsonl"
        parts = (range(start, min(n, start + 400)) for start in range(0, n, 400))
        file.write_text("".join(json.dumps({f"k{number}": 1 for number in part}) + "\n" for part in parts))
        if fits:
            plan = imports.plan_upload(Source(file, file.name), split=Split.train, mapping=None, loose=True)
            assert len(plan.columns) == n
        else:
            with pytest.raises(Invalid, match="at most 500"):
                imports.plan_upload(Source(file, file.name), split=Split.train, mapping=None, loose=True)

    def test_a_row_has_so_many_at_most(self, tmp_path: Path) -> None:
        file = tmp_path / "wide.jsonl"
        rows = ({f"k{number}": 1 for number in range(n)} for n in (MAX_COLUMNS, MAX_COLUMNS + 1, 1))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        first, second, third = (row.values for row in opened.first_rows(Source(file, file.name), 5))
        assert isinstance(second, Invalid)
        assert second.detail == "The row has 501 columns; at most 500 are read."
        assert isinstance(first, dict)
        assert isinstance(third, dict)

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("t.csv", b"image,question,a\x00b\n"),
            ("t.xlsx", as_xlsx([["image", "question", "a_x0000_b"], ["x", "q", "1"]])),
            ("t.xlsx", as_xlsx([["image", "question", "a_xD800_b"], ["x", "q", "1"]])),
        ],
    )
    def test_one_that_cannot_be_stored_is_named(self, tmp_path: Path, name: str, data: bytes) -> None:
        file = tmp_path / name
        file.write_bytes(data)
        with pytest.raises(Invalid, match=r"The name of the column 'a.*b' holds (a NUL|half)") as caught:
            imports.plan_upload(Source(file, name), split=Split.train, mapping=None, loose=True)
        assert caught.value.field == "file"

    def test_a_row_that_has_one_is_rejected_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "odd.jsonl"
        file.write_bytes(b'{"image": "x"}\n{"image": "x", "a\\u0000": 1}\n{"image": "x", "a\\ud800": 1}\n')
        first, second, third = (row.values for row in opened.first_rows(Source(file, file.name), 5))
        assert first == {"image": "x"}
        assert isinstance(second, Invalid)
        assert second.detail == "The name of the column 'a?' holds a NUL character."
        assert isinstance(third, Invalid)
        assert third.detail == "The name of the column 'a\\ud800' holds half a surrogate pair."


class TestFormats:
    def test_csv(self, committed_db: CommittedDatabase, project: Project) -> None:
        rows = (
            "external_id,image,image_2,question,answer,reference,reference_2,split,source\r\n"
            'a,1.png,2.png,"Is it ""red"", or\nblue?",red,it glows; warm,,val,web\r\n'
            "b,1.png,,q,,,,val,\r\n"
            "c,1.png,,q,a\r\n"
            'd,1.png,,"unclosed,a,,,val,\r\n'
        )
        data = archive(
            {
                "t.csv": b"\xef\xbb\xbf" + rows.encode(),
                "1.png": factories.image_bytes(),
                "2.png": factories.image_bytes(),
            }
        )
        found = run(committed_db, project, data, "t.zip")
        assert (found.added, found.rejected) == (2, 2)
        told = reasons(committed_db, found)
        assert [(line, field) for line, field, _ in told] == [(5, None), (6, None)]
        assert "has 5 fields, the header has 9" in told[0][2]
        assert "not valid CSV" in told[1][2]
        prompt, unanswered = prompts_of(committed_db, project)
        assert (unanswered.question, unanswered.answer) == ("q", None)
        assert prompt.question == 'Is it "red", or\nblue?'
        assert (prompt.references, prompt.extra, prompt.split) == (["it glows; warm"], {"source": "web"}, Split.val)

    def test_csv_of_another_encoding_and_delimiter(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        rows = f"image;question;answer\n{sha256};caf\u00e9;b\n{sha256};ol\u00e9;c\n"
        latin = run(committed_db, project, rows.encode("latin-1"), "t.csv")
        assert (latin.added, latin.rejected) == (2, 0)
        assert latin.plan["encoding"] == "cp1252"
        assert [one.question for one in prompts_of(committed_db, project)] == ["caf\u00e9", "ol\u00e9"]
        assert run(committed_db, project, rows.encode(), "t.csv").added == 2
        mixed = rows.encode() + rows.encode("latin-1").splitlines()[1]
        found = run(committed_db, project, mixed, "t.csv")
        assert (found.added, found.plan["encoding"]) == (2, "utf-8")
        assert [(line, reason) for line, _, reason in reasons(committed_db, found)] == [
            (4, "The line is not UTF-8: save the file as UTF-8.")
        ]

    def test_parquet_with_images_inside(
        self, committed_db: CommittedDatabase, project: Project, tmp_path: Path
    ) -> None:
        rows = [
            {"id": str(number), "image": {"bytes": factories.image_bytes(), "path": f"{number}.png"}, "question": "q"}
            for number in range(40)
        ]
        rows[7]["image"] = {"bytes": b"<html>", "path": "7.png"}
        rows[8]["image"] = {"bytes": b"<html>", "path": None}
        rows[9]["question"] = ""
        path = tmp_path / "t.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=16)
        found = run(committed_db, project, path.read_bytes(), "t.parquet", split=Split.val)
        assert (found.added, found.rejected) == (37, 3)
        wrong = reasons(committed_db, found)
        assert [(line, field) for line, field, _ in wrong] == [(8, "images"), (9, "images"), (10, "question")]
        assert wrong[0][2] == f"7.png: {wrong[1][2]}"  # the other one has no name
        assert {prompt.external_id for prompt in prompts_of(committed_db, project)} == {
            str(number) for number in range(40) if number not in (7, 8, 9)
        }

    def test_parquet_times_out_of_range_reject_their_rows(
        self, committed_db: CommittedDatabase, project: Project
    ) -> None:
        kinds = {
            "taken": pyarrow.timestamp("us"),
            "day": pyarrow.timestamp("s"),
            "zone": pyarrow.timestamp("us", "X/Y"),
        }
        numbers = {"taken": [0, 2**62, 0, 0], "day": [0, 0, 2**45, 0], "zone": [None, None, None, 0]}
        columns = {name: pyarrow.array(numbers[name], pyarrow.int64()).cast(kind) for name, kind in kinds.items()}
        questions = [f"why {number}" for number in range(4)]
        table = pyarrow.table({"question": questions, "images": [[stored_image(committed_db)]] * 4, **columns})
        file = io.BytesIO()
        parquet.write_table(table, file)
        found = run(committed_db, project, file.getvalue(), "t.parquet")
        assert (found.state, found.added, found.rejected) == (ImportState.succeeded, 1, 3)
        told = reasons(committed_db, found)
        assert [one[:2] for one in told] == [(2, "taken"), (3, "day"), (4, "zone")]

    @pytest.mark.parametrize("column", ["external_id", "question"])
    def test_rows_around_a_broken_part_of_a_parquet_are_imported(
        self, committed_db: CommittedDatabase, project: Project, column: str
    ) -> None:
        # One column is read when the rows are counted, the other one only when they are imported.
        sha256 = stored_image(committed_db)
        rows = [{"external_id": f"r{number}", "images": [sha256], "question": "q"} for number in range(30)]
        file = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=10, use_dictionary=False)
        group = parquet.ParquetFile(file).metadata.row_group(1)
        [place] = [at for at in range(group.num_columns) if group.column(at).path_in_schema == column]
        data, begin = bytearray(file.getvalue()), group.column(place).data_page_offset
        data[begin : begin + 8] = b"\xff" * 8
        found = run(committed_db, project, bytes(data), "t.parquet")
        assert (found.state, found.total, found.done) == (ImportState.succeeded, 30, 30)
        assert (found.added, found.rejected) == (20, 10)
        told = reasons(committed_db, found)
        assert [line for line, _, _ in told] == list(range(11, 21))
        assert told[0][2].startswith("Rows 11 to 20 of the Parquet file cannot be read: ")

    @pytest.mark.parametrize("suffix", ["csv", "jsonl"])
    def test_rows_before_a_broken_part_of_a_zip_are_imported(
        self, committed_db: CommittedDatabase, project: Project, suffix: str
    ) -> None:
        sha256 = stored_image(committed_db)
        rows = [{"external_id": f"r{number}", "images": sha256, "question": f"{number:0300}"} for number in range(800)]
        lines = [",".join(rows[0]).encode(), *(",".join(row.values()).encode() for row in rows)]
        content = b"\n".join(lines) if suffix == "csv" else table(*({**row, "images": [sha256]} for row in rows))
        data = bytearray(archive({f"t.{suffix}": content}))
        data[len(data) // 2] ^= 1  # its checksum is read at the end of the file
        found = run(committed_db, project, bytes(data), "t.zip")
        assert found.state is ImportState.failed
        assert found.error is not None
        assert found.error.startswith("The file cannot be read: Bad CRC-32")
        assert f"breaks off behind row {found.done:,}; the rows before that are imported." in found.error
        assert found.added + found.rejected == found.done > 700
        assert len(prompts_of(committed_db, project)) == found.added

    def test_parquet_is_resumed_in_the_middle(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        rows = [{"images": [sha256], "question": f"q{number}"} for number in range(450)]
        file = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=100)
        made = make(committed_db, project, file.getvalue(), "t.parquet")
        for _ in range(3):
            run_import(made, worker="one", check=lambda: None, seconds=0.0)
        assert [prompt.question for prompt in prompts_of(committed_db, project)] == [row["question"] for row in rows]

    def test_vqa_x_as_published(self, committed_db: CommittedDatabase, project: Project) -> None:
        columns: dict[str, list[Any]] = {
            "image_id": [456558, 17, 456558],
            "question_id": [456558002, 17001, 456558003],
            "question": ["Is this a beach?", "What colour?", "Is it warm?"],
            "multiple_choice_answer": ["yes", "red", "yes"],
            "explanation": ["there is sand", "it is painted red", "people wear swimsuits"],
            "explanation_2": ["the sea is near", None, "the sun shines"],
            "explanation_3": ["people swim", None, None],
            "answer_type": ["yes/no", "other", "yes/no"],
        }
        pictures = archive(
            {
                "val2014/COCO_val2014_000000456558.jpg": factories.image_bytes(kind="JPEG"),
                "val2014/COCO_val2014_000000000001.jpg": factories.image_bytes(kind="JPEG"),
            }
        )
        data = json.dumps(columns).encode()
        found = run(committed_db, project, data, "val_exp.json", pictures=pictures, split=Split.val)
        assert (found.plan["layout"], found.added, found.rejected) == ("vqa-x", 2, 1)
        assert reasons(committed_db, found)[0][:2] == (2, "images")
        first, second = prompts_of(committed_db, project)
        assert (first.external_id, first.question, first.answer) == ("456558002", "Is this a beach?", "yes")
        assert first.references == ["there is sand", "the sea is near", "people swim"]
        assert second.references == ["people wear swimsuits", "the sun shines"]
        assert first.extra == {"answer_type": "yes/no"}
        assert first.split is Split.val
        by_row = {key: {str(n): value for n, value in enumerate(values)} for key, values in columns.items()}
        again = run(
            committed_db, project, json.dumps(by_row).encode(), "v.json", pictures=pictures, split=Split.val
        )  # as pandas writes it
        assert (again.added, again.unchanged, again.rejected) == (0, 2, 1)

    def test_act_x(self, committed_db: CommittedDatabase, project: Project) -> None:
        rows = {
            "000123": {"answers": "yoga", "explanation": ["he sits on a mat", "he bends"], "image_name": "000123.jpg"},
            "000124": {"answers": "rowing", "explanation": ["she holds oars"]},
        }
        pictures = archive({f"images/{key}.jpg": factories.image_bytes(kind="JPEG") for key in rows})
        found = run(committed_db, project, json.dumps(rows).encode(), "actX_train.json", pictures=pictures)
        assert (found.plan["layout"], found.added, found.rejected) == ("act-x", 2, 0)
        first, second = prompts_of(committed_db, project)
        assert (first.external_id, first.question, first.answer) == ("000123", "What is the person doing?", "yoga")
        assert first.references == ["he sits on a mat", "he bends"]
        assert second.external_id == "000124"

    def test_a_okvqa(self, committed_db: CommittedDatabase, project: Project) -> None:
        row = {
            "split": "train",
            "image_id": 299207,
            "question_id": "22MexNkBPpdZGX6sxbxVBH",
            "question": "What is the man by the bags awaiting?",
            "choices": ["skateboarder", "train", "delivery", "cab"],
            "correct_choice_idx": 3,
            "direct_answers": ["ride", "ride", "bus"],
            "difficult_direct_answer": False,
            "rationales": ["A train would not be on the street.", "He holds luggage."],
        }
        pictures = archive({"train2017/000000299207.jpg": factories.image_bytes(kind="JPEG")})
        found = run(committed_db, project, json.dumps([row]).encode(), "aokvqa_v1p0_train.json", pictures=pictures)
        assert (found.plan["layout"], found.added) == ("a-okvqa", 1)
        [prompt] = prompts_of(committed_db, project)
        assert (prompt.external_id, prompt.answer, prompt.references) == (
            row["question_id"],
            "cab",
            row["rationales"],
        )
        assert prompt.extra["choices"] == row["choices"]

    def test_images_at_web_addresses(self, committed_db: CommittedDatabase, project: Project) -> None:
        asked: list[str] = []
        data = factories.image_bytes()

        def fetch(url: str) -> bytes:
            asked.append(url)
            if "bad" in url:
                raise Invalid("images.example.org answered 404.", field="images")
            return data

        urls = [f"https://images.example.org/{name}.png" for name in ("a", "a", "bad", "b")]
        lines = [{"images": [url], "question": f"q{number}"} for number, url in enumerate(urls)]
        found = run(committed_db, project, table(*lines), fetch=fetch)
        assert (found.added, found.rejected) == (3, 1)
        assert reasons(committed_db, found) == [(3, "images", "images.example.org answered 404.")]
        assert set(asked) == set(urls)

    def test_a_mapping_of_columns(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        data = table({"picture": sha256, "frage": "q", "antwort": 7, "egal": "x", "rest": [1]})
        mapping = {"picture": "image", "frage": "question", "antwort": "answer", "egal": "ignore"}
        assert run(committed_db, project, data, mapping=mapping).added == 1
        [prompt] = prompts_of(committed_db, project)
        assert (prompt.question, prompt.answer, prompt.extra) == ("q", "7", {"rest": [1]})
        for wrong in ({"none": "question"}, {"frage": "secret"}, {"frage": "question", "antwort": "question"}):
            with pytest.raises(Invalid) as caught:
                make(committed_db, project, data, "x.jsonl", mapping=wrong)
            assert caught.value.field == "mapping"


def picture(number: int, kind: str, **options: object) -> bytes:
    """An image file with pixels of its own."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (16, 9), (number * 20, 0, 0)).save(file, kind, **options)
    return file.getvalue()


class TestTexts:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(words=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=6))
    @example(words=["😀👩‍👩‍👧", "שלום \u202eabc", "a\nb\r\nc\u2028", "'\"`\\", "x" * 4000, "<script>alert(1)</script>"])
    @example(words=["NaN", "nan", "null", "none"])
    @example(words=["{{ 7 * 7 }}", "%s %d %(x)s {0}", "a\x00b", "\x1b[31m", "\ufeff", "\u0000"])
    @pytest.mark.parametrize("kind", ["jsonl", "csv"])
    def test_texts_are_imported_unchanged_or_refused(
        self, committed_db: CommittedDatabase, project: Project, kind: str, words: list[str]
    ) -> None:
        import csv

        sha256 = known_image(committed_db)
        rows = [{"images": [sha256], "question": word, "answer": word, "metadata": {"w": word}} for word in words]
        if kind == "csv":
            file = io.StringIO()
            writer = csv.writer(file)
            writer.writerow(["image", "question", "answer", "metadata"])
            writer.writerows([sha256, word, word, json.dumps({"w": word})] for word in words)
            data = file.getvalue().encode()
        else:
            data = table(*rows)
        before = len(prompts_of(committed_db, project))
        found = run(committed_db, project, data, f"t.{kind}")
        assert found.state is ImportState.succeeded
        fine = [word for word in words if stripped(word) and "\x00" not in word]
        kept = prompts_of(committed_db, project)[before:]
        assert [prompt.question for prompt in kept] == [stripped(word) for word in fine]
        absent = MISSING_WORDS if kind == "csv" else ()  # as pandas writes missing values
        assert [prompt.answer for prompt in kept] == [None if word in absent else stripped(word) for word in fine]
        assert [prompt.extra for prompt in kept] == [{"w": word} for word in fine]
        assert found.rejected == len(words) - len(fine)


def stripped(word: str) -> str:
    """A text without surrounding white space as Unicode defines it; Python strips four separators more."""
    return word.strip("".join(chr(code) for code in range(0x3001) if chr(code).isspace() and not 28 <= code <= 31))


def known_image(db: CommittedDatabase) -> str:
    """The sha256 of an image, stored once per database."""
    with db.sessions() as session:
        known = session.scalar(text("SELECT sha256 FROM images LIMIT 1"))
    return str(known) if known else stored_image(db)


def images_by_place(db: CommittedDatabase) -> tuple[str, str]:
    """An image that an import would propose for train, and one for val."""
    found: dict[Split, str] = {}
    while len(found) < 2:
        sha256 = stored_image(db)
        found[place_by_image(PromptIn(images=[sha256], question="q"), {}).split] = sha256
    return found[Split.train], found[Split.val]


class TestProposedVal:
    def splits(self, db: CommittedDatabase, project: Project) -> dict[str, str]:
        return {one.question: one.split.value for one in prompts_of(db, project)}

    def test_a_tenth_of_the_images(self) -> None:
        names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]
        placed = [place_by_image(PromptIn(images=[name], question="q"), {}).split for name in names]
        assert 340 < placed.count(Split.val) < 460
        assert placed.count(Split.val) + placed.count(Split.train) == 4000

    @pytest.mark.parametrize(("share", "fewest", "most"), [(0.02, 50, 110), (0.5, 1880, 2120)])
    def test_another_share_has_the_smaller_one_in_it(self, share: float, fewest: int, most: int) -> None:
        names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]
        items = [PromptIn(images=[name], question="q") for name in names]
        splits = {one: [place_by_image(item, {}, one).split for item in items] for one in (0.1, share)}
        assert fewest < splits[share].count(Split.val) < most
        low, high = sorted(splits)
        pairs = zip(splits[low], splits[high], strict=True)
        assert all(bigger is Split.val for smaller, bigger in pairs if smaller is Split.val)

    def test_repeats_of_an_image_stay_together_in_every_import(
        self, committed_db: CommittedDatabase, project: Project
    ) -> None:
        train, val = images_by_place(committed_db)
        named = stored_image(committed_db)
        data = table(
            {"images": [train], "question": "a", "external_id": "a"},
            {"images": [val], "question": "b", "external_id": "b"},
            {"images": [named], "question": "c", "split": "test"},
            {"images": [val], "question": "d"},
        )
        found = run(committed_db, project, data, propose_val=True)
        assert (found.added, found.rejected, imports.added_to_val(found)) == (4, 0, 2)
        expected = {"a": "train", "b": "val", "c": "test", "d": "val"}
        assert self.splits(committed_db, project) == expected
        again = run(committed_db, project, data + table({"images": [val], "question": "e"}), propose_val=True)
        assert (again.unchanged, again.rejected, imports.added_to_val(again)) == (2, 0, 2)
        assert self.splits(committed_db, project) == {**expected, "e": "val"}

    def test_an_image_that_the_project_has_keeps_its_split(
        self, committed_db: CommittedDatabase, project: Project
    ) -> None:
        train, val = images_by_place(committed_db)
        plain = run(committed_db, project, table({"images": [val], "question": "a"}))
        assert (plain.added, imports.added_to_val(plain)) == (1, None)
        rows = table({"images": [val], "question": "b"}, {"images": [train, val], "question": "c"})
        found = run(committed_db, project, rows, propose_val=True)
        assert (found.added, found.rejected, imports.added_to_val(found)) == (2, 0, 0)
        assert self.splits(committed_db, project) == dict.fromkeys("abc", "train")

    @pytest.mark.parametrize(
        ("data", "proposed"),
        [
            (b"image,question\nx.png,q\n", True),
            (b"image,question,split\nx.png,q,train\n", False),
            (b"image_id,question,answers,explanation,multiple_choice_answer\n1,q,a,e,a\n", False),
        ],
    )
    def test_a_draft_proposes_it_where_no_column_is_the_split(
        self, session: Session, data: bytes, proposed: bool
    ) -> None:
        project = factories.make_project(session)
        made = imports.create_import(session, SYSTEM, project, filename="x.csv", source=io.BytesIO(data), draft=True)
        assert made.plan["propose_val"] is proposed
        changed = imports.change_plan(session, SYSTEM, made.id, columns={}, split=Split.train, question="")
        assert changed.plan["propose_val"] is False

    def test_plans_stored_earlier_propose_none(self) -> None:
        stored: dict[str, Any] = {
            "layout": "own",
            "columns": [],
            "split": "train",
            "question": None,
            "strict": False,
            "flat": False,
        }
        assert not ImportPlan.from_json(stored).places_by_image


class TestDraft:
    def test_is_previewed_then_imported(self, committed_db: CommittedDatabase, project: Project) -> None:
        sha256 = stored_image(committed_db)
        data = table({"file_name": sha256, "caption": "q", "answer": "a", "license": 1}, b"{broken")
        made = make(committed_db, project, data, "x.jsonl", draft=True)
        run_import(made, worker="w", check=lambda: None)  # not started yet
        with committed_db.sessions.begin() as session:
            found = imports.get_import(session, SYSTEM, made)
            assert found.state is ImportState.draft
            plan, looked = imports.preview_rows(found)
            assert plan.columns == {
                "file_name": Target.image,
                "caption": Target.metadata,
                "answer": Target.answer,
                "license": Target.metadata,
            }
            assert [bool(one.problem) for one in looked] == [True, True]
            assert "question" in looked[0].problem
            columns = {"caption": "question", "license": "ignore"}
            with pytest.raises(Invalid):
                imports.change_plan(session, SYSTEM, made, columns={"none": "question"}, split=Split.val, question="")
            imports.change_plan(session, SYSTEM, made, columns=columns, split=Split.val, question="")
            _, looked = imports.preview_rows(found)
            assert looked[0].prompt is not None
            assert looked[0].prompt.question == "q"
            imports.start_import(session, SYSTEM, made)
            for act in (imports.start_import, imports.discard_import):
                with pytest.raises(Conflict):
                    act(session, SYSTEM, made)
        run_import(made, worker="w", check=lambda: None)
        [prompt] = prompts_of(committed_db, project)
        assert (prompt.question, prompt.split, prompt.extra) == ("q", Split.val, {})

    def test_is_discarded(self, session: Session) -> None:
        project = factories.make_project(session)
        made = imports.create_import(
            session, SYSTEM, project, filename="x.csv", source=io.BytesIO(b"question\nq\n"), draft=True
        )
        imports.discard_import(session, SYSTEM, made.id)
        with pytest.raises(DomainError):
            imports.get_import(session, SYSTEM, made.id)

    def test_needs_a_reviewer(self, session: Session) -> None:
        project = factories.make_project(session)
        critic = factories.actor_of(factories.make_member(session, project, Role.critic))
        with pytest.raises(Forbidden):
            imports.create_import(session, critic, project, filename="x.csv", source=io.BytesIO(b"question\nq\n"))
