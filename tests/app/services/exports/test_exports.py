"""Exports as their readers see them: pandas, polars and `datasets` read the Parquet; cut streams; snapshots' files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import CandidateSet, Prompt, User, Verdict
from app.services.acceptance.outcomes import count_records
from app.services.exports import compression
from app.services.exports import plan as export_plan
from app.services.exports.line_types import read_row
from app.services.exports.parquet import GROUP_ROWS, schema_of, to_parquet_values, write_parquet
from app.services.exports.plan import ExportPlan, ExportRequest
from app.services.exports.shapes import Format, Task, counting_rules, make_rows
from app.services.kernel.actors import SYSTEM
from app.services.kernel.paging import encode_cursor
from app.services.kernel.store import get_store
from app.services.rounds import snapshot_records, snapshots
from tests import factories
from tests.app.services.judged import NASTY, make_judged
from tests.conftest import CommittedDatabase

TEXTS = [form for form in Format if not form.is_of_fields]  # without structured answers
LINES = [form for form in TEXTS if form is not Format.csv]
SHAPES = [(form, Task.sft) for form in LINES] + [(Format.sharegpt, Task.preference), (Format.sharegpt, Task.kto)]


@pytest.fixture
def judged(committed_db: CommittedDatabase) -> Iterator[tuple[Session, Any]]:
    with committed_db.sessions() as session:
        project, _ = make_judged(session, prompts=8)
        session.commit()
        yield session, project


def planned(judged: tuple[Session, Any], wanted: ExportRequest, **position: str) -> ExportPlan:
    session, project = judged
    found = export_plan.plan_export(session, SYSTEM, project, wanted, **position)
    session.commit()
    return found


def content(plan: ExportPlan) -> bytes:
    return b"".join(export_plan.file_pages(plan))


def rows(plan: ExportPlan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content(plan).splitlines()]


def parquet(plan: ExportPlan, folder: Path, *, embed: bool = True) -> Path:
    path = folder / "rows.parquet"
    path.write_bytes(b"".join(write_parquet(export_plan.row_pages(plan), plan.shape, embed=embed)))
    return path


class TestParquet:
    def test_read_by_datasets_as_the_lines_are(self, judged: tuple[Session, Any], tmp_path: Path) -> None:
        for form, task in SHAPES:
            folder = tmp_path / f"{form}-{task}"
            folder.mkdir()
            self.read_by_datasets(planned(judged, ExportRequest(format=form, task=task)), folder)

    def read_by_datasets(self, plan: ExportPlan, tmp_path: Path) -> None:
        import datasets as hub

        found = hub.load_dataset(
            "parquet", data_files=str(parquet(plan, tmp_path)), split="train", cache_dir=str(tmp_path / "cache")
        )
        expected = [read_row(line) for line in content(plan).splitlines()]
        assert len(found) == len(expected) > 0
        for got, line in zip(found, expected, strict=True):
            for image, named in zip(got["images"], line["images"], strict=True):
                assert isinstance(image, PIL.Image.Image)
                path = named if isinstance(named, str) else named["path"]
                data = get_store().read_bytes(Path(path).stem)
                assert PIL.Image.open(io.BytesIO(data)).convert("RGB").tobytes() == image.convert("RGB").tobytes()
            for name, value in got.items():
                if name == "metadata":
                    assert json.loads(value) == line[name]
                elif name == "parts":  # of each part, Parquet has the fields of all
                    named = [{key: part[key] for key in part if part[key] is not None} for part in value]
                    assert named == line[name]
                elif name not in ("images", "image_sizes"):
                    assert value == line[name], name

    def test_read_by_pandas_and_polars(self, judged: tuple[Session, Any], tmp_path: Path) -> None:
        import pandas as pd
        import polars as pl

        plan = planned(judged, ExportRequest(format=Format.preference))
        path, expected = parquet(plan, tmp_path), rows(plan)
        assert list(pd.read_parquet(path)["weight"]) == [row["weight"] for row in expected]
        frame = pl.read_parquet(path)
        assert frame["chosen"].to_list() == [row["chosen"] for row in expected]
        assert [image[0]["bytes"][:4] for image in frame["images"].to_list()] == [b"\x89PNG"] * len(expected)

    def test_images_by_path(self, judged: tuple[Session, Any], tmp_path: Path) -> None:
        plan = planned(judged, ExportRequest(format=Format.sft))
        images = pq.read_table(parquet(plan, tmp_path, embed=False))["images"].to_pylist()
        assert [[one["path"] for one in row] for row in images] == [
            [one["path"] for one in row["images"]] for row in rows(plan)
        ]
        assert {one["bytes"] for row in images for one in row} == {None}

    def test_without_rows(self, judged: tuple[Session, Any], tmp_path: Path) -> None:
        plan = planned(judged, ExportRequest(format=Format.kto, critic="me"))
        assert pq.read_table(parquet(plan, tmp_path)).num_rows == 0

    def test_row_groups_are_bounded(self, judged: tuple[Session, Any]) -> None:
        plan = planned(judged, ExportRequest(format=Format.sft))
        [page] = export_plan.row_pages(plan)
        many = iter([page * (GROUP_ROWS // len(page) + 1)])
        pieces = list(write_parquet(many, plan.shape, embed=True))
        found = pq.ParquetFile(io.BytesIO(b"".join(pieces)))
        assert found.metadata.num_row_groups == 2
        assert len(pieces) == 3


class TestServedModel:
    """What a model server ran, where that was another model than the version's base model."""

    @pytest.fixture
    def served(self, judged: tuple[Session, Any]) -> list[str]:
        """What was written down for the sets of the judged prompts: a model, three folders, and nothing."""
        session, _ = judged
        names = ["org/vision@5fbcdcd", "/srv/us/models/own/@abc", "./models/own", "/own"]
        for one, name in zip(session.scalars(select(CandidateSet).order_by(CandidateSet.id)), names, strict=False):
            one.served_model = name
        session.commit()
        return ["org/vision@5fbcdcd", "own/@abc", "own", "own", "", "", "", ""]

    @pytest.mark.parametrize("of_snapshot", [False, True])
    def test_is_named_in_each_format_that_names_versions(
        self, judged: tuple[Session, Any], served: list[str], of_snapshot: bool
    ) -> None:
        session, project = judged
        frozen: dict[str, Any] = {}
        if of_snapshot:
            frozen = {"snapshot": str(snapshots.freeze(session, SYSTEM, project).id)}
        plan = planned(judged, ExportRequest(**frozen))
        found = {row["prompt"]: row["served_model"] for row in rows(plan)}
        assert list(found.values()) == served
        parquet_rows = pa.Table.from_pylist(
            [
                to_parquet_values(row, {}, plan.shape, embed=False)
                for page in export_plan.row_pages(plan)
                for row in page
            ],
            schema=schema_of(plan.shape, embed=False),
        )
        assert parquet_rows["served_model"].to_pylist() == [one or None for one in served]
        for form, task in SHAPES:
            prompt = "prompt" if form is Format.records else "prompt_id"
            for row in rows(planned(judged, ExportRequest(format=form, task=task, **frozen))):
                assert row["served_model"] == found[row[prompt]], form
        table = csv.DictReader(
            io.StringIO(content(planned(judged, ExportRequest(format=Format.csv, **frozen))).decode())
        )
        assert [row["served_model"] for row in table] == served

    def test_a_critic_is_not_told(self, judged: tuple[Session, Any], served: list[str]) -> None:
        session, project = judged
        critic = factories.actor_of(session.get_one(User, session.scalars(select(Verdict.critic_id)).first()))
        plan = export_plan.plan_export(session, critic, project, ExportRequest(critic="me"))
        session.commit()
        found = rows(plan)
        assert found
        assert not any("served_model" in row for row in found)

    def test_snapshots_of_before_it_was_written_down_can_be_exported(
        self, judged: tuple[Session, Any], tmp_path: Path
    ) -> None:
        session, project = judged
        frozen = snapshots.freeze(session, SYSTEM, project)
        records = rows(planned(judged, ExportRequest(snapshot=str(frozen.id))))
        assert {one.pop("served_model") for one in records} == {""}
        path = tmp_path / "records"
        path.write_text("".join(json.dumps(one) + "\n" for one in records))
        frozen.records_key = get_store().put_file(path)
        for form, task in SHAPES[1:]:
            wanted = ExportRequest(format=form, task=task, snapshot=str(frozen.id))
            assert {row["served_model"] for row in rows(planned(judged, wanted))} == {""}


