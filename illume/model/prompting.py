"""Renders prompts from a template, and the texts that continue them. No torch."""

from __future__ import annotations

import re

from illume.fields.policies import Policy
from illume.parts import ImagePart, InParts, Parts, TextPart, fill_parts
from illume.phrases import _
from illume.records import Example

PromptText = str | Parts
"""What a model reads before it writes: parts in order. A text alone comes after all images of its prompt."""

DEFAULT_TEMPLATE = "Q: {question} A: {answer}, seeing that"

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NAMES = ("question", "answer")
_POLICY = "policy"


def check_template(template: str, *, policies: bool = False) -> None:
    """Raises ValueError, naming the placeholder, unless `template` holds {question} and then {answer}, once each.

    With `policies` it may hold {policy} once as well, before {answer}.
    """
    names = _PLACEHOLDER.findall(template)
    for name in names:
        if name not in _NAMES and not (policies and name == _POLICY):
            raise ValueError(
                _(
                    "the template has an unknown placeholder %(placeholder)s: "
                    "only {policy}, {question} and {answer} exist",
                    placeholder=f"{{{name}}}",
                )
                if policies
                else _(
                    "the template has an unknown placeholder %(placeholder)s: only {question} and {answer} exist",
                    placeholder=f"{{{name}}}",
                )
            )
    if _POLICY in names:
        if names.count(_POLICY) > 1 or "answer" in names[: names.index(_POLICY)]:
            raise ValueError(_("the template may hold {policy} once, before {answer}"))
        names.remove(_POLICY)
    for name in _NAMES:
        if names.count(name) != 1:
            raise ValueError(
                _(
                    "the template must hold %(placeholder)s exactly once, and holds it %(count)s times",
                    placeholder=f"{{{name}}}",
                    count=names.count(name),
                )
            )
    if names != list(_NAMES):
        raise ValueError(
            _("the template must hold {question} before {answer}: the text before {answer} is the answer prompt")
        )


def _fill(template: str, values: dict[str, str]) -> str:
    """Replaces all placeholders in one pass, so that braces inside a value stay literal text."""
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def render_rationale_prompt(
    question: str, answer: str, *, template: str = DEFAULT_TEMPLATE, policy: Policy | None = None
) -> str:
    """The prompt for a rationale. It has no trailing white space: `rationale_text` starts with a space.

    Raises ValueError if there is a policy and the template has no {policy}, or the other way round.
    """
    _check_policy(template, policy)
    return _fill(template, _values(question, policy) | {"answer": answer.strip()}).rstrip()


def render_answer_prompt(question: str, *, template: str = DEFAULT_TEMPLATE, policy: Policy | None = None) -> str:
    """The prompt for an answer: the template up to {answer}, without trailing white space.

    Raises ValueError if there is a policy and the template has no {policy}, or the other way round.
    """
    _check_policy(template, policy)
    return _fill(template.partition("{answer}")[0], _values(question, policy)).rstrip()


def _check_policy(template: str, policy: Policy | None) -> None:
    check_template(template, policies=True)
    if (policy is None) == (f"{{{_POLICY}}}" in template):
        raise ValueError(
            "the template has {policy}, and the prompt has no policy"
            if policy is None
            else "the prompt has a policy, and the template has no {policy}"
        )


def _values(question: str, policy: Policy | None) -> dict[str, str]:
    return {"question": question.strip(), _POLICY: "" if policy is None else policy.text.strip()}


def rationale_prompt(example: Example, answer: str, *, template: str = DEFAULT_TEMPLATE) -> PromptText:
    """The prompt for a rationale: {question} stands for the parts in order. In the short form it is a text alone.

    Raises ValueError if there is a policy and the template has no {policy}, or the other way round.
    """
    if not example.parts:
        return render_rationale_prompt(example.question, answer, template=template, policy=example.policy)
    _check_policy(template, example.policy)
    return prompt_parts(example, answer, template=template, policy=example.policy)


def answer_prompt(example: Example, *, template: str = DEFAULT_TEMPLATE) -> PromptText:
    """The prompt for an answer: {question} stands for the parts in order. In the short form it is a text alone.

    Raises ValueError if there is a policy and the template has no {policy}, or the other way round.
    """
    if not example.parts:
        return render_answer_prompt(example.question, template=template, policy=example.policy)
    _check_policy(template, example.policy)
    return prompt_parts(example, None, template=template, policy=example.policy)


def prompt_parts(prompt: InParts, answer: str | None, *, template: str, policy: Policy | None = None) -> Parts:
    """The parts of a prompt between the filled halves of the template, without trailing white space.

    Without an answer they end before {answer}.
    """
    values = _values("", policy)
    if answer is None:
        template = template.partition("{answer}")[0]
    else:
        values["answer"] = answer.strip()
    before, _, after = template.partition("{question}")
    return fill_parts(prompt, _fill(before, values), _fill(after, values).rstrip())


def extend_prompt(prompt: PromptText, text: str) -> PromptText:
    """The prompt with `text` at its end."""
    if isinstance(prompt, str):
        return prompt + text
    if prompt and isinstance(prompt[-1], TextPart):
        return (*prompt[:-1], TextPart(prompt[-1].text + text))
    return (*prompt, TextPart(text))


def count_characters(prompt: PromptText) -> int:
    """The length of the texts of a prompt."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(part.text) for part in prompt if isinstance(part, TextPart))


def shown_images(prompt: PromptText, n_images: int) -> tuple[int, ...]:
    """The positions of the images that a prompt with `n_images` images shows, in order."""
    if isinstance(prompt, str):
        return tuple(range(n_images))
    return tuple(part.image for part in prompt if isinstance(part, ImagePart))


def count_pictures(prompt: PromptText, n_images: int) -> int:
    """How many pictures a prompt with `n_images` images shows; one that is shown twice counts twice."""
    return len(shown_images(prompt, n_images))


def answer_text(answer: str) -> str:
    """The answer as the text that continues an answer prompt."""
    return " " + answer.strip()


def rationale_text(rationale: str) -> str:
    """The rationale as the text that continues a rationale prompt."""
    return " " + rationale.strip()
