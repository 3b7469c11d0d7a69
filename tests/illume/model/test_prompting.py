"""Prompt texts from templates."""

from __future__ import annotations

from typing import Any

import pytest

from illume.fields.policies import Policy, PolicyCategory
from illume.model.prompting import (
    answer_text,
    check_template,
    rationale_text,
    render_answer_prompt,
    render_rationale_prompt,
)


class TestRender:
    def test_default_template(self) -> None:
        assert render_rationale_prompt("where is it?", "at sea") == "Q: where is it? A: at sea, seeing that"
        assert render_answer_prompt("where is it?") == "Q: where is it? A:"

    def test_braces_in_texts_stay_text(self) -> None:
        prompt = render_rationale_prompt("is {answer} {0} {{x}}?", "{question}")
        assert prompt == "Q: is {answer} {0} {{x}}? A: {question}, seeing that"

    def test_continuations_start_with_one_space(self) -> None:
        assert answer_text("  yes ") == " yes"
        assert rationale_text("the sea is blue\n") == " the sea is blue"

    def test_own_template(self) -> None:
        template = "Why is '{answer}' right for '{question}'?"
        with pytest.raises(ValueError, match="before"):
            render_rationale_prompt("q", "a", template=template)
        assert render_answer_prompt("q", template="[{question}] -> {answer} | why? ") == "[q] ->"
        assert render_rationale_prompt("q", "a", template="[{question}] -> {answer} | why? ") == "[q] -> a | why?"

    @pytest.mark.parametrize(
        ("template", "named"),
        [
            ("A: {answer}", "{question}"),
            ("Q: {question}", "{answer}"),
            ("{question} {answer} {image}", "{image}"),
            ("{question} {question} {answer}", "{question}"),
            ("{question!r} {answer}", "{question!r}"),
        ],
    )
    def test_bad_template_is_named(self, template: str, named: str) -> None:
        with pytest.raises(ValueError) as caught:
            render_rationale_prompt("q", "a", template=template)
        assert named in str(caught.value)


class TestPolicy:
    POLICY = Policy(categories=(PolicyCategory(name="Dogs {answer}", default="none", allowed="any", strict="no"),))
    TEMPLATE = "Rules: {policy}\n{question} A: {answer}, as"

    def test_the_text_of_the_prompts_policy(self) -> None:
        given: dict[str, Any] = {"template": self.TEMPLATE, "policy": self.POLICY}
        assert render_answer_prompt("is it so?", **given) == "Rules: Dogs {answer} (default): none\nis it so? A:"
        assert render_rationale_prompt("q", "a", **given) == "Rules: Dogs {answer} (default): none\nq A: a, as"

    def test_policy_and_template_go_together(self) -> None:
        with pytest.raises(ValueError, match=r"the template has no \{policy\}"):
            render_answer_prompt("q", policy=self.POLICY)
        with pytest.raises(ValueError, match="the prompt has no policy"):
            render_rationale_prompt("q", "a", template=self.TEMPLATE)

    def test_projects_have_no_policies_yet(self) -> None:
        with pytest.raises(ValueError, match=r"unknown placeholder \{policy\}"):
            check_template(self.TEMPLATE)

    @pytest.mark.parametrize("template", ["{policy} {policy} {question} {answer}", "{question} {answer} {policy}"])
    def test_once_before_the_answer(self, template: str) -> None:
        with pytest.raises(ValueError, match=r"once, before \{answer\}"):
            check_template(template, policies=True)
