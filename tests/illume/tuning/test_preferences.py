"""Learning from what was turned down: pairs, terms by hand and by TRL, and rounds that are killed and go on."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from illume.evaluation.critics import JudgedSet, pair_texts, rejection_rows
from illume.model.vlm import IGNORED, Vlm, load_vlm
from illume.records import Rejection, TrainingRow
from illume.settings import PreferenceSettings, TuningSettings
from illume.tuning.batches import BatchInputs, MicroBatch, PreparedBatch, TrainingText, training_texts
from illume.tuning.distributed import SingleProcess
from illume.tuning.job import JobError, Stopped, TuningJob, read_json, read_rejections, write_job
from illume.tuning.lora import begin_adapter, trainable_parameters
from illume.tuning.preferences import (
    MEASURES,
    PreferenceBatch,
    compute_references,
    mean_logprobs,
    measure_blank,
    measure_pairs,
    plan_preferences,
    preference_losses,
    weigh_terms,
)
from illume.tuning.round import run_round
from illume.tuning.trainer import Preferences, Training, micro_batch_logprobs
from tests.illume.rounds import SETTINGS, make_examples
from tests.illume.tuning.test_tuning import Asked

EVENLY = PreferenceSettings(pair_weight=1.0, picture_weight=1.0, anchor_weight=1.0, unpaired_weight=1.0)
BOTH = replace(SETTINGS, objective="picks_and_rejections", preferences=EVENLY)
pytestmark = pytest.mark.timeout(1200)


def make_rejections(folder: Path) -> list[Rejection]:
    """Four pairs, the last two of one prompt, and one text of a prompt for which nothing fitted."""
    examples = make_examples(folder, count=4, split="train")
    pairs = [Rejection(one, "there is a bird", one.references[0]) for one in examples[:3]]
    return [*pairs, Rejection(examples[2], "no", examples[2].references[1]), Rejection(examples[3], "the mud", None)]


def make_plan(vlm: Vlm, rejections: list[Rejection], **changes: Any) -> Any:
    options: dict[str, Any] = {"n_steps": 1, "micro_batch_size": 15, "first_text": 0, "first_number": 0}
    return plan_preferences(
        vlm,
        rejections,
        template=SETTINGS.template,
        settings=PreferenceSettings(),
        seed=0,
        **(options | changes),
    )


def compare_batch(n_rejected: int, better: tuple[int, ...], displaced: tuple[int, ...] = ()) -> PreferenceBatch:
    nothing = MicroBatch(0, "rationale", ())
    return PreferenceBatch(nothing, nothing, n_rejected, better, displaced)


class TestRows:
    def test_each_text_stands_beside_one_of_its_set(self) -> None:
        judged = JudgedSet("a", ("good", "fine"), ("bad", "Good!", "worse", "bad", "odd", "wrong", "silly", "known"))
        pairs = pair_texts(judged, accepted=("known",), per_rationale=2, seed=3)
        assert [better for _, better in pairs] == ["good", "fine", "good", "fine"]
        assert len({text for text, _ in pairs} & {"bad", "worse", "odd", "wrong", "silly"}) == 4
        assert pairs == pair_texts(judged, accepted=("known",), per_rationale=2, seed=3)

    def test_without_anything_accepted_there_is_no_pair(self) -> None:
        pairs = pair_texts(JudgedSet("a", (), ("no", "never", "nay")), accepted=("yes",), per_rationale=2, seed=0)
        assert [better for _, better in pairs] == [None, None]

    def test_a_pair_is_worth_more_than_none(self, tmp_path: Path) -> None:
        """Turned down where nothing fitted, and again beside what was accepted later."""
        [one] = make_examples(tmp_path, count=1, split="train")
        sets = [JudgedSet(one.id, (), ("bad", "odd")), JudgedSet(one.id, ("good",), ("Bad", "worse"))]
        rows = rejection_rows([one], {one.id: ("good",)}, sets, per_rationale=9, seed=0)
        assert {(row.rationale, row.accepted) for row in rows} == {("Bad", "good"), ("worse", "good"), ("odd", None)}

    def test_an_answer_is_needed(self, tmp_path: Path) -> None:
        [one] = make_examples(tmp_path, count=1, split="train")
        unanswered, sets = replace(one, answer=None), [JudgedSet(one.id, (), ("bad",))]
        with pytest.raises(ValueError, match="no answer"):
            rejection_rows([unanswered], {}, sets, per_rationale=2, seed=0)
        [row] = rejection_rows([unanswered], {}, sets, answers={one.id: "red"}, per_rationale=2, seed=0)
        assert row.example.answer == "red"

    def test_the_job_folder_keeps_them(self, base: Path, tmp_path: Path) -> None:
        rejections = make_rejections(tmp_path / "images")
        rows = [TrainingRow(rejections[0].example, rejections[0].accepted)]
        job = TuningJob(base=str(base))
        write_job(tmp_path / "round", job, train=rows, val=[], rejections=rejections)
        found = read_rejections(tmp_path / "round")
        assert [(row.example.images, row.rationale, row.accepted) for row in found] == [
            (row.example.images, row.rationale, row.accepted) for row in rejections
        ]
        write_job(tmp_path / "round", job, train=rows, val=[], rejections=rejections)
        with pytest.raises(JobError, match="another round"):
            write_job(tmp_path / "round", job, train=rows, val=[], rejections=rejections[1:])
        lines = (tmp_path / "round" / "rejections.jsonl").read_text().splitlines()
        broken = [json.dumps(json.loads(lines[0]) | {"accepted": " "}), *lines[1:]]
        (tmp_path / "round" / "rejections.jsonl").write_text("\n".join(broken))
        with pytest.raises(JobError, match="line 1: accepted must be a text or null"):
            read_rejections(tmp_path / "round")

    def test_a_job_written_before_the_setting_is_the_same_job(self, base: Path, tmp_path: Path) -> None:
        rows = [TrainingRow(one, one.references[0]) for one in make_examples(tmp_path, count=1, split="train")]
        job = TuningJob(base=str(base))
        write_job(tmp_path / "round", job, train=rows, val=[])
        old = read_json(tmp_path / "round" / "job.json")
        del old["settings"]["objective"], old["settings"]["preferences"]
        (tmp_path / "round" / "job.json").write_text(json.dumps(old))
        write_job(tmp_path / "round", job, train=rows, val=[])


class TestTerms:
    def test_by_hand(self) -> None:
        """beta 2; gains over the parent: rejected -0.5 and 0.25, accepted 0.5, with other pictures 0.1."""
        values = torch.tensor([-2.0, -1.0, -1.0, -1.4])
        references = torch.tensor([-1.5, -1.25, -1.5, -1.5])
        losses = preference_losses(values, references, compare_batch(2, (0,), (0,)), beta=2.0)
        assert {term: loss.item() for term, loss in losses.items()} == pytest.approx(
            {
                "pair": math.log1p(math.exp(-2 * (0.5 + 0.5))),
                "picture": math.log1p(math.exp(-2 * (0.5 - 0.1))),
                "anchor": math.log1p(math.exp(-2 * 0.5)),
                "unpaired": 1 / (1 + math.exp(-2 * 0.25)),
            },
            abs=1e-6,
        )

    def test_terms_are_means_over_the_step_with_their_weights(self) -> None:
        settings = PreferenceSettings(pair_weight=2.0, picture_weight=0.0, anchor_weight=0.5, unpaired_weight=1.0)
        sums = {term: torch.tensor(6.0) for term in ("pair", "picture", "anchor", "unpaired")}
        counts = {"pair": 3, "picture": 2, "anchor": 3, "unpaired": 6}
        loss = weigh_terms(sums, counts, settings)
        assert loss is not None
        assert loss.item() == 2 * 2 + 0.5 * 2 + 1
        assert weigh_terms({"picture": torch.tensor(6.0)}, counts, settings) is None

    def test_nothing_to_compare_gives_no_term(self) -> None:
        only_bad = preference_losses(torch.tensor([-1.0]), torch.tensor([-1.0]), compare_batch(1, ()), beta=1.0)
        assert set(only_bad) == {"unpaired"}
        assert only_bad["unpaired"].item() == 0.5

    def test_means_leave_out_what_is_not_a_target(self) -> None:
        logits = torch.log(
            torch.tensor([[[3 / 4, 1 / 4], [0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.1, 0.9], [0.5, 0.5]]])
        )
        values = mean_logprobs(logits, torch.tensor([[0, IGNORED], [1, 1]]))
        assert values.tolist() == pytest.approx([math.log(3 / 4), (math.log(0.8) + math.log(0.9)) / 2])

    def test_measures(self) -> None:
        batch = compare_batch(3, (0, 1))
        found = measure_pairs(torch.tensor([-2.0, -1.0, -9.0, -1.0, -1.5]), batch)
        assert {name: value.item() for name, value in found.items()} == {
            "accepted_logprob": -2.5,
            "rejected_logprob": -3.0,
            "margin": 0.5,
            "preference_accuracy": 1.0,
        }
        assert measure_blank(torch.tensor([-2.0, -1.0, -1.0, -1.5]), batch).item() == 1.0

    def test_an_accepted_text_beside_two_counts_in_both_pairs(self) -> None:
        batch = compare_batch(3, (0, 1, 0))
        assert batch.counts() == {"pair": 3, "picture": 0, "anchor": 2, "unpaired": 0, "blank": 3}
        values = torch.tensor([-2.0, -1.0, -4.0, -1.0, -1.5])  # three rejected ones, then two accepted ones
        found = measure_pairs(values, batch)
        assert found["margin"].item() == (-1 + 2) + (-1.5 + 1) + (-1 + 4)
        assert found["preference_accuracy"].item() == measure_blank(values, batch).item() == 2.0
        losses = preference_losses(values, torch.zeros(5), batch, beta=1.0)
        by_hand = sum(math.log(1 + math.exp(-margin)) for margin in (1.0, -0.5, 3.0))
        assert losses["pair"].item() == pytest.approx(by_hand, abs=1e-6)
        assert losses["anchor"].item() == pytest.approx(
            math.log(1 + math.exp(1)) + math.log(1 + math.exp(1.5)), abs=1e-6
        )


class TestPlan:
    def test_what_a_batch_is_made_of(self, vlm: Vlm, tmp_path: Path) -> None:
        plan = make_plan(vlm, make_rejections(tmp_path))
        [[batch]] = plan.steps
        assert (batch.n_rejected, batch.n_pairs) == (5, 4)
        assert batch.displaced == batch.better == (0, 1, 2, 3)
        texts = [plan.texts[index] for index in batch.shown.members]
        said = [decoded(vlm, text) for text in texts]
        assert said[4] == "the mud"
        assert said[5:9] == said[9:13]
        for accepted, displaced in zip(texts[5:9], texts[9:13], strict=True):
            assert accepted.prompt == displaced.prompt
            assert set(accepted.images).isdisjoint(displaced.images)
        blank = [plan.texts[index] for index in batch.blank.members]
        assert [text.continuation for text in blank] == [text.continuation for text in (*texts[:4], *texts[5:9])]
        greys = [image for text in blank for image in text.images]
        assert all(isinstance(image, Image.Image) and image.getcolors() == [(32 * 32, (128,) * 3)] for image in greys)

    def test_what_stands_beside_the_same_text_is_together_and_that_text_there_once(
        self, vlm: Vlm, tmp_path: Path
    ) -> None:
        first, second, third, *_ = make_rejections(tmp_path)
        also = [replace(row, rationale=text) for row in (first, third) for text in ("a bird", "two birds")]
        plan = make_plan(vlm, [first, second, third, *also], n_steps=2, micro_batch_size=30)
        for [batch] in plan.steps:
            texts = [plan.texts[index] for index in batch.shown.members]
            accepted = texts[batch.n_rejected : batch.n_rejected + batch.n_accepted]
            assert len({(text.images, text.prompt, text.continuation) for text in accepted}) == len(accepted)
            assert len(batch.displaced) == batch.n_accepted
            for rejected, index in zip(texts, batch.better, strict=False):
                assert rejected.prompt == accepted[index].prompt
                assert rejected.images == accepted[index].images
        assert sorted(batch.n_pairs for [batch] in plan.steps) in ([1, 6], [3, 4])
        assert sum(batch.n_accepted for [batch] in plan.steps) == 3

    def test_every_rejection_is_in_one_step(self, vlm: Vlm, tmp_path: Path) -> None:
        rejections = make_rejections(tmp_path)
        plan = make_plan(vlm, rejections, n_steps=3, micro_batch_size=3, first_text=7, first_number=5)
        assert sum(batch.n_rejected for batch in plan.batches()) == len(rejections)
        assert [len(step) for step in plan.steps] == [2, 2, 1]
        assert [any(batch.blank for batch in step) for step in plan.steps] == [True, False, False]
        numbers = [one.number for batch in plan.batches() for one in (batch.shown, batch.blank) if one is not None]
        assert numbers == list(range(5, 5 + len(numbers)))
        members = [index for batch in plan.batches() for index in batch.shown.members]
        assert min(members) == 7

    def test_the_same_pictures_are_no_other_pictures(self, vlm: Vlm, tmp_path: Path) -> None:
        rejections = make_rejections(tmp_path)[2:4]
        [[batch]] = make_plan(vlm, rejections).steps
        assert batch.displaced == ()


def decoded(vlm: Vlm, text: TrainingText) -> str:
    return str(vlm.tokenizer.decode(text.continuation, skip_special_tokens=True)).strip()


def make_both(vlm: Vlm, folder: Path, **changes: Any) -> Training:
    """Training on picks and rejections, from the base model."""
    settings = replace(BOTH, **{"lora_dropout": 0.0, "batch_size": 16} | changes)
    rejections = make_rejections(folder / "rows")
    rows = [TrainingRow(row.example, row.accepted) for row in rejections]
    texts = training_texts(vlm, rows, template=settings.template)
    plan = make_plan(vlm, rejections, first_text=len(texts), first_number=100)
    inputs = BatchInputs(vlm, [*texts, *plan.texts], cache_mb=0)
    references = compute_references(plan, partial(micro_batch_logprobs, vlm, inputs), lambda: None)
    begin_adapter(vlm, init="from_base", parent=None, settings=settings)
    numbers = [batch.shown.number for batch in plan.batches()]
    return Training(
        vlm,
        texts,
        settings=settings,
        weight=1.0,
        folder=folder,
        ranks=SingleProcess(),
        stop_requested=lambda: False,
        on_step=lambda _: None,
        preferences=Preferences(plan, dict(zip(numbers, map(torch.tensor, references), strict=True))),
    )


class TestTraining:
    def test_nothing_is_gained_before_the_first_step(self, vlm: Vlm, tmp_path: Path) -> None:
        training = make_both(vlm, tmp_path)
        losses = training.run_epoch()
        assert losses["preference_loss"] == pytest.approx(3 * math.log(2) + 0.5, abs=1e-5)
        assert set(MEASURES) <= set(losses)
        assert losses["loss"] == pytest.approx(
            (losses["answer_loss"] or 0) + (losses["rationale_loss"] or 0) + (losses["preference_loss"] or 0)
        )

    def test_accepted_texts_become_likelier_than_those_turned_down(self, vlm: Vlm, tmp_path: Path) -> None:
        training = make_both(vlm, tmp_path, epochs=40, learning_rate=1e-2)
        runs = [training.run_epoch() for _ in range(40)]
        first, last = runs[0], runs[-1]
        assert last["preference_accuracy"] == 1.0
        assert (last["margin"] or 0) > (first["margin"] or 0) + 0.3
        assert (last["accepted_logprob"] or -9) > (first["accepted_logprob"] or 0)
        assert (last["preference_loss"] or 9) < (first["preference_loss"] or 0) - 0.5

    def test_terms_switched_off_change_what_is_learnt(self, base: Path, tmp_path: Path) -> None:
        found = []
        settings = (
            EVENLY,
            replace(EVENLY, pair_weight=0.0),
            replace(EVENLY, picture_weight=0.0),
            replace(EVENLY, unpaired_weight=0.0),
        )
        for number, preferences in enumerate(settings):
            vlm = load_vlm(str(base), device="cpu")
            training = make_both(vlm, tmp_path / str(number), preferences=preferences, learning_rate=1e-2)
            for _ in range(2):
                training.run_epoch()
            found.append(torch.cat([one.detach().flatten() for one in training.parameters.values()]))
        for other in found[1:]:
            assert not torch.allclose(found[0], other, atol=1e-5)


def make_folder(folder: Path, base: Path, *, settings: TuningSettings = BOTH, **job: Any) -> Path:
    """The folder of a round over picks and rejections."""
    rejections = make_rejections(folder / "images")
    guard = make_examples(folder / "images", count=8, split="train")[4:]
    rows = [TrainingRow(row.example, row.accepted) for row in rejections if row.accepted]
    write_job(
        folder,
        TuningJob(base=str(base), settings=settings, **job),
        train=[*rows, *(TrainingRow(example, None) for example in guard)],
        val=make_examples(folder / "images", count=2, split="val"),
        rejections=rejections,
    )
    return folder


def outcome(folder: Path) -> tuple[Any, bytes]:
    return read_json(folder / "result.json"), (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def run_all(folder: Path, **request: Any) -> None:
    job = TuningJob.from_json(read_json(folder / "job.json"))
    run_round(folder, job, request=Asked(**request))


class TestRound:
    def test_a_stopped_round_ends_like_one_that_was_not(self, base: Path, tmp_path: Path) -> None:
        whole, stopped = make_folder(tmp_path / "a", base), make_folder(tmp_path / "b", base)
        run_all(whole)
        for looks in (3, 9):
            with pytest.raises(Stopped):
                run_all(stopped, after=looks)
        run_all(stopped)
        (result, adapter), (again, other) = outcome(whole), outcome(stopped)
        assert adapter == other
        assert result == again
        assert (result["n_pairs"], result["n_unpaired"]) == (4, 1)
        events = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
        steps = [event for event in events if event["kind"] == "step"]
        assert all(set(MEASURES) <= set(step) for step in steps)
        assert any(step["blank_accuracy"] is not None for step in steps)
        assert any("4 pairs, 1 explanation" in event.get("message", "") for event in events)

    def test_what_is_gained_is_gained_over_the_parent(self, base: Path, tmp_path: Path) -> None:
        """A round that goes on from its parent has gained nothing at its first step; by the base it would have."""
        settings = replace(BOTH, lora_dropout=0.0, epochs=1, batch_size=16, micro_batch_size=15)
        first = make_folder(tmp_path / "first", base, settings=replace(settings, epochs=4))
        run_all(first)
        second = make_folder(tmp_path / "second", base, settings=settings, parent=str(first / "adapter"))
        run_all(second)
        events = [json.loads(line) for line in (second / "events.jsonl").read_text().splitlines()]
        [step] = [event for event in events if event["kind"] == "step"]
        assert step["preference_loss"] == pytest.approx(3 * math.log(2) + 0.5, abs=1e-5)
        alone = make_folder(tmp_path / "alone", base, settings=settings)
        run_all(alone)
        by_base, by_parent = (
            [value for batch in read_json(folder / "references.json") for value in batch] for folder in (alone, second)
        )
        assert by_base != pytest.approx(by_parent, abs=1e-3)

    def test_picks_alone_leave_rejections_unread(self, base: Path, tmp_path: Path) -> None:
        folders = [make_folder(tmp_path / name, base, settings=SETTINGS) for name in ("with", "without")]
        (folders[1] / "rejections.jsonl").unlink()
        for folder in folders:
            run_all(folder)
        assert outcome(folders[0])[1] == outcome(folders[1])[1]
        assert not (folders[0] / "references.json").exists()


def import_trl() -> Any:
    """TRL, which warns as it is loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl
    return trl


