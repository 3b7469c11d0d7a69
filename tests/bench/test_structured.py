"""What `bench/structured.py` compares: the same prompts with the constraint and without it, in one run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.structured import WAYS, Run, compare, main, table
from illume.fields.definitions import AnswerFields
from illume.model.vlm import load_vlm
from illume.prompts_file import write_prompts
from illume.records import Example
from illume.sampling.constraint import answer_constraint
from illume.settings import SamplingSettings
from tests.illume.families import make_images, make_llava
from tests.illume.fields.examples import FIELDS
from tests.illume.sampling.test_constraint import write_quotes_often

torch.set_num_threads(1)
SHORT = AnswerFields((FIELDS.fields[0], FIELDS.rationale))  # without the categories of a policy


def test_an_untrained_model_is_valid_only_where_it_is_constrained(tmp_path: Path) -> None:
    vlm = load_vlm(str(make_llava(tmp_path / "model")), device="cpu")
    undo = write_quotes_often(vlm)
    images = make_images(tmp_path, 2)
    examples = [Example(str(n), (image,), "is it safe?") for n, image in enumerate(images)]
    settings = SamplingSettings(
        temperatures=((0.0, 1), (1.0, 1)), max_new_tokens=150, redraws=1, template="{question} {answer}",
        answer_fields=SHORT,
    )  # fmt: skip
    runs = compare(vlm, examples, settings, repeat=1)
    undo()
    [free], [constrained] = (runs[name] for name in WAYS)
    assert (free.valid, free.invalid.total()) == (0, 4)
    assert constrained.valid > 0
    assert set(constrained.invalid) <= {"cut off"}
    assert answer_constraint(vlm, SHORT, None) is not None  # the constraint is there again


def test_the_table_has_medians_and_the_ratio() -> None:
    slow = [Run(60.0, 30.0, 10, Counter({"fences": 4, "cut off": 2})), Run(30.0, 15.0, 10, Counter())]
    fast = [Run(30.0, 15.0, 45, Counter())] * 2
    text = table({"free, redrawn": slow, "constrained": fast})
    assert "| free, redrawn | 45.0 | 22.5 | 10 | 3 | 15.0 | fences (2), cut off (1) |" in text
    assert "| constrained | 30.0 | 15.0 | 45 | 0 | 90.0 | - |" in text
    assert text.endswith("constrained / free: 6.0 x valid answers a minute")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"external_id": str(n), "images": [image], "question": "is it safe?"}
        for n, image in enumerate(make_images(tmp_path, 1))
    ]
    write_prompts(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "fields.json").write_text(json.dumps(SHORT.to_json()), encoding="utf-8")
    options = ["--model", str(make_llava(tmp_path / "model")), "--prompts", str(tmp_path / "prompts.jsonl")]
    options += ["--answer-fields", str(tmp_path / "fields.json"), "--template", "{question} {answer}"]
    main([*options, "--max-new-tokens", "8", "--redraws", "0", "--repeat", "1", "--threads", "1"])
    text = capsys.readouterr().out
    assert "1 prompts, 6 answers each, at most 0 redraws of one" in text
    assert "no valid answer without the constraint" in text
