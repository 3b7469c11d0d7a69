"""Renders prompt texts from a template, and the texts that continue them. No torch."""

from __future__ import annotations

import re

from illume.fields.policies import Policy

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
            exist = "{policy}, {question} and {answer}" if policies else "{question} and {answer}"
            raise ValueError(f"the template has an unknown placeholder {{{name}}}: only {exist} exist")
    if _POLICY in names:
        if names.count(_POLICY) > 1 or "answer" in names[: names.index(_POLICY)]:
            raise ValueError("the template may hold {policy} once, before {answer}")
        names.remove(_POLICY)
    for name in _NAMES:
        if names.count(name) != 1:
            raise ValueError(f"the template must hold {{{name}}} exactly once, and holds it {names.count(name)} times")
    if names != list(_NAMES):
        raise ValueError(
            "the template must hold {question} before {answer}: the text before {answer} is the answer prompt"
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


def answer_text(answer: str) -> str:
    """The answer as the text that continues an answer prompt."""
    return " " + answer.strip()


def rationale_text(rationale: str) -> str:
    """The rationale as the text that continues a rationale prompt."""
    return " " + rationale.strip()
