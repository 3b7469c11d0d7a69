"""Sampling: results are those of the model, and do not depend on what is decoded together."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from illume.model.prompting import rationale_text, render_answer_prompt, render_rationale_prompt
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, append_continuations, bare_model, decode, encode, encode_continuation, load_vlm
from illume.records import Example, Rationale
from illume.sampling import decoding, shared_prefix
from illume.sampling.decoding import BatchScheduler, Completion, DecodeRequest, decode_prompts
from illume.sampling.generation import generate_answers, mean_logprobs, sample_rationales
from illume.sampling.kv_cache import CopiedPrefixCache
from illume.sampling.sampler import SamplingParams, filter_logits, sample_tokens
from illume.sampling.shared_prefix import (
    SharedPrefixCache,
    UnsupportedAttentionError,
    attend_with_shared_prefix,
    attention_reads,
)
from illume.settings import SamplingSettings
from tests.illume.families import FAMILIES, make_images, make_llava, make_paligemma2

torch.set_num_threads(1)

SETTINGS = SamplingSettings(max_new_tokens=8, token_budget=1500)
QUESTIONS = ("what is it", "is the dog red", "how many", "where is the boat on the water", "what", "can it be seen")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_images(tmp_path_factory.mktemp("images"), 6)


@pytest.fixture(scope="module")
def examples(images: list[str]) -> list[Example]:
    """Prompts of different lengths; every third has two images."""
    return [
        Example(str(n), (image,) if n % 3 else (image, images[0]), QUESTIONS[n], "yes")
        for n, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_vlm(str(make_llava(tmp_path_factory.mktemp("models") / "llava")), device="cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_vlm(str(FAMILIES[request.param](tmp_path_factory.mktemp("models") / request.param)), device="cpu")


def assert_same(left: list[list[Rationale]], right: list[list[Rationale]]) -> None:
    assert [[r.text for r in group] for group in left] == [[r.text for r in group] for group in right]
    for one, other in zip(chain(*left), chain(*right), strict=True):
        assert one.seed == other.seed
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-5)


class TestFamilies:
    def test_a_set_does_not_depend_on_the_other_prompts(self, vlm: Vlm, examples: list[Example]) -> None:
        together = sample_rationales(vlm, examples, SETTINGS, seed=3)
        alone = [sample_rationales(vlm, [example], SETTINGS, seed=3)[0] for example in examples]
        assert sum(map(len, together)) > 3 * len(examples)
        assert_same(together, alone)

    def test_a_small_budget_changes_nothing(self, vlm: Vlm, examples: list[Example]) -> None:
        tight = SamplingSettings(max_new_tokens=8, token_budget=1)
        assert_same(
            sample_rationales(vlm, examples, SETTINGS, seed=3),
            sample_rationales(vlm, examples[::-1], tight, seed=3)[::-1],
        )

    def test_a_prompt_is_encoded_once_and_a_finished_row_is_removed(
        self, vlm: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever the number of completions, further ones included; no token is computed after an end token.

        Nor is one computed twice for completions that are the same so far.
        """
        seen: list[tuple[int, int]] = []
        forward = type(bare_model(vlm)).forward

        def watched(self: Any, **inputs: Any) -> Any:
            seen.append(tuple(inputs["input_ids"].shape))
            return forward(self, **inputs)

        monkeypatch.setattr(type(bare_model(vlm)), "forward", watched)
        # An untrained model hardly ever generates its end token.
        monkeypatch.setattr(decoding, "stop_token_ids", lambda _: tuple(range(0, 300, 10)))
        first = tuple(SamplingParams(1.0, top_k=3, seed=n) for n in range(5))
        completions: list[Completion] = []
        read: list[tuple[int, ...]] = []

        def ask_for_one_more(_: int, finished: list[Completion]) -> tuple[SamplingParams, ...]:
            completions.extend(finished)
            read.extend({one.token_ids[:n] for one in finished for n in range(1, len(one.token_ids))})
            return (SamplingParams(1.0, seed=99),) if len(finished) == len(first) else ()

        requests = [DecodeRequest(render_answer_prompt(e.question), e.images, first) for e in examples]
        decode_prompts(vlm, requests, max_new_tokens=40, token_budget=9000, on_completions=ask_for_one_more)
        assert len(completions) == 6 * len(examples)
        assert len({len(one.token_ids) for one in completions}) > 1
        assert sum(rows for rows, width in seen if width > 1) == len(examples)
        assert sum(rows for rows, width in seen if width == 1) == len(read)
        assert len(read) < sum(len(one.token_ids) - 1 for one in completions)

    def test_shared_prefixes_and_copied_ones_give_the_same(
        self, vlm: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = sample_rationales(vlm, examples, SETTINGS, seed=3)
        assert vlm._shares_prefixes
        monkeypatch.setattr(vlm, "_shares_prefixes", False)
        assert_same(sample_rationales(vlm, examples, SETTINGS, seed=3), shared)
        tight = SamplingSettings(max_new_tokens=8, token_budget=1)
        assert_same(sample_rationales(vlm, examples[:2], tight, seed=3), shared[:2])

    def test_greedy_equals_generate_of_transformers(self, vlm: Vlm, examples: list[Example]) -> None:
        for example, ids in zip(examples, greedy_ids(vlm, examples), strict=True):
            inputs = encode(vlm, [render_answer_prompt(example.question)], [example.images])
            generated = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=8)
            assert ids == tuple(generated[0, inputs["input_ids"].shape[1] :].tolist())

    def test_logprobs_equal_those_of_a_forward_pass(self, vlm: Vlm, examples: list[Example]) -> None:
        requests = [
            DecodeRequest(
                render_answer_prompt(example.question), example.images, (SamplingParams(0.9, seed=n), SamplingParams())
            )
            for n, example in enumerate(examples)
        ]
        for n, (example, completions) in enumerate(zip(examples, decode_all(vlm, requests), strict=True)):
            for one in completions:
                inputs = encode(vlm, [requests[n].prompt], [example.images])
                assert one.logprob == pytest.approx(forward_logprob(vlm, inputs, one.token_ids), abs=1e-4)


