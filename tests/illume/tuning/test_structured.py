"""Structured answers in training: which tokens belong to which part of the loss, and what the loss is then."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from illume.fields.answers import answer_json, answer_pieces, answer_start
from illume.fields.definitions import AnswerField, AnswerFields
from illume.model.vlm import Vlm, bare_model, encode_continuation, load_vlm
from illume.records import Example, TrainingRow
from illume.tuning.batches import BatchInputs, TrainingText, plan_batches, plan_turns, structured_texts
from illume.tuning.distributed import SingleProcess
from illume.tuning.lora import begin_adapter
from illume.tuning.trainer import Training
from tests.illume.families import FAMILIES, make_images, make_llava
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY
from tests.illume.rounds import SETTINGS

TEMPLATE = "{policy}\nQ: {question} A: {answer}, seeing that"
SHORT = replace(POLICY, categories=tuple(replace(one, default="x", strict="y") for one in POLICY.categories))
VALUES = {"rating": "Unsafe", "category": CATEGORIES[6]}
TEXT = 'a "dog" <image>\nis here, هنا'


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_vlm(str(make_llava(tmp_path_factory.mktemp("models") / "llava", context=4096)), device="cpu")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    (image,) = make_images(tmp_path_factory.mktemp("images"), 1)
    gold = {"rating": "Safe", "category": "NA: None applying"}
    return Example("e", (image,), "is it so?", policy=SHORT, fields=gold, references=("there is red water",))


def learnt(vlm: Vlm, text: TrainingText, part: str) -> str:
    """The text of the tokens that belong to a part of the loss."""
    return str(vlm.tokenizer.decode([t for t, one in zip(text.continuation, text.parts, strict=True) if one == part]))


class TestPieces:
    def test_values_up_to_their_closing_quotes(self) -> None:
        values = {**VALUES, "rationale": 'so "it" is'}
        pieces = answer_pieces(values, FIELDS)
        assert "".join(text for text, _ in pieces) == answer_json(values, FIELDS)
        named = [text for text, name in pieces if name]
        assert named == [
            'Unsafe"',
            'O6: \\"Weapons\\" or Substance Abuse"',
            'so \\"it\\" is"',
        ]
        assert "".join(text for text, _ in answer_pieces(VALUES, FIELDS)) == answer_start(VALUES, FIELDS)


class TestTexts:
    def test_a_judged_answer(self, vlm: Vlm, example: Example) -> None:
        (text,) = structured_texts(vlm, [TrainingRow(example, TEXT, VALUES)], FIELDS, template=TEMPLATE)
        assert text.prompt == f"{SHORT.text}\nQ: is it so? A:"
        assert learnt(vlm, text, "answer") == 'Unsafe"O6: \\"Weapons\\" or Substance Abuse"'
        assert learnt(vlm, text, "rationale") == 'a \\"dog\\" < image>\\nis here, هنا"'
        whole = answer_json({**VALUES, "rationale": TEXT}, FIELDS)
        assert list(text.continuation) == encode_continuation(vlm, f" {whole}")
        assert text.parts[-1] is None
        assert text.n_tokens("answer") == text.parts.count("answer") > 0

    def test_gold_fields_without_a_rationale_once_for_a_prompt(self, vlm: Vlm, example: Example) -> None:
        row = TrainingRow(example, None)
        other = TrainingRow(replace(example, policy=SHORT.with_status(CATEGORIES[:1], "strict")), None)
        texts = structured_texts(vlm, [row, row, other], FIELDS, template=TEMPLATE)
        assert [learnt(vlm, text, "answer") for text in texts] == ['Safe"NA: None applying"'] * 2
        assert [learnt(vlm, text, "rationale") for text in texts] == ["", ""]
        said = vlm.tokenizer.decode(texts[0].continuation)
        assert said == f" {answer_start({'rating': 'Safe', 'category': 'NA: None applying'}, FIELDS)}"

    def test_gold_fields_up_to_the_first_unknown_one(self, vlm: Vlm, example: Example) -> None:
        partly = TrainingRow(replace(example, fields={"rating": "Safe"}), None)
        (text,) = structured_texts(vlm, [partly], FIELDS, template=TEMPLATE)
        assert learnt(vlm, text, "answer") == 'Safe"'
        assert vlm.tokenizer.decode(text.continuation) == ' {"rating": "Safe", "category": "'

    def test_rationale_first(self, vlm: Vlm, example: Example) -> None:
        """A row without a rationale has a reference in its place, which is not learnt."""
        turned = AnswerFields((FIELDS.fields[2], *FIELDS.fields[:2]))
        (text,) = structured_texts(vlm, [TrainingRow(example, None)], turned, template=TEMPLATE)
        assert learnt(vlm, text, "rationale") == ""
        assert learnt(vlm, text, "answer") == 'Safe"NA: None applying"'
        assert '{"rationale": "there is red water", "rating"' in vlm.tokenizer.decode(text.continuation)
        with pytest.raises(ValueError, match=r"^e: nothing can be learnt"):
            structured_texts(vlm, [TrainingRow(replace(example, references=()), None)], turned, template=TEMPLATE)

    def test_masked_fields_and_other_texts_are_not_learnt(self, vlm: Vlm, example: Example) -> None:
        hint = AnswerField(name="hint", kind="text", required=False)
        level = AnswerField(name="level", kind="choice", choices=("1", "2"), required=False)
        fields = AnswerFields((*FIELDS.fields, hint, level))
        row = TrainingRow(example, "so", {**VALUES, "hint": "look", "level": None}, masked=frozenset({"category"}))
        (text,) = structured_texts(vlm, [row], fields, template=TEMPLATE)
        assert learnt(vlm, text, "answer") == 'Unsafe"null'
        assert learnt(vlm, text, "rationale") == 'so"'

    def test_missing_values_name_the_example(self, vlm: Vlm, example: Example) -> None:
        with pytest.raises(ValueError, match=r"^e: a row needs a value of category"):
            structured_texts(vlm, [TrainingRow(example, "so", {"rating": "Safe"})], FIELDS, template=TEMPLATE)

    @pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma"])
    def test_where_the_prompt_ends_in_white_space(self, family: str, example: Example, tmp_path: Path) -> None:
        vlm = load_vlm(str(FAMILIES[family](tmp_path / family)), device="cpu")
        row = TrainingRow(replace(example, policy=None), "so", {"rating": "Unsafe"})
        fields = AnswerFields((FIELDS.fields[0], FIELDS.rationale))
        (text,) = structured_texts(vlm, [row], fields, template="{question} {answer}")
        assert (learnt(vlm, text, "answer"), learnt(vlm, text, "rationale")) == ('Unsafe"', 'so"')


class TestLoss:
    def test_each_part_is_a_mean_over_its_own_tokens(self, vlm: Vlm, example: Example, tmp_path: Path) -> None:
        """Against cross-entropies that are computed one text at a time, without padding."""
        rows = [
            TrainingRow(example, "the dog is here", VALUES),
            TrainingRow(example, None),
            TrainingRow(example, "so", VALUES),
        ]
        texts = structured_texts(vlm, rows, FIELDS, template=TEMPLATE)
        sums, counts = {"answer": 0.0, "rationale": 0.0}, {"answer": 0, "rationale": 0}
        for text in texts:
            alone = TrainingText("answer", text.images, text.prompt, text.continuation)
            (batch,) = plan_batches([alone], batch_size=1, micro_batch_size=1, seed=0)
            inputs = BatchInputs(vlm, [alone], cache_mb=0).prepare(batch.micro_batches[0]).inputs
            with torch.no_grad():
                logits = bare_model(vlm)(**inputs).logits[0, -len(text.continuation) - 1 : -1]
            values = F.cross_entropy(logits, torch.tensor(text.continuation), reduction="none")
            for value, part in zip(values.tolist(), text.parts, strict=True):
                if part is not None:
                    sums[part] += value
                    counts[part] += 1
        settings = replace(SETTINGS, batch_size=4, micro_batch_size=4, learning_rate=1e-9, spread_guard=False)
        begin_adapter(vlm, init="from_base", parent=None, settings=settings)
        training = Training(
            vlm,
            texts,
            settings=settings,
            weight=2.0,
            folder=tmp_path,
            ranks=SingleProcess(),
            stop_requested=lambda: False,
            on_step=lambda _: None,
        )
        (batch,) = training.plans[0]
        assert batch.tokens == counts
        assert len(batch.micro_batches) == 1
        found = training.step(batch)
        expected = {part: sums[part] / counts[part] for part in sums}
        assert found["answer_loss"] == pytest.approx(expected["answer"], rel=1e-4)
        assert found["rationale_loss"] == pytest.approx(expected["rationale"], rel=1e-4)
        assert found["loss"] == pytest.approx(expected["answer"] + 2.0 * expected["rationale"], rel=1e-4)

    def test_structured_answers_are_spread_over_the_steps(self) -> None:
        rng = random.Random(1)
        texts = [
            TrainingText("structured", (), "p", (1,) * 4, (None, "answer", rng.choice(("rationale", None)), None))
            for _ in range(20)
        ]
        plan = plan_batches(texts, batch_size=8, micro_batch_size=4, seed=0)
        assert [sum(len(part.members) for part in batch.micro_batches) for batch in plan] == [7, 7, 6]
        assert [batch.tokens["answer"] for batch in plan] == [7, 7, 6]
        assert sum(batch.tokens["rationale"] for batch in plan) == sum(text.n_tokens("rationale") for text in texts)

    def test_of_structured_answers_the_guard_alone_is_spread_over_epochs(self, vlm: Vlm, example: Example) -> None:
        rows = [TrainingRow(replace(example, question=f"what {n}?"), None) for n in range(6)]
        judged = [
            TrainingRow(example, TEXT, VALUES),
            TrainingRow(example, TEXT, VALUES, masked=frozenset({"rationale"})),
        ]
        texts = structured_texts(vlm, [*rows, *judged], FIELDS, template=TEMPLATE)
        plans = plan_turns(texts, turns=3, batch_size=4, micro_batch_size=4, seed=0)
        learnt_in = [[n for batch in plan for one in batch.micro_batches for n in one.members] for plan in plans]
        assert [sorted(n for n in some if n >= 6) for some in learnt_in] == [[6, 7]] * 3
        assert all(len(some) > 2 for some in learnt_in)
        assert sorted(n for some in learnt_in for n in some if n < 6) == list(range(6))
