"""The tasks whose truth can be computed: which answer is right, which rationale is true, how new prompts are made.

The metadata of a prompt say which task it belongs to. What a task needs is imported when it is used, because most
prompts belong to none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from illume.evaluation.metrics import answer_correct
from illume.fields.definitions import AnswerFields
from illume.model.prompting import DEFAULT_TEMPLATE
from illume.records import Example

if TYPE_CHECKING:
    from PIL import Image


class MakePrompts(Protocol):
    """Writes `n` prompts with their images to `out`, the same for the same `seed`."""

    def __call__(
        self, out: Path, *, n: int, seed: int, sprites: Mapping[str, Image.Image], report: Callable[[str], None]
    ) -> None: ...


def _same_answer(answer: str, example: Example) -> bool:
    return answer_correct(answer, example.answer or "", language=example.language)


def _one_group(_: Example) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of prompts whose truth can be computed.

    `is_true` says whether a rationale is true of what the example shows and explains its answer, `is_right` whether an
    answer is the gold one. `group` names the group of an example that is also measured by itself, such as its language.
    With `fields` answers are structured: the rationale explains their gold values.
    """

    name: str
    made: str  # what `make` makes, in the plural
    make: MakePrompts
    is_true: Callable[[str, Example], bool]
    is_right: Callable[[str, Example], bool] = _same_answer
    group: Callable[[Example], str | None] = _one_group
    template: str = DEFAULT_TEMPLATE
    rationale_tokens: int | None = None  # the longest rationale; None: as in the settings
    answer_tokens: int | None = None  # the longest answer; None: as in the settings
    fields: Callable[[], AnswerFields] | None = None
    fields_tokens: int | None = None  # the longest structured answer; None: as in the settings

    @property
    def answer_fields(self) -> AnswerFields | None:
        """The fields of structured answers; None where answers are texts."""
        return None if self.fields is None else self.fields()


# Scenes


def _make_scenes(out: Path, **options: Any) -> None:
    from illume.scenes.making import make_scenes

    make_scenes(out, **options)


def _is_true_of_scene(rationale: str, example: Example) -> bool:
    from illume.scenes.faithfulness import is_faithful

    found = is_faithful(rationale, example.metadata["scene"], question=example.question, answer=example.answer or "")
    return bool(found)


# Pairs


def _make_pairs(out: Path, **options: Any) -> None:
    from illume.pairs.making import make_pairs

    make_pairs(out, **options)


def _is_true_of_pair(rationale: str, example: Example) -> bool:
    from illume.pairs.truth import is_faithful

    scenes = example.metadata["scenes"]
    return is_faithful(rationale, scenes, question=example.question, answer=example.answer or "")


def _language(example: Example) -> str | None:
    return example.language


# Guard


def _make_guard(out: Path, **options: Any) -> None:
    from illume.guard.making import make_guard

    make_guard(out, **options)


def _is_true_of_case(rationale: str, example: Example) -> bool:
    from illume.guard.truth import is_faithful

    scene, rating, category = example.metadata["scene"], example.fields["rating"], example.fields["category"]
    if example.policy is None or rating is None or category is None:
        raise ValueError("a policy and gold values are needed")
    return is_faithful(rationale, scene, example.policy.to_json(), rating=rating, category=category)


def _guard_fields() -> AnswerFields:
    from illume.guard.policies import FIELDS

    return FIELDS


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("scenes", made="scenes", make=_make_scenes, is_true=_is_true_of_scene),
        Task(
            "pairs",
            made="pairs of scenes",
            make=_make_pairs,
            is_true=_is_true_of_pair,
            group=_language,
            rationale_tokens=80,
        ),
        Task(
            "guard",
            made="scenes under house rules",
            make=_make_guard,
            is_true=_is_true_of_case,
            template="{policy}\nQ: {question} A: {answer}",
            fields=_guard_fields,
            fields_tokens=120,
        ),
    )
}
"""All tasks, by the name that metadata and commands use."""


def task_of(example: Example) -> Task | None:
    """The task of an example: the one that its metadata name, or `scenes` for one with a scene; else None."""
    name = example.metadata.get("task", "scenes" if "scene" in example.metadata else None)
    return TASKS.get(name) if isinstance(name, str) else None


def faithful(rationale: str, example: Example) -> bool | None:
    """Whether `rationale` is true of what `example` shows and explains its answer.

    None if the example belongs to no task, or if its metadata are not what its task makes.
    """
    task = task_of(example)
    try:
        return None if task is None else task.is_true(rationale, example)
    except (LookupError, ValueError, TypeError, AttributeError):  # metadata come with files that anybody may have made
        return None


def answer_right(answer: str, example: Example) -> bool | None:
    """Whether `answer` is the gold answer of `example`; None without one."""
    if example.answer is None:
        return None
    task = task_of(example)
    return (_same_answer if task is None else task.is_right)(answer, example)
