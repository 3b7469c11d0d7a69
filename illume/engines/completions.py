"""A chat completion: its request, and what its answer says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from illume.engines.client import Client
from illume.engines.errors import EngineAway, EngineError, WrongModel
from illume.phrases import _

PATH = "/v1/chat/completions"
SECONDS = 60.0
"""How long an answer may take beside its tokens: the server may have others to answer first."""
SECONDS_PER_TOKEN = 0.5
THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
BROKEN_OFF = ("abort", "error")
"""How vLLM and SGLang finish a text that they did not write to its end, as when they are stopped meanwhile."""
OPENED, CLOSED = re.compile(r"<think(?:ing)?>"), re.compile(r"</think(?:ing)?>")


@dataclass(frozen=True, slots=True)
class Choice:
    """One text of an answer, without what the model thought before it.

    `mean_logprob` is the mean natural-log probability of its tokens, None where the server gives none or where they
    are partly thoughts. `cut`: it ends because `max_tokens` were written. `thought`: there were thoughts before it.
    """

    text: str
    cut: bool = False
    mean_logprob: float | None = None
    n_tokens: int | None = None
    thought: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered: `model` as it names it, and a choice for each text that was asked for."""

    model: str
    choices: tuple[Choice, ...]


async def complete(client: Client, body: Mapping[str, Any]) -> Answer:
    """Ask for a chat completion. Raises EngineError, and WrongModel where another model answered than was asked.

    Raises EngineAway for a text that the server broke off.
    """
    seconds = SECONDS + SECONDS_PER_TOKEN * int(body["max_tokens"])
    return read_answer(await client.post(PATH, body, seconds=seconds), str(body["model"]))


def request_body(
    model: str, messages: Sequence[Mapping[str, Any]], *, temperature: float, max_tokens: int, **more: Any
) -> dict[str, Any]:
    """The body of a request for one text; `more` are other fields, left out where they are None."""
    body = {"model": model, "messages": list(messages), "temperature": temperature, "max_tokens": max_tokens}
    return body | {name: value for name, value in more.items() if value is not None}


def read_answer(data: Any, asked: str) -> Answer:
    """Read a chat completion. Raises EngineError for another shape, EngineAway for one broken off, and WrongModel."""
    if not isinstance(data, dict) or not isinstance(data.get("choices"), list) or not data["choices"]:
        raise EngineError(_("the server's answer is no chat completion: it has no choices"))
    model = str(data.get("model") or "")
    if not is_same_model(model, asked):
        raise WrongModel(
            _(
                "the server answered as '%(model)s', and '%(asked)s' was asked: nothing is stored",
                model=model[:100],
                asked=asked,
            )
        )
    if any(one.get("finish_reason") in BROKEN_OFF for one in data["choices"]):
        raise EngineAway(_("the server broke off its answer: it is probably being stopped"))
    ordered = sorted(data["choices"], key=lambda one: one.get("index") or 0)
    usage = data.get("usage")
    total = usage.get("completion_tokens") if isinstance(usage, dict) and len(ordered) == 1 else None
    return Answer(model, tuple(_read_choice(one, total) for one in ordered))


def is_same_model(answered: str, asked: str) -> bool:
    """Whether the answer's model is the one asked for; some servers add the revision, as in `model@main`."""
    return answered == asked or ("@" not in asked and answered.rpartition("@")[0] == asked)


def _read_choice(choice: Mapping[str, Any], total: Any) -> Choice:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise EngineError(_("the server's answer is no chat completion: a choice has no message"))
    text, thought = strip_thoughts(_content_of(message))
    thought = thought or any(message.get(name) for name in ("reasoning_content", "reasoning"))
    values = _logprobs_of(choice)
    return Choice(
        text=text.strip(),
        cut=choice.get("finish_reason") == "length",
        mean_logprob=sum(values) / len(values) if values and not thought else None,
        n_tokens=None if thought else len(values) or (total if isinstance(total, int) else None),
        thought=thought,
    )


def _content_of(message: Mapping[str, Any]) -> str:
    """The text of a message: plain, or in parts."""
    content = message.get("content") or ""
    if isinstance(content, list):
        return "".join(str(one.get("text", "")) for one in content if isinstance(one, Mapping))
    return str(content)


def strip_thoughts(text: str) -> tuple[str, bool]:
    """A text without the blocks that the model thought in, and whether there were any.

    A block that was not closed is all that follows it; one that the template opened is all that comes before its end.
    """
    plain = THOUGHT.sub("", text)
    if closed := list(CLOSED.finditer(plain)):
        plain = plain[closed[-1].end() :]
    if opened := OPENED.search(plain):
        plain = plain[: opened.start()]
    return plain, plain != text


def _logprobs_of(choice: Mapping[str, Any]) -> list[float]:
    """The log-probabilities of a choice's tokens, none where the server gives none."""
    found = choice.get("logprobs")
    tokens = found.get("content") if isinstance(found, Mapping) else None
    values = [one.get("logprob") for one in tokens or () if isinstance(one, Mapping)]
    known = [float(one) for one in values if isinstance(one, int | float) and one > -9999]
    # vLLM writes -9999 for what is infinitely unlikely, which no mean survives.
    return known if len(known) == len(values) else []
