"""Candidate sets from a model server, by what it can do; what it cannot do is made up for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from illume.engines.capabilities import SWITCHED_OFF, Capabilities
from illume.engines.client import IN_FLIGHT, Client
from illume.engines.completions import Choice, complete, request_body
from illume.engines.errors import EngineError, EngineRefused, KeyRefused, ModelMissing
from illume.engines.messages import check_pictures, picture_url, user_message
from illume.errors import VlmError
from illume.fields.answers import answer_schema
from illume.model.prompting import PromptText, answer_prompt, rationale_prompt
from illume.phrases import _
from illume.records import AnswerSource, Example, Rationale
from illume.sampling.drawing import Draw, Sample
from illume.settings import SamplingSettings

SEEDS = 2**31
"""Seeds that servers take: some keep 32 bits only."""
WATCH_SECONDS = 0.5

OnSet = Callable[[int, list[Rationale]], None]
"""Called with the index of an example and its candidate set."""

OnFailure = Callable[[int, VlmError], None]
"""Called with the index of an example that cannot be sampled, though others can, and the reason."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Server:
    """A model on a server: `model` is its name there, that of the base model or of an adapter."""

    client: Client
    model: str
    capabilities: Capabilities


async def sample_sets(
    server: Server,
    examples: Sequence[Example],
    settings: SamplingSettings,
    *,
    seed: int,
    on_set: OnSet,
    on_failure: OnFailure,
    in_flight: int = IN_FLIGHT,
) -> None:
    """Sample a candidate set for each example, several at a time, as `illume.sampling.generation` does by itself.

    `top_k_share` is not applied: a server does not say how many tokens its vocabulary has. Rationales that the token
    limit broke off are redrawn as duplicates are, and the last one is kept. The first failure that is not the example's
    own ends everything. Raises EngineError.
    """
    places = asyncio.Semaphore(in_flight)

    async def sample(index: int) -> None:
        async with places:
            try:
                on_set(index, await _sample_set(server, examples[index], settings, seed))
            except (KeyRefused, ModelMissing):
                raise
            except VlmError as error:
                if isinstance(error, EngineError) and not isinstance(error, EngineRefused):
                    raise
                on_failure(index, error)

    await _all_or_first_failure([sample(index) for index in range(len(examples))])


async def _all_or_first_failure(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results, in order. With the first failure the others are cancelled, and so their requests are closed."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_watched(work: Coroutine[Any, Any, Result], watch: Callable[[], None]) -> Result:
    """Run `work` in an event loop of its own. `watch` is called often; if it raises, `work` is cancelled."""

    async def run() -> Result:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=WATCH_SECONDS)
                watch()
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(run())


async def _sample_set(server: Server, example: Example, settings: SamplingSettings, seed: int) -> list[Rationale]:
    urls = await asyncio.to_thread(lambda: [picture_url(path) for path in example.images])
    answer, source = await _resolve_answer(server, example, settings, urls)
    if settings.answer_fields is None:
        prompt = rationale_prompt(example, answer, template=settings.template)
    else:
        prompt = answer_prompt(example, template=settings.template)
    check_pictures(prompt, len(urls))
    draw, choices = Draw(example, settings, seed), []
    while draw.open:
        runs = [list(run) for _, run in groupby(draw.open, key=lambda one: one.temperature)]
        found = await _all_or_first_failure([_draw_run(server, prompt, urls, run, settings, example) for run in runs])
        drawn = [pair for pairs in found for pair in pairs]
        choices += [choice for _, _, choice in drawn]
        # A structured answer says by its form whether it is whole.
        cut = {one.number for one, _, choice in drawn if choice.cut and settings.answer_fields is None}
        made = [(one, _to_rationale(example, one, seed, choice, answer, source)) for one, seed, choice in drawn]
        draw.take(made, cut=cut)
    kept = draw.ordered()
    if not kept:
        raise VlmError(_why_nothing(choices, settings))
    return kept


def _why_nothing(choices: Sequence[Choice], settings: SamplingSettings) -> str:
    if choices and all(choice.thought and choice.cut for choice in choices):
        return _(
            "the model thought until its %(count)s tokens were used up: raise max_new_tokens, or switch its thinking"
            " off",
            count=settings.max_new_tokens,
        )
    return _("the model wrote no rationale: all answers were empty")


Drawn = tuple[Sample, int | None, Choice]
"""A sample, the seed that reproduces it if one does, and what was written."""


async def _draw_run(
    server: Server,
    prompt: PromptText,
    urls: Sequence[str],
    run: Sequence[Sample],
    settings: SamplingSettings,
    example: Example,
) -> list[Drawn]:
    """What the server writes for samples of one temperature: by one request, or one each."""

    async def ask(samples: Sequence[Sample]) -> list[Drawn]:
        seed = samples[0].seed % SEEDS if server.capabilities.seeds else None
        more: dict[str, Any] = {"seed": seed, "n": len(samples) if len(samples) > 1 else None}
        if samples[0].temperature > 0:  # also where it is 1: the server may have another default
            more["top_p"] = settings.top_p
        if settings.answer_fields is not None and server.capabilities.json_schema:
            schema = answer_schema(settings.answer_fields, example.policy)
            more["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        choices = await _complete(server, prompt, urls, samples[0].temperature, settings, **more)
        # vLLM gives the i-th text of a request the seed + i.
        seeds = [None if seed is None else seed + number for number in range(len(samples))]
        return list(zip(samples, seeds, choices, strict=False))

    if run[0].temperature == 0:  # all greedy texts of one prompt are the same
        return await ask(run[:1])
    together = await ask(run) if server.capabilities.n and len(run) > 1 else []
    alone = await _all_or_first_failure([ask([sample]) for sample in run[len(together) :]])
    return together + [pair for pairs in alone for pair in pairs]


async def _complete(
    server: Server,
    prompt: PromptText,
    urls: Sequence[str],
    temperature: float,
    settings: SamplingSettings,
    **more: Any,
) -> Sequence[Choice]:
    found = server.capabilities
    more |= found.sampling_fields
    unchanged = temperature == 1 and settings.top_p == 1
    if found.logprobs == "before" or (found.logprobs == "after" and unchanged):
        more["logprobs"] = True
    if found.thinking == "off":
        more["chat_template_kwargs"] = SWITCHED_OFF
    message = user_message(prompt, urls)
    body = request_body(server.model, [message], temperature=temperature, max_tokens=settings.max_new_tokens, **more)
    return (await complete(server.client, body)).choices


async def _resolve_answer(
    server: Server, example: Example, settings: SamplingSettings, urls: Sequence[str]
) -> tuple[str, AnswerSource]:
    """The answer to use in the prompt: the gold one, or the model's own where there is none."""
    if settings.answer_fields is not None:
        return "", "own"
    if example.answer is not None:
        return example.answer, "gold"
    prompt = answer_prompt(example, template=settings.template)
    check_pictures(prompt, len(urls))
    [choice, *_more] = await _complete(server, prompt, urls, 0.0, settings)
    if not choice.text:
        raise VlmError(_("the model gave no answer of its own to the question"))
    return choice.text, "own"


def _to_rationale(
    example: Example, sample: Sample, seed: int | None, choice: Choice, answer: str, source: AnswerSource
) -> Rationale:
    return Rationale(
        example_id=example.id,
        text=choice.text,
        temperature=sample.temperature,
        seed=seed,
        mean_logprob=choice.mean_logprob,
        n_tokens=choice.n_tokens,
        answer=answer,
        answer_source=source,
    )
