"""The prompts of `pairs` and `guard` are the same for the same seed, and no picture is in two splits."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from illume.fields.variants import CHANGES
from illume.guard.policies import assess, read_house_rules, sample_named_policies
from illume.guard.truth import is_faithful as is_faithful_to_case
from illume.pairs.questions import LEADS
from illume.pairs.truth import is_faithful
from illume.parts import ImagePart, TextPart
from illume.prompts_file import load_prompts
from illume.root import STARTER
from illume.scenes.graph import Scene
from illume.starter.__main__ import SHIPPED, main


def _make(task: str, emoji: Path, out: Path, n: int = 72) -> list[dict[str, Any]]:
    arguments = ["make", "--task", task, "--n", str(n), "--seed", "7", "--out", str(out), "--emoji", str(emoji)]
    assert main(arguments) == 0
    assert len(load_prompts(out / "prompts.jsonl")) == n
    return [json.loads(line) for line in (out / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def _assert_apart(rows: list[dict[str, Any]], folder: Path) -> None:
    owners = defaultdict(set)
    for row in rows:
        for image in row.get("images") or [part["image"] for part in row["parts"] if part["type"] == "image"]:
            owners[hashlib.sha256((folder / image).read_bytes()).hexdigest()].add(row["split"])
    assert all(len(splits) == 1 for splits in owners.values())
    n = len(rows)
    assert Counter(row["split"] for row in rows) == {"train": n // 2, "val": n // 4, "test": n // 4}


def test_pairs(emoji: Path, tmp_path: Path) -> None:
    rows = _make("pairs", emoji, tmp_path / "one")
    assert _make("pairs", emoji, tmp_path / "two") == rows
    _assert_apart(rows, tmp_path / "one")
    assert Counter(row["metadata"]["language"] for row in rows) == {"en": 36, "de": 36}
    assert len({(row["metadata"]["family"], row["metadata"]["language"]) for row in rows}) == 18
    for row in rows:
        parts = row["parts"]
        assert [part["type"] for part in parts] == ["text", "image", "text", "image", "text"]
        assert (parts[0]["text"], parts[2]["text"]) in LEADS[row["metadata"]["language"]]
        for text in row["references"]:
            assert is_faithful(text, row["metadata"]["scenes"], question=parts[4]["text"], answer=row["answer"])
    for example in load_prompts(tmp_path / "one" / "prompts.jsonl"):
        assert [type(part) for part in example.parts] == [TextPart, ImagePart, TextPart, ImagePart, TextPart]
        assert [Path(image).is_file() for image in example.images] == [True, True]
        told = {"question": example.question, "answer": example.answer or ""}
        assert is_faithful(example.references[0], example.metadata["scenes"], **told)


def test_guard(emoji: Path, tmp_path: Path) -> None:
    rows = _make("guard", emoji, tmp_path / "one")
    assert _make("guard", emoji, tmp_path / "two") == rows
    _assert_apart(rows, tmp_path / "one")
    for own, variant in zip(rows[::2], rows[1::2], strict=True):
        assert own["images"] == variant["images"]
        assert own["split"] == variant["split"]
        assert "variant" not in own["metadata"], "only a prompt that was made of another one is a variant"
        assert variant["metadata"]["variant"] in CHANGES
        assert own["policy"] != variant["policy"] or not variant["metadata"]["flips"]
        assert (own["fields"]["rating"] != variant["fields"]["rating"]) == variant["metadata"]["flips"]
    assert sum(row["metadata"]["flips"] for row in rows[1::2]) == len(rows) // 4
    for row in rows:
        policy = read_house_rules(row["policy"])
        found = assess(Scene.from_graph(row["metadata"]["scene"]), policy)
        assert found is not None
        assert row["fields"] == {"rating": found.rating, "category": found.category}
        given = row["metadata"]["scene"], row["policy"]
        assert all(is_faithful_to_case(text, *given, **row["fields"]) for text in row["references"])


def test_shipped_data(emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for each task; each policy of `guard` has a name and belongs to one split."""
    small = {task: {**how, "n": 24} for task, how in SHIPPED.items()}
    monkeypatch.setattr("illume.starter.__main__.SHIPPED", small)
    assert main(["data", "--out", str(tmp_path), "--task", "guard", "--task", "scenes", "--emoji", str(emoji)]) == 0
    assert not (tmp_path / "pairs").exists()
    assert len(load_prompts(tmp_path / "scenes" / "prompts.jsonl")) == 24
    rows = load_prompts(tmp_path / "guard" / "prompts.jsonl")
    owners = defaultdict(set)
    for row in rows:
        assert row.policy is not None
        owners[row.policy.name].add(row.split)
        assert row.metadata.get("variant", "") in ("", *CHANGES)
    assert all(name.startswith("House rules ") and len(splits) == 1 for name, splits in owners.items())
    for own, variant in zip(rows[::2], rows[1::2], strict=True):
        assert own.policy is not None
        assert variant.policy is not None
        assert own.policy.name == variant.policy.name
        assert own.policy.digest != variant.policy.digest


@pytest.mark.parametrize(("task", "pictures"), [("pairs", 800), ("guard", 200)])
def test_what_is_shipped(task: str, pictures: int) -> None:
    """200 train, 100 val and 100 test prompts, whose pictures are there; no split shares a picture or a policy."""
    rows = load_prompts(STARTER / task / "prompts.jsonl")
    assert Counter(row.split for row in rows) == {"train": 200, "val": 100, "test": 100}
    owners = defaultdict(set)
    for row in rows:
        for image in row.images:
            owners[image].add(row.split)
            owners[hashlib.sha256(Path(image).read_bytes()).hexdigest()].add(row.split)
        if row.policy is not None:
            owners[row.policy.name].add(row.split)
    assert all(len(splits) == 1 for splits in owners.values())
    images = {str(path) for path in (STARTER / task / "images").iterdir()}
    assert images == {name for name in owners if name.endswith(".png")}
    assert len(images) == pictures
    assert {name for name in owners if name.startswith("House rules")} == (
        set() if task == "pairs" else {f"House rules {number + 1}" for number in range(SHIPPED["guard"]["n_policies"])}
    )


def test_named_policies_are_distinct() -> None:
    found = sample_named_policies(12, random.Random(1))
    assert [one.name for one in found] == [f"House rules {number + 1}" for number in range(12)]
    assert len({frozenset((rule.name, rule.status) for rule in one.categories) for one in found}) == 12


def test_refuses_a_folder_of_other_prompts(emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _make("guard", emoji, tmp_path, n=8)
    arguments = ["make", "--task", "pairs", "--n", "8", "--seed", "7", "--out", str(tmp_path), "--emoji", str(emoji)]
    assert main(arguments) == 1
    assert "contains other prompts" in capsys.readouterr().err
