"""The settings of a project as form fields: labels, help, and conversion between text and values."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData

from app.services.projects.projects import ProjectSettings, parse_settings
from app.web.access import text_of
from app.web.forms import NO_ATTRIBUTES, Field
from illume.phrases import _, followed_by, ngettext, pgettext, told
from illume.validation import describe_problem, split_place


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
        _("Judging"),
        (
            SettingField(
                "instructions",
                _("Instructions"),
                _("Shown to critics beside what they judge."),
                "area",
                rows=4,
                wide=True,
            ),
            SettingField(
                "instruction_examples",
                _("Examples"),
                _("One per line: + if it fits or - if it does not, then the explanation, then | and the reason."),
                "lines",
                rows=4,
                wide=True,
            ),
            SettingField(
                "language",
                _("Language of the texts"),
                _(
                    "Of questions, answers and explanations, as a tag such as de or pt-BR. Answers are compared by its"
                    " rules. A prompt whose metadata name a language keeps its own."
                ),
                "text",
            ),
            integer("overlap", _("Critics per prompt"), _("How many critics judge the same explanations.")),
            switch(
                "adaptive_overlap",
                _("Add critics only when needed"),
                _("Start with one, and add more up to that number if they are unsure, flag the prompt or disagree."),
            ),
            choice(
                "aggregation",
                _("Accepted when picked by"),
                _("How the picks of several critics decide which explanations are accepted."),
                ("any", _("any critic")),
                ("majority", _("more than half")),
                ("all", _("all critics")),
            ),
            switch(
                "weigh_reliability", _("Weight by reliability"), _("In a majority, by accuracy on check questions.")
            ),
            choice(
                "next_prompt",
                _("Which prompt comes next"),
                _(
                    "Within a priority. The machine critic decides once it has rated the explanations of a prompt."
                    " Until then, and without a machine critic, the oldest one comes first."
                ),
                ("priority", _("the oldest one")),
                ("uncertain", _("the one the model is least certain about")),
                ("critic", _("the one the machine critic is least certain about")),
            ),
            number(
                "lease_minutes",
                _("Reservation time (minutes)"),
                _("A prompt not judged by then goes to another critic."),
            ),
            integer("max_open", _("Reserved prompts per critic"), _("The judging page shows one and loads two ahead.")),
            switch("rejudge", _("Judge again"), _("Offer prompts that already have an accepted explanation again.")),
            switch(
                "judge_val",
                _("Judge validation prompts"),
                _("Offer them to critics too. They are never used for training."),
            ),
            switch(
                "blur_images",
                _("Blur images"),
                _("Hide images until a critic asks to see them. Single prompts can be blurred on their own page."),
            ),
            switch(
                "submit_on_pick",
                _("Submit on a single pick"),
                _("One pick is the verdict. What was not picked does not count as rejected."),
            ),
            text_list("skip_reasons", _("Reasons to skip"), _("One per line. The first nine get a keyboard shortcut.")),
            text_list("flag_reasons", _("Reasons to flag"), _("One per line. A flagged prompt is put on hold.")),
            text_list("shortcoming_tags", _("Shortcomings"), _("One per line: what can be wrong with an explanation.")),
        ),
    ),
    SettingGroup(
        _("Quality"),
        (
            number(
                "gold_share",
                _("Share of check questions"),
                _("From 0 to 1. Critics cannot tell them from other prompts."),
            ),
            number(
                "gold_accuracy",
                _("Required accuracy"),
                _("Critics below it on check questions are paused; 0 pauses nobody."),
            ),
            integer(
                "gold_minimum", _("Check questions before pausing"), _("Nobody is paused before answering this many.")
            ),
            integer(
                "practice_prompts",
                _("Practice prompts"),
                _("New critics start with this many and see the right verdict after each."),
            ),
            number(
                "repeat_share",
                _("Repeat rate"),
                _("From 0 to 1: how often a critic is shown a prompt again, reordered."),
            ),
            integer(
                "repeat_after", _("Prompts before a repeat"), _("How many others a critic judges first, at least.")
            ),
        ),
    ),
    SettingGroup(
        _("Explanations"),
        (
            SettingField(
                "template",
                _("Prompt template"),
                _("What the model reads before it writes. It contains {question} and then {answer}, once each."),
                "area",
                rows=2,
                wide=True,
            ),
            SettingField(
                "base_model",
                _("Base model"),
                _(
                    "'starter', a folder, or a model name on the hub. @ and a commit after it keep it to that "
                    "revision. Another model writes explanations anew for prompts that no critic has been given yet; "
                    "verdicts stay, with the model that wrote what they judge. It cannot be changed after the first "
                    "training round."
                ),
                "text",
                wide=True,
            ),
            SettingField(
                "engine",
                _("Written by"),
                _(
                    "'local' for the workers of this installation, or the name of a model server that an admin has"
                    " added."
                ),
                "text",
            ),
            SettingField(
                "temperatures",
                _("Sampling temperatures"),
                _("Each with how many explanations to sample at it, such as 0 x 1, 0.3 x 2. Zero is greedy."),
                "temperatures",
                wide=True,
            ),
            SettingField(
                "show",
                _("Explanations to choose from"),
                _(
                    "Empty: critics see every explanation that is written. 12: twelve are written for each prompt, "
                    "and the machine critic chooses from them as many as the temperatures say: its best, its lowest "
                    "and some between. One prompt in ten is left out, to measure what this does. Without a trained "
                    "machine critic it does nothing."
                ),
                "show",
            ),
            number(
                "top_k_share", _("Share of the vocabulary"), _("From 0 to 1. Only the most likely tokens are sampled.")
            ),
            number(
                "top_p", _("Top p"), _("Only the most likely tokens that together reach this probability; 1 for all.")
            ),
            integer("max_new_tokens", _("Maximum length (tokens)"), _("The longest an explanation may be.")),
            integer("redraws", _("Retries for duplicates"), _("How often a duplicate explanation is sampled again.")),
            integer("pool_target", _("Prompts kept ready"), _("How many have explanations waiting for critics.")),
            integer(
                "pool_for_round",
                _("Prompts ready before training"),
                _("How many before a training round may pause sampling."),
            ),
        ),
    ),
    SettingGroup(
        _("Structured answers"),
        (
            SettingField(
                "answer_fields",
                _("Fields of answers"),
                _(
                    "A list in JSON, in the order in which the model writes them; empty: answers are texts. "
                    "Exactly one field holds the explanation. “choices” of a category can be “policy”: the categories "
                    "of the prompt's policy."
                ),
                "json",
                rows=6,
                wide=True,
            ),
        ),
    ),
    SettingGroup(
        _("Training rounds"),
        (
            integer("round_every", _("Prompts per training round"), _("How many newly accepted prompts start one.")),
            switch(
                "auto_rounds", _("Start automatically"), _("Start a training round as soon as there are that many.")
            ),
            choice(
                "init",
                _("Start from"),
                _("Whether a training round continues from the active version or starts over."),
                ("continue", _("the active version")),
                ("from_base", _("the base model")),
            ),
            choice(
                "objective",
                _("Learn from"),
                _(
                    "Rejections are explanations that critics read and did not pick. On drawn scenes, learning from "
                    "them too made sampled explanations truer where they vary as much, and the single likeliest one a "
                    "little less often true."
                ),
                ("picks", _("accepted explanations")),
                ("picks_and_rejections", _("accepted and rejected explanations")),
            ),
            number("preference_beta", _("Sharpness of pairs"), _("With rejections: how far apart a pair is pushed.")),
            number("pair_weight", _("Weight of pairs"), _("With rejections: accepted against rejected.")),
            number(
                "picture_weight",
                _("Weight of pictures"),
                _("With rejections: an accepted explanation with its own pictures against another prompt's."),
            ),
            number(
                "anchor_weight", _("Weight of the anchor"), _("With rejections: keeps accepted explanations likely.")
            ),
            number(
                "unpaired_weight",
                _("Weight where nothing fitted"),
                _("With rejections: explanations of prompts for which critics chose None fits."),
            ),
            choice(
                "machine_critic",
                _("Machine critic"),
                _(
                    "Trained after each training round on what people picked, to rate explanations. "
                    "It takes about as long as the round."
                ),
                ("off", _("none")),
                ("verifier", _("learns what people pick")),
                ("helpfulness", _("tries to answer with the explanation")),
            ),
            SettingField(
                "machine_accepts",
                _("Accepted by machine from"),
                _(
                    "Empty: the machine critic accepts nothing. 0.9: training also uses explanations of prompts nobody "
                    "has judged, if people picked nine of ten that it rates as highly. Emptying it takes all of them "
                    "back."
                ),
                "precision",
            ),
            integer("epochs", _("Epochs"), _("The best one on the validation prompts is kept.")),
            number("learning_rate", _("Learning rate"), _("For the AdamW optimiser.")),
            integer("batch_size", _("Batch size"), _("Examples per optimiser step.")),
            switch(
                "gradient_checkpointing",
                _("Save memory"),
                _("Training takes longer and fits on smaller devices (gradient checkpointing)."),
            ),
            integer("lora_rank", _("LoRA rank"), _("How much the adapter can learn.")),
            integer("lora_alpha", _("LoRA alpha"), _("How strongly the adapter acts.")),
            integer(
                "guard_per_rationale",
                _("Answer-only examples"),
                _("How many for each accepted explanation, so that the model does not forget how to answer."),
            ),
            integer("eval_prompts", _("Validation prompts"), _("At most this many are used to compare versions.")),
            choice(
                "primary_metric",
                _("Compare versions by"),
                _(
                    "Automatic: ROUGE-L if there are reference explanations, "
                    "or else the log-likelihood of held-out ones."
                ),
                ("auto", _("chosen automatically")),
                ("rouge_l", _("ROUGE-L")),
                ("loglik", _("log-likelihood")),
            ),
            number(
                "max_answer_drop",
                _("Allowed drop in answer accuracy"),
                _("In percentage points. A version that loses more needs an admin's decision."),
            ),
            switch(
                "blind_gate",
                _("Let critics decide"),
                _("Activate a better-scoring version only once critics prefer it in a blind comparison."),
            ),
        ),
    ),
)
FIELD_DEFAULTS: Mapping[str, Any] = {
    "role": None,
    "choices": [],
    "ordinal": False,
    "positive": [],
    "none": None,
    "required": True,
    "description": "",
}
RATING: Mapping[str, Any] = {
    "name": "rating",
    "kind": "choice",
    "role": "rating",
    "choices": ["Unsafe", "Safe"],
    "positive": ["Unsafe"],
    "description": "Whether the picture violates the rules.",
}
CATEGORY: Mapping[str, Any] = {
    "name": "category",
    "kind": "choice",
    "role": "category",
    "choices": "policy",
    "none": "NA: None applying",
    "description": "The category of the policy that it is about.",
}
RATIONALE: Mapping[str, Any] = {
    "name": "rationale",
    "kind": "text",
    "role": "rationale",
    "description": "What is seen, and which rule decides.",
}
PRESETS: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...] = (
    (_("Rating, category and explanation under a policy"), (RATING, CATEGORY, RATIONALE)),
    (_("Explanation first, then rating and category"), (RATIONALE, RATING, CATEGORY)),
    (_("Rating and explanation without a policy"), (RATING, RATIONALE)),
)
"""Fields of answers to start from. What is in them is data, which models and critics read as it is."""
ADVANCED = frozenset(
    {
        "adaptive_overlap",
        "weigh_reliability",
        "next_prompt",
        "max_open",
        "rejudge",
        "judge_val",
        "gold_minimum",
        "repeat_share",
        "repeat_after",
        "engine",
        "temperatures",
        "show",
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
        "machine_critic",
        "machine_accepts",
        "batch_size",
        "gradient_checkpointing",
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
        raise UnreadableValue(_("Enter a whole number.")) from error


def _read_real(text: str) -> float:
    try:
        return float(text.replace(" ", "").replace(",", "."))
    except ValueError as error:
        raise UnreadableValue(_("Enter a number.")) from error


def _read_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_temperatures(text: str) -> list[tuple[float, int]]:
    pairs = []
    for part in text.replace("×", "x").replace(";", ",").split(","):
        if not part.strip():
            continue
        temperature, _times, count = part.partition("x")
        try:
            pairs.append((float(temperature), int(count or "1")))
        except ValueError as error:
            raise UnreadableValue(
                _("'%(text)s' is not a temperature with a count. Write it as 0.7 x 2.", text=part.strip())
            ) from error
    return pairs


def _read_json(text: str) -> Any:
    try:
        return orjson.loads(text) if text.strip() else []
    except orjson.JSONDecodeError as error:
        raise UnreadableValue(
            _(
                "This is not JSON: %(problem)s, in line %(line)s.",
                problem=error.msg.partition(": line")[0],
                line=error.lineno,
            )
        ) from error


def _read_precision(text: str) -> float | None:
    return _read_real(text) if text.strip() else None


def _read_show(text: str) -> dict[str, Any]:
    return {"of": _read_whole(text), "select": "spread"} if text.strip() else {"select": "all"}


READERS: Mapping[str, Callable[[str], Any]] = {
    "json": _read_json,
    "whole": _read_whole,
    "real": _read_real,
    "lines": _read_lines,
    "temperatures": _read_temperatures,
    "precision": _read_precision,
    "show": _read_show,
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
    if one.kind == "json":
        return _format_fields(value) if value else ""
    if one.kind == "precision":
        return "" if value is None else f"{_stored(value)['precision']:g}"
    if one.kind == "show":
        held = _stored(value)
        return str(held["of"]) if held["select"] == "spread" else ""
    if one.kind == "temperatures":
        return ", ".join(f"{temperature:g} x {count}" for temperature, count in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _stored(value: BaseModel | Mapping[str, Any]) -> Mapping[str, Any]:
    """A setting that has parts, as it is stored; a round's snapshot has it so already."""
    return value.model_dump() if isinstance(value, BaseModel) else value


