"""Entropies by hand, temperatures that match them, and what is counted as distinct and true."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from illume.evaluation import matched
from illume.evaluation.evaluation import count_kept, sampled_params
from illume.evaluation.matched import GRID, match_temperature, score_matched, token_entropies
from illume.model.prompting import rationale_prompt
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, append_continuations, bare_model, encode, load_vlm
from illume.records import Example
from illume.sampling.decoding import Completion, DecodeRequest, decode_prompts
from illume.sampling.sampler import SamplingParams
from illume.settings import EvaluationSettings
from tests.illume.families import make_llava
from tests.illume.passes import record_prompts_read
from tests.illume.rounds import make_examples

SETTINGS = EvaluationSettings(max_new_tokens=5, top_k_share=0.5)
TEMPLATE = "Q: {question} A: {answer}, seeing that"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_vlm(str(make_llava(tmp_path_factory.mktemp("base"))), device="cpu")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return make_examples(tmp_path_factory.mktemp("images"), count=3, split="val")


def test_entropies_by_hand() -> None:
    """Of two tokens that are equally likely, ln 2 at any temperature; of 3 : 1, by the definition; others are cut."""
    logits = torch.tensor([[0.0, 0.0, -9.0], [math.log(3.0), 0.0, -9.0]])
    found = token_entropies(logits, 2)
    assert found.shape == (len(GRID), 2)
    assert torch.allclose(found[:, 0], torch.full((len(GRID),), math.log(2)))
    for temperature, entropy in zip(GRID, found[:, 1].tolist(), strict=True):
        p = 3 ** (1 / temperature) / (3 ** (1 / temperature) + 1)
        rest = 1 - p
        by_hand = -p * math.log(p) - (rest * math.log(rest) if rest > 0 else 0.0)
        assert entropy == pytest.approx(by_hand, abs=1e-4)
    assert float(token_entropies(logits[1], 3)[-1]) > float(found[-1, 1])


def test_a_sharper_version_is_sampled_at_a_higher_temperature(vlm: Vlm, examples: list[Example]) -> None:
    """Twice the logits at twice the temperature are the same distribution, so that is where it is matched."""
    norm = bare_model(vlm).get_decoder().norm.weight
    before = norm.detach().clone()
    try:
        with torch.no_grad():
            norm *= 20  # the tiny model is almost as unsure as it can be
            usual = match_temperature(vlm, examples, SETTINGS, template=TEMPLATE)
            norm *= 2
            sharper = match_temperature(vlm, examples, SETTINGS, template=TEMPLATE, entropy=usual.entropy)
    finally:
        with torch.no_grad():
            norm.copy_(before)
    assert usual.temperature == 0.7
    assert sharper.temperature == pytest.approx(1.4, rel=0.1)
    assert sharper.entropy == pytest.approx(usual.entropy, rel=0.05)


def test_an_entropy_out_of_reach_gives_the_closest(vlm: Vlm, examples: list[Example]) -> None:
    assert match_temperature(vlm, examples, SETTINGS, template=TEMPLATE, entropy=99.0).temperature == GRID[-1]


def test_distinct_true_rationales(examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    written = ["It runs.", "it runs", "it sits", "it barks"]
    monkeypatch.setattr(matched, "faithful", lambda text, one: None if one.id == "val-1" else text != "it sits")
    found = score_matched(examples[:2], [written] * 2)
    assert found["faithful"] == [0.75, None]
    assert found["distinct_true"] == [2.0, None], "two are the same after normalisation"
    assert found["rationales"] == [written] * 2


def test_entropies_are_those_of_a_pass_over_the_sampled_texts(vlm: Vlm, examples: list[Example]) -> None:
    """They are measured while the texts are sampled."""
    kept, place = count_kept(vlm, SETTINGS), next(n for n, one in enumerate(GRID) if one > SETTINGS.temperature)
    entropies, texts = torch.zeros(0), list[tuple[int, ...]]()

    def keep(_: int, completions: list[Completion]) -> tuple[SamplingParams, ...]:
        texts.append(completions[0].token_ids)
        return ()

    for example in examples:
        prompt = rationale_prompt(example, str(example.answer), template=TEMPLATE)
        params = sampled_params(vlm, example, replace(SETTINGS, temperature=GRID[place], samples=1))
        request = DecodeRequest(prompt, example.images, params)
        decode_prompts(vlm, [request], max_new_tokens=5, token_budget=900, on_completions=keep)
        ready, _ = append_continuations(vlm, encode(vlm, [prompt], [example.images]), texts[-1:])
        with torch.inference_mode():
            logits = bare_model(vlm)(**ready).logits[0, -len(texts[-1]) - 1 : -1]
        entropies = torch.cat([entropies, token_entropies(logits, kept)[place]])
    found = match_temperature(vlm, examples, replace(SETTINGS, temperature=GRID[place]), template=TEMPLATE)
    assert found.entropy == pytest.approx(float(entropies.mean()), abs=1e-5)


def test_a_search_reads_each_prompt_once(vlm: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as there is room; else prompts are read again, and what is found is the same."""
    read = record_prompts_read(vlm, monkeypatch)
    found = match_temperature(vlm, examples, SETTINGS, template=TEMPLATE, entropy=99.0)
    assert sum(read) == len(examples)
    monkeypatch.setattr(matched, "TOKEN_BUDGET", 1)
    read.clear()
    cache = EncodedPromptCache()
    again = match_temperature(vlm, examples, SETTINGS, template=TEMPLATE, entropy=99.0, prompt_cache=cache)
    assert sum(read) > len(examples)
    assert again.temperature == found.temperature
    assert again.entropy == pytest.approx(found.entropy, abs=1e-5)


def test_a_prompt_without_a_gold_answer_is_named(vlm: Vlm, examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="val-0 has no gold answer"):
        match_temperature(vlm, [replace(examples[0], answer=None)], SETTINGS, template=TEMPLATE)
    assert np.all(np.diff(GRID) > 0)
