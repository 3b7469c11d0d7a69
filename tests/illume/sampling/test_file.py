"""Rationales in a file: what is written, what a later start goes on from, and what it refuses."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from illume.model.vlm import Vlm, load_vlm
from illume.parts import ImagePart
from illume.prompts_file import write_prompts
from illume.records import Example, Rationale
from illume.sampling.file import SamplingFileError, main, read_left_out, read_rationales, sample_to_file
from illume.sampling.generation import mean_logprobs, sample_rationales
from illume.settings import SamplingSettings
from tests.illume.families import make_llava
from tests.illume.rounds import make_examples, make_ordered

torch.set_num_threads(1)

SETTINGS = SamplingSettings(max_new_tokens=6, token_budget=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def vlm(base: Path) -> Vlm:
    return load_vlm(str(base), device="cpu")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return make_examples(tmp_path_factory.mktemp("images"), count=4, split="train")


class Stop(Exception):
    """What ends a run early."""


def stop_after(count: int) -> Any:
    def progress(done: int, total: int) -> None:
        assert total == 4
        if done == count:
            raise Stop

    return progress


def texts(sets: Sequence[Sequence[Rationale]]) -> list[list[str]]:
    return [[one.text for one in group] for group in sets]


def test_the_file_holds_what_sampling_gives(vlm: Vlm, examples: list[Example], tmp_path: Path) -> None:
    out = tmp_path / "new" / "rationales.jsonl"
    sets = sample_to_file(vlm, examples, SETTINGS, out, seed=3)
    assert sets == sample_rationales(vlm, examples, SETTINGS, seed=3)
    assert read_rationales(out) == {one.id: group for one, group in zip(examples, sets, strict=True)}
    rows = [json.loads(line) for line in out.read_text().splitlines()][1:]
    assert [row["example_id"] for row in rows] == [one.id for one in examples]
    assert rows[0]["rationales"] == [asdict(one) for one in sets[0]]
    assert [path.name for path in out.parent.iterdir()] == ["rationales.jsonl"]


def test_a_later_start_samples_only_what_is_left(
    vlm: Vlm, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rationales.jsonl"
    with pytest.raises(Stop):
        sample_to_file(vlm, examples, SETTINGS, out, seed=3, progress=stop_after(2))
    assert not out.exists()
    part = tmp_path / "rationales.jsonl.part"
    written = list(read_rationales(part))
    assert len(written) == 2
    with part.open("ab") as file:
        file.write(b'{"example_id": "train-3", "ratio')  # killed while it wrote
    with pytest.raises(Stop):
        sample_to_file(vlm, examples, SETTINGS, out, seed=3, progress=stop_after(3))
    written = list(read_rationales(part))
    assert len(written) == 3
    asked: list[str] = []

    def watched(vlm: Vlm, examples: Sequence[Example], *rest: Any, **more: Any) -> list[list[Rationale]]:
        asked.extend(one.id for one in examples)
        return sample_rationales(vlm, examples, *rest, **more)

    monkeypatch.setattr("illume.sampling.file.sample_rationales", watched)
    seen: list[tuple[int, int]] = []
    wide = replace(SETTINGS, token_budget=5000)
    sets = sample_to_file(vlm, examples, wide, out, seed=3, progress=lambda *how_far: seen.append(how_far))
    assert asked == [one.id for one in examples if one.id not in written]
    assert seen == [(4, 4)]
    assert texts(sets) == texts(sample_rationales(vlm, examples, SETTINGS, seed=3))
    asked.clear()
    assert sample_to_file(vlm, examples, SETTINGS, out, seed=3) == sets
    assert asked == []


def test_other_arguments_are_refused(vlm: Vlm, examples: list[Example], tmp_path: Path) -> None:
    out = tmp_path / "rationales.jsonl"
    with pytest.raises(Stop):
        sample_to_file(vlm, examples, SETTINGS, out, seed=3, progress=stop_after(1))
    before = (tmp_path / "rationales.jsonl.part").read_bytes()
    with pytest.raises(SamplingFileError, match="other seed"):
        sample_to_file(vlm, examples, SETTINGS, out, seed=4)
    with pytest.raises(SamplingFileError, match="other prompts, settings"):
        sample_to_file(vlm, examples[:2], replace(SETTINGS, top_p=0.5), out, seed=3)
    assert (tmp_path / "rationales.jsonl.part").read_bytes() == before
    sample_to_file(vlm, examples, SETTINGS, out, seed=3)
    with pytest.raises(SamplingFileError, match="other answers"):
        sample_to_file(vlm, examples, SETTINGS, out, seed=3, answers="own")


def test_another_order_of_the_parts_is_another_request(vlm: Vlm, tmp_path: Path) -> None:
    one, other = make_ordered(tmp_path)[:2]
    sets = sample_to_file(vlm, [one], SETTINGS, tmp_path / "out", seed=1)
    with pytest.raises(SamplingFileError, match="other prompts"):
        sample_to_file(vlm, [replace(other, id=one.id, question=one.question)], SETTINGS, tmp_path / "out", seed=1)
    (rationale,) = sets[0][:1]
    swapped = replace(one, parts=tuple(ImagePart(1 - p.image) if isinstance(p, ImagePart) else p for p in one.parts))
    rows = [(example, "red", rationale.text) for example in (one, swapped, one)]
    scores = mean_logprobs(vlm, rows, SETTINGS)
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)
    assert abs(scores[0] - scores[1]) > 10 * abs(scores[0] - scores[2]) + 1e-7


def test_two_prompts_of_one_id_are_refused(vlm: Vlm, examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(SamplingFileError, match="same id"):
        sample_to_file(vlm, [examples[0], examples[0]], SETTINGS, tmp_path / "out", seed=1)


def test_a_file_that_is_being_written_is_left_alone(vlm: Vlm, examples: list[Example], tmp_path: Path) -> None:
    with FileLock(tmp_path / ".out.part.lock"), pytest.raises(SamplingFileError, match="another process"):
        sample_to_file(vlm, examples, SETTINGS, tmp_path / "out", seed=1)


def test_a_lock_that_its_holder_removed_holds_nobody(vlm: Vlm, examples: list[Example], tmp_path: Path) -> None:
    """Who opened it before, and gets it after, would write beside who made it anew."""
    flock = fcntl.flock

    def late(held: Any, how: int) -> None:
        flock(held, how)
        (tmp_path / ".out.part.lock").unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with pytest.raises(SamplingFileError, match="another process"):
            sample_to_file(vlm, examples, SETTINGS, tmp_path / "out", seed=1)
    assert len(sample_to_file(vlm, examples, SETTINGS, tmp_path / "out", seed=1)) == 4


def test_prompts_that_cannot_be_read_are_left_out_and_named(vlm: Vlm, examples: list[Example], tmp_path: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with_torn = [examples[0], replace(examples[1], images=(str(torn),)), *examples[2:]]
    wordy = replace(examples[3], id="wordy", question="where is the cat? " * 200)
    out, seen = tmp_path / "rationales.jsonl", list[tuple[int, int]]()
    sets = sample_to_file(
        vlm, [*with_torn, wordy], SETTINGS, out, seed=3, progress=lambda *how_far: seen.append(how_far)
    )
    readable = sample_rationales(vlm, [examples[0], *examples[2:]], SETTINGS, seed=3)
    assert texts(sets) == [texts(readable)[0], [], *texts(readable)[1:], []]
    assert seen[-1] == (3, 3)
    reasons = read_left_out(out)
    assert list(reasons) == [examples[1].id, "wordy"]
    assert reasons[examples[1].id].startswith("the image torn.png cannot be read")
    assert "this model reads" in reasons["wordy"]
    assert sample_to_file(vlm, [*with_torn, wordy], SETTINGS, out, seed=3) == sets


def test_where_none_can_be_read_there_is_no_file(vlm: Vlm, examples: list[Example], tmp_path: Path) -> None:
    out = tmp_path / "rationales.jsonl"
    with pytest.raises(SamplingFileError, match=r"none of the prompts \(the image gone.png cannot be read"):
        sample_to_file(vlm, [replace(examples[0], images=("/no/gone.png",))], SETTINGS, out, seed=3)
    assert not out.exists()


class TestCommand:
    @pytest.fixture
    def prompts(self, examples: list[Example], tmp_path: Path) -> Path:
        path = tmp_path / "prompts.jsonl"
        rows = [
            {"external_id": one.id, "images": list(one.images), "question": one.question, "answer": one.answer}
            for one in examples
        ]
        write_prompts(path, [*rows, rows[0] | {"external_id": "other", "split": "val"}])
        return path

    def test_it_samples_a_split(self, base: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out.jsonl"
        where = ["--model", str(base), "--prompts", str(prompts), "--out", str(out), "--device", "cpu"]
        how = ["--split", "train", "--temperatures", "0,1:2", "--max-new-tokens", "5", "--seed", "7"]
        assert main([*where, *how]) == 0
        found = read_rationales(out)
        assert list(found) == ["train-0", "train-1", "train-2", "train-3"]
        assert [one.temperature for one in found["train-0"]] == [0.0, 1.0, 1.0]
        said = capsys.readouterr()
        assert "12 rationales of 4 prompts" in said.out
        assert "4 of 4 prompts" in said.err
        assert main([*where, *how[:-1], "8"]) == 1
        assert "other seed" in capsys.readouterr().err

    def test_it_names_what_it_leaves_out(self, base: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
        torn = {"external_id": "torn", "images": ["/no/torn.png"], "question": "what?"}
        prompts.write_text(prompts.read_text() + json.dumps(torn) + "\n")
        out = tmp_path / "out.jsonl"
        where = ["--model", str(base), "--prompts", str(prompts), "--out", str(out), "--device", "cpu"]
        assert main([*where, "--split", "train", "--temperatures", "0", "--max-new-tokens", "5"]) == 0
        said = capsys.readouterr()
        assert said.out == f"4 rationales of 4 prompts in {out}, 1 left out because the model cannot read it\n"
        assert "prompt torn left out: the image torn.png cannot be read" in said.err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--temperatures", "warm:2"], "--temperatures must look like"),
            (["--temperatures", "warm:2"], "warm"),
            (["--max-new-tokens", "0"], "max_new_tokens"),
            (["--split", "test"], "no prompts of the split test"),
            (["--prompts", "/no/prompts.jsonl"], "/no/prompts.jsonl: No such file"),
            (["--temperatures", "0.5:0"], "temperature"),
            (["--model", "/no"], "no"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(
        self, base: Path, prompts: Path, tmp_path: Path, capsys: Any, arguments: list[str], said: str
    ) -> None:
        asked = ["--model", str(base), "--prompts", str(prompts), "--out", str(tmp_path / "out"), *arguments]
        assert main(asked) == 1
        error = capsys.readouterr().err
        assert error.startswith("illume sample: ")
        assert said in error
        assert "Traceback" not in error
