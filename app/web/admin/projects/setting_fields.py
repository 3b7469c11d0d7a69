"""The settings of a project as form fields: labels, help, and conversion between text and values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import FormData

from app.services.projects.projects import ProjectSettings, parse_settings
from app.web.access import text_of
from app.web.forms import NO_ATTRIBUTES, Field
from illume.validation import describe_problem


class UnreadableValue(ValueError):
    """The text is not a value of the setting. The message describes a valid one."""


@dataclass(frozen=True, slots=True)
class SettingField:
    """A setting in the form."""

    name: str
    label: str
    help: str
    kind: str
    options: tuple[tuple[str, str], ...] = ()
    rows: int = 3
    wide: bool = False


@dataclass(frozen=True, slots=True)
class SettingGroup:
    """Settings that belong together."""

    title: str
    fields: tuple[SettingField, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A group as the template shows it: full-width fields, small ones side by side, and advanced ones in a fold."""

    title: str
    wide: tuple[Field, ...]
    small: tuple[Field, ...]
    advanced: tuple[Field, ...] = ()

    @property
    def changed(self) -> int:
        """How many of the fields differ from their default."""
        return sum(field.changed for field in (*self.wide, *self.small, *self.advanced))

    @property
    def advanced_changed(self) -> int:
        """How many of the advanced fields differ from their default."""
        return sum(field.changed for field in self.advanced)

    @property
    def advanced_open(self) -> bool:
        """Whether the fold is open: a field in it has a problem."""
        return any(field.problem for field in self.advanced)


def integer(name: str, label: str, text: str) -> SettingField:
    """A setting that is a whole number."""
    return SettingField(name, label, text, "whole")


def number(name: str, label: str, text: str) -> SettingField:
    """A setting that is a number."""
    return SettingField(name, label, text, "real")


def switch(name: str, label: str, text: str) -> SettingField:
    """A setting that is on or off."""
    return SettingField(name, label, text, "check")


def choice(name: str, label: str, text: str, *options: tuple[str, str]) -> SettingField:
    """A setting with a few values."""
    return SettingField(name, label, text, "select", options)


def text_list(name: str, label: str, text: str) -> SettingField:
    """A setting that is a list of short texts."""
    return SettingField(name, label, text, "lines", rows=4)