def decode_all(vlm: Vlm, requests: list[DecodeRequest], *, budget: int = 900) -> list[list[Completion]]:
    """The completions of each request, of at most 8 tokens."""
    found: dict[int, list[Completion]] = {}

    def keep(index: int, completions: list[Completion]) -> tuple[SamplingParams, ...]:
        found[index] = completions
        return ()

    decode_prompts(
        vlm,
        requests,
        max_new_tokens=8,
        token_budget=budget,
        on_completions=keep,
        measure=lambda logits: logits.topk(2, dim=-1).values,
    )
    return [found[index] for index in range(len(requests))]


def greedy_ids(vlm: Vlm, examples: list[Example]) -> list[tuple[int, ...]]:
    requests = [DecodeRequest(render_answer_prompt(e.question), e.images, (SamplingParams(),)) for e in examples]
    return [completions[0].token_ids for completions in decode_all(vlm, requests)]


def forward_logprob(vlm: Vlm, inputs: dict[str, Any], ids: tuple[int, ...]) -> float:
    ready, _ = append_continuations(vlm, inputs, [ids])
    with torch.inference_mode():
        logits = bare_model(vlm)(**ready).logits[0, -len(ids) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())


class TestSharedRows:
    @pytest.mark.parametrize("share", [True, False])
    @pytest.mark.parametrize("budget", [150, 9000])
    def test_completions_that_begin_alike_are_those_that_are_decoded_alone(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch, budget: int, share: bool
    ) -> None:
        """Of two tokens at a time, eight completions part again and again, and some end early."""
        monkeypatch.setattr(llava, "_shares_prefixes", share)
        monkeypatch.setattr(decoding, "stop_token_ids", lambda _: tuple(range(0, 300, 10)))
        params = (SamplingParams(), *(SamplingParams(1.0, top_k=2, seed=n) for n in range(7)))
        requests = [DecodeRequest(render_answer_prompt(e.question), e.images, params) for e in examples[:3]]
        alone = [[decode_all(llava, [replace(request, params=(one,))])[0][0] for one in params] for request in requests]
        for together, apart in zip(decode_all(llava, requests, budget=budget), alone, strict=True):
            assert [one.token_ids for one in together] == [one.token_ids for one in apart]
            assert [one.logprob for one in together] == pytest.approx([one.logprob for one in apart], abs=1e-5)
            shared, own = (
                torch.stack([one.measured for one in ones if one.measured is not None]) for ones in (together, apart)
            )
            assert shared.shape == (8, 2)
            assert torch.allclose(shared, own, atol=1e-4)
            assert len({len(one.token_ids) for one in together}) > 1


