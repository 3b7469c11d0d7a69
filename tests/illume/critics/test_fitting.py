"""Machine critics on a tiny model: what they read, what they learn, and that no prompt rates itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from illume.critics.fitting import FittedCritic, TooFewVerdictsError, fit_critic
from illume.critics.measuring import measure_critic
from illume.critics.rows import JudgedRationale, assign_halves
from illume.critics.scoring import CriticScore, score_rationales
from illume.critics.texts import critic_texts, fits_prompt, helped_prompt, yes_and_no
from illume.model.vlm import Vlm, set_adapter
from illume.parts import ImagePart, TextPart
from illume.records import Example
from illume.sampling.generation import mean_logprobs
from illume.sampling.scoring import Continuation, mean_logprobs_of_rows, score_continuations
from illume.settings import CriticSettings, SamplingSettings
from illume.tuning.job import Stopped
from tests.illume.rounds import SETTINGS, make_examples

TEMPLATE = SETTINGS.template
TUNING = replace(SETTINGS, batch_size=8, micro_batch_size=8, lora_dropout=0.0, epochs=1)
VERIFIER = CriticSettings(kind="verifier", tuning=TUNING)
HELPFULNESS = CriticSettings(kind="helpfulness", tuning=TUNING)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return make_examples(tmp_path_factory.mktemp("images"), count=6, split="train")


@pytest.fixture(scope="module")
def judged(examples: list[Example]) -> list[JudgedRationale]:
    """What speaks of a dog was picked, what speaks of the mud was turned down."""
    return [
        JudgedRationale(one, text, picked, -1.0)
        for one in examples
        for text, picked in ((f"there is a dog, {one.answer}", True), ("the mud, no", False))
    ]


class TestWhatTheyRead:
    def test_helpfulness_reads_the_rationale_before_the_answer(self) -> None:
        one = Example("a", ("a.png",), "what is it?", "dog")
        assert helped_prompt(one, "two dogs run", template=TEMPLATE) == "Q: what is it? (two _ run) A:"

    def test_of_ordered_parts_the_rationale_comes_last(self) -> None:
        parts = (TextPart("what"), ImagePart(0))
        one = Example("a", ("a.png",), "what", "dog", parts=parts)
        found = helped_prompt(one, "it runs", template=TEMPLATE)
        assert found == (TextPart("Q: what"), ImagePart(0), TextPart("(it runs) A:"))
        *before, last = list(fits_prompt(one, "it runs.", template=TEMPLATE))
        assert before == [TextPart("Q: what"), ImagePart(0)]
        assert last == TextPart(" A: dog, seeing that it runs. Q: is it so? A:")

    def test_the_texts_of_helpfulness(self, vlm: Vlm, judged: list[JudgedRationale]) -> None:
        """Of a picked rationale: with it and without, with pictures and blank ones; of others nothing."""
        texts = critic_texts(vlm, judged[:2], HELPFULNESS)
        assert len({(text.prompt, isinstance(text.images[0], str)) for text in texts}) == 4
        assert {vlm.tokenizer.decode(text.continuation, skip_special_tokens=True) for text in texts} == {" red"}
        blank = [text.images[0] for text in texts if isinstance(text.images[0], Image.Image)]
        assert [image.getcolors() for image in blank] == [[(32 * 32, (128, 128, 128))]] * 2

    def test_the_texts_of_a_verifier(self, vlm: Vlm, judged: list[JudgedRationale]) -> None:
        shared, yes, no = yes_and_no(vlm)
        assert (shared, vlm.tokenizer.decode([yes]), vlm.tokenizer.decode([no])) == ((), " yes", " no")
        texts = critic_texts(vlm, judged[:2], VERIFIER)
        assert [text.continuation for text in texts] == [(yes,), (no,)]


class TestScores:
    def test_the_gain_of_an_answer(self, vlm: Vlm, examples: list[Example]) -> None:
        """With adapters that change nothing, the scores are differences of the base's own log-probabilities."""
        critic = FittedCritic(HELPFULNESS, {one.id: 0 for one in examples}, ("", ""))
        rows = [(examples[0], "there is red water"), (examples[1], "the sun"), (examples[0], "the park")]
        found = _score_with_base(vlm, critic, rows)
        for (example, text), score in zip(rows, found, strict=True):
            hint = text.replace(str(example.answer), "_")
            helped = replace(example, question=f"{example.question} ({hint})")
            asked = [_answer_logprob(vlm, one, one.images) for one in (helped, example)]
            assert score.seen == pytest.approx(asked[0] - asked[1], abs=1e-5)
            grey = Image.new("RGB", (32, 32), (128, 128, 128))
            asked = [_answer_logprob(vlm, one, (grey,)) for one in (helped, example)]
            assert score.blank == pytest.approx(asked[0] - asked[1], abs=1e-5)
        assert found[0].value(HELPFULNESS) == found[0].blank
        assert found[0].value(replace(HELPFULNESS, ranks_blank=False)) == found[0].seen

    def test_the_odds_of_yes(self, vlm: Vlm, examples: list[Example]) -> None:
        critic = FittedCritic(VERIFIER, {one.id: 0 for one in examples}, ("", ""))
        [found] = _score_with_base(vlm, critic, [(examples[0], "there is red water")])
        _, yes, no = yes_and_no(vlm)
        prompt = fits_prompt(examples[0], "there is red water", template=TEMPLATE)
        rows = [Continuation(prompt, examples[0].images, (token,)) for token in (yes, no)]
        values = score_continuations(vlm, rows, mean_logprobs_of_rows, token_budget=9999)
        assert found.seen == pytest.approx(values[0] - values[1], abs=1e-5)
        assert found.blank != pytest.approx(found.seen, abs=1e-7)
        assert found.value(VERIFIER) == found.seen

    def test_batches_change_nothing(self, vlm: Vlm, examples: list[Example]) -> None:
        rows = [(one, "red", one.references[0]) for one in examples]
        one_by_one = [mean_logprobs(vlm, [row], SamplingSettings())[0] for row in rows]
        for budget in (1, 150, 10_000):
            found = mean_logprobs(vlm, rows, SamplingSettings(token_budget=budget))
            assert found == pytest.approx(one_by_one, abs=1e-5)


