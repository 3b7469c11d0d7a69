"""What machine critics read: a rationale before the answer, or a rationale and the question whether it fits.

`helpfulness` (Stammer et al. 2023, Learning by Self-Explaining, arXiv 2309.08395) reads the question, the rationale
with the words of the answer masked, and is asked for the answer. `verifier` reads question, answer and rationale, and
is asked whether that is so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from illume.critics.masking import mask_answer
from illume.critics.rows import JudgedRationale
from illume.errors import VlmError
from illume.model.prompting import (
    PromptText,
    answer_prompt,
    answer_text,
    extend_prompt,
    rationale_prompt,
    rationale_text,
)
from illume.model.vlm import ImageLike, Vlm, encode_continuation
from illume.parts import TextPart
from illume.records import Example
from illume.sampling.scoring import Continuation
from illume.settings import CriticSettings
from illume.tuning.batches import TrainingText
from illume.tuning.preferences import blank_images

QUESTION = ". Q: is it so? A:"
YES, NO = " yes", " no"


def helped_prompt(example: Example, rationale: str, *, template: str) -> PromptText:
    """The answer prompt of an example whose question is followed by the rationale, without the words of the answer."""
    hint = f"({mask_answer(rationale.strip(), str(example.answer), language=example.language)})"
    parts = (*example.parts, TextPart(hint)) if example.parts else ()
    return answer_prompt(replace(example, question=f"{example.question} {hint}", parts=parts), template=template)


def answer_continuation(vlm: Vlm, prompt: PromptText, images: Sequence[ImageLike], answer: str) -> Continuation:
    """The answer after a prompt."""
    return Continuation(prompt, tuple(images), tuple(encode_continuation(vlm, answer_text(answer))))


def fits_prompt(example: Example, rationale: str, *, template: str) -> PromptText:
    """The rationale prompt, the rationale, and the question whether that is so."""
    whole = rationale_prompt(example, str(example.answer), template=template)
    return extend_prompt(whole, rationale_text(rationale).rstrip(" .") + QUESTION)


def yes_and_no(vlm: Vlm) -> tuple[tuple[int, ...], int, int]:
    """The tokens that yes and no begin with alike, and the first of each in which they differ.

    Raises VlmError if the model's tokenizer cannot tell them apart.
    """
    yes, no = encode_continuation(vlm, YES), encode_continuation(vlm, NO)
    for place, (one, other) in enumerate(zip(yes, no, strict=False)):
        if one != other:
            return tuple(yes[:place]), one, other
    raise VlmError(f"the tokenizer of {vlm.base} does not tell yes from no")


def critic_texts(vlm: Vlm, judged: Sequence[JudgedRationale], settings: CriticSettings) -> list[TrainingText]:
    """The training texts of a machine critic.

    `helpfulness` learns to answer with and without each picked rationale, seeing the pictures and blank ones, so that
    it knows all four prompts by which it rates. `verifier` learns yes for what was picked and no for what was not.
    """
    if settings.kind == "helpfulness":
        return _helpfulness_texts(vlm, [one for one in judged if one.picked], settings.tuning.template)
    shared, yes, no = yes_and_no(vlm)
    return [
        TrainingText(
            "answer",
            one.example.images,
            fits_prompt(one.example, one.rationale, template=settings.tuning.template),
            (*shared, yes if one.picked else no),
        )
        for one in judged
    ]


def _helpfulness_texts(vlm: Vlm, picked: Sequence[JudgedRationale], template: str) -> list[TrainingText]:
    texts, plain = [], set()
    for one in picked:
        example = one.example
        prompts = [helped_prompt(example, one.rationale, template=template)]
        if example.id not in plain:
            plain.add(example.id)
            prompts.append(answer_prompt(example, template=template))
        ids = tuple(encode_continuation(vlm, answer_text(str(example.answer))))
        for images in (example.images, blank_images(example.images)):
            texts += [TrainingText("answer", images, prompt, ids) for prompt in prompts]
    return texts