def _format_fields(fields: Sequence[Mapping[str, Any]]) -> str:
    """Fields of answers as JSON, a line a field, without what is as it is by default."""
    kept = ({key: value for key, value in one.items() if value != FIELD_DEFAULTS.get(key)} for one in fields)
    lines = (json.dumps(one, ensure_ascii=False) for one in kept)
    return "[\n  {}\n]".format(",\n  ".join(lines))


def describe_setting(name: str, value: Any) -> tuple[str, str]:
    """The label of a setting and its value in words, for people who read it and cannot change it."""
    one = BY_NAME.get(name)
    if one is None:  # of an earlier release
        return name, str(value)
    if one.kind == "check":
        return one.label, pgettext("setting", "on") if value else pgettext("setting", "off")
    if one.kind == "select":
        return one.label, dict(one.options).get(value, str(value))
    if one.kind == "json":
        return one.label, ", ".join(field["name"] for field in value) or "–"
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
            problems[one.name] = error.args[0]
    precision = values.get("machine_accepts")
    if precision is not None:
        values["machine_accepts"] = {"critic": values["machine_critic"], "precision": precision}
        if values["machine_critic"] == "off":
            problems["machine_accepts"] = _("Choose a machine critic first, or leave this empty.")
    try:
        ProjectSettings.model_validate(values)
    except ValidationError as error:
        for found in error.errors():
            name = str(found["loc"][0])
            problems.setdefault(name, problem_words(name, describe_problem(found)))
    return values, problems


