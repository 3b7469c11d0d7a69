"""`illume export`: each name says what is written, and LLaMA-Factory finds all that it wants beside the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from app.cli import main
from app.cli.files.export_file import endings_of
from app.errors import Invalid
from app.services.exports.plan import parse_request
from app.services.exports.shapes import Format
from tests.app.services.feedback import accept_by_machine
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase


def test_every_kind_of_file(
    committed_db: CommittedDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with committed_db.sessions() as session:
        project, _ = make_judged(session)
        accept_by_machine(session, project)
        session.commit()
        slug = project.slug

    def export(name: str, *words: str) -> Path:
        assert main.main(["export", slug, "--out", str(tmp_path / name), *words]) == 0, capsys.readouterr().err
        return tmp_path / name

    records = export("records.jsonl").read_text().splitlines()
    assert "Wrote 4 records to" in capsys.readouterr().out
    assert gzip.decompress(export("records.jsonl.gz").read_bytes()).decode().splitlines() == records
    assert export("records.jsonl.zst").read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    since = json.loads(records[-1])["created_at"]
    assert export("none.jsonl", "--since", since, "--split", "val").read_bytes() == b""

    assert main.main(["export", slug, "--out", str(tmp_path / "y.csv")]) == 1
    assert "--out y.csv: the format records is not written to .csv files" in capsys.readouterr().err
    assert not (tmp_path / "y.csv").exists()

    by_path = pq.read_table(export("pairs.parquet", "--format", "preference", "--image-paths"))
    assert by_path.num_rows == 3 + 4 + 5
    assert by_path["images"].to_pylist()[0][0]["bytes"] is None

    words = ("--format", "sharegpt", "--task", "preference", "--with-images", "--aggregation", "all")
    rows = [json.loads(line) for line in export("ducks.jsonl", *words).read_text().splitlines()]
    info: dict[str, Any] = json.loads((tmp_path / "dataset_info.json").read_text())[slug]
    assert info["file_name"] == "ducks.jsonl"
    assert set(info["columns"].values()) <= rows[0].keys()
    assert {path for row in rows for path in row["images"]} == {
        path.relative_to(tmp_path).as_posix() for path in (tmp_path / "images").iterdir()
    }
    table = list(csv.DictReader(io.StringIO(export("z.csv", "--format", "csv", "--with-images").read_text())))
    assert [row["id"] for row in table] == [json.loads(record)["id"] for record in records]
    assert all((tmp_path / path).exists() for row in table for path in row["images"].split())
    assert not list(tmp_path.glob("*.part"))

    people = export("sft.jsonl", "--format", "sft").read_text().splitlines()
    both = [json.loads(line) for line in export("both.jsonl", "--format", "sft", "--machine").read_text().splitlines()]
    assert len(both) == len(people) + 1
    assert [row["source"] for row in both].count("critic") == 1
    assert main.main(["export", slug, "--out", str(tmp_path / "x.jsonl"), "--machine"]) == 1
    assert "machine: only rows of the task sft" in capsys.readouterr().err

    assert main.main(["export", slug, "--out", str(tmp_path / "x.jsonl"), "--since", "yesterday"]) == 1
    assert "since: 'yesterday' cannot be read." in capsys.readouterr().err
    assert main.main(["export", slug, "--out", str(tmp_path / "nowhere" / "x.jsonl")]) == 2
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "form", "hint"),
    [
        ("z.csv", "records", "let the name end in .jsonl or .ndjson or .parquet, or use --format csv"),
        ("z.json", "sft", "not written to .json files"),
        ("z.csv.gz", "kto", "let the name end in .jsonl or .ndjson.gz"),
        ("z.parquet.zst", "sft", "not written to .parquet.zst files"),
        ("z.PARQUET", "csv", "let the name end in .csv"),
        ("z.jsonl", "csv", "the format csv is not written to .jsonl files"),
        ("z.xlsx", "csv", "not written to .xlsx files"),
    ],
)
def test_an_ending_of_another_format_is_refused(name: str, form: str, hint: str) -> None:
    with pytest.raises(Invalid) as caught:
        endings_of(Path(name), Format(form))
    assert hint in caught.value.detail


@pytest.mark.parametrize(
    ("name", "form", "ending", "compression"),
    [
        ("Z.PARQUET", "sft", ".parquet", None),
        ("z.csv", "answers", ".csv", None),
        ("z.csv.gz", "fields", ".csv", "gzip"),
        ("z.jsonl.GZ", "records", ".jsonl", "gzip"),
        ("z.csv.zst", "csv", ".csv", "zstd"),
        ("z", "records", "", None),
        ("z.gz", "kto", "", "gzip"),
    ],
)
def test_an_ending_of_the_format(name: str, form: str, ending: str, compression: str | None) -> None:
    assert endings_of(Path(name), Format(form)) == (ending, compression)


@pytest.mark.parametrize("field", ["format", "aggregation", "task", "since", "split"])
def test_words_that_say_nothing(field: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_request({field: "nonsense"})
    assert caught.value.field == field
