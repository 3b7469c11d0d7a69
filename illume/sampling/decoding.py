"""Decodes many completions of many prompts together, with continuous batching.

A prompt and its images are encoded once. Each completion is a row of the decoding batch, with its own temperature,
filters and random numbers, and starts from the keys and values of its prompt. A row whose completion ends is removed at
once, and waiting completions take the free rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import DynamicCache

from illume.model.merged_weights import merge_adapter
from illume.model.prompting import PromptText, count_characters, count_pictures
from illume.model.vision_cache import EncodedBatch, EncodedPromptCache, cached_image_features
from illume.model.vlm import ImageLike, Vlm, bare_model, encode, forward_inputs, stop_token_ids
from illume.sampling.constraint import AnswerConstraint, allowed_tokens
from illume.sampling.grammar import State
from illume.sampling.kv_cache import CopiedPrefixCache, DecodingCache, Prefix
from illume.sampling.sampler import SamplingParams, draw_uniforms, sample_tokens
from illume.sampling.shared_prefix import SharedPrefixCache, UnsupportedAttentionError, supports_shared_prefixes

_ADMIT_SHARE = 0.25
"""New prompts are encoded once this share of the token budget is free: encoding few at a time is inefficient."""

_MAX_CACHED_BATCH = 16
"""Prompts encoded together when a prompt cache is used."""

_MAX_ENCODED_BATCH = 32
"""Prompts encoded together at most. Larger batches take more memory and are not faster."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A generated text: its token ids (with the end token, if it was reached) and their summed log-probability.

    The log-probability is the natural logarithm, under the unfiltered distribution at temperature 1.
    """

    token_ids: tuple[int, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """A prompt with its images, and the sampling parameters of its first completions.

    With `suffix_length` > 0, one greedy completion of the prompt without its last `suffix_length` tokens is generated
    as well (see `illume.sampling.prefix_reuse`). A `constraint` holds for the completions of the whole prompt.
    """

    prompt: PromptText
    images: tuple[ImageLike, ...]
    params: tuple[SamplingParams, ...]
    suffix_length: int = 0
    constraint: AnswerConstraint | None = None


OnCompletions = Callable[[int, list[Completion]], Sequence[SamplingParams]]
"""Called with the index of a request and its completions, in the order of their parameters.