def _score_with_base(vlm: Vlm, critic: FittedCritic, rows: list[tuple[Example, str]]) -> list[CriticScore]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("illume.critics.scoring.set_adapter", lambda *_: None)
        return score_rationales(vlm, critic, rows)


def _answer_logprob(vlm: Vlm, example: Example, images: tuple[Any, ...]) -> float:
    from illume.model.prompting import answer_prompt, answer_text
    from illume.model.vlm import encode_continuation

    ids = tuple(encode_continuation(vlm, answer_text(str(example.answer))))
    row = Continuation(answer_prompt(example, template=TEMPLATE), images, ids)
    return score_continuations(vlm, [row], mean_logprobs_of_rows, token_budget=9999)[0]


class TestFitting:
    def test_a_verifier_learns_what_people_pick(
        self, vlm: Vlm, examples: list[Example], judged: list[JudgedRationale], tmp_path: Path
    ) -> None:
        """Each half learns from the other's words; labels that mean nothing teach nothing of the kind."""
        settings = replace(VERIFIER, tuning=replace(TUNING, epochs=4, batch_size=6, learning_rate=2e-2))
        halves = assign_halves(examples, {one.id: 2 for one in examples}, seed=0)
        critic, report = measure_critic(vlm, judged, halves, settings, tmp_path)
        assert report["all"]["critic"]["mean"] == 1.0
        assert report["within_sets"]["critic"]["mean"] == 1.0
        assert report["all"]["permuted labels"]["mean"] < 1.0
        assert report["all"]["shuffled rationales"]["mean"] > 0.9  # these can be told by the text alone
        assert report["all"]["mean log-probability"]["mean"] == 0.5
        assert report["leaking_share"] == 0.5
        assert len(report["scores"]) == len(judged)
        assert vlm.adapter is None
        assert {critic.adapter_for(one.id) for one in examples} == set(critic.adapters)
        assert all(f"half-{1 - halves[one.id]}" in critic.adapter_for(one.id) for one in examples)

    def test_it_goes_on_where_it_was_stopped(
        self, vlm: Vlm, examples: list[Example], judged: list[JudgedRationale], tmp_path: Path
    ) -> None:
        halves = {one.id: number % 2 for number, one in enumerate(examples)}
        settings = replace(HELPFULNESS, tuning=replace(TUNING, epochs=2))
        whole = fit_critic(vlm, judged, halves, settings, tmp_path / "whole")
        looks = iter([False, False, True])
        with pytest.raises(Stopped):
            fit_critic(vlm, judged, halves, settings, tmp_path / "b", stop_requested=lambda: next(looks))
        assert vlm.adapter is None
        done: list[float] = []
        again = fit_critic(vlm, judged, halves, settings, tmp_path / "b", tick=done.append)
        assert done == sorted(done)
        assert done[-1] == 1.0
        for one, other in zip(whole.adapters, again.adapters, strict=True):
            weights = [(Path(folder) / "adapter_model.safetensors").read_bytes() for folder in (one, other)]
            assert weights[0] == weights[1]
        assert not (tmp_path / "b" / "half-0" / "checkpoints").exists()
        set_adapter(vlm, again.adapters[0])
        assert any(parameter.abs().max() > 0 for name, parameter in vlm.model.named_parameters() if "lora_B" in name)

    def test_too_few_verdicts_say_what_is_missing(
        self, vlm: Vlm, examples: list[Example], judged: list[JudgedRationale], tmp_path: Path
    ) -> None:
        halves = assign_halves(examples, {}, seed=0)
        with pytest.raises(TooFewVerdictsError, match="picked explanations of at least two"):
            fit_critic(vlm, judged[:1], halves, VERIFIER, tmp_path)
        picked = [one for one in judged if one.picked]
        with pytest.raises(TooFewVerdictsError, match="rejected explanations"):
            fit_critic(vlm, picked, halves, VERIFIER, tmp_path)
        assert not any(tmp_path.iterdir())
        assert torch.is_grad_enabled()
