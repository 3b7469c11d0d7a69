"""The plain data of the method: prompts, sampled rationales, verdicts and training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from illume.fields.answers import Reason
from illume.fields.policies import Policy
from illume.parts import Parts

AnswerSource = Literal["gold", "own"]
VerdictKind = Literal["picked", "none_fit", "skipped", "flagged"]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt: images and a question, usually an answer, sometimes reference rationales.

    `images` are paths of image files. `parts` are empty in the short form, which is all images and then the question;
    otherwise `question` is the texts of the parts, joined by line breaks. `metadata` may contain a scene graph under
    the key `scene`, and the language of the texts under `language`, a BCP 47 tag. `policy` is what the image is
    assessed by, and `fields` are gold values of a structured answer.
    """

    id: str
    images: tuple[str, ...]
    question: str
    answer: str | None = None
    references: tuple[str, ...] = ()
    split: str = "train"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts = ()
    policy: Policy | None = None
    fields: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def language(self) -> str | None:
        """The language of the texts, a BCP 47 tag; None if the metadata name none."""
        found = self.metadata.get("language")
        return found if isinstance(found, str) and found.strip() else None


@dataclass(frozen=True, slots=True)
class Rationale:
    """One sampled rationale of one example.

    `mean_logprob` is the mean natural-log probability per generated token (end token included) under the
    unfiltered distribution at temperature 1. `seed` reproduces the text; `answer` is the answer in its prompt. A model
    server may not say the one, keep the other or count tokens: they are None then. Of a structured answer `text` is the
    whole JSON object, `answer` is empty, and `invalid` says what is wrong with it.
    """

    example_id: str
    text: str
    temperature: float
    seed: int | None
    mean_logprob: float | None
    n_tokens: int | None
    answer: str
    answer_source: AnswerSource
    invalid: Reason | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one critic on the candidates of one example; `picks` are indices into the candidates.

    `rationale` is a text that the critic added or edited, `fields` are the values that the critic gave to the fields of
    a structured answer.
    """

    example_id: str
    critic: str
    kind: VerdictKind
    picks: tuple[int, ...] = ()
    rationale: str | None = None
    fields: Mapping[str, str | None] | None = None


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row of training data. Without a rationale it is a VQA-only example of the forgetting guard.

    Of a structured answer `values` are the accepted ones; a rationale among them is not read. Without `values` the gold
    fields are learnt. `masked` are names of fields that are not, such as those that nobody has judged. `weight` is how
    much the rationale counts beside others: less than 1 where nobody but a machine has accepted it.
    """

    example: Example
    rationale: str | None
    values: Mapping[str, str | None] | None = None
    masked: frozenset[str] = frozenset()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rationale that critics turned down, and an accepted one of the same set that they preferred to it.

    Without `accepted`, nothing of its candidate set fitted. Of a structured answer, `values` and `accepted_values` are
    the other values of the two: a pair compares the fields in which they differ.
    """

    example: Example
    rationale: str
    accepted: str | None
    values: Mapping[str, str | None] | None = None
    accepted_values: Mapping[str, str | None] | None = None


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on `parts` only: it is the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