Returns the parameters of further completions, or none. A completion of the prompt without its suffix is reported under
the index `~index`, which is negative.
"""

Waiting = deque[tuple[int, tuple[SamplingParams, ...]]]
"""Requests that are not encoded yet: index, and the parameters of the completions to generate."""


def decode_prompts(
    vlm: Vlm,
    requests: Sequence[DecodeRequest],
    *,
    max_new_tokens: int,
    token_budget: int,
    on_completions: OnCompletions,
    progress: Callable[[int, int], None] | None = None,
    prompt_cache: EncodedPromptCache | None = None,
) -> None:
    """Generates all completions of `requests`, and those that `on_completions` asks for.

    At most `token_budget` tokens are held in the KV cache. With `prompt_cache`, encoded prompts are kept for the next
    call with the same prompts. `progress` gets the numbers of finished requests and of all requests.

    The completions of a request do not depend on the other requests, except for rounding. When memory runs out, the
    budget is halved and unfinished requests start again; with a single row left the error is raised.
    """
    order = sorted(range(len(requests)), key=lambda index: _length_estimate(requests[index]), reverse=True)
    waiting: Waiting = deque((index, requests[index].params) for index in order)
    model, budget, n_done = bare_model(vlm), token_budget, 0
    if vlm._shares_prefixes is None:
        vlm._shares_prefixes = supports_shared_prefixes(model)
    was_training = model.training
    model.eval()
    merged = merge_adapter(vlm)
    try:
        while waiting:
            scheduler = BatchScheduler(
                vlm, requests, max_new_tokens, budget, prompt_cache, share_prefixes=vlm._shares_prefixes
            )
            try:
                while waiting or scheduler.prompts:
                    scheduler.admit(waiting)
                    for index, completions in scheduler.step():
                        if not scheduler.continue_prompt(index, on_completions(index, completions)) and index >= 0:
                            n_done += 1
                            if progress is not None:
                                progress(n_done, len(requests))
            except UnsupportedAttentionError:
                vlm._shares_prefixes = False
                waiting.extendleft(reversed(scheduler.unfinished()))
            except RuntimeError as error:
                if not is_out_of_memory(error) or not scheduler.can_shrink:
                    raise
                waiting.extendleft(reversed(scheduler.unfinished()))
                # A prompt cache needs batches of a fixed size, which may be what does not fit into memory.
                budget, prompt_cache = max(1, budget // 2), None
            del scheduler
            if vlm.device.type == "cuda" and waiting:
                torch.cuda.empty_cache()
    finally:
        merged.restore()
        model.train(was_training)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory: the GPU's own error class, or the CPU allocator's message."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _length_estimate(request: DecodeRequest) -> tuple[int, int]:
    """A cheap sort key that grows with the length of the encoded prompt."""
    return count_pictures(request.prompt, len(request.images)), count_characters(request.prompt)


@dataclass
class EncodedPrompt:
    """A prompt in progress: its keys and values, and its present completions. None marks an unfinished one."""

    prefix: Prefix
    last_logits: torch.Tensor  # (vocabulary,)
    params: tuple[SamplingParams, ...] = ()
    completions: list[Completion | None] = field(default_factory=list)
    constraint: AnswerConstraint | None = None


@dataclass
class ActiveCompletion:
    """A completion in progress. `uniforms` are its random numbers, one for each token."""

    prompt: EncodedPrompt
    number: int  # its index within the prompt's completions
    params: SamplingParams
    uniforms: list[float]
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    state: State = (0, 0)  # of the prompt's constraint, if there is one

    @property
    def constrained(self) -> tuple[AnswerConstraint, State] | None:
        """The constraint with its present state."""
        return None if self.prompt.constraint is None else (self.prompt.constraint, self.state)

    @property
    def is_done(self) -> bool:
        return self.prompt.completions[self.number] is not None


class BatchScheduler:
    """Decides which prompts are encoded and which completions are decoded together, within a token budget."""

    def __init__(
        self,
        vlm: Vlm,
        requests: Sequence[DecodeRequest],
        max_new_tokens: int,
        token_budget: int,
        prompt_cache: EncodedPromptCache | None,
        *,
        share_prefixes: bool,
    ) -> None:
        self.vlm, self.requests, self.prompt_cache = vlm, requests, prompt_cache
        self.model = bare_model(vlm)
        self.max_new_tokens, self.token_budget = max_new_tokens, token_budget
        self.stop_tokens = frozenset(stop_token_ids(vlm))
        self.prompts: dict[int, EncodedPrompt] = {}  # by request index; ~index for the prompt without its suffix
        self.pending: deque[ActiveCompletion] = deque()  # wait for a free row
        self.active: list[ActiveCompletion] = []  # by row
        sizes = {"max_new_tokens": max_new_tokens, "token_budget": token_budget}
        self.cache: DecodingCache = (
            SharedPrefixCache(self.model, vlm.device, **sizes)
            if share_prefixes
            else CopiedPrefixCache(vlm.device, **sizes)
        )
        self.longest_prompt = 0  # in tokens, so far
        self.can_shrink = False  # whether a smaller budget would have made the present batch smaller

    def unfinished(self) -> list[tuple[int, tuple[SamplingParams, ...]]]:
        """Requests whose present completions were not reported yet, with the parameters of these completions.

        A request whose completion without the suffix is missing starts again as a whole.
        """
        left = {index: prompt.params for index, prompt in self.prompts.items() if index >= 0}
        for index in self.prompts:
            if index < 0:
                left.setdefault(~index, self.requests[~index].params)
        return list(left.items())

    # Encoding prompts

    @torch.inference_mode()
    def admit(self, waiting: Waiting) -> None:
        """Gives free rows to pending completions, then encodes waiting prompts while the budget allows."""
        self._start_pending()
        if not waiting or self.pending:
            return
        free = self.cache.free_tokens(len(self.active))
        if self.active and free < self.token_budget * _ADMIT_SHARE:
            return
        self.longest_prompt = self.longest_prompt or self._count_tokens(waiting[0][0])
        # The prompt cache stores whole batches, so with one they are composed independently of the free space.
        limit = _MAX_ENCODED_BATCH if self.prompt_cache is None else _MAX_CACHED_BATCH
        chosen: list[tuple[int, tuple[SamplingParams, ...]]] = []
        while waiting and len(chosen) < limit:
            free -= self.cache.cost(self.longest_prompt, self._count_rows(*waiting[0]))
            if chosen and not self.prompt_cache and free < 0:
                break
            chosen.append(waiting.popleft())
        self.can_shrink = len(chosen) > 1 or bool(self.prompts)
        try:
            self._encode(chosen)
        except RuntimeError:
            waiting.extendleft(reversed(chosen))
            raise
        self._start_pending(later=sum(self._count_rows(index, params) for index, params in waiting))

    def _count_rows(self, index: int, params: Sequence[SamplingParams]) -> int:
        return len(params) + bool(self.requests[index].suffix_length)

    def _count_tokens(self, index: int) -> int:
        request = self.requests[index]
        return int(encode(self.vlm, [request.prompt], [request.images])["input_ids"].shape[1])

    def _encode(self, chosen: Sequence[tuple[int, tuple[SamplingParams, ...]]]) -> None:
        """Encodes prompts in one forward pass, and queues their completions."""
        requests = [self.requests[index] for index, _ in chosen]
        prompts, images = [request.prompt for request in requests], [request.images for request in requests]
        batch = EncodedBatch({}) if self.prompt_cache is None else self.prompt_cache.get(self.vlm, prompts, images)
        inputs = batch.inputs = batch.inputs or encode(self.vlm, prompts, images)
        ready = forward_inputs(self.vlm, inputs)
        cache = DynamicCache()
        ready |= {"past_key_values": cache, "use_cache": True, "return_dict": True}
        ready["logits_to_keep"] = 1 + max(request.suffix_length for request in requests)
        if self.prompt_cache is None:
            output = self.model(**ready)
        else:
            with cached_image_features(self.vlm, batch):
                output = self.model(**ready)
            self.prompt_cache.store(self.vlm, prompts, images, batch)
        # Prompts are left-padded: the tokens of each one end at the last column.
        width, positions = inputs["input_ids"].shape[1], ready["position_ids"] + 1
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        self.longest_prompt = max(self.longest_prompt, *lengths)
        for row, ((index, params), length) in enumerate(zip(chosen, lengths, strict=True)):
            suffix = self.requests[index].suffix_length
            prefixes = [(index, 0, params)] + ([(~index, suffix, (SamplingParams(),))] if suffix else [])
            for key, dropped, wanted in prefixes:
                columns = slice(width - length, width - dropped)
                layers = [(layer.keys[row, :, columns], layer.values[row, :, columns]) for layer in cache.layers]
                first_position = positions[..., row, -1 - dropped].reshape(-1)
                prefix = Prefix(key, layers, length - dropped, first_position)
                constraint = self.requests[index].constraint if key == index else None
                logits = output.logits[row, -1 - dropped].float()
                self.prompts[key] = EncodedPrompt(prefix, logits, constraint=constraint)
                self._queue(self.prompts[key], wanted)

    def _queue(self, prompt: EncodedPrompt, params: Sequence[SamplingParams]) -> None:
        prompt.params, prompt.completions = tuple(params), [None] * len(params)
        for number, one in enumerate(params):
            self.pending.append(ActiveCompletion(prompt, number, one, draw_uniforms(one, self.max_new_tokens)))

    def continue_prompt(self, index: int, params: Sequence[SamplingParams]) -> bool:
        """Queues further completions of a prompt. Without any, forgets the prompt and returns False."""
        if not params:
            del self.prompts[index]
            self.cache.release_prefix(index)
            return False
        self._queue(self.prompts[index], params)
        return True

    # Decoding rows

    def _start_pending(self, later: int = 0) -> None:
        """Gives free rows to pending completions, and samples their first tokens from their prompts' last logits."""
        while self.pending:
            prefixes = list({one.prompt.prefix: None for one in self.pending})
            self.can_shrink = len(self.active) + len(self.pending) > 1
            free = self.cache.reserve_rows(prefixes, n_rows=len(self.active), wanted=len(self.pending), later=later)
            if free <= 0:
                return
            joining = [self.pending.popleft() for _ in range(min(free, len(self.pending)))]
            self.cache.add_rows(len(self.active), [one.prompt.prefix for one in joining])
            self.active.extend(joining)
            self._append_tokens(joining, torch.stack([one.prompt.last_logits for one in joining]))

    @torch.inference_mode()
    def step(self) -> list[tuple[int, list[Completion]]]:
        """Decodes one more token in every row. Returns the prompts whose completions are all finished."""
        if self.active:
            self.can_shrink = len(self.active) > 1
            last_tokens = torch.tensor([[one.token_ids[-1]] for one in self.active], device=self.vlm.device)
            self._append_tokens(self.active, self.cache.forward(self.model, last_tokens))
        finished = [prompt for prompt in self.prompts.values() if None not in prompt.completions]
        return [(prompt.prefix.key, [one for one in prompt.completions if one is not None]) for prompt in finished]

    def _append_tokens(self, rows: Sequence[ActiveCompletion], logits: torch.Tensor) -> None:
        """Samples a token for each of `rows` from `logits` (rows, vocabulary), and removes the finished rows."""
        uniforms = [one.uniforms[len(one.token_ids)] for one in rows]
        constrained = [one.constrained for one in rows]
        allowed = allowed_tokens(constrained, size=logits.shape[-1], device=logits.device)
        tokens, logprobs = sample_tokens(logits, [one.params for one in rows], uniforms, allowed=allowed)
        for one, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            one.token_ids.append(token)
            one.logprob += logprob
            if one.prompt.constraint is not None:
                one.state = one.prompt.constraint.advance(one.state, token)
            if token in self.stop_tokens or len(one.token_ids) >= self.max_new_tokens:
                one.prompt.completions[one.number] = Completion(tuple(one.token_ids), one.logprob)
        self._remove_finished()

    def _remove_finished(self) -> None:
        """Moves rows from the end into the places of finished rows, so that rows 0 to n - 1 stay in use."""
        alive = [row for row, one in enumerate(self.active) if not one.is_done]
        n = len(alive)
        if n == len(self.active):
            return
        holes = sorted(set(range(n)) - set(alive))
        movers = [row for row in alive if row >= n]
        if holes:
            self.cache.copy_rows(movers, holes)
            for hole, mover in zip(holes, movers, strict=True):
                self.active[hole] = self.active[mover]
        del self.active[n:]
