"""Finds out what a model server can do, by a dozen short requests."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import PIL.Image

from illume.engines.adapters import Listed, is_itself, list_if_possible, loads_adapters
from illume.engines.capabilities import PLAIN, SWITCHED_OFF, Capabilities, Logprobs, Order
from illume.engines.client import Client
from illume.engines.completions import PATH, SECONDS, Answer, complete, request_body
from illume.engines.errors import EngineError, EngineRefused, KeyRefused, ModelMissing, ServerChanged
from illume.engines.messages import pixels_url, user_message
from illume.model.prompting import render_rationale_prompt
from illume.parts import ImagePart, Parts, TextPart
from illume.phrases import _

SIDE = 64
COLOURS = ("#c02020", "#2020c0")
QUESTION = render_rationale_prompt("What is in the picture?", "a colour")
"""As the prompts of projects: a model that was tuned on these may have nothing to say to others."""
BETWEEN = "This was the first picture. Here is another one."
UNLIKELY = "vermilion-7"
"""A word that no model writes by itself."""
HOTTEST = 2.0
"""The highest temperature that OpenAI's interface knows: vLLM refuses more."""
TOLERANCE = 0.02
"""Log-probabilities that differ by less are taken for equal: servers add numbers up in another order each time."""
ONE: Parts = (ImagePart(0), TextPart(QUESTION))
APART: Parts = (ImagePart(0), TextPart(BETWEEN), ImagePart(1), TextPart(QUESTION))
TOGETHER: Parts = (ImagePart(0), ImagePart(1), TextPart(f"{BETWEEN}\n{QUESTION}"))


async def probe(client: Client, model: str, *, adapters: Collection[str] = ()) -> Capabilities:
    """Find out what a server can do with a model. Raises EngineError with the reason if it cannot be used at all.

    `adapters` are names under which a person may have loaded an adapter in the model's place, where any name is
    answered.
    """
    listed = await list_if_possible(client)
    try:
        first = await _ask(client, model, ONE)
    except ModelMissing as error:
        raise ModelMissing(
            _("the server has no model '%(model)s'; it lists %(names)s", model=model, names=_quote(listed)), status=404
        ) from error
    found = replace(_describe(listed.get(model)), any_name=await _answers_under_any_name(client))
    if found.any_name and not any(is_itself(listed, name) for name in (model, *adapters)):
        raise EngineError(
            _(
                "model: the server answers under any name, so that nobody could tell what answers to '%(model)s'."
                " Enter a name that it lists: %(names)s",
                model=model,
                names=_quote(name for name in listed if is_itself(listed, name)),
            )
        )
    if first.choices[0].thought:
        found = replace(found, thinking="off" if await _stops_thinking(client, model) else "always")
    found = replace(found, overrides=await _try(client, model, ONE, **PLAIN) is not None)
    fields = {**found.sampling_fields, "top_p": 1.0}
    logprobs = await _logprobs(client, model, fields)
    varies, seeds = await _varies_and_keeps_seeds(client, model, fields)
    pictures, order = await _pictures(client, model, logprobs)
    return replace(
        found,
        n=await _writes_several(client, model),
        varies=varies,
        seeds=seeds,
        logprobs=logprobs,
        pictures=pictures,
        order=order,
        json_schema=await _follows_schema(client, model),
        adapters=not found.any_name and await loads_adapters(client),
    )


def _quote(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in list(names)[:10]) or "none"


async def _answers_under_any_name(client: Client) -> bool:
    """Whether a server answers, as what was asked for, under a name that no model has.

    Servers refuse such a name in many ways, some by seeming to be away: every failure counts as a refusal.
    """
    try:
        await _ask(client, f"illume-no-model-{secrets.token_hex(4)}", ONE)
    except EngineError:
        return False
    return True


async def check_unchanged(client: Client, model: str, known: Capabilities) -> None:
    """Raise ServerChanged where a server lists a model otherwise than when it was probed.

    A server that answers under any name may list an adapter in the place of its model, once that was loaded by hand.
    """
    listed = await list_if_possible(client)
    if not listed or (model not in listed and (known.any_name or known.root is None)):
        return
    now = _describe(listed.get(model))
    if (now.root, now.max_tokens) != (known.root, known.max_tokens):
        raise ServerChanged(_("the server runs another model or context than when it was probed: it is probed again"))


