"""What a model server can do, as the probe found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Logprobs = Literal["none", "before", "after"]
Order = Literal["kept", "pictures_first", "unknown"]
Thinking = Literal["none", "off", "always"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server can do with one model.

    `n`: it writes several texts for one request. `varies`: at a high temperature it writes more than one text, which
    servers that always take the likeliest token do not. `seeds`: the same seed gives the same text. `logprobs`: log-
    probabilities of before the temperature, or after it. `pictures`: how many of two it took. `order`: where it reads
    them. `thinking`: whether the model thinks first, and whether a request can switch that off. `overrides`: a request
    may say how to sample by fields that are not OpenAI's (`PLAIN`). `any_name`: it answers under any model name, so
    that an answer does not say which model wrote it. `root` is what the server says it loaded, `max_tokens` the length
    of its context.
    """

    n: bool = False
    varies: bool = True
    seeds: bool = False
    logprobs: Logprobs = "none"
    pictures: int = 1
    order: Order = "unknown"
    json_schema: bool = False
    adapters: bool = False
    thinking: Thinking = "none"
    overrides: bool = False
    any_name: bool = False
    root: str | None = None
    max_tokens: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The capabilities as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `as_json` wrote, of this release or another."""
        return cls(**{name: value for name, value in data.items() if name in cls.__dataclass_fields__})

    @property
    def sampling_fields(self) -> Mapping[str, float]:
        """The fields of each request that keep the server's own defaults out of it."""
        return PLAIN if self.overrides else {}


PLAIN: Mapping[str, float] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling from all that the model holds possible. vLLM takes what a request leaves open from the model's
`generation_config.json`, which for some models cuts off all tokens but the likeliest."""
SWITCHED_OFF = {"enable_thinking": False}
"""The argument for the chat templates of models that think first."""