def changed_settings(values: Mapping[str, Any], before: ProjectSettings) -> dict[str, Any]:
    """What a form changes: the values that differ. Others may then follow from these, such as the template."""
    after = ProjectSettings.model_validate({**before.model_dump(), **values})
    # Where all are shown, the form does not say how many there would be to choose from.
    same = {"show"} if after.show.select == before.show.select == "all" else set()
    changed = [name for name in values if name not in same and getattr(after, name) != getattr(before, name)]
    return {name: getattr(after, name) for name in changed}


def problem_words(name: str, said: str) -> str:
    """What is wrong with a setting, as a sentence; in a list of fields with the number of the field, from 1."""
    place, rest = split_place(name, told(said))
    index, _dot, key = place.removeprefix(f"{name}.").partition(".")
    if not index.isdigit():
        return _sentence(rest.removesuffix("."))
    problem = f"{key}: {rest}" if key else rest
    return _("Field %(number)s: %(problem)s.", number=int(index) + 1, problem=problem.removesuffix("."))


def _sentence(message: str) -> str:
    words = told(message)
    return _("%(problem)s.", problem=f"{words[:1].upper()}{words[1:]}")


# Fields for the template


def field_presets() -> tuple[tuple[str, str], ...]:
    """The fields of answers that the form can be filled with: what each is called, and its text."""
    return tuple((label, _format_fields(fields)) for label, fields in PRESETS)


