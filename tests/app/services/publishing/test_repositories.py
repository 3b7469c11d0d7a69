"""Repositories for the Hub: the libraries that read them do, and nothing is uploaded that was not asked for."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import datasets
import httpx2
import huggingface_hub
import pytest
from fastapi.testclient import TestClient

from app.cli import main
from app.errors import Invalid
from app.models import Role
from app.services.kernel.actors import SYSTEM
from app.services.publishing.terms import parse_terms
from app.services.rounds import snapshots
from tests import factories
from tests.app.services.judged import make_judged
from tests.app.services.publishing.conftest import COMMIT, METRICS, refusal
from tests.app.web.conftest import Browser, person
from tests.conftest import CommittedDatabase


def test_a_dataset_is_read_by_datasets(slug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("publish", slug, "--dataset", "--out", str(tmp_path / "out"), "--license", "CC-BY-4.0")
    assert main.main([*words, "--language", "en", "--language", "pt-BR"]) == 0, capsys.readouterr().err
    assert "Wrote the dataset of snapshot 1 to" in capsys.readouterr().out
    folder = tmp_path / "out" / "dataset"
    card = huggingface_hub.DatasetCard.load(folder / "README.md")
    assert (card.data.license, card.data.language) == ("cc-by-4.0", ["en", "pt-BR"])
    assert card.data.size_categories == "n<1K"
    assert "| verdicts | 4 (picked 3, none_fit 1) |" in card.text
    assert "## Snapshot 1 of" in card.text
    cache = str(tmp_path / "cache")
    records = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    assert records.num_rows == 4
    assert [picture.size for row in records for picture in row["images"]] == [(12, 8)] * 5
    pairs = datasets.load_dataset(str(folder), "preference", split="train", cache_dir=cache)
    assert pairs.num_rows == 3 + 4 + 5
    assert datasets.get_dataset_config_names(str(folder)) == ["records", "sft", "preference"]

    assert main.main([*words]) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_project_without_a_snapshot_gets_one(
    committed_db: CommittedDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with committed_db.sessions() as session:
        project, _ = make_judged(session)
        empty = factories.make_project(session)
        session.commit()
    assert main.main(["publish", project.slug, "--dataset", "--out", str(tmp_path / "a")]) == 0
    with committed_db.sessions() as session:
        [frozen] = snapshots.list_snapshots(session, SYSTEM, project).items
        assert frozen.name == "published"
    assert main.main(["publish", empty.slug, "--dataset", "--out", str(tmp_path / "b")]) == 1
    assert "Snapshot 1 has no verdicts" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_an_adapter_has_a_model_card(slug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("publish", slug, "--adapter", "--out", str(tmp_path))
    assert main.main([*words]) == 1
    assert "Version 0 is the base model itself" in capsys.readouterr().err
    assert main.main([*words, "--version", "8", "--license", "mit"]) == 0, capsys.readouterr().err
    folder = tmp_path / "adapter"
    assert (folder / "deeper" / "weights.bin").read_bytes() == b"w" * 3_000_000
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.library_name, card.data.license) == ("owner/base", "peft", "mit")
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert found == METRICS["means"]
    assert "| `sampled_rouge_l` | 0.5000 | 0.2500 |" in card.text
    assert "lineage, from this version to the base model: version 8 ← version 7" in card.text
    assert "made by training round 1" in card.text
    assert "trained on snapshot 1, sha256" in card.text
    assert "LoRA rank: 16" in card.text
    assert f"[owner/base](https://huggingface.co/owner/base) (revision `{COMMIT}`)" in card.text
    assert f'from_pretrained("owner/base", revision="{COMMIT}")' in card.text


def test_an_upload_needs_a_token_and_is_private(
    slug: str,
    tmp_path: Path,
    no_hub: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    both = ("publish", slug, "--dataset", "--adapter", "--version", "8")
    assert main.main([*both, "--repo", "me/birds"]) == 1
    assert "There is no token for the Hub: set HF_TOKEN" in capsys.readouterr().err

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    assert main.main([*both, "--out", str(tmp_path / "only")]) == 0
    assert no_hub == []  # a folder only, even with a token
    assert main.main([*both, "--repo", "me/birds"]) == 0
    output = capsys.readouterr()
    assert "Uploaded the adapter of version 8 to https://hub.example/me/birds." in output.out
    assert "hf_secret" not in output.out + output.err
    made = [what for did, what in no_hub if did == "create"]
    assert [(one["repo_type"], one["private"], one["exist_ok"]) for one in made] == [
        ("dataset", True, True),
        ("model", True, True),
    ]
    files = [what["files"] for did, what in no_hub if did == "upload"]
    assert "data/records/train.parquet" in files[0]
    assert files[1] == {"README.md", "adapter_config.json", "deeper/weights.bin"}

    for error in (OSError("the Hub is away\nand more"), httpx2.ConnectError("the Hub is away")):
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refusal(error))
        assert main.main([*both, "--repo", "me/birds"]) == 1
        assert "The dataset was not uploaded to me/birds: the Hub is away\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--out", "x"), "Say what to publish: --dataset, --adapter or both."),
        (("--dataset",), "Say where to"),
        (("--dataset", "--out", "x", "--repo", "a/b"), "Say where to"),
        (("--dataset", "--repo", "birds"), "write OWNER/NAME"),
        (("--dataset", "--out", "x", "--license", "my own"), "license: 'my own' is no identifier"),
        (("--dataset", "--out", "x", "--language", "en, Deutsch"), "language: 'Deutsch' is no language tag"),
    ],
)
def test_mistakes_are_named(words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["publish", "birds", *words]) != 0
    assert problem in capsys.readouterr().err


def test_languages_are_separated_by_commas_or_spaces() -> None:
    assert parse_terms(" MIT ", ["en, de", "pt-BR en"]).languages == ("en", "de", "pt-BR")
    with pytest.raises(Invalid, match="at most 50"):
        parse_terms("", [" ".join(f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh")])


def test_the_page_gives_the_same_repository_as_a_zip(
    committed_db: CommittedDatabase, slug: str, client: TestClient, tmp_path: Path
) -> None:
    with committed_db.sessions() as session:
        admin = person(session, role=Role.admin)
        session.commit()
    browser = Browser(client)
    browser.sign_in(admin)
    text = browser.get(f"/admin/projects/{slug}/export").text
    assert '<option value="adapter-8"' in text
    assert '<option value="dataset-1"' in text
    assert main.main(["publish", slug, "--dataset", "--license", "mit", "--out", str(tmp_path)]) == 0
    answer = browser.get(f"/admin/projects/{slug}/publish?what=dataset-1&license=mit&language=")
    assert answer.headers["content-disposition"] == f'attachment; filename="{slug}-dataset-1.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as packed:
        assert packed.testzip() is None
        found = {name: packed.read(name) for name in packed.namelist()}
    folder = tmp_path / "dataset"
    assert found == {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    adapter = browser.get(f"/admin/projects/{slug}/publish?what=adapter-8")
    with zipfile.ZipFile(io.BytesIO(adapter.content)) as packed:
        assert json.loads(packed.read("adapter_config.json")) == {}
        assert packed.getinfo("deeper/weights.bin").file_size == 3_000_000
    for what, status in (("dataset-9", 404), ("adapter-7", 404), ("model-1", 422), ("dataset-x", 422), ("", 422)):
        assert browser.get(f"/admin/projects/{slug}/publish?what={what}").status_code == status, what
