"""Decodes many completions of many prompts together, with continuous batching.

A prompt and its images are encoded once. Each completion has its own temperature, filters and random numbers, and
starts from the keys and values of its prompt. Completions of a prompt whose tokens are the same so far are one row of
the decoding batch: the model reads these tokens once, and the row is copied when the next tokens differ. A row whose
completions have all ended is removed at once, and waiting completions take what is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
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

_KEPT_SHARE = 0.75
"""The share of the token budget that finished prompts take at most, where they may be continued and share the cache."""

_APART_SHARE = 0.25
"""The same where rows have copies of their prompts: finished ones are beside the cache, which is smaller by this."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A generated text: its token ids (with the end token, if it was reached) and their summed log-probability.

    The log-probability is the natural logarithm, under the unfiltered distribution at temperature 1. `measured` is the
    sum of what the decoder was asked to measure of the logits that its tokens were chosen from, (numbers,) on the CPU.
    """

    token_ids: tuple[int, ...]
    logprob: float
    measured: torch.Tensor | None = field(default=None, compare=False)


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

OnIdle = Callable[[], Mapping[int, Sequence[SamplingParams]]]
"""Called when all completions are finished. Returns the parameters of further ones by the index of their request."""

Measure = Callable[[torch.Tensor], torch.Tensor]
"""Makes numbers (rows, numbers) of logits (rows, vocabulary), as the model gave them."""

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
    measure: Measure | None = None,
    on_idle: OnIdle | None = None,
) -> None:
    """Generates all completions of `requests`, and those that `on_completions` and `on_idle` ask for.

    At most `token_budget` tokens are held in the KV cache. With `prompt_cache`, encoded prompts are kept for the next
    call with the same prompts. `progress` gets the numbers of finished requests and of all requests. With `measure`,
    completions are `measured`. With `on_idle`, the keys and values of finished prompts are kept as far as the budget
    allows while no other prompt needs the room; the others are encoded again when they are continued.

    The completions of a request do not depend on the other requests, except for rounding. When memory runs out, the
    budget is halved and unfinished requests start again. With a single row left the error is raised, and also where
    several processes share the model: one of them alone must not do other steps than the rest, who wait for it.
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
                vlm,
                requests,
                max_new_tokens,
                budget,
                prompt_cache,
                measure,
                share_prefixes=vlm._shares_prefixes,
                keep_prompts=on_idle is not None,
            )
            try:
                while waiting or scheduler.prompts:
                    scheduler.admit(waiting)
                    for index, completions in scheduler.step():
                        if not scheduler.continue_prompt(index, on_completions(index, completions)) and index >= 0:
                            n_done += 1
                            if progress is not None:
                                progress(n_done, len(requests))
                    if on_idle is not None and not waiting and not scheduler.prompts:
                        waiting.extend(scheduler.resume(on_idle()))
            except UnsupportedAttentionError:
                vlm._shares_prefixes = False
                waiting.extendleft(reversed(scheduler.unfinished()))
            except RuntimeError as error:
                can_shrink = scheduler.can_shrink and (budget > 1 or prompt_cache is not None)
                if not is_out_of_memory(error) or not can_shrink or vlm.agree is not None:
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
    measured: list[torch.Tensor] = field(default_factory=list)  # token by token, if anything is measured
    state: State = (0, 0)  # of the prompt's constraint, if there is one

    @property
    def constrained(self) -> tuple[AnswerConstraint, State] | None:
        """The constraint with its present state."""
        return None if self.prompt.constraint is None else (self.prompt.constraint, self.state)

    @property
    def is_done(self) -> bool:
        return self.prompt.completions[self.number] is not None

    def finish(self) -> None:
        """Gives the prompt the completion."""
        measured = torch.stack(self.measured).sum(dim=0).cpu() if self.measured else None
        self.prompt.completions[self.number] = Completion(tuple(self.token_ids), self.logprob, measured)


Row = list[ActiveCompletion]
"""Completions in progress of one prompt, at least one, whose tokens are the same so far."""