class TestSampleRationales:
    def test_same_seed_same_sets(self, llava: Vlm, examples: list[Example]) -> None:
        first = sample_rationales(llava, examples, SETTINGS, seed=1)
        assert first == sample_rationales(llava, examples, SETTINGS, seed=1)
        other = sample_rationales(llava, examples, SETTINGS, seed=2)
        assert [group[0].text for group in first] == [group[0].text for group in other], (
            "greedy does not depend on the seed"
        )
        assert [r.text for r in first[0][1:]] != [r.text for r in other[0][1:]]

    def test_a_set_follows_the_order_of_the_temperatures(self, llava: Vlm, examples: list[Example]) -> None:
        for example, group in zip(examples, sample_rationales(llava, examples, SETTINGS, seed=1), strict=True):
            assert [r.temperature for r in group] == [0.0, 0.3, 0.3, 0.7, 0.7, 1.0]
            assert len({r.seed for r in group}) == 6
            assert {r.example_id for r in group} == {example.id}
            assert {(r.answer, r.answer_source) for r in group} == {("yes", "gold")}
            for r in group:
                assert r.text == r.text.strip()
                assert 0 < (r.n_tokens or 0) <= 8
                assert (r.mean_logprob or 0.0) < 0

    def test_temperatures_given_as_whole_numbers_are_the_same(self, llava: Vlm, examples: list[Example]) -> None:
        integers = SamplingSettings(temperatures=((0, 1), (1, 1)), max_new_tokens=8)
        floats = SamplingSettings(temperatures=((0.0, 1), (1.0, 1)), max_new_tokens=8)
        assert_same(
            sample_rationales(llava, examples[:2], integers, seed=1),
            sample_rationales(llava, examples[:2], floats, seed=1),
        )

    def test_own_answers(self, llava: Vlm, examples: list[Example]) -> None:
        mixed_examples = [Example("x", examples[0].images, "what is it"), examples[1]]
        own = generate_answers(llava, mixed_examples, SETTINGS)
        mixed = sample_rationales(llava, mixed_examples, SETTINGS, seed=1)
        assert {(r.answer, r.answer_source) for r in mixed[0]} == {(own[0], "own")}
        assert {(r.answer, r.answer_source) for r in mixed[1]} == {("yes", "gold")}
        forced = sample_rationales(llava, mixed_examples, SETTINGS, seed=1, answers="own")
        assert {(r.answer, r.answer_source) for r in forced[1]} == {(own[1], "own")}
        with pytest.raises(ValueError, match="example x"):
            sample_rationales(llava, mixed_examples, SETTINGS, seed=1, answers="gold")

    def test_duplicates_are_redrawn_then_dropped(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All samples are forced to be equal: one of them is kept, the first."""
        seeds: list[int] = []

        def draw_zeros(params: SamplingParams, count: int) -> list[float]:
            seeds.append(params.seed)
            return [0.0] * count

        monkeypatch.setattr(decoding, "draw_uniforms", draw_zeros)
        settings = SamplingSettings(temperatures=((0.5, 3),), max_new_tokens=4, redraws=2)
        [group] = sample_rationales(llava, examples[:1], settings, seed=1)
        assert len(group) == 1
        assert len(seeds) == 3 + 2 + 2
        assert len(set(seeds)) == 7, "a redraw has a seed of its own"
        assert group[0].seed == seeds[0]

    def test_a_duplicate_of_greedy_is_dropped_without_a_redraw(self, llava: Vlm, examples: list[Example]) -> None:
        settings = SamplingSettings(temperatures=((0.0, 3),), max_new_tokens=4)
        assert len(sample_rationales(llava, examples[:1], settings, seed=1)[0]) == 1

    def test_progress_counts_prompts(self, llava: Vlm, examples: list[Example]) -> None:
        seen: list[tuple[int, int]] = []
        sample_rationales(llava, examples, SETTINGS, seed=1, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(n, len(examples)) for n in range(1, len(examples) + 1)]

    def test_no_examples(self, llava: Vlm) -> None:
        assert sample_rationales(llava, [], SETTINGS, seed=1) == []

    def test_training_mode_is_restored(self, llava: Vlm, examples: list[Example]) -> None:
        bare_model(llava).train()
        sample_rationales(llava, examples[:1], SETTINGS, seed=1)
        assert bare_model(llava).training
        bare_model(llava).eval()

    @pytest.mark.parametrize(
        ("field", "value"),
        [("top_p", 0.0), ("top_k_share", 1.5), ("max_new_tokens", 0), ("redraws", -1), ("token_budget", 0)],
    )
    def test_bad_settings_are_named(self, field: str, value: float) -> None:
        given: dict[str, Any] = {field: value}
        with pytest.raises(ValueError, match=field):
            SamplingSettings(**given)

    def test_bad_temperatures(self) -> None:
        with pytest.raises(ValueError, match="temperature"):
            SamplingSettings(temperatures=((-0.1, 1),))
        with pytest.raises(ValueError, match="temperatures"):
            SamplingSettings(temperatures=())


class TestMemory:
    def test_out_of_memory_halves_the_batch(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = sample_rationales(llava, examples, SETTINGS, seed=1)
        model, widths = bare_model(llava), []
        forward = type(model).forward

        def limited(self: Any, **inputs: Any) -> Any:
            widths.append(inputs["input_ids"].shape[0])
            if widths[-1] > 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(self, **inputs)

        monkeypatch.setattr(type(model), "forward", limited)
        assert_same(sample_rationales(llava, examples, SETTINGS, seed=1), expected)
        assert max(widths) > 4

    def test_out_of_memory_with_one_row_is_an_error(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def always_fails(self: Any, **_: Any) -> Any:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(type(bare_model(llava)), "forward", always_fails)
        with pytest.raises(RuntimeError, match="allocate"):
            sample_rationales(llava, examples, SETTINGS, seed=1)
        with pytest.raises(RuntimeError, match="allocate"):
            mean_logprobs(llava, [(example, "yes", "a dog") for example in examples], SETTINGS)

    def test_out_of_memory_is_tried_again_where_completions_share_a_row(
        self, llava: Vlm, images: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows are reserved for all of them, so half the budget has fewer."""
        request = DecodeRequest("USER: <image>", (images[0],), (SamplingParams(),) * 8)
        forward, reserved = type(bare_model(llava)).forward, list[int]()

        def limited(self: Any, **inputs: Any) -> Any:
            if inputs["input_ids"].shape[1] == 1:
                reserved.append(inputs["past_key_values"].layers[0].keys.shape[0])
                if reserved[-1] > 4:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(self, **inputs)

        def same(index: int, completions: list[Completion]) -> tuple[SamplingParams, ...]:
            texts.append({one.token_ids for one in completions})
            return ()

        texts: list[set[tuple[int, ...]]] = []
        monkeypatch.setattr(type(bare_model(llava)), "forward", limited)
        decode_prompts(llava, [request], max_new_tokens=8, token_budget=120, on_completions=same)
        assert [len(one) for one in texts] == [1]
        assert max(reserved) == 8

    def test_out_of_memory_is_an_error_where_others_wait_for_this_process(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes: list[int] = []

        def fails(self: Any, **inputs: Any) -> Any:
            passes.append(inputs["input_ids"].shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(llava, "agree", lambda tensor: tensor)
        monkeypatch.setattr(type(bare_model(llava)), "forward", fails)
        with pytest.raises(torch.OutOfMemoryError):
            sample_rationales(llava, examples, SETTINGS, seed=1)
        assert len(passes) == 1
        assert passes[0] > 1
        monkeypatch.undo()
        monkeypatch.setattr(llava, "agree", lambda tensor: tensor)
        scored: list[int] = []

        def limited(self: Any, **inputs: Any) -> Any:
            scored.append(inputs["input_ids"].shape[0])
            if scored[-1] > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(self, **inputs)

        forward = type(bare_model(llava)).forward
        monkeypatch.setattr(type(bare_model(llava)), "forward", limited)
        with pytest.raises(torch.OutOfMemoryError):
            mean_logprobs(llava, [(example, "yes", "a dog") for example in examples], SETTINGS)
        assert len(scored) == 2

    @pytest.mark.parametrize(("share", "longest", "some"), [(True, 3, 40), (True, 60, 20), (False, 60, 10)])
    def test_prompts_that_are_kept_leave_room_for_others(
        self, llava: Vlm, images: list[str], monkeypatch: pytest.MonkeyPatch, share: bool, longest: int, some: int
    ) -> None:
        """Also one that is much longer than the others, which takes as much room for each of them."""
        budget, lengths = 2600, [longest, *[3] * 70]
        requests = [
            DecodeRequest(f"USER: <image> {'dog ' * n}", (images[0],), (SamplingParams(seed=number),))
            for number, n in enumerate(lengths)
        ]
        used, kept, waited = list[int](), list[int](), list[float]()
        step = BatchScheduler.step

        def watched(self: BatchScheduler) -> Any:
            beside = [one.prefix.layers[0][0].shape[1] for one in self.kept.values() if one.prefix.layers]
            assert isinstance(self.cache, SharedPrefixCache if share else CopiedPrefixCache)
            used.append(count_cached_tokens(self.cache.layers[0]) + sum(beside))
            kept.append(len(self.kept))
            waited.append(len(self.pending) / len(self.active))
            return step(self)

        monkeypatch.setattr(llava, "_shares_prefixes", share)
        monkeypatch.setattr(BatchScheduler, "step", watched)
        texts: list[tuple[int, tuple[int, ...]]] = []
        tries = iter([{index: request.params for index, request in enumerate(requests)}, {}])

        def collect(index: int, completions: list[Completion]) -> tuple[SamplingParams, ...]:
            texts.append((index, completions[0].token_ids))
            return ()

        decode_prompts(
            llava,
            requests,
            max_new_tokens=4,
            token_budget=budget,
            on_completions=collect,
            prompt_cache=EncodedPromptCache(),
            on_idle=lambda: next(tries),
        )
        first, second = texts[: len(requests)], texts[len(requests) :]
        assert sorted(first) == sorted(second)
        assert max(used) <= budget
        assert max(kept) >= some
        assert not share or max(waited) <= 0.25  # rows are not added for fewer

    def test_other_errors_are_not_swallowed(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Any, **_: Any) -> Any:
            raise RuntimeError("shapes do not fit")

        monkeypatch.setattr(type(bare_model(llava)), "forward", broken)
        with pytest.raises(RuntimeError, match="shapes"):
            sample_rationales(llava, examples, SETTINGS, seed=1)

    @pytest.mark.parametrize("share", [True, False])
    @pytest.mark.parametrize("budget", [200, 400, 3000])
    def test_cached_tokens_stay_within_the_budget(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch, budget: int, share: bool
    ) -> None:
        used: list[int] = []
        forward = type(bare_model(llava)).forward

        def watched(self: Any, **inputs: Any) -> Any:
            if inputs["input_ids"].shape[1] == 1:
                used.append(count_cached_tokens(inputs["past_key_values"].layers[0]))
            return forward(self, **inputs)

        monkeypatch.setattr(type(bare_model(llava)), "forward", watched)
        monkeypatch.setattr(llava, "_shares_prefixes", share)
        settings = SamplingSettings(max_new_tokens=8, token_budget=budget)
        sample_rationales(llava, examples * 4, settings, seed=1)
        assert max(used) <= budget
        assert max(used) > budget / 4

    def test_shared_prefixes_leave_room_for_more_rows(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        max_rows = {True: 0, False: 0}
        forward = type(bare_model(llava)).forward

        def watched(self: Any, **inputs: Any) -> Any:
            if inputs["input_ids"].shape[1] == 1:
                max_rows[share] = max(max_rows[share], inputs["input_ids"].shape[0])
            return forward(self, **inputs)

        monkeypatch.setattr(type(bare_model(llava)), "forward", watched)
        settings = SamplingSettings(max_new_tokens=8, token_budget=800)
        for share in max_rows:
            monkeypatch.setattr(llava, "_shares_prefixes", share)
            sample_rationales(llava, examples * 4, settings, seed=1)
        assert max_rows[True] > 2 * max_rows[False]

    def test_unsupported_attention_falls_back_to_copied_prefixes(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = sample_rationales(llava, examples, SETTINGS, seed=1)
        calls: list[int] = []

        def fails_once(query: Any, *_: Any) -> Any:
            calls.append(query.shape[0])
            raise UnsupportedAttentionError("attention with a bias")

        monkeypatch.setattr(shared_prefix, "attend_with_logsumexp", fails_once)
        monkeypatch.setattr(llava, "_shares_prefixes", None)
        assert_same(sample_rationales(llava, examples, SETTINGS, seed=1), expected)
        assert len(calls) == 1
        assert llava._shares_prefixes is False
        assert bare_model(llava).config.get_text_config()._attn_implementation == "sdpa"

    def test_softcap_and_sliding_window(
        self, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vlm = load_vlm(str(make_paligemma2(tmp_path / "model")), device="cpu")
        longer = SamplingSettings(max_new_tokens=20)  # longer than the window
        shared = sample_rationales(vlm, examples, longer, seed=1)
        assert vlm._shares_prefixes
        monkeypatch.setattr(vlm, "_shares_prefixes", False)
        assert_same(sample_rationales(vlm, examples, longer, seed=1), shared)

    def test_a_model_with_its_own_attention_falls_back_to_copied_prefixes(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A model that declares the attention interface but does not call it would never see its prompts."""
        expected = sample_rationales(llava, examples, SETTINGS, seed=1)
        monkeypatch.setattr(shared_prefix, "ATTENTION_NAME", "sdpa")
        monkeypatch.setattr(llava, "_shares_prefixes", None)
        assert_same(sample_rationales(llava, examples, SETTINGS, seed=1), expected)
        assert llava._shares_prefixes is False

    def test_unknown_attention_inputs_are_not_ignored(self, llava: Vlm, examples: list[Example]) -> None:
        """Inputs of unknown meaning, such as attention sinks, must not be left out silently."""
        cache = SharedPrefixCache(bare_model(llava), llava.device, max_new_tokens=4, token_budget=100)
        key = torch.zeros(1, 1, 1, 4)
        cache.last_update = (None, key)  # type: ignore[assignment]
        with attention_reads(cache):
            with pytest.raises(UnsupportedAttentionError, match="s_aux"):
                attend_with_shared_prefix(torch.nn.Identity(), key, key, key, None, s_aux=torch.zeros(1))
            with pytest.raises(UnsupportedAttentionError):
                attend_with_shared_prefix(torch.nn.Identity(), key, torch.zeros_like(key), key, None)


def count_cached_tokens(layer: Any) -> int:
    """Tokens for which a layer of either cache has allocated keys."""
    names = ("prompt_keys", "keys") if hasattr(layer, "prompt_keys") else ("keys",)
    return sum(getattr(layer, name).shape[0] * getattr(layer, name).shape[2] for name in names)


class TestMeanLogprobs:
    def test_equals_what_sampling_reported(self, vlm: Vlm, examples: list[Example]) -> None:
        rows = [(example, "yes", "the dog is red") for example in examples]
        scores = mean_logprobs(vlm, rows, SETTINGS)
        for (example, answer, rationale), score in zip(rows, scores, strict=True):
            inputs = encode(vlm, [render_rationale_prompt(example.question, answer)], [example.images])
            ids = tuple(encode_continuation(vlm, rationale_text(rationale)))
            assert score == pytest.approx(forward_logprob(vlm, inputs, ids) / len(ids), abs=1e-5)

    def test_order_and_batch_do_not_matter(self, llava: Vlm, examples: list[Example]) -> None:
        rows = [(e, "yes", text) for e in examples for text in ("a dog", "because it can be seen on the sand, there")]
        together = mean_logprobs(llava, rows, SETTINGS)
        alone = [mean_logprobs(llava, [row], SamplingSettings(token_budget=1))[0] for row in rows]
        assert together == pytest.approx(alone, abs=1e-5)
        assert mean_logprobs(llava, [], SETTINGS) == []

    def test_out_of_memory_halves_the_batch(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [(example, "yes", "a dog") for example in examples]
        expected = mean_logprobs(llava, rows, SETTINGS)
        forward = type(bare_model(llava)).forward

        def limited(self: Any, **inputs: Any) -> Any:
            if inputs["input_ids"].shape[0] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(self, **inputs)

        monkeypatch.setattr(type(bare_model(llava)), "forward", limited)
        assert mean_logprobs(llava, rows, SETTINGS) == pytest.approx(expected, abs=1e-5)


class TestSampleTokens:
    def test_greedy_takes_the_most_likely_token(self) -> None:
        tokens, logprobs = sample_tokens(torch.tensor([[0.0, 2.0, 1.0]]), [SamplingParams()], [0.99])
        assert tokens.tolist() == [1]
        assert logprobs[0] == pytest.approx(2 - math.log(1 + math.e**2 + math.e))

    def test_samples_follow_the_distribution_at_the_temperature(self) -> None:
        logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
        generator = torch.Generator().manual_seed(0)
        n = 20_000
        uniforms = torch.rand(n, generator=generator).tolist()
        tokens, logprobs = sample_tokens(logits.expand(n, -1), [SamplingParams(0.7)] * n, uniforms)
        expected = (logits[0] / 0.7).softmax(-1)
        counts = Counter(tokens.tolist())
        for token in range(4):
            assert counts[token] / n == pytest.approx(float(expected[token]), abs=0.012)
        assert logprobs[tokens == 2][0] == pytest.approx(float(logits[0].log_softmax(-1)[2])), (
            "unfiltered, at temperature 1"
        )

    @pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
    def test_top_k_is_kept_at_every_uniform(self, uniform: float) -> None:
        logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
        for k in (1, 5):
            tokens, _ = sample_tokens(logits, [SamplingParams(5.0, top_k=k)] * 64, [uniform] * 64)
            best = logits.topk(k).indices
            assert (best == tokens[:, None]).any(dim=1).all()

    def test_rows_have_their_own_filters(self) -> None:
        logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4, -1)
        params = [
            SamplingParams(1.0, top_k=2),
            SamplingParams(1.0, top_p=0.7),
            SamplingParams(1.0),
            SamplingParams(1.0, top_k=3, top_p=0.1),
        ]
        kept = filter_logits(logits, params).isfinite().tolist()
        assert kept == [[True, True, False, False], [True, True, False, False], [True] * 4, [True, False, False, False]]

    def test_tokens_of_a_row_are_those_of_copies_of_the_row(self) -> None:
        """Whatever they share: the row, or also temperature and filters."""
        logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(4))
        kinds = (SamplingParams(), SamplingParams(0.7, 9), SamplingParams(1.3, 20), SamplingParams(1.3, 9, 0.8))
        params = [*kinds, *kinds[1:], *kinds, *kinds]
        rows = [0] * 7 + [2] * 4 + [1] * 4
        uniforms = torch.rand(len(rows), generator=torch.Generator().manual_seed(5)).tolist()
        allowed = torch.rand(3, 60, generator=torch.Generator().manual_seed(6)) < 0.7
        found = sample_tokens(logits, params, uniforms, rows=rows, allowed=allowed)
        copied = sample_tokens(logits[rows], params, uniforms, allowed=allowed[rows])
        assert torch.equal(found[0], copied[0])
        assert torch.allclose(found[1], copied[1])
        assert len(set(found[0][:7].tolist())) > 2

    def test_filters_equal_those_of_transformers(self) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        logits = torch.randn(8, 200, generator=torch.Generator().manual_seed(2))
        theirs = logits
        for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(40), TopPLogitsWarper(0.8)):
            theirs = warper(None, theirs)
        ours = filter_logits(logits, [SamplingParams(0.7, top_k=40, top_p=0.8)] * 8)
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        assert torch.allclose(ours.softmax(-1), theirs.softmax(-1))


def test_decode_strips(llava: Vlm) -> None:
    ids = llava.tokenizer(" the dog", add_special_tokens=False)["input_ids"]
    assert decode(llava, [*ids, llava.tokenizer.eos_token_id]) == "the dog"
