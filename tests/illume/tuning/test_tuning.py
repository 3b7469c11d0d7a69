"""Tuning: loss and masks by hand, adapters, and rounds that are killed, stopped and go on."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file

from illume.errors import VlmError
from illume.evaluation.evaluation import evaluate
from illume.evaluation.metrics import caption_words
from illume.model.language_layers import language_model, lora_targets
from illume.model.vision_cache import cached_image_features
from illume.model.vlm import IGNORED, Vlm, load_vlm, set_adapter
from illume.parts import ImagePart, TextPart
from illume.records import Example, TrainingRow
from illume.sampling.generation import sample_rationales
from illume.settings import SamplingSettings
from illume.tuning import lora
from illume.tuning.batches import (
    BatchInputs,
    Kind,
    MicroBatch,
    TrainingText,
    count_target_tokens,
    epoch_order,
    plan_batches,
    plan_turns,
    training_texts,
)
from illume.tuning.command import main
from illume.tuning.distributed import SingleProcess
from illume.tuning.job import (
    JobError,
    Stopped,
    TuningJob,
    read_examples,
    read_json,
    read_rows,
    write_job,
    write_json,
)
from illume.tuning.lora import begin_adapter, store_adapter, trainable_parameters
from illume.tuning.round import Progress, run_round
from illume.tuning.trainer import Training, batch_loss, continuation_loss, learning_rate
from tests.illume.families import EACH_FAMILY, FAMILIES, make_llava
from tests.illume.rounds import SETTINGS, make_examples, make_ordered, make_round, stand_in_java

WAIT_SECONDS = 600
pytestmark = pytest.mark.timeout(2 * WAIT_SECONDS)


@pytest.fixture
def rows(tmp_path: Path) -> list[TrainingRow]:
    examples = make_examples(tmp_path / "rows", count=6, split="train")
    return [TrainingRow(example, example.references[0] if n < 2 else None) for n, example in enumerate(examples)]


@dataclass
class Asked:
    """A stop request that comes after a number of looks."""

    after: int = 10**9
    immediate: bool = True
    looks: int = 0
    asked: Any = field(init=False)

    def __post_init__(self) -> None:
        self.asked = self

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks > self.after


def make_training(vlm: Vlm, rows: list[TrainingRow], folder: Path, **changes: Any) -> Training:
    settings = replace(SETTINGS, **changes)
    begin_adapter(vlm, init="from_base", parent=None, settings=settings)
    texts = training_texts(vlm, rows, template=settings.template)
    return Training(
        vlm,
        texts,
        settings=settings,
        weight=2.0,
        folder=folder,
        ranks=SingleProcess(),
        stop_requested=lambda: False,
        on_step=lambda _: None,
    )


class TestLoss:
    def test_cross_entropy_of_learnt_tokens_by_hand(self) -> None:
        # Two tokens in a vocabulary of two: position 0 predicts label 0 with p = 3/4, position 1 is not learnt.
        logits = torch.log(torch.tensor([[[3 / 4, 1 / 4], [0.5, 0.5], [0.9, 0.1]]]))
        loss = continuation_loss(logits, torch.tensor([[0, IGNORED]]))
        assert loss.item() == pytest.approx(-math.log(3 / 4))

    def test_nothing_learnt_is_zero_not_nan(self) -> None:
        assert continuation_loss(torch.zeros(1, 3, 4), torch.full((1, 2), IGNORED)).item() == 0.0

    def test_a_text_of_less_weight_counts_less_by_hand(self) -> None:
        # Both rows predict their label with p = 3/4; the second one counts half.
        logits = torch.log(torch.tensor([[[3 / 4, 1 / 4], [0.9, 0.1]]] * 2))
        loss = continuation_loss(logits, torch.tensor([[0], [0]]), torch.tensor([1.0, 0.5]))
        assert loss.item() == pytest.approx(-1.5 * math.log(3 / 4))

    def test_means_per_kind_and_weight_by_hand(self) -> None:
        sums: dict[Kind, torch.Tensor] = {"answer": torch.tensor(6.0), "rationale": torch.tensor(10.0)}
        loss = batch_loss(sums, {"answer": 3, "rationale": 5}, 4.0)
        assert loss is not None
        assert loss.item() == 6 / 3 + 4 * 10 / 5

    def test_a_batch_without_rationales_has_the_answers_loss(self) -> None:
        loss = batch_loss({"answer": torch.tensor(6.0)}, {"answer": 3, "rationale": 0}, 4.0)
        assert loss is not None
        assert loss.item() == 2.0
        assert batch_loss({}, {"answer": 0, "rationale": 0}, 4.0) is None

    def test_learning_rate_rises_and_falls_linearly(self) -> None:
        settings = replace(SETTINGS, learning_rate=1.0, warmup=0.2)
        rates = [learning_rate(step, steps=10, settings=settings) for step in range(1, 11)]
        assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


class TestTexts:
    def test_answers_and_rationales_behind_their_prompts(self, vlm: Vlm, rows: list[TrainingRow]) -> None:
        texts = training_texts(vlm, rows, template=SETTINGS.template)
        assert [text.kind for text in texts].count("rationale") == 2
        assert [text.kind for text in texts].count("answer") == 6
        answer, rationale = texts[0], texts[1]
        assert (answer.prompt, vlm.tokenizer.decode(answer.continuation)) == ("Q: what is the water? A:", " red</s>")
        assert rationale.prompt == "Q: what is the water? A: red, seeing that"
        assert vlm.tokenizer.decode(rationale.continuation) == " there is red water</s>"

    def test_the_weight_of_a_row_is_that_of_its_rationale(self, vlm: Vlm, rows: list[TrainingRow]) -> None:
        texts = training_texts(vlm, [replace(rows[0], weight=0.5), rows[1]], template=SETTINGS.template)
        weights = {text.kind: text.weight for text in texts[:2]}
        assert weights == {"answer": 1.0, "rationale": 0.5}
        rationales = [number for number, text in enumerate(texts) if text.kind == "rationale"]
        inputs = BatchInputs(vlm, texts, cache_mb=1)
        micro_batch = MicroBatch(0, "rationale", tuple(rationales))
        inputs.store(micro_batch, inputs.prepare(micro_batch))
        weights_again = inputs.prepare(micro_batch).weights  # from the cache
        assert weights_again is not None
        assert weights_again.tolist() == [0.5, 1.0][: len(rationales)]
        assert inputs.prepare(MicroBatch(1, "rationale", (rationales[-1],))).weights is None

    def test_many_rationales_of_a_prompt_share_one_answer(self, vlm: Vlm, rows: list[TrainingRow]) -> None:
        many = [rows[0], replace(rows[0], rationale="it can be seen"), replace(rows[0], rationale=None)]
        texts = training_texts(vlm, many, template=SETTINGS.template)
        assert [text.kind for text in texts] == ["answer", "rationale", "rationale"]

    def test_prompts_that_differ_in_their_order_only(self, vlm: Vlm, tmp_path: Path) -> None:
        ordered = make_ordered(tmp_path)
        texts = training_texts(vlm, [TrainingRow(one, None) for one in ordered], template=SETTINGS.template)
        assert len({text.prompt for text in texts}) == 8
        assert texts[0].prompt == (TextPart("Q: one"), ImagePart(0), TextPart("two"), ImagePart(1), TextPart(" A:"))
        inputs = BatchInputs(vlm, texts, cache_mb=0)
        read = [inputs.prepare(MicroBatch(n, "answer", (n,))).inputs["input_ids"].tolist() for n in (0, 1)]
        assert read[0] != read[1]

    def test_only_continuations_are_learnt(self, vlm: Vlm, rows: list[TrainingRow]) -> None:
        texts = training_texts(vlm, rows, template=SETTINGS.template)
        members = tuple(n for n, text in enumerate(texts) if text.kind == "rationale")
        prepared = BatchInputs(vlm, texts, cache_mb=0).prepare(MicroBatch(0, "rationale", members))
        learnt = [
            tuple(
                int(token) for token, label in zip(ids[-prepared.n_targets :], labels, strict=True) if label != IGNORED
            )
            for ids, labels in zip(prepared.inputs["input_ids"], prepared.labels, strict=True)
        ]
        assert learnt == [texts[n].continuation for n in members]
        assert count_target_tokens(prepared.labels) == sum(len(texts[n].continuation) for n in members)


def make_texts(*, answers: int, rationales: int) -> list[TrainingText]:
    kinds = ["answer"] * answers + ["rationale"] * rationales
    return [TrainingText(kind, (), "p" * (n % 5), (1,) * (1 + n % 3)) for n, kind in enumerate(kinds)]  # type: ignore[arg-type]


class TestPlan:
    def test_every_text_once_and_both_kinds_in_every_step(self) -> None:
        texts = make_texts(answers=50, rationales=10)
        plan = plan_batches(texts, batch_size=12, micro_batch_size=4, seed=0)
        members = [index for batch in plan for part in batch.micro_batches for index in part.members]
        assert sorted(members) == list(range(60))
        assert len(plan) == 5
        for batch in plan:
            kinds = [texts[index].kind for part in batch.micro_batches for index in part.members]
            assert (kinds.count("answer"), kinds.count("rationale")) == (10, 2)
            assert all(len(part.members) <= 4 for part in batch.micro_batches)
            assert batch.tokens["answer"] == sum(
                len(texts[n].continuation)
                for part in batch.micro_batches
                if part.kind == "answer"
                for n in part.members
            )

    @pytest.mark.parametrize("guards", [50, 7, 0])
    def test_a_spread_guard_is_learnt_once_and_all_else_in_each_epoch(self, guards: int) -> None:
        texts = [replace(one, guards=one.kind == "answer") for one in make_texts(answers=guards, rationales=10)]
        whole = plan_batches(texts, batch_size=12, micro_batch_size=4, seed=0)
        plans = plan_turns(texts, turns=3, batch_size=12, micro_batch_size=4, seed=0)
        assert [len(plan) for plan in plans] == [len(whole)] * 3
        used = [[one for batch in plan for one in batch.micro_batches] for plan in plans]
        times = Counter(index for some in used for one in some for index in one.members)
        assert times == {index: 1 if text.guards else 3 for index, text in enumerate(texts)}
        sizes = [sum(len(one.members) for one in some if one.once) for some in used]
        assert max(sizes) - min(sizes) <= len(whole) // 2
        for first, *others in zip(*plans, strict=True):
            kept = [one for one in first.micro_batches if not one.once]
            assert all(kept == [one for one in other.micro_batches if not one.once] for other in others)
            assert {text.kind for one in kept for text in (texts[index] for index in one.members)} <= {"rationale"}
        members: dict[int, set[tuple[int, ...]]] = {}
        for one in (one for some in used for one in some):
            members.setdefault(one.number, set()).add(one.members)
        assert all(len(some) == 1 for some in members.values())

    def test_tokens_count_by_the_weight_of_their_text(self) -> None:
        texts = [replace(text, weight=0.5) for text in make_texts(answers=0, rationales=3)]
        [batch] = plan_batches(texts, batch_size=4, micro_batch_size=4, seed=0)
        assert batch.tokens == {"answer": 0, "rationale": 0.5 * (1 + 2 + 3)}

    def test_steps_may_hold_one_kind_only(self) -> None:
        plan = plan_batches(make_texts(answers=0, rationales=3), batch_size=2, micro_batch_size=2, seed=0)
        assert [batch.tokens["answer"] for batch in plan] == [0, 0]

    def test_the_order_changes_with_the_epoch_and_repeats_with_the_seed(self) -> None:
        orders = [epoch_order(20, epoch=epoch, seed=0) for epoch in (1, 2)]
        assert orders[0] != orders[1]
        assert sorted(orders[0]) == list(range(20))
        assert orders[0] == epoch_order(20, epoch=1, seed=0)


class TestAdapter:
    def test_lora_goes_to_the_linear_layers_of_the_language_model(self, vlm: Vlm) -> None:
        assert language_model(vlm.model)[0] == "model.language_model"
        targets = lora_targets(vlm.model)
        assert len(targets) == 2 * 7
        assert all(target.startswith("model.language_model.layers.") for target in targets)

    def test_a_new_adapter_changes_nothing_and_alone_is_trained(self, vlm: Vlm) -> None:
        ids = {"input_ids": torch.tensor([[5, 6, 7]])}
        before = vlm.model(**ids).logits
        begin_adapter(vlm, init="from_base", parent=None, settings=SETTINGS)
        assert torch.equal(before, vlm.model(**ids).logits)
        assert all(".lora_" in name for name in trainable_parameters(vlm))
        assert len(trainable_parameters(vlm)) == 2 * 14

    def test_a_new_adapter_follows_the_seed(self, base: Path) -> None:
        drawn = []
        for seed in (0, 0, 1):
            one = load_vlm(str(base), device="cpu")
            begin_adapter(one, init="from_base", parent=None, settings=replace(SETTINGS, seed=seed))
            drawn.append(next(iter(trainable_parameters(one).values())).detach().clone())
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])

    def test_adapters_are_never_stacked(self, vlm: Vlm) -> None:
        begin_adapter(vlm, init="from_base", parent=None, settings=SETTINGS)
        with pytest.raises(VlmError, match="never stacked"):
            begin_adapter(vlm, init="from_base", parent=None, settings=SETTINGS)

    def test_stored_without_paths_of_this_machine(self, vlm: Vlm, tmp_path: Path) -> None:
        begin_adapter(vlm, init="from_base", parent=None, settings=SETTINGS)
        store_adapter(vlm, tmp_path / "adapter")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
        for path in (tmp_path / "adapter").iterdir():
            assert str(tmp_path.parent).encode() not in path.read_bytes()
        assert read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == Path(vlm.base).name

    def test_of_another_base_is_refused(self, vlm: Vlm, tmp_path: Path) -> None:
        other = load_vlm(str(make_llava(tmp_path / "other", hidden_size=48)), device="cpu")
        begin_adapter(other, init="from_base", parent=None, settings=SETTINGS)
        store_adapter(other, tmp_path / "adapter")
        with pytest.raises(VlmError, match="another base"):
            begin_adapter(vlm, init="continue", parent=str(tmp_path / "adapter"), settings=SETTINGS)


class TestTraining:
    def gradients(self, training: Training) -> list[torch.Tensor]:
        training.vlm.model.train()
        training._gradients(training.plans[0][0])
        return [parameter.grad.clone() for parameter in training.parameters.values() if parameter.grad is not None]

    def test_small_micro_batches_accumulate_to_the_same_gradient(
        self, base: Path, rows: list[TrainingRow], tmp_path: Path
    ) -> None:
        sizes = {}
        for size in (1, 8):
            changes = {"batch_size": 8, "micro_batch_size": size, "lora_dropout": 0.0}
            sizes[size] = self.gradients(make_training(load_vlm(str(base), device="cpu"), rows, tmp_path, **changes))
        assert len(sizes[1]) == len(sizes[8]) == 28
        for one, other in zip(sizes[1], sizes[8], strict=True):
            assert torch.allclose(one, other, atol=1e-6)

    def test_checkpointed_activations_give_the_same_gradient(
        self, base: Path, rows: list[TrainingRow], tmp_path: Path
    ) -> None:
        both = []
        for checkpointing in (False, True):
            changes = {"batch_size": 8, "gradient_checkpointing": checkpointing, "lora_dropout": 0.0}
            both.append(self.gradients(make_training(load_vlm(str(base), device="cpu"), rows, tmp_path, **changes)))
        assert len(both[1]) == 28
        for one, other in zip(*both, strict=True):
            assert torch.allclose(one, other, atol=1e-6)

    def test_loss_and_gradients_are_those_of_plain_peft(
        self, base: Path, rows: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both = []
        for quick in (True, False):
            if not quick:
                monkeypatch.setattr(lora, "fuse_lora_updates", lambda _: None)
            training = make_training(load_vlm(str(base), device="cpu"), rows, tmp_path, batch_size=8, lora_dropout=0.0)
            layers = [one for one in training.vlm.model.modules() if isinstance(one, LoraLinear)]
            assert all(("forward" in layer.__dict__) is quick for layer in layers)
            with torch.no_grad():
                for number, parameter in enumerate(training.parameters.values()):
                    parameter.add_(0.01 * (number % 3))
            both.append(self.gradients(training))
        assert len(both[0]) == len(both[1]) == 28
        for one, other in zip(*both, strict=True):
            assert torch.allclose(one, other, atol=1e-6)

    def test_remembered_vision_features_change_nothing(self, vlm: Vlm, rows: list[TrainingRow], tmp_path: Path) -> None:
        training = make_training(vlm, rows, tmp_path, lora_dropout=0.0)
        micro_batch = training.plans[0][0].micro_batches[0]
        prepared = training.inputs.prepare(micro_batch)
        first = training._forward(prepared)
        training.inputs.store(micro_batch, prepared)
        again = training.inputs.prepare(micro_batch)
        assert again.features is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(vlm.model.get_base_model().model.vision_tower), "forward", None)
            second = training._forward(again)
        assert [*first] == [*second] == [micro_batch.kind]
        assert all(map(torch.equal, first.values(), second.values()))

    def test_a_full_cache_costs_time_only(self, base: Path, rows: list[TrainingRow], tmp_path: Path) -> None:
        losses = []
        for megabytes in (0, 64):
            training = make_training(load_vlm(str(base), device="cpu"), rows, tmp_path, feature_cache_mb=megabytes)
            losses.append([training.step(batch) for batch in training.plans[0] * 2])
        assert losses[0] == losses[1]

    def test_the_model_is_itself_again_after_remembering(
        self, vlm: Vlm, rows: list[TrainingRow], tmp_path: Path
    ) -> None:
        training = make_training(vlm, rows, tmp_path)
        prepared = training.inputs.prepare(training.plans[0][0].micro_batches[0])
        with pytest.raises(RuntimeError, match="broken"), cached_image_features(vlm, prepared):
            raise RuntimeError("broken")
        assert prepared.features is None
        assert not any("get_image_features" in module.__dict__ for module in vlm.model.modules())

    def test_images_are_learnt(self, base: Path, tmp_path: Path) -> None:
        """Equal questions, answers that only the image tells: learnt, and other images get other answers."""
        examples = make_examples(tmp_path / "rows", count=3, split="train")
        rows = [TrainingRow(example, None) for example in examples]
        vlm = load_vlm(str(base), device="cpu")
        settings = {"learning_rate": 2e-2, "epochs": 40, "lora_dropout": 0.0, "lora_r": 8, "spread_guard": False}
        training = make_training(vlm, rows, tmp_path, **settings)
        for _ in range(40):
            training.run_epoch()
        evaluation = replace(SETTINGS.evaluation, max_answer_tokens=12)
        answers = evaluate(vlm, examples, evaluation, parts=("answers",))["answers"]
        assert answers["own"] == ["red", "blue", "green"]
        turned = examples[1:] + examples[:1]
        swapped = [replace(one, images=other.images) for one, other in zip(examples, turned, strict=True)]
        assert evaluate(vlm, swapped, evaluation, parts=("answers",))["answers"]["own"] == ["blue", "green", "red"]

    @pytest.mark.parametrize("family", EACH_FAMILY)
    def test_any_family_learns_from_its_images(self, family: str, tmp_path: Path) -> None:
        examples = make_examples(tmp_path / "rows", count=3, split="train")
        vlm = load_vlm(str(FAMILIES[family](tmp_path / "base")), device="cpu")
        settings = {"learning_rate": 2e-2, "epochs": 25, "lora_dropout": 0.0, "lora_r": 8, "spread_guard": False}
        training = make_training(vlm, [TrainingRow(example, None) for example in examples], tmp_path, **settings)
        losses = [training.run_epoch()["answer_loss"] for _ in range(25)]
        assert losses[-1] is not None
        assert losses[0] is not None
        assert losses[-1] < losses[0] - 0.1
        assert training.inputs.prepare(training.plans[0][0].micro_batches[0]).features is not None
        answers = [
            evaluate(vlm, asked, SETTINGS.evaluation, parts=("answers",))["answers"]["own"]
            for asked in (examples, [replace(examples[0], images=other.images) for other in examples[::-1]])
        ]
        assert answers[0] == answers[1][::-1]
        assert len(set(answers[0])) > 1


class TestJob:
    def test_there_and_back(self) -> None:
        job = TuningJob("base", parent="p", init="from_base", settings=replace(SETTINGS, epochs=3))
        assert TuningJob.from_json(json.loads(json.dumps(job.to_json()))) == job

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({}, "job is incomplete"),
            ({"base": "b", "colour": 1}, "job has an unknown field: colour"),
            ({"base": "b", "settings": {"epochs": "5"}}, "job.settings.epochs must be a whole number, not '5'"),
            ({"base": "b", "settings": {"epochs": 0}}, "job.settings.epochs must be more than 0, not 0"),
            ({"base": "b", "settings": {"template": "Q: {question}"}}, "job.settings.template"),
            (
                {"base": "b", "settings": {"evaluation": {"samples": 0}}},
                "job.settings.evaluation.samples must be at least 1, not 0",
            ),
            ({"base": "b", "init": "anew"}, "job.init"),
            ({"base": "b", "processes": 0}, "job.processes"),
            ([], "job must be an object"),
        ],
    )
    def test_bad_jobs_are_named(self, data: Any, message: str) -> None:
        with pytest.raises(JobError) as caught:
            TuningJob.from_json(data)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "train.jsonl line 1 is not valid JSON"),
            ("[]", "train.jsonl line 1 is not an object"),
            ('{"images": [], "question": "q", "answer": "a"}', "images"),
            ('{"images": ["gone.png"], "question": "q", "answer": "a"}', "gone.png"),
            ('{"images": ["x.png"], "question": " ", "answer": "a"}', "question"),
            ('{"images": ["x.png"], "question": "q", "answer": null}', "needs an answer"),
            (
                '{"images": ["x.png"], "question": "q", "answer": "a", "parts": [{"type": "image", "image": "y.png"}]}',
                "parts",
            ),
            (
                '{"images": ["x.png"], "question": "q", "answer": "a", "parts": ["q"]}',
                "parts must be texts, and images",
            ),
            ('{"images": ["x.png"], "question": "q", "answer": "a", "rationale": ""}', "rationale"),
            (
                '{"images": ["x.png"], "question": "q", "answer": "a", "rationale": "r", "weight": 0}',
                "train.jsonl line 1: weight must be a number above 0 and at most 1",
            ),
        ],
    )
    def test_bad_rows_are_named(self, tmp_path: Path, line: str, message: str) -> None:
        (tmp_path / "x.png").touch()
        (tmp_path / "train.jsonl").write_text(line + "\n")
        with pytest.raises(JobError) as caught:
            read_rows(tmp_path, "train.jsonl")
        assert message in str(caught.value)

    def test_parts_are_kept_and_the_short_form_names_none(self, base: Path, tmp_path: Path) -> None:
        alone = Example("alone", make_ordered(tmp_path)[0].images, "", "red", parts=(ImagePart(1), ImagePart(0)))
        rows = [TrainingRow(one, None) for one in (*make_ordered(tmp_path), alone)]
        folder = make_round(tmp_path / "round", base)
        assert '"parts"' not in (folder / "train.jsonl").read_text()
        write_job(tmp_path / "other", TuningJob(base=str(base)), train=rows, val=[row.example for row in rows])
        assert [row.example.parts for row in read_rows(tmp_path / "other", "train.jsonl")] == [
            row.example.parts for row in rows
        ]
        assert [one.parts for one in read_examples(tmp_path / "other", "val.jsonl")] == [
            row.example.parts for row in rows
        ]

    def test_weights_are_kept_and_the_usual_one_is_not_written(self, base: Path, tmp_path: Path) -> None:
        rows = [TrainingRow(one, "r") for one in make_examples(tmp_path / "images", count=2, split="train")]
        rows[1] = replace(rows[1], weight=0.25)
        write_job(tmp_path / "round", TuningJob(base=str(base)), train=rows, val=[])
        assert '"weight"' not in (tmp_path / "round" / "train.jsonl").read_text().splitlines()[0]
        assert [row.weight for row in read_rows(tmp_path / "round", "train.jsonl")] == [1.0, 0.25]

    def test_another_round_is_not_written_over(self, base: Path, tmp_path: Path) -> None:
        folder = make_round(tmp_path / "round", base)
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        make_round(folder, base)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
        with pytest.raises(JobError, match="holds another round: name a new folder"):
            make_round(folder, base, settings=replace(SETTINGS, seed=8))
        rows = read_rows(folder, "train.jsonl")[1:]
        job = TuningJob.from_json(read_json(folder / "job.json"))
        with pytest.raises(JobError, match="holds another round"):
            write_job(folder, job, train=rows, val=[])
        (folder / "job.json").unlink()  # as a process that was killed while writing leaves it
        write_job(folder, job, train=rows, val=[])
        assert not (folder / "heldout.jsonl").exists()

    def test_line_separators_inside_a_text_end_no_line(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").touch()
        row = {"images": ["x.png"], "question": "a\u2028b", "answer": "c", "rationale": None}
        (tmp_path / "train.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        assert read_rows(tmp_path, "train.jsonl")[0].example.question == "a\u2028b"


def outcome(folder: Path) -> tuple[bytes, Any, list[Any]]:
    """What a round ends with: the adapter's bytes, the result, and each step's losses (the last report of each)."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    steps = {event["step"]: event["loss"] for event in events if event["kind"] == "step"}
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    return adapter, read_json(folder / "result.json"), sorted(steps.items())


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round that was not interrupted, run in a process of its own."""
    folder = make_round(tmp_path_factory.mktemp("round"), base)
    assert subprocess.run([sys.executable, "-m", "illume.tuning", str(folder)], check=False).returncode == 0
    return folder


def copy_round(finished: Path, folder: Path) -> Path:
    """The same round, not yet run."""
    folder.mkdir()
    for name in ("job.json", "train.jsonl", "val.jsonl", "heldout.jsonl", "rejections.jsonl"):
        if (finished / name).exists():
            shutil.copy(finished / name, folder / name)
    return folder


class TestRound:
    def test_everything_is_in_the_folder(self, finished: Path) -> None:
        result = read_json(finished / "result.json")
        assert (result["n_rationale"], result["n_vqa_only"], result["w"]) == (4, 6, 1.5)
        assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2]
        assert result["evaluation"]["new"]["prompts"] == result["evaluation"]["parent"]["prompts"]
        assert set(result["decision"]) == {"activate", "outcome", "reason", "interval"}
        progress = read_json(finished / "progress.json")
        assert (progress["step"], progress["steps_total"]) == (8, 8)
        assert 0.9 < progress["fraction"] < 1
        best = finished / "checkpoints" / f"epoch-{result['best_epoch']}" / "adapter"
        assert load_file(best / "adapter_model.safetensors").keys()
        assert (best / "adapter_model.safetensors").read_bytes() == outcome(finished)[0]
        assert not (finished / "error.json").exists()

    def test_a_finished_round_is_left_alone(self, finished: Path) -> None:
        before = outcome(finished)
        assert main_in_process(finished) == 0
        assert outcome(finished) == before

    def test_stopped_after_any_number_of_looks_it_ends_the_same(
        self, finished: Path, base: Path, tmp_path: Path
    ) -> None:
        folder = copy_round(finished, tmp_path / "round")
        job = TuningJob.from_json(read_json(folder / "job.json"))
        interruptions = 0
        for looks in (3, 7, 9, 4, 6, 5, 10**9):
            try:
                run_round(folder, job, request=Asked(after=looks))
                break
            except Stopped:
                interruptions += 1
        assert interruptions >= 3
        assert outcome(folder) == outcome(finished)
        assert not (folder / "checkpoints" / "step").exists()

    def test_a_version_continues_its_parent(self, finished: Path, base: Path, tmp_path: Path) -> None:
        parent = str(finished / "adapter")
        scores = read_json(finished / "result.json")["evaluation"]["new"]
        folder = make_round(
            tmp_path / "round", base, settings=replace(SETTINGS, epochs=1), parent=parent, parent_scores=scores
        )
        result = run_round(folder, TuningJob.from_json(read_json(folder / "job.json")), request=Asked())
        assert result["evaluation"]["parent"] == scores
        assert not (folder / "evaluation" / "parent").exists()
        assert result["epochs"][0]["loss"] < read_json(finished / "result.json")["epochs"][0]["loss"]
        stored = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert stored.keys() == load_file(Path(parent) / "adapter_model.safetensors").keys()
        vlm = load_vlm(str(base), device="cpu")
        set_adapter(vlm, str(folder / "adapter"))
        again = evaluate(vlm, make_examples(tmp_path / "x", count=3, split="val"), SETTINGS.evaluation, parts=("gold",))
        assert again["gold"] == result["evaluation"]["new"]["gold"]

    def test_scores_of_other_prompts_are_made_again(self, finished: Path, base: Path, tmp_path: Path) -> None:
        scores = read_json(finished / "result.json")["evaluation"]["parent"]
        stale = scores | {"prompts": ["other", "prompts", "these"]}
        settings = replace(SETTINGS, epochs=1)
        folder = make_round(tmp_path / "round", base, settings=settings, parent_scores=stale)
        result = run_round(folder, TuningJob.from_json(read_json(folder / "job.json")), request=Asked())
        assert result["evaluation"]["parent"]["gold"] == scores["gold"]

    @pytest.mark.parametrize("family", EACH_FAMILY)
    def test_any_family_goes_round_and_is_loaded_again(self, family: str, tmp_path: Path) -> None:
        base = FAMILIES[family](tmp_path / "base")
        folder = make_round(tmp_path / "round", base, settings=replace(SETTINGS, epochs=1))
        result = run_round(folder, TuningJob.from_json(read_json(folder / "job.json")), request=Asked())
        val = make_examples(tmp_path / "val", count=3, split="val")
        tuned = load_vlm(str(base), adapter=str(folder / "adapter"), device="cpu")
        again = evaluate(tuned, val, SETTINGS.evaluation, parts=("answers", "gold"))
        assert again["gold"] == result["evaluation"]["new"]["gold"]
        assert again["answers"] == result["evaluation"]["new"]["answers"]
        sets = sample_rationales(tuned, val, SamplingSettings(max_new_tokens=6), seed=1)
        assert all(len({one.text for one in candidates}) == len(candidates) > 1 for candidates in sets)

    @pytest.mark.parametrize("family", EACH_FAMILY)
    def test_half_precision_and_less_memory_learn_the_same(self, family: str, tmp_path: Path) -> None:
        base = FAMILIES[family](tmp_path / "base")
        losses = []
        for number, changes in enumerate(({}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"})):
            settings = replace(SETTINGS, lora_dropout=0.0, epochs=2, **changes)  # type: ignore[arg-type]
            folder = make_round(tmp_path / str(number), base, settings=settings)
            result = run_round(folder, TuningJob.from_json(read_json(folder / "job.json")), request=Asked())
            losses.append([epoch["loss"] for epoch in result["epochs"]])
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)
        assert losses[2] == pytest.approx(losses[0], rel=2e-3)
        assert all(later < first for first, later in losses)

    def test_meteor_of_both_versions_where_it_is_asked_for(
        self, finished: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scores = read_json(finished / "result.json")["evaluation"]["parent"]
        settings = replace(SETTINGS, epochs=1)
        folder = make_round(tmp_path / "round", base, settings=settings, parent_scores=scores, meteor=True)
        job, java = TuningJob.from_json(read_json(folder / "job.json")), stand_in_java(tmp_path)
        monkeypatch.setattr("illume.evaluation.meteor.find_java", lambda: str(java))
        found = run_round(folder, job, request=Asked())["evaluation"]
        for part in (found["new"]["own"]["greedy"], found["parent"]["gold"]["greedy"]):
            lengths = [len(caption_words(text)) / 10 for [text] in part["rationales"]]
            assert part["meteor"] == pytest.approx(lengths)
            assert part["means"]["meteor"] == pytest.approx(sum(lengths) / 3)
        java.write_text("#!/bin/sh\necho no memory >&2; exit 1\n")
        (folder / "result.json").unlink()
        again = run_round(folder, job, request=Asked())["evaluation"]
        assert "meteor" not in again["new"]["gold"]["greedy"]
        assert (
            "METEOR left out: METEOR's program ended without an answer: no memory"
            in (folder / "events.jsonl").read_text()
        )

    def test_held_out_rationales_choose_where_there_are_no_references(self, base: Path, tmp_path: Path) -> None:
        settings = replace(SETTINGS, primary_metric="heldout")
        folder = make_round(tmp_path / "round", base, settings=settings)
        result = run_round(folder, TuningJob.from_json(read_json(folder / "job.json")), request=Asked())
        scores = [epoch["score"] for epoch in result["epochs"]]
        assert scores[0] < scores[1] < 0
        assert result["best_epoch"] == 2
        assert result["decision"]["outcome"] == "too few to tell"
        assert "changed by +" in result["decision"]["reason"]

    def test_without_val_prompts_the_last_epoch_waits_for_the_admin(self, base: Path, tmp_path: Path) -> None:
        folder = make_round(tmp_path / "round", base)
        (folder / "val.jsonl").write_text("")
        result = run_round(folder, TuningJob.from_json(read_json(folder / "job.json")), request=Asked())
        assert result["best_epoch"] == 2
        assert result["decision"]["activate"] is False
        assert "no validation prompts" in result["decision"]["reason"]


class TestProgress:
    def test_fraction_and_time_left(self, tmp_path: Path) -> None:
        progress = Progress(tmp_path, training=100, evaluating=300)
        progress.write()
        assert read_json(tmp_path / "progress.json")["eta_seconds"] is None
        progress.tick("training", 50)
        progress.skip("evaluating", 150)
        progress.enter("evaluating", epoch=2)
        told = read_json(tmp_path / "progress.json")
        assert (told["stage"], told["epoch"], told["fraction"]) == ("evaluating", 2, 0.5)
        assert told["eta_seconds"] >= 0
        progress.tick("training", 50)
        progress.tick("evaluating", 500)
        progress.write()
        assert read_json(tmp_path / "progress.json")["fraction"] == 0.999


def main_in_process(folder: Path) -> int:
    """`main` without its signals, which belong to a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("illume.tuning.command.StopRequest.install", lambda self, parent: None)
        return main([str(folder)])