def _describe(listed: Listed | None) -> Capabilities:
    return Capabilities() if listed is None else Capabilities(root=listed.root, max_tokens=listed.max_tokens)


def _body(model: str, prompt: Parts, *, temperature: float = 0.0, max_tokens: int = 8, **more: Any) -> dict[str, Any]:
    urls = [pixels_url(PIL.Image.new("RGB", (SIDE, SIDE), colour)) for colour in COLOURS]
    return request_body(model, [user_message(prompt, urls)], temperature=temperature, max_tokens=max_tokens, **more)


async def _ask(client: Client, model: str, prompt: Parts, **more: Any) -> Answer:
    return await complete(client, _body(model, prompt, **more))


async def _try(client: Client, model: str, prompt: Parts, **more: Any) -> Answer | None:
    """As `_ask`; None where the server refuses the request."""
    try:
        return await _ask(client, model, prompt, **more)
    except (KeyRefused, ModelMissing):
        raise
    except EngineRefused:
        return None


async def _writes_several(client: Client, model: str) -> bool:
    found = await _try(client, model, ONE, temperature=1.0, n=2)
    return found is not None and len(found.choices) == 2


async def _varies_and_keeps_seeds(client: Client, model: str, fields: Mapping[str, float]) -> tuple[bool, bool]:
    """Whether there is more than one text at a high temperature, and whether one seed gives one of them."""
    asked = [
        await _try(client, model, ONE, temperature=HOTTEST, max_tokens=16, **fields, **more)
        for more in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 3}, {}, {})
    ]
    texts = [None if found is None else found.choices[0].text for found in asked]
    varies = len(set(texts) - {None}) > 1
    return varies, varies and texts[0] is not None and texts[0] == texts[1] and len(set(texts[:4])) > 1


async def _stops_thinking(client: Client, model: str) -> bool:
    found = await _try(client, model, ONE, chat_template_kwargs=SWITCHED_OFF)
    return found is not None and not found.choices[0].thought


async def _logprobs(client: Client, model: str, fields: Mapping[str, float]) -> Logprobs:
    """Whether the likeliest token has the same log-probability at any temperature: then it is from before that."""
    values = [await _top_logprob(client, model, temperature, fields) for temperature in (0.5, HOTTEST)]
    if values[0] is None or values[1] is None:
        return "none" if (await _greedy_logprobs(client, model, ONE)) is None else "after"
    return "before" if abs(values[0] - values[1]) < TOLERANCE else "after"


async def _top_logprob(client: Client, model: str, temperature: float, fields: Mapping[str, float]) -> float | None:
    """The log-probability of the likeliest first token."""
    body = _body(model, ONE, temperature=temperature, max_tokens=1, logprobs=True, top_logprobs=1, **fields)
    try:
        data = await client.post(PATH, body, seconds=SECONDS)
    except (KeyRefused, ModelMissing):
        raise
    except EngineRefused:
        return None
    try:
        value = data["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"]
    except (LookupError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None


async def _greedy_logprobs(client: Client, model: str, prompt: Parts) -> Sequence[float] | None:
    found = await _try(client, model, prompt, logprobs=True)
    value = None if found is None else found.choices[0].mean_logprob
    return None if value is None else [value]


async def _pictures(client: Client, model: str, logprobs: Logprobs) -> tuple[int, Order]:
    """How many pictures of two the model takes, and whether a text between them is read there."""
    more: Mapping[str, Any] = {} if logprobs == "none" else {"logprobs": True}
    apart, together = [await _try(client, model, prompt, **more) for prompt in (APART, TOGETHER)]
    if apart is None or together is None:
        return 1, "unknown"
    one, other = apart.choices[0], together.choices[0]
    if one.text != other.text:
        return 2, "kept"
    if one.mean_logprob is None or other.mean_logprob is None:
        return 2, "unknown"
    return 2, "pictures_first" if abs(one.mean_logprob - other.mean_logprob) < TOLERANCE else "kept"


async def _follows_schema(client: Client, model: str) -> bool:
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": [UNLIKELY]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    found = await _try(client, model, ONE, max_tokens=32, response_format=form)
    if found is None:
        return False
    # Small models may write spaces between two tokens of the schema until the text is cut off.
    text = "".join(found.choices[0].text.split())
    return text.startswith('{"colour":') and json.dumps({"colour": UNLIKELY}, separators=(",", ":")).startswith(text)