def config_of(make: Any, folder: Path, **options: Any) -> Any:
    """TRL's settings for a trainer that only computes a loss."""
    usual = {"report_to": "none", "use_cpu": True, "bf16": False, "max_length": None, "gradient_checkpointing": False}
    return make(output_dir=str(folder), **usual, **options)


def as_trl_has_it(prepared: PreparedBatch, rows: list[int]) -> dict[str, torch.Tensor]:
    """Some texts of a prepared micro-batch as inputs of TRL, with the tokens that count in `completion_mask`."""
    start = prepared.inputs["input_ids"].shape[1] - prepared.n_targets
    mask = torch.zeros_like(prepared.inputs["input_ids"])
    mask[:, start:] = (prepared.labels != IGNORED).to(mask.dtype)
    kept = {name: prepared.inputs[name][rows] for name in ("input_ids", "attention_mask", "pixel_values")}
    return kept | {"completion_mask": mask[rows]}


def change_adapter(vlm: Vlm) -> None:
    """Makes the model another one than its parent."""
    with torch.no_grad():
        for number, parameter in enumerate(trainable_parameters(vlm).values()):
            parameter.add_(0.02 * (number % 3))


MESSAGE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
ANSWER = [{"role": "assistant", "content": [{"type": "text", "text": "red"}]}]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trl_computes_the_same_loss(vlm: Vlm, tmp_path: Path) -> None:
    """TRL's own forward pass and loss, on the same model, pairs and parent."""
    import datasets as hub

    trl = import_trl()
    rejections = [row for row in make_rejections(tmp_path) if row.accepted is not None]
    plan = make_plan(vlm, rejections)
    [[batch]] = plan.steps
    inputs = BatchInputs(vlm, plan.texts, cache_mb=0)
    n = batch.n_pairs
    given = as_trl_has_it(inputs.prepare(batch.shown), [*range(n, 2 * n), *range(n)])  # TRL has the chosen ones first
    [references] = compute_references(plan, partial(micro_batch_logprobs, vlm, inputs), lambda: None)
    begin_adapter(vlm, init="from_base", parent=None, settings=SETTINGS)
    one = {"prompt": MESSAGE, "chosen": ANSWER, "rejected": ANSWER, "images": [Image.new("RGB", (32, 32))]}
    trainer = trl.DPOTrainer(
        model=vlm.model,
        args=config_of(trl.DPOConfig, tmp_path / "out", loss_type=["sigmoid_norm"], beta=2.0),
        train_dataset=hub.Dataset.from_list([one]),
        processing_class=vlm.processor,
    )
    change_adapter(vlm)  # after the trainer has kept the adapter that it compares with
    trainer.model.eval()
    values = micro_batch_logprobs(vlm, inputs, batch.shown)
    ours = preference_losses(values, torch.tensor(references), batch, beta=2.0)["pair"] / n
    theirs = trainer.compute_loss(trainer.model, given)
    assert abs(ours.item() - math.log(2)) > 1e-3
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trl_computes_the_same_loss_where_nothing_fitted(vlm: Vlm, tmp_path: Path) -> None:
    """TRL's loss `apo_zero_unpaired`. It sums over tokens where ours is their mean, so that its beta is ours over n."""
    import datasets as hub

    trl = import_trl()
    plan = make_plan(vlm, [row for row in make_rejections(tmp_path) if row.accepted is None])
    [[batch]] = plan.steps
    assert (batch.n_rejected, batch.n_pairs) == (1, 0)
    inputs = BatchInputs(vlm, plan.texts, cache_mb=0)
    given = as_trl_has_it(inputs.prepare(batch.shown), [0])
    [references] = compute_references(plan, partial(micro_batch_logprobs, vlm, inputs), lambda: None)
    begin_adapter(vlm, init="from_base", parent=None, settings=SETTINGS)
    n_tokens = int(given["completion_mask"].sum())
    assert n_tokens > 1
    one = {"prompt": MESSAGE, "completion": ANSWER, "label": False, "images": [Image.new("RGB", (32, 32))]}
    trainer = trl.KTOTrainer(
        model=vlm.model,
        args=config_of(trl.KTOConfig, tmp_path / "out", loss_type="apo_zero_unpaired", beta=2.0 / n_tokens),
        train_dataset=hub.Dataset.from_list([one, one]),
        processing_class=vlm.processor,
    )
    change_adapter(vlm)
    trainer.model.eval()
    values = micro_batch_logprobs(vlm, inputs, batch.shown)
    ours = preference_losses(values, torch.tensor(references), batch, beta=2.0)["unpaired"]
    theirs = trainer.compute_loss(trainer.model, given | {"label": torch.tensor([False])})
    assert abs(ours.item() - 0.5) > 1e-3
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