GROUPS = (
    SettingGroup(
        "Judging",
        (
            SettingField(
                "instructions", "Instructions", "Shown to critics beside what they judge.", "area", rows=4, wide=True
            ),
            SettingField(
                "instruction_examples",
                "Examples",
                "One per line: + if it fits or - if it does not, then the explanation, then | and the reason.",
                "lines",
                rows=4,
                wide=True,
            ),
            integer("overlap", "Critics per prompt", "How many critics judge the same explanations."),
            switch(
                "adaptive_overlap",
                "Add critics only when needed",
                "Start with one, and add more up to that number if they are unsure, flag the prompt or disagree.",
            ),
            choice(
                "aggregation",
                "Accepted when picked by",
                "How the picks of several critics decide which explanations are accepted.",
                ("any", "any critic"),
                ("majority", "more than half"),
                ("all", "all critics"),
            ),
            switch("weigh_reliability", "Weight by reliability", "In a majority, by accuracy on check questions."),
            switch(
                "uncertain_first",
                "Least certain first",
                "Within a priority, offer first what the model is least certain about.",
            ),
            number(
                "lease_minutes", "Reservation time (minutes)", "A prompt not judged by then goes to another critic."
            ),
            integer("max_open", "Reserved prompts per critic", "The judging page shows one and loads two ahead."),
            switch("rejudge", "Judge again", "Offer prompts that already have an accepted explanation again."),
            switch(
                "judge_val",
                "Judge validation prompts",
                "Offer them to critics too. They are never used for training.",
            ),
            switch(
                "blur_images",
                "Blur images",
                "Hide images until a critic asks to see them. Single prompts can be blurred on their own page.",
            ),
            switch(
                "submit_on_pick",
                "Submit on a single pick",
                "One pick is the verdict. What was not picked does not count as rejected.",
            ),
            text_list("skip_reasons", "Reasons to skip", "One per line. The first nine get a keyboard shortcut."),
            text_list("flag_reasons", "Reasons to flag", "One per line. A flagged prompt is put on hold."),
            text_list("shortcoming_tags", "Shortcomings", "One per line: what can be wrong with an explanation."),
        ),
    ),
    SettingGroup(
        "Quality",
        (
            number(
                "gold_share", "Share of check questions", "From 0 to 1. Critics cannot tell them from other prompts."
            ),
            number(
                "gold_accuracy", "Required accuracy", "Critics below it on check questions are paused; 0 pauses nobody."
            ),
            integer("gold_minimum", "Check questions before pausing", "Nobody is paused before answering this many."),
            integer(
                "practice_prompts",
                "Practice prompts",
                "New critics start with this many and see the right verdict after each.",
            ),
            number(
                "repeat_share", "Repeat rate", "From 0 to 1: how often a critic is shown a prompt again, reordered."
            ),
            integer("repeat_after", "Prompts before a repeat", "How many others a critic judges first, at least."),
        ),
    ),
    SettingGroup(
        "Explanations",
        (
            SettingField(
                "template",
                "Prompt template",
                "What the model reads before it writes. It contains {question} and then {answer}, once each.",
                "area",
                rows=2,
                wide=True,
            ),
            SettingField(
                "base_model",
                "Base model",
                "'starter', a folder, or a model name on the hub. It cannot be changed after the first training round.",
                "text",
                wide=True,
            ),
            SettingField(
                "temperatures",
                "Sampling temperatures",
                "Each with how many explanations to sample at it, such as 0 x 1, 0.3 x 2. Zero is greedy.",
                "temperatures",
                wide=True,
            ),
            number("top_k_share", "Share of the vocabulary", "From 0 to 1. Only the most likely tokens are sampled."),
            number("top_p", "Top p", "Only the most likely tokens that together reach this probability; 1 for all."),
            integer("max_new_tokens", "Maximum length (tokens)", "The longest an explanation may be."),
            integer("redraws", "Retries for duplicates", "How often a duplicate explanation is sampled again."),
            integer("pool_target", "Prompts kept ready", "How many have explanations waiting for critics."),
            integer(
                "pool_for_round",
                "Prompts ready before training",
                "How many before a training round may pause sampling.",
            ),
        ),
    ),
    SettingGroup(
        "Training rounds",
        (
            integer("round_every", "Prompts per training round", "How many newly accepted prompts start one."),
            switch("auto_rounds", "Start automatically", "Start a training round as soon as there are that many."),
            choice(
                "init",
                "Start from",
                "Whether a training round continues from the active version or starts over.",
                ("continue", "the active version"),
                ("from_base", "the base model"),
            ),
            choice(
                "objective",
                "Learn from",
                "Rejections are explanations that critics read and did not pick. Not measured yet: compare versions.",
                ("picks", "accepted explanations"),
                ("picks_and_rejections", "accepted and rejected explanations"),
            ),
            number("preference_beta", "Sharpness of pairs", "With rejections: how far apart a pair is pushed."),
            number("pair_weight", "Weight of pairs", "With rejections: accepted against rejected."),
            number(
                "picture_weight",
                "Weight of pictures",
                "With rejections: an accepted explanation with its own pictures against another prompt's.",
            ),
            number("anchor_weight", "Weight of the anchor", "With rejections: keeps accepted explanations likely."),
            number(
                "unpaired_weight",
                "Weight where nothing fitted",
                "With rejections: explanations of prompts for which critics chose None fits.",
            ),
            integer("epochs", "Epochs", "The best one on the validation prompts is kept."),
            number("learning_rate", "Learning rate", "For the AdamW optimiser."),
            integer("batch_size", "Batch size", "Examples per optimiser step."),
            integer("lora_rank", "LoRA rank", "How much the adapter can learn."),
            integer("lora_alpha", "LoRA alpha", "How strongly the adapter acts."),
            integer(
                "guard_per_rationale",
                "Answer-only examples",
                "How many for each accepted explanation, so that the model does not forget how to answer.",
            ),
            integer("eval_prompts", "Validation prompts", "At most this many are used to compare versions."),
            choice(
                "primary_metric",
                "Compare versions by",
                "Automatic: ROUGE-L if there are reference explanations, or else the log-likelihood of held-out ones.",
                ("auto", "chosen automatically"),
                ("rouge_l", "ROUGE-L"),
                ("loglik", "log-likelihood"),
            ),
            number(
                "max_answer_drop",
                "Allowed drop in answer accuracy",
                "In percentage points. A version that loses more needs an admin's decision.",
            ),
            switch(
                "blind_gate",
                "Let critics decide",
                "Activate a better-scoring version only once critics prefer it in a blind comparison.",
            ),
        ),
    ),
)
ADVANCED = frozenset(
    {
        "adaptive_overlap",
        "weigh_reliability",
        "uncertain_first",
        "max_open",
        "rejudge",
        "judge_val",
        "gold_minimum",
        "repeat_share",
        "repeat_after",
        "temperatures",
        "top_k_share",
        "top_p",
        "max_new_tokens",
        "redraws",
        "pool_target",
        "pool_for_round",
        "init",
        "objective",
        "preference_beta",
        "pair_weight",
        "picture_weight",
        "anchor_weight",
        "unpaired_weight",
        "batch_size",
        "lora_rank",
        "lora_alpha",
        "guard_per_rationale",
        "eval_prompts",
        "primary_metric",
        "max_answer_drop",
        "blind_gate",
    }
)
"""Settings that most projects leave as they are: they are in a fold."""
ALL_FIELDS = tuple(one for group in GROUPS for one in group.fields)
BY_NAME = {one.name: one for one in ALL_FIELDS}


@functools.cache
def defaults() -> ProjectSettings:
    """Every setting's default."""
    return parse_settings({})


# Text to value and back


def _read_whole(text: str) -> int:
    try:
        return int(text.replace(" ", ""))
    except ValueError as error:
        raise UnreadableValue("Enter a whole number.") from error


