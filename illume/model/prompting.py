"""Renders prompt texts from a template, and the texts that continue them. No torch."""

from __future__ import annotations

import re

DEFAULT_TEMPLATE = "Q: {question} A: {answer}, seeing that"

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NAMES = ("question", "answer")


def check_template(template: str) -> None:
    """Raises ValueError, naming the placeholder, unless `template` holds {question} and then {answer}, once each."""
    names = _PLACEHOLDER.findall(template)
    for name in names:
        if name not in _NAMES:
            raise ValueError(
                f"the template has an unknown placeholder {{{name}}}: only {{question}} and {{answer}} exist"
            )
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


def render_rationale_prompt(question: str, answer: str, *, template: str = DEFAULT_TEMPLATE) -> str:
    """The prompt for a rationale. It has no trailing white space: `rationale_text` starts with a space."""
    check_template(template)
    return _fill(template, {"question": question.strip(), "answer": answer.strip()}).rstrip()


def render_answer_prompt(question: str, *, template: str = DEFAULT_TEMPLATE) -> str:
    """The prompt for an answer: the template up to {answer}, without trailing white space."""
    check_template(template)
    return _fill(template.partition("{answer}")[0], {"question": question.strip()}).rstrip()


def answer_text(answer: str) -> str:
    """The answer as the text that continues an answer prompt."""
    return " " + answer.strip()


def rationale_text(rationale: str) -> str:
    """The rationale as the text that continues a rationale prompt."""
    return " " + rationale.strip()