class TestFailures:
    def test_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        for words, code in (([], 2), (["--help"], 0), (["-h"], 0), (["--folder"], 2), (["a", "b"], 2)):
            assert main(words) == code
            assert capsys.readouterr().err.startswith("usage: python -m illume.tuning DIR\n")

    def test_what_a_person_can_mend_is_one_line(
        self, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main_in_process(tmp_path / "nowhere") == 1
        assert capsys.readouterr().err == f"illume.tuning: there is no folder {tmp_path / 'nowhere'}\n"
        assert main_in_process(make_round(tmp_path / "round", tmp_path / "gone")) == 1
        assert capsys.readouterr().err == f"illume.tuning: there is no model folder {tmp_path / 'gone'}\n"

    def error(self, folder: Path) -> str:
        assert main_in_process(folder) == 1
        return str(read_json(folder / "error.json")["message"])

    def test_a_broken_job(self, tmp_path: Path) -> None:
        write_json(tmp_path / "job.json", {"base": "b", "colour": 1})
        assert self.error(tmp_path) == "job has an unknown field: colour"

    def test_a_missing_base(self, base: Path, tmp_path: Path) -> None:
        folder = make_round(tmp_path / "round", tmp_path / "nowhere")
        assert "there is no model folder" in self.error(folder)

    def test_nothing_accepted(self, base: Path, tmp_path: Path) -> None:
        folder = make_round(tmp_path / "round", base)
        lines = (folder / "train.jsonl").read_text().splitlines()
        (folder / "train.jsonl").write_text("\n".join(lines[4:]))
        assert "no rationale" in self.error(folder)

    def test_a_loss_that_explodes(self, base: Path, tmp_path: Path) -> None:
        folder = make_round(tmp_path / "round", base, settings=replace(SETTINGS, learning_rate=1e30))
        assert "not a number: try a lower learning rate" in self.error(folder)
        assert not (folder / "result.json").exists()

    def test_a_mended_folder_loses_its_error(self, finished: Path, tmp_path: Path) -> None:
        folder = copy_round(finished, tmp_path / "round")
        job = (folder / "job.json").read_text()
        (folder / "job.json").write_text("{")
        assert "not valid JSON" in self.error(folder)
        (folder / "job.json").write_text(job)
        assert main_in_process(folder) == 0
        assert not (folder / "error.json").exists()


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "illume.tuning", str(folder)])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