class TestTexts:
    def test_hard_ones_come_out_as_they_went_in(self, judged: tuple[Session, Any]) -> None:
        found = rows(planned(judged, ExportRequest()))
        assert [row["question"] for row in found] == [NASTY[number % len(NASTY)] for number in range(8)]
        assert {tuple(one["text"] for one in row["candidates"]) for row in found} == {NASTY[:4]}
        assert found[3]["rationale"] == "better: " + NASTY[5]

    def test_a_row_is_a_line_to_every_reader(self, judged: tuple[Session, Any]) -> None:
        for form in (Format.records, Format.sft):
            text = content(planned(judged, ExportRequest(format=form))).decode()
            assert text.splitlines() == text.split("\n")[:-1]

    def test_records_become_the_rows(self, judged: tuple[Session, Any]) -> None:
        """What the pages give is what the pure functions make of all records."""
        plan = planned(judged, ExportRequest(format=Format.preference))
        records = [read_row(line) for line in content(planned(judged, ExportRequest())).splitlines()]
        rules = counting_rules(plan.shape, weigh=plan.weigh)
        expected = [
            row
            for record in records
            for row in make_rows([record], count_records(judged[0], [record], rules), plan.shape)
        ]
        assert [(row["id"], row["chosen"]) for row in rows(plan)] == [(row["id"], row["chosen"]) for row in expected]


