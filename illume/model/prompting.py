"""Prompt texts: what stands before the answer, what stands before the rationale, and what follows. No torch."""

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
            "the template must hold {question} before {answer}: the answer prompt is what stands before it"
        )


def _fill(template: str, values: dict[str, str]) -> str:
    """Replaces placeholders in one pass, so that braces inside the values stay text."""
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def render_rationale_prompt(question: str, answer: str, *, template: str = DEFAULT_TEMPLATE) -> str:
    """The text a rationale follows. Ends without white space: `rationale_text` brings its own."""
    check_template(template)
    return _fill(template, {"question": question.strip(), "answer": answer.strip()}).rstrip()


def render_answer_prompt(question: str, *, template: str = DEFAULT_TEMPLATE) -> str:
    """The text an answer follows: the template cut before {answer}."""
    check_template(template)
    return _fill(template.partition("{answer}")[0], {"question": question.strip()}).rstrip()


def answer_text(answer: str) -> str:
    """The continuation of an answer prompt."""
    return " " + answer.strip()


def rationale_text(rationale: str) -> str:
    """The continuation of a rationale prompt."""
    return " " + rationale.strip()