def n_steps(folder: Path) -> int:
    events = folder / "events.jsonl"
    return events.read_text().count('"kind": "step"') if events.exists() else 0


class TestProcess:
    """Real child processes, as the worker starts them."""

    def test_killed_between_epochs_and_resumed_it_ends_the_same(self, finished: Path, tmp_path: Path) -> None:
        folder = copy_round(finished, tmp_path / "round")
        process = start(folder)
        wait_until(lambda: n_steps(folder) >= 5, "the second epoch")
        process.kill()
        process.wait()
        assert not (folder / "result.json").exists()
        stored = (folder / "checkpoints" / "epoch-1" / "state.pt").stat().st_mtime_ns
        assert main_in_process(folder) == 0
        assert (folder / "checkpoints" / "epoch-1" / "state.pt").stat().st_mtime_ns == stored
        assert outcome(folder) == outcome(finished)

    def test_stopped_by_a_signal_it_says_so_and_goes_on_where_it_was(self, finished: Path, tmp_path: Path) -> None:
        folder = copy_round(finished, tmp_path / "round")
        process = start(folder)
        wait_until(lambda: n_steps(folder) >= 1, "the first step")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 75
        assert not (folder / "result.json").exists()
        assert not (folder / "error.json").exists()
        done = n_steps(folder)
        assert main_in_process(folder) == 0
        assert outcome(folder) == outcome(finished)
        if done < 8:  # stopped while training: not one step was taken twice
            assert n_steps(folder) == 8

    def test_stopped_while_it_loads(self, finished: Path, tmp_path: Path) -> None:
        folder = copy_round(finished, tmp_path / "round")
        process = start(folder)
        wait_until(lambda: catches(process.pid, signal.SIGTERM), "the handler")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 75

    def test_it_ends_with_its_parent(self, finished: Path, tmp_path: Path) -> None:
        folder = copy_round(finished, tmp_path / "round")
        job = read_json(folder / "job.json")
        job["settings"]["epochs"] = 10_000
        write_json(folder / "job.json", job)
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-m', 'illume.tuning', {str(folder)!r}])"
        parent = subprocess.Popen([sys.executable, "-c", code])
        wait_until(lambda: n_steps(folder) >= 1, "the first step")
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
        parent.wait()
        psutil.wait_procs([child], timeout=WAIT_SECONDS)
        still_works = child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        assert not still_works
        assert any((folder / "checkpoints" / name).is_dir() for name in ("step", "epoch-1"))

    def test_it_outlives_the_thread_that_started_it(self, finished: Path, tmp_path: Path) -> None:
        folder = copy_round(finished, tmp_path / "round")
        started: list[subprocess.Popen[bytes]] = []
        thread = threading.Thread(target=lambda: started.append(start(folder)))
        thread.start()
        wait_until(lambda: bool(started), "the process")
        thread.join()
        assert started[0].wait(WAIT_SECONDS) == 0

    @pytest.mark.slow
    def test_two_processes_learn_what_one_does(self, finished: Path, tmp_path: Path) -> None:
        folder = copy_round(finished, tmp_path / "round")
        job = read_json(folder / "job.json")
        job["processes"] = 2
        job["settings"]["lora_dropout"] = 0.0
        write_json(folder / "job.json", job)
        single = copy_round(folder, tmp_path / "single")
        write_json(single / "job.json", job | {"processes": 1})
        assert start(single).wait(WAIT_SECONDS) == 0
        process = start(folder)
        wait_until(lambda: n_steps(folder) >= 2, "the second step")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 75
        assert start(folder).wait(WAIT_SECONDS) == 0
        together, alone = outcome(folder), outcome(single)
        assert [step for step, _ in together[2]] == list(range(1, 9))
        for (_, one), (_, other) in zip(together[2], alone[2], strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