class TestTakenUpAgain:
    def test_where_it_broke(self, judged: tuple[Session, Any]) -> None:
        for form in (Format.records, Format.kto):
            whole = planned(judged, ExportRequest(format=form))
            expected = content(whole).splitlines(keepends=True)
            for cut in (1, 3, len(expected) - 1):
                last = json.loads(expected[cut - 1])["id"]
                rest = planned(judged, ExportRequest(format=form), cursor=whole.cursor(""), after=last)
                assert content(rest) == b"".join(expected[cut:])

    def test_page_by_page(self, judged: tuple[Session, Any]) -> None:
        for form in TEXTS:
            whole = planned(judged, ExportRequest(format=form))
            lines, page = export_plan.read_page(whole, 3)
            found, n_rows, pages = export_plan.encode_page(whole, lines), lines.count(b"\n"), 1
            while page is not None:
                part = planned(judged, ExportRequest(format=form), cursor=page)
                lines, page = export_plan.read_page(part, 3)
                found += export_plan.encode_page(part, lines)
                n_rows, pages = n_rows + lines.count(b"\n"), pages + 1
            assert found == content(whole)
            assert pages == -(-n_rows // 3)

    def test_a_cursor_is_for_its_own_dataset(self, judged: tuple[Session, Any]) -> None:
        cursor = planned(judged, ExportRequest()).cursor("")
        for wanted in (ExportRequest(format=Format.sft), ExportRequest(critic="me")):
            with pytest.raises(Invalid) as caught:
                planned(judged, wanted, cursor=cursor)
            assert caught.value.field == "cursor"

    def test_a_cursor_that_was_tampered_with(self, judged: tuple[Session, Any]) -> None:
        digest = planned(judged, ExportRequest()).digest
        for seen in ("", "nonsense", "9:1:", "1:2:3,,"):
            with pytest.raises(Invalid) as caught:
                planned(judged, ExportRequest(), cursor=encode_cursor(seen, digest, ""))
            assert caught.value.field == "cursor"

    def test_after_names_a_row(self, judged: tuple[Session, Any]) -> None:
        for after in ("x", "1-x", "-1", "1" * 30, "1-2-3"):
            with pytest.raises(Invalid) as caught:
                planned(judged, ExportRequest(), after=after)
            assert caught.value.field == "after"


class TestSnapshots:
    def test_are_the_same_bytes_whatever_comes_after(self, judged: tuple[Session, Any]) -> None:
        session, project = judged
        live = [rows(planned(judged, ExportRequest(format=form, task=task))) for form, task in SHAPES]
        frozen = snapshots.freeze(session, SYSTEM, project, name="one")
        wanted = [ExportRequest(format=form, task=task, snapshot=str(frozen.id)) for form, task in SHAPES]
        before = [content(planned(judged, one)) for one in wanted]
        for lines, expected in zip(before, live, strict=True):
            found = [json.loads(line) for line in lines.splitlines()]
            for row in found:
                assert row.pop("snapshots", [str(frozen.id)]) == [str(frozen.id)]
            for row in expected:
                row.pop("snapshots", None)
            assert found == expected
        session.query(Prompt).update({"question": "changed"})
        later = snapshots.freeze(session, SYSTEM, project)
        assert [content(planned(judged, one)) for one in wanted] == before
        assert later.records_key != frozen.records_key

    def test_filters_choose_of_its_records(self, judged: tuple[Session, Any]) -> None:
        session, project = judged
        frozen = snapshots.freeze(session, SYSTEM, project)
        all_of_it = rows(planned(judged, ExportRequest(snapshot=str(frozen.id))))
        critic, since = all_of_it[0]["critic"], all_of_it[0]["created_at"]
        for chosen in ({"critic": critic}, {"version": str(project.active_version_id)}, {"since": since}):
            wanted = export_plan.parse_request({"snapshot": str(frozen.id), **chosen})
            assert rows(planned(judged, wanted)) == all_of_it
        assert rows(planned(judged, export_plan.parse_request({"snapshot": str(frozen.id), "split": "val"}))) == []

    def test_have_a_card(self, judged: tuple[Session, Any]) -> None:
        session, project = judged
        frozen = snapshots.freeze(session, SYSTEM, project, name="two\n# lines")
        counts = frozen.card["counts"]
        assert (counts["verdicts"], counts["prompts"], counts["critics"]) == (8, 8, 1)
        assert counts["kinds"] == {"none_fit": 2, "picked": 6}
        assert frozen.card["versions"] == [
            {"id": str(project.active_version_id), "number": 0, "base_model": "starter", "verdicts": 8}
        ]
        assert frozen.card["agreement"] is None
        text = snapshot_records.card_text(frozen)
        assert "two # lines" in text.splitlines()[0]
        assert frozen.sha256 in text
        assert str(frozen.records_key) in text

    def test_names_what_a_model_server_ran_in_place_of_the_base_model(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project, _ = make_judged(session, prompts=3)
            sets = session.scalars(select(CandidateSet).order_by(CandidateSet.id)).all()
            sets[0].served_model = "org/`vision`"
            session.flush()
            frozen = snapshots.freeze(session, SYSTEM, project)
            assert sum(one["verdicts"] for one in frozen.card["versions"]) == frozen.card["counts"]["verdicts"]
            [own, other] = frozen.card["versions"]
            assert "served_model" not in own
            assert (other["number"], other["served_model"]) == (own["number"], "org/`vision`")
            lines = snapshot_records.card_text(frozen).splitlines()
            assert f"- version 0 of starter: {own['verdicts']} verdicts" in lines
            served = "- version 0 of starter, for which a model server ran org/'vision'"
            assert f"{served}: {other['verdicts']} verdicts" in lines

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ("org/model@abc", "org/model@abc"),
            ("/srv/us/models/fine`tuned/", "fine'tuned"),
            ("./models/own", "own"),
            ("starter", "starter"),
        ],
    )
    def test_tells_nobody_where_a_model_lies(self, model: str, expected: str) -> None:
        version = {"id": "1", "number": 3, "base_model": model, "served_model": model, "verdicts": 7}
        line = f"version 3 of {expected}, for which a model server ran {expected}: 7 verdicts"
        assert snapshot_records.version_line(version) == line

    def test_of_critics_who_agree(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project, _ = make_judged(session, prompts=2, critics=2)
            assert snapshots.freeze(session, SYSTEM, project).card["agreement"] == 1


class TestCompression:
    pieces = (b"one " * 1000, os.urandom(1000), b"")

    @pytest.mark.parametrize("coding", ["gzip", "zstd"])
    def test_each_piece_can_be_read_at_once(self, coding: compression.Coding) -> None:
        whole = b"".join(self.pieces)
        packed = list(compression.compress(self.pieces, coding))
        opened = pa.CompressedInputStream(io.BytesIO(b"".join(packed)), coding)
        assert opened.read() == whole
        first = pa.CompressedInputStream(io.BytesIO(packed[0]), coding)
        assert first.read(len(self.pieces[0])) == self.pieces[0]
        assert list(compression.compress(self.pieces, coding)) == packed