def form_groups(
    shown: Mapping[str, str | bool],
    problems: Mapping[str, str],
    *,
    preview_url: str,
    notes: Mapping[str, str] = NO_ATTRIBUTES,
) -> tuple[Group, ...]:
    """The groups with the value and the problem of each field; `notes` are sentences that follow its help."""
    groups = []
    for group in GROUPS:
        fields = [(one, _field(one, shown, problems, preview_url, notes.get(one.name))) for one in group.fields]
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


def _field(
    one: SettingField,
    shown: Mapping[str, str | bool],
    problems: Mapping[str, str],
    preview_url: str,
    note: str | None,
) -> Field:
    default = getattr(defaults(), one.name)
    kinds = {
        "whole": "number",
        "real": "number",
        "lines": "area",
        "temperatures": "text",
        "precision": "text",
        "show": "number",
        "json": "area",
    }
    attributes = {"spellcheck": "false"} if one.kind == "json" else NO_ATTRIBUTES
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
        help=one.help if note is None else followed_by(one.help, note),
        default=_default_text(one, default),
        problem=problems.get(one.name, ""),
        options=one.options,
        rows=one.rows,
        reset=_reset_text(one, default),
        changed=shown[one.name] != format_value(one, default),
        attributes=attributes,
    )


def _default_text(one: SettingField, default: Any) -> str | None:
    if one.kind in ("area", "lines", "json") and one.name != "template":
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
    return (
        ngettext(
            "%(num)s field needs attention. Nothing was saved.",
            "%(num)s fields need attention. Nothing was saved.",
            count,
        )
        if count
        else ""
    )
