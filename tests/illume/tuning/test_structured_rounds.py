"""Rounds of structured answers: what the job folder says of them, what is learnt and compared, and what is decided."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from illume.fields.definitions import AnswerFields
from illume.model.vlm import Vlm, bare_model, load_vlm
from illume.records import Example, Rejection, TrainingRow
from illume.settings import PreferenceSettings, TuningSettings
from illume.tuning.batches import BatchInputs, MicroBatch
from illume.tuning.job import (
    JobError,
    Stopped,
    TuningJob,
    read_examples,
    read_json,
    read_rejections,
    read_rows,
    write_job,
)
from illume.tuning.preferences import PreferencePlan, plan_preferences
from illume.tuning.round import run_round
from illume.tuning.trainer import micro_batch_logprobs
from tests.illume.families import make_images, make_llava
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY
from tests.illume.rounds import SETTINGS
from tests.illume.sampling.test_constraint import write_quotes_often
from tests.illume.tuning.test_structured import learnt
from tests.illume.tuning.test_tuning import Asked

NONE = "NA: None applying"
TEMPLATE = "{policy}\nQ: {question} A: {answer}"
SHORT = replace(
    POLICY,
    header="",
    categories=tuple(replace(one, default="x", allowed="y", strict="z") for one in POLICY.categories[1:3]),
)
UNSAFE, SAFE = {"rating": "Unsafe", "category": CATEGORIES[1]}, {"rating": "Safe", "category": NONE}
STRUCTURED = replace(SETTINGS, template=TEMPLATE, answer_fields=FIELDS, max_fields_tokens=110)


def make_prompts(folder: Path, *, count: int, split: str) -> list[Example]:
    """Prompts about pictures in two ratings, each picture with a variant of its policy that flips the rating."""
    prompts = []
    for number, image in enumerate(make_images(folder / split, count)):
        gold, other = (UNSAFE, SAFE) if number % 2 else (SAFE, UNSAFE)
        name = f"{split}-{number}"
        references = ("there is red water", "so it is")
        first = Example(name, (image,), "is it so?", None, references, split, policy=SHORT, fields=gold)
        changed = SHORT.with_status(CATEGORIES[1:2], "allowed" if number % 2 else "strict")
        variant = {"variant": "own_allowed" if number % 2 else "own_strict"}
        prompts += [first, replace(first, id=f"{name}-other", policy=changed, fields=other, metadata=variant)]
    return prompts


class TestRows:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        one, other, *_ = make_prompts(tmp_path, count=1, split="train")
        partly = replace(one, id="partly", fields={"rating": "Safe"}, references=())
        said = 'a "dog", هنا\n'
        rows = [
            TrainingRow(one, said, UNSAFE, masked=frozenset({"category"})),
            TrainingRow(other, None),
            TrainingRow(partly, None),
        ]
        rejections = [
            Rejection(one, said, said, UNSAFE, {**UNSAFE, "category": NONE}),
            Rejection(other, "so", "it is red", SAFE, SAFE),
            Rejection(other, "no", None, SAFE),
        ]
        job = TuningJob("base", settings=STRUCTURED)
        write_job(tmp_path / "job", job, train=rows, val=[one, other], heldout=rows[:1], rejections=rejections)
        assert TuningJob.from_json(read_json(tmp_path / "job" / "job.json")) == job
        assert read_json(tmp_path / "job" / "job.json")["settings"]["answer_fields"] == FIELDS.to_json()
        read = read_rows(tmp_path / "job", "train.jsonl", STRUCTURED)
        told = [(row.example.policy, row.example.fields, row.rationale, row.values, row.masked) for row in read]
        assert told == [(row.example.policy, row.example.fields, row.rationale, row.values, row.masked) for row in rows]
        assert [row.example.references for row in read] == [(), one.references, ()]
        assert read_rows(tmp_path / "job", "heldout.jsonl", STRUCTURED)[0].values == UNSAFE
        assert read_examples(tmp_path / "job", "val.jsonl", STRUCTURED)[1].metadata == {"variant": "own_strict"}
        found = read_rejections(tmp_path / "job", STRUCTURED)
        assert [(row.values, row.accepted_values) for row in found] == [
            (row.values, row.accepted_values) for row in rejections
        ]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"policy": None}, "policy is missing"),
            ({"policy": {"categories": []}}, "categories: from 1 to 100"),
            ({"fields": {"rating": "unsafe"}}, "fields.rating: 'unsafe' is none of the choices"),
            ({"fields": ["Safe"]}, "fields must be an object"),
            ({"values": None}, "values must be an object"),
            ({"values": {"rating": "Safe"}}, "values.category must be a text"),
            ({"values": {**UNSAFE, "hint": "x"}}, "values.hint: the project has no such field"),
            ({"masked": ["hint"]}, "masked must be a list of names of fields"),
            ({"rationale": None}, "a row without a rationale needs the gold values"),
        ],
    )
    def test_bad_rows_are_named(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        (tmp_path / "x.png").touch()
        row = {"images": ["x.png"], "question": "q", "policy": SHORT.to_json(), "values": UNSAFE, "rationale": "so"}
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
        with pytest.raises(JobError) as caught:
            read_rows(tmp_path, "train.jsonl", STRUCTURED)
        assert str(caught.value).startswith("train.jsonl line 2: ")
        assert message in str(caught.value)

    def test_a_template_without_the_policy_is_named(self, tmp_path: Path) -> None:
        row = {"images": ["x.png"], "question": "q", "answer": "a", "policy": SHORT.to_json()}
        (tmp_path / "x.png").touch()
        (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(JobError, match=r"val.jsonl line 1: the prompt has a policy, and the template has no"):
            read_examples(tmp_path, "val.jsonl")

    def test_pairs_differ(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").touch()
        row = {"images": ["x.png"], "question": "q", "policy": SHORT.to_json(), "values": UNSAFE, "rationale": "so"}
        row |= {"accepted": "so", "accepted_values": UNSAFE}
        (tmp_path / "rejections.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(JobError, match="the accepted answer and the other one are the same"):
            read_rejections(tmp_path, STRUCTURED)

    def test_a_metric_of_ratings_needs_a_rating(self) -> None:
        with pytest.raises(ValueError, match="balanced_accuracy needs answer_fields with a rating"):
            TuningSettings(primary_metric="balanced_accuracy", answer_fields=AnswerFields((FIELDS.rationale,)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("base"))


def load_terse(*given: Any, **options: Any) -> Vlm:
    """Loads a model that ends its texts soon, so that answers are seldom cut off."""
    vlm = load_vlm(*given, **options)
    write_quotes_often(vlm)
    return vlm


def plan_pairs(vlm: Vlm, rejections: list[Rejection]) -> PreferencePlan:
    return plan_preferences(
        vlm,
        rejections,
        template=TEMPLATE,
        settings=PreferenceSettings(),
        n_steps=1,
        micro_batch_size=9,
        seed=0,
        first_text=0,
        first_number=0,
        fields=FIELDS,
    )


class TestPreferences:
    @pytest.mark.parametrize(
        ("worse", "rationale", "counted"),
        [
            ({**UNSAFE, "category": NONE}, "it is so", [f'{NONE}"', f'{UNSAFE["category"]}"']),
            ({**UNSAFE, "rating": "Safe"}, "it is so", ['Safe"', 'Unsafe"']),
            (UNSAFE, "the sun", ['the sun"', 'it is so"']),
        ],
        ids=["category", "rating", "rationale"],
    )
    def test_only_the_field_that_differs_counts(
        self, base: Path, tmp_path: Path, worse: dict[str, str], rationale: str, counted: list[str]
    ) -> None:
        (one, _) = make_prompts(tmp_path, count=1, split="train")
        vlm = load_vlm(str(base), device="cpu")
        plan = plan_pairs(vlm, [Rejection(one, rationale, "it is so", worse, UNSAFE)])
        said = ["".join(learnt(vlm, text, part) for part in ("answer", "rationale")) for text in plan.texts[:2]]
        assert said == counted

    def test_its_likelihood_is_that_of_its_tokens(self, base: Path, tmp_path: Path) -> None:
        """Against the log-likelihoods of one text at a time, without padding; unpaired texts by their rationales."""
        one, other = make_prompts(tmp_path, count=1, split="train")
        vlm = load_vlm(str(base), device="cpu")
        pair = Rejection(one, "it is so", "it is so", {**UNSAFE, "category": NONE}, UNSAFE)
        plan = plan_pairs(vlm, [pair, Rejection(other, "the sun", None, SAFE)])
        (batch,) = plan.batches()
        inputs = BatchInputs(vlm, plan.texts, cache_mb=0)
        with torch.no_grad():
            together = micro_batch_logprobs(vlm, inputs, batch.shown)
            for index, found in zip(batch.shown.members, together.tolist(), strict=True):
                text = plan.texts[index]
                prepared = inputs.prepare(MicroBatch(0, "structured", (index,)))
                ids = torch.tensor(text.continuation)
                logits = bare_model(vlm)(**prepared.inputs).logits[0, -len(ids) - 1 : -1]
                values = logits.log_softmax(-1)[range(len(ids)), ids]
                assert found == pytest.approx(values[[part is not None for part in text.parts]].mean().item(), rel=1e-4)
        unpaired = plan.texts[batch.shown.members[1]]
        assert learnt(vlm, unpaired, "rationale") == 'the sun"'
        assert learnt(vlm, unpaired, "answer") == ""


def test_a_round(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns accepted answers, gold values and pairs, is scored by balanced accuracy, and resumes after a stop."""
    monkeypatch.setattr("illume.tuning.round.load_vlm", load_terse)
    train = make_prompts(tmp_path, count=4, split="train")
    val = make_prompts(tmp_path, count=2, split="val")
    rows = [TrainingRow(one, "it is so", one.fields, frozenset({"category"})) for one in train[:3]]
    rows += [TrainingRow(one, None) for one in train[3:]]
    worse = {"rating": "Safe" if train[0].fields["rating"] == "Unsafe" else "Unsafe"}
    rejections = [
        Rejection(train[0], "it is so", "it is so", {**train[0].fields, **worse}, train[0].fields),
        Rejection(train[1], "the sun", None, train[1].fields),
    ]
    heldout = [TrainingRow(val[0], "it is so", val[0].fields)]
    settings = replace(
        STRUCTURED,
        epochs=1,
        objective="picks_and_rejections",
        primary_metric="balanced_accuracy",
        max_fields_tokens=110,
    )
    job = TuningJob(str(base), settings=settings)
    folder = tmp_path / "round"
    write_job(folder, job, train=rows, val=val, heldout=heldout, rejections=rejections)
    with pytest.raises(Stopped):
        run_round(folder, job, request=Asked(after=18))
    result = run_round(folder, job, request=Asked())
    counts = {name: result[name] for name in ("n_rationale", "n_vqa_only", "n_pairs", "n_unpaired")}
    assert counts == {"n_rationale": 3, "n_vqa_only": 5, "n_pairs": 1, "n_unpaired": 1}
    assert result["metric_name"] == "Balanced accuracy"
    assert result["decision"]["reason"].startswith("Too few to tell (2; at least 30): Balanced accuracy changed by")
    new = result["evaluation"]["new"]
    assert set(new) == {"prompts", "settings", "fields", "heldout"}
    assert None in new["fields"]["sampled"]["invalid"][0] + new["fields"]["sampled"]["invalid"][1]
    assert set(new["fields"]["greedy"]["by_change"]) == {"", "own_allowed", "own_strict"}
    assert result["epochs"][0]["score"] == new["fields"]["greedy"]["measures"]["balanced_accuracy"]["mean"]
    assert len(new["heldout"]["mean_logprob"]) == 1
    assert not result["left_out"]
    steps = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    learnt_from = [line for line in steps if line["kind"] == "step"]
    assert all(line["answer_loss"] > 0 for line in learnt_from)
    assert any(line["preference_accuracy"] is not None for line in learnt_from)