class BatchScheduler:
    """Decides which prompts are encoded and which completions are decoded together, within a token budget."""

    def __init__(
        self,
        vlm: Vlm,
        requests: Sequence[DecodeRequest],
        max_new_tokens: int,
        token_budget: int,
        prompt_cache: EncodedPromptCache | None,
        measure: Measure | None,
        *,
        share_prefixes: bool,
        keep_prompts: bool = False,
    ) -> None:
        self.vlm, self.requests, self.prompt_cache, self.measure = vlm, requests, prompt_cache, measure
        self.model = bare_model(vlm)
        self.max_new_tokens, self.token_budget = max_new_tokens, token_budget
        self.stop_tokens = frozenset(stop_token_ids(vlm))
        self.prompts: dict[int, EncodedPrompt] = {}  # by request index; ~index for the prompt without its suffix
        self.keep_prompts = keep_prompts
        self.kept: dict[int, EncodedPrompt] = {}  # finished ones that may be continued, the oldest first
        self.pending: deque[ActiveCompletion] = deque()  # wait for room
        self.active: list[Row] = []
        self.kept_tokens = int(token_budget * (_KEPT_SHARE if share_prefixes else _APART_SHARE)) if keep_prompts else 0
        self.cache: DecodingCache = (
            SharedPrefixCache(self.model, vlm.device, max_new_tokens=max_new_tokens, token_budget=token_budget)
            if share_prefixes
            else CopiedPrefixCache(
                vlm.device, max_new_tokens=max_new_tokens, token_budget=token_budget - self.kept_tokens
            )
        )
        self.longest_prompt = 0  # in tokens, so far
        self.can_shrink = False  # whether a smaller budget would have made the present batch smaller

    @property
    def n_reserved(self) -> int:
        """Rows that are in use or may be needed: in the end all completions may differ."""
        return sum(map(len, self.active))

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
        """Gives room to pending completions, then encodes waiting prompts while the budget allows."""
        self._start_pending()
        if not waiting or self.pending:
            return
        free = self.cache.free_tokens(self.n_reserved, without=self.kept)
        if self.active and free < self.token_budget * _ADMIT_SHARE:
            return
        self.longest_prompt = self.longest_prompt or self._count_tokens(waiting[0][0])
        # The prompt cache stores whole batches, so with one they are composed independently of the free space.
        limit = _MAX_ENCODED_BATCH if self.prompt_cache is None else _MAX_CACHED_BATCH
        chosen: list[tuple[int, tuple[SamplingParams, ...]]] = []
        needed = 0
        while waiting and len(chosen) < limit:
            cost = self.cache.cost(self.longest_prompt, self._count_rows(*waiting[0]))
            if chosen and not self.prompt_cache and needed + cost > free:
                break
            needed += cost
            chosen.append(waiting.popleft())
        if self.active and needed > free:
            waiting.extendleft(reversed(chosen))
            return
        self._make_room(self.n_reserved, tokens=needed)
        self.can_shrink = len(chosen) > 1 or bool(self.prompts) or bool(self.kept)
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
        """Queues further completions of a prompt. Without any, keeps or forgets the prompt and returns False."""
        if params:
            self._queue(self.prompts[index], params)
            return True
        prompt = self.prompts.pop(index)
        if self.keep_prompts and index >= 0:
            # What the cache did not take is a part of its batch, all of which would stay in memory.
            prompt.prefix.layers = [(keys.clone(), values.clone()) for keys, values in prompt.prefix.layers]
            self.kept[index] = prompt
            # A cache has the same room for each of its prompts.
            while len(self.kept) * max((one.prefix.length for one in self.kept.values()), default=0) > self.kept_tokens:
                self._forget_oldest()
        else:
            self.cache.release_prefix(index)
        return False

    def _forget_oldest(self) -> None:
        oldest = next(iter(self.kept))
        del self.kept[oldest]
        self.cache.release_prefix(oldest)

    def _make_room(self, n_rows: int, *, new: Sequence[Prefix] = (), tokens: int = 0) -> None:
        """Forgets the oldest kept prompts, until `tokens` are free beside `n_rows` rows and `new` prompts if it can."""
        if self.kept:
            wanted = min(tokens, self.cache.free_tokens(n_rows, new=new, without=self.kept))
            while self.kept and self.cache.free_tokens(n_rows, new=new) < wanted:
                self._forget_oldest()

    def resume(self, wanted: Mapping[int, Sequence[SamplingParams]]) -> list[tuple[int, tuple[SamplingParams, ...]]]:
        """Queues completions of kept prompts; returns those of prompts that have to be encoded again."""
        again = []
        for index, params in wanted.items():
            if (prompt := self.kept.pop(index, None)) is not None:
                self.prompts[index] = prompt
                self._queue(prompt, params)
            else:
                again.append((index, tuple(params)))
        return again

    # Decoding rows

    def _start_pending(self, later: int = 0) -> None:
        """Gives room to pending completions, and samples their first tokens from their prompts' last logits."""
        while self.pending:
            prefixes = list({one.prompt.prefix: None for one in self.pending})
            n_wanted = self.n_reserved + len(self.pending)
            self._make_room(n_wanted, new=prefixes)
            self.can_shrink = n_wanted > 1 or bool(self.kept)
            free = self.cache.reserve_rows(prefixes, n_rows=self.n_reserved, wanted=len(self.pending), later=later)
            if free <= 0:
                return
            joining: dict[int, Row] = {}
            for _ in range(min(free, len(self.pending))):
                one = self.pending.popleft()
                joining.setdefault(one.prompt.prefix.key, []).append(one)
            rows = list(joining.values())
            self._append_tokens(rows, torch.stack([row[0].prompt.last_logits for row in rows]))
            new = [same for row in rows for same in _split_row(row)]
            if new:
                self.cache.add_rows(len(self.active), [row[0].prompt.prefix for row in new])
                self.active.extend(new)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, list[Completion]]]:
        """Decodes one more token in every row. Returns the prompts whose completions are all finished."""
        if self.active:
            self.can_shrink = self.n_reserved > 1 or bool(self.kept)
            last_tokens = torch.tensor([[row[0].token_ids[-1]] for row in self.active], device=self.vlm.device)
            self._append_tokens(self.active, self.cache.forward(self.model, last_tokens))
            self._split_rows()
        finished = [prompt for prompt in self.prompts.values() if None not in prompt.completions]
        return [(prompt.prefix.key, [one for one in prompt.completions if one is not None]) for prompt in finished]

    def _append_tokens(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Samples a token for each completion of `rows` from its row's logits (rows, vocabulary), and ends the last."""
        constrained = [row[0].constrained for row in rows]
        allowed = allowed_tokens(constrained, size=logits.shape[-1], device=logits.device)
        measured = None if self.measure is None else self.measure(logits).unbind()
        completions = [one for row in rows for one in row]
        places = [place for place, row in enumerate(rows) for _ in row]
        params = [one.params for one in completions]
        uniforms = [one.uniforms[len(one.token_ids)] for one in completions]
        tokens, logprobs = sample_tokens(logits, params, uniforms, rows=places, allowed=allowed)
        if self.vlm.agree is not None:
            tokens = self.vlm.agree(tokens)
        if measured is not None:
            for row, numbers in zip(rows, measured, strict=True):
                for one in row:
                    one.measured.append(numbers)
        for one, token, logprob in zip(completions, tokens.tolist(), logprobs.tolist(), strict=True):
            one.token_ids.append(token)
            one.logprob += logprob
            if one.prompt.constraint is not None:
                one.state = one.prompt.constraint.advance(one.state, token)
            if token in self.stop_tokens or len(one.token_ids) >= self.max_new_tokens:
                one.finish()

    def _split_rows(self) -> None:
        """Copies rows whose completions differ now, and removes those whose completions have all ended.

        Copies take the places of removed rows. Then rows are moved from the end into the places that are left, so that
        rows 0 to n - 1 stay in use.
        """
        parts = [_split_row(row) for row in self.active]
        copied = [(place, row) for place, split in enumerate(parts) for row in split[1:]]
        n_before, n = len(parts), sum(map(len, parts))
        free = [place for place, split in enumerate(parts) if not split and place < n] + list(range(n_before, n))
        moved = [(place, parts[place][0]) for place in range(n, n_before) if parts[place]]
        self.active = [split[0] if split else [] for split in parts] + [[] for _ in range(n - n_before)]
        coming = copied + moved
        if coming:
            self.cache.copy_rows([place for place, _ in coming], free)
            for place, (_, row) in zip(free, coming, strict=True):
                self.active[place] = row
        del self.active[n:]


def _split_row(row: Row) -> list[Row]:
    """The completions of `row` that go on, by their last token."""
    if len(row) == 1:
        return [] if row[0].is_done else [row]
    by_token: dict[int, Row] = {}
    for one in row:
        if not one.is_done:
            by_token.setdefault(one.token_ids[-1], []).append(one)
    return list(by_token.values())