def _read_real(text: str) -> float:
    try:
        return float(text.replace(" ", "").replace(",", "."))
    except ValueError as error:
        raise UnreadableValue("Enter a number.") from error


def _read_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_temperatures(text: str) -> list[tuple[float, int]]:
    pairs = []
    for part in text.replace("×", "x").replace(";", ",").split(","):
        if not part.strip():
            continue
        temperature, _, count = part.partition("x")
        try:
            pairs.append((float(temperature), int(count or "1")))
        except ValueError as error:
            raise UnreadableValue(
                f"'{part.strip()}' is not a temperature with a count. Write it as 0.7 x 2."
            ) from error
    return pairs


READERS: Mapping[str, Callable[[str], Any]] = {
    "whole": _read_whole,
    "real": _read_real,
    "lines": _read_lines,
    "temperatures": _read_temperatures,
    "text": str.strip,
    "area": lambda text: text.replace("\r\n", "\n").strip(),
    "select": str,
    "check": lambda text: text == "yes",
}


def format_value(one: SettingField, value: Any) -> str | bool:
    """A setting's value as text for the form."""
    if one.kind == "check":
        return bool(value)
    if one.kind == "lines":
        return "\n".join(value)
    if one.kind == "temperatures":
        return ", ".join(f"{temperature:g} x {count}" for temperature, count in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_setting(name: str, value: Any) -> tuple[str, str]:
    """The label of a setting and its value in words, for people who read it and cannot change it."""
    one = BY_NAME.get(name)
    if one is None:  # of an earlier release
        return name, str(value)
    if one.kind == "check":
        return one.label, "on" if value else "off"
    if one.kind == "select":
        return one.label, dict(one.options).get(value, str(value))
    return one.label, str(format_value(one, value)) or "–"


def typed_values(form: FormData) -> dict[str, str]:
    """The submitted texts, by setting."""
    return {one.name: text_of(form, one.name) for one in ALL_FIELDS}


def read_settings(typed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values and the problems of submitted texts, each by setting."""
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for one in ALL_FIELDS:
        try:
            values[one.name] = READERS[one.kind](typed.get(one.name, ""))
        except UnreadableValue as error:
            problems[one.name] = str(error)
    try:
        ProjectSettings.model_validate(values)
    except ValidationError as error:
        for found in error.errors():
            name = str(found["loc"][0])
            problems.setdefault(name, _sentence(describe_problem(found)))
    return values, problems


def _sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:]}."


# Fields for the template


def form_groups(shown: Mapping[str, str | bool], problems: Mapping[str, str], *, preview_url: str) -> tuple[Group, ...]:
    """The groups with the value and the problem of each field."""
    groups = []
    for group in GROUPS:
        fields = [(one, _field(one, shown, problems, preview_url)) for one in group.fields]
        plain = [(one, field) for one, field in fields if one.name not in ADVANCED]
        groups.append(
            Group(
                group.title,
                wide=tuple(field for one, field in plain if one.wide),
                small=tuple(field for one, field in plain if not one.wide),
                advanced=tuple(field for one, field in fields if one.name in ADVANCED),
            )
        )
    return tuple(groups)


def _field(one: SettingField, shown: Mapping[str, str | bool], problems: Mapping[str, str], preview_url: str) -> Field:
    default = getattr(defaults(), one.name)
    kinds = {"whole": "number", "real": "number", "lines": "area", "temperatures": "text"}
    attributes = NO_ATTRIBUTES
    if one.name == "template":
        attributes = {
            "hx-get": preview_url,
            "hx-trigger": "input delay:250ms",
            "hx-target": "#template-preview",
            "hx-swap": "innerHTML",
            "hx-sync": "this:replace",
        }
    return Field(
        name=one.name,
        label=one.label,
        kind=kinds.get(one.kind, one.kind),
        value=shown[one.name],
        help=one.help,
        default=_default_text(one, default),
        problem=problems.get(one.name, ""),
        options=one.options,
        rows=one.rows,
        reset=_reset_text(one, default),
        changed=shown[one.name] != format_value(one, default),
        attributes=attributes,
    )


def _default_text(one: SettingField, default: Any) -> str | None:
    if one.kind in ("area", "lines") and one.name != "template":
        return None
    return describe_setting(one.name, default)[1]


def _reset_text(one: SettingField, default: Any) -> str:
    """A default as a browser's field has it; `yes` for a box that is ticked."""
    value = format_value(one, default)
    return ("yes" if value else "") if isinstance(value, bool) else value


def current_values(settings: ProjectSettings) -> dict[str, str | bool]:
    """The values of settings as the form shows them."""
    return {one.name: format_value(one, getattr(settings, one.name)) for one in ALL_FIELDS}


def resubmitted_values(typed: Mapping[str, str]) -> dict[str, str | bool]:
    """Submitted texts as the form shows them again."""
    return {one.name: typed[one.name] == "yes" if one.kind == "check" else typed[one.name] for one in ALL_FIELDS}


def join_problems(problems: Sequence[str]) -> str:
    """The sentence above a form with problems."""
    count = len(problems)
    return f"{count} {'field needs' if count == 1 else 'fields need'} attention. Nothing was saved." if count else ""
