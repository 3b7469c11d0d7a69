"""Prompts of ordered parts as model inputs: pictures in their places, texts that hold placeholders, and the probe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from illume.errors import VlmError
from illume.model.encodable import find_unreadable, list_unreadable
from illume.model.prompting import answer_prompt, rationale_prompt
from illume.model.vlm import (
    IGNORED,
    Vlm,
    append_continuations,
    bare_model,
    decode,
    encode,
    encode_continuation,
    find_pictures_first,
    load_vlm,
    reads_pictures_first,
    wrap_prompt,
)
from illume.parts import ImagePart, Parts, TextPart
from illume.records import Example
from tests.illume.families import EACH_FAMILY, FAMILIES, LLAVA_1_5, make_images, make_llava

PICTURES_FIRST = {"paligemma"}
IN_ORDER = (TextPart("Q: one"), ImagePart(0), TextPart("two"), ImagePart(1), TextPart("what is it? A:"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    folder = tmp_path_factory.mktemp("models") / request.param
    return load_vlm(str(FAMILIES[request.param](folder)), device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    """LLaVA without a chat template."""
    return load_vlm(str(make_llava(tmp_path_factory.mktemp("models") / "plain", chat=False)), device="cpu")


def logits(vlm: Vlm, prompt: Parts, pictures: list[str]) -> torch.Tensor:
    ready, _ = append_continuations(vlm, encode(vlm, [prompt], [pictures]), [encode_continuation(vlm, " red")])
    with torch.inference_mode():
        result: torch.Tensor = bare_model(vlm)(**ready).logits[0, -1]
    return result


def text_of(vlm: Vlm, prompt: str | Parts, pictures: list[str]) -> str:
    """What the model reads, with one mark for each picture."""
    ids = encode(vlm, [prompt], [pictures])["input_ids"][0]
    text = str(vlm.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return text.replace("<image>" * 16, "@")


class TestOrder:
    def test_swapping_the_pictures_changes_the_logits(self, vlm: Vlm, images: list[str]) -> None:
        one, two = logits(vlm, IN_ORDER, images[:2]), logits(vlm, IN_ORDER, images[1::-1])
        assert not torch.allclose(one, two, atol=1e-6)

    def test_moving_a_text_changes_them_where_the_family_keeps_order(self, vlm: Vlm, images: list[str]) -> None:
        moved = (IN_ORDER[0], IN_ORDER[2], IN_ORDER[1], *IN_ORDER[3:])
        one, two = logits(vlm, IN_ORDER, images[:2]), logits(vlm, moved, images[:2])
        keeps_order = vlm.processor.__class__.__name__.removesuffix("Processor").lower() not in PICTURES_FIRST
        assert torch.allclose(one, two, atol=1e-6) is not keeps_order

    def test_the_probe_finds_where_pictures_land(self, vlm: Vlm) -> None:
        name = vlm.processor.__class__.__name__.removesuffix("Processor").lower()
        assert find_pictures_first(replace(vlm, model=None)) is (name in PICTURES_FIRST)

    def test_a_picture_that_is_shown_twice(self, vlm: Vlm, images: list[str]) -> None:
        again = (*IN_ORDER[:3], ImagePart(0), IN_ORDER[4])
        assert torch.allclose(logits(vlm, again, images[:1]), logits(vlm, IN_ORDER, [images[0]] * 2), atol=1e-6)

    def test_padding_changes_nothing(self, vlm: Vlm, images: list[str]) -> None:
        prompts: list[str | Parts] = ["Q: what is it? A:", IN_ORDER]
        inputs = encode(vlm, prompts, [images[2:3], images[:2]])
        rows = [encode_continuation(vlm, " red")] * 2
        ready, labels = append_continuations(vlm, inputs, rows)
        with torch.inference_mode():
            together = bare_model(vlm)(**ready).logits[1, -1]
        assert labels[1][labels[1] != IGNORED].tolist() == rows[1]
        assert torch.allclose(together, logits(vlm, IN_ORDER, images[:2]), atol=1e-5)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_learns_answers_that_depend_on_the_order(family: str, images: list[str], tmp_path: Path) -> None:
    vlm = load_vlm(str(FAMILIES[family](tmp_path / family)), device="cpu")
    torch.manual_seed(0)
    words = ["dog", "cat", "boat", "sand", "water", "park", "sun", "night"]
    groups = [pair[::step] for pair in (images[:2], images[2:4], images[4:6], images[6:]) for step in (1, -1)]
    inputs = encode(vlm, [IN_ORDER] * 8, groups)
    ready, labels = append_continuations(vlm, inputs, [encode_continuation(vlm, f" {word}") for word in words])
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=5e-3)
    for _ in range(200):
        output = vlm.model(**ready).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(output.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    written = vlm.model.eval().generate(**inputs, do_sample=False, max_new_tokens=4)
    assert [decode(vlm, row) for row in written[:, inputs["input_ids"].shape[1] :].tolist()] == words


class TestPlaces:
    def test_without_a_chat_template_the_placeholder_stands_at_the_place(self, plain: Vlm, images: list[str]) -> None:
        assert text_of(plain, IN_ORDER, images[:2]) == "Q: one@two@what is it? A:"

    def test_a_text_alone_comes_after_its_pictures(self, plain: Vlm, images: list[str]) -> None:
        short = (ImagePart(0), ImagePart(1), TextPart("Q: A:"))
        assert text_of(plain, short, images[:2]) == text_of(plain, "Q: A:", images[:2]) == "@@Q: A:"

    def test_pictures_alone(self, plain: Vlm, images: list[str]) -> None:
        example = Example("a", tuple(images[:2]), "", parts=(ImagePart(0), ImagePart(1)))
        assert text_of(plain, answer_prompt(example), images[:2]) == "Q: @@ A:"

    def test_a_chat_template_gets_the_parts_in_order(self, tmp_path: Path, images: list[str]) -> None:
        vlm = load_vlm(str(make_llava(tmp_path / "chat")), device="cpu")
        assert text_of(vlm, IN_ORDER, images[:2]) == "user: Q: one@two@what is it? A:\nassistant:"

    def test_a_template_that_puts_pictures_first_is_found_out(self, tmp_path: Path, images: list[str]) -> None:
        vlm = load_vlm(str(make_llava(tmp_path / "chat")), device="cpu")
        vlm.processor.chat_template = LLAVA_1_5
        assert reads_pictures_first(vlm)
        assert text_of(vlm, IN_ORDER, images[:2]) == "user: @@Q: one\ntwo\nwhat is it? A:\nassistant:"

    def test_what_cannot_be_shown_is_said(self, plain: Vlm, images: list[str]) -> None:
        with pytest.raises(VlmError, match="with 1 images shows the one at position 1"):
            encode(plain, [IN_ORDER], [images[:1]])
        with pytest.raises(VlmError, match="at least one image"):
            encode(plain, [(TextPart("Q: A:"),)], [images[:1]])
        reasons = find_unreadable(plain, [(IN_ORDER, (images[0],)), ("Q: A:", (images[0],))])
        assert list(reasons) == [(IN_ORDER, (images[0],))]

    def test_a_processor_that_takes_one_picture_says_nothing(self, plain: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise ValueError("one image only")

        monkeypatch.setattr("illume.model.vlm._process", refuse)
        assert find_pictures_first(plain) is None


class TestPlaceholdersInTexts:
    def test_no_text_becomes_a_token_of_the_processor(self, vlm: Vlm, images: list[str]) -> None:
        tokens_of = vlm.tokenizer.added_tokens_decoder.items()
        special = {str(token) for _, token in tokens_of if token.special}
        special |= {"<image>", str(getattr(vlm.processor, "image_token", "<image>"))}
        hostile = (TextPart(f"Q: {''.join(sorted(special))}"), *IN_ORDER[1:4], TextPart("<image> A:"))
        added = {number for number, token in tokens_of if token.special}

        def tokens(prompt: Parts) -> list[int]:
            return [token for token in encode(vlm, [prompt], [images[:2]])["input_ids"][0].tolist() if token in added]

        assert tokens(hostile) == tokens(IN_ORDER)
        assert len(special) > 3

    def test_nor_in_a_prompt_without_a_chat_template(self, plain: Vlm, images: list[str]) -> None:
        hostile = (TextPart("Q: <image>"), *IN_ORDER[1:4], TextPart("<image></s> A:"))
        assert text_of(plain, hostile, images[:2]) == "Q: < image>@two@< image>< /s> A:"


class TestTemplates:
    EXAMPLE = Example(
        "a", ("a.png", "b.png"), "in one\nin two\nwhat {answer}?", "red", parts=(
            TextPart("in one"), ImagePart(0), TextPart("in two"), ImagePart(1), TextPart("what {answer}?")
        )
    )  # fmt: skip

    def test_the_question_stands_for_the_parts(self) -> None:
        shared = (TextPart("Q: in one"), ImagePart(0), TextPart("in two"), ImagePart(1))
        assert answer_prompt(self.EXAMPLE) == (*shared, TextPart("what {answer}? A:"))
        whole = (*shared, TextPart("what {answer}? A: {question}, seeing that"))
        assert rationale_prompt(self.EXAMPLE, " {question} ") == whole

    def test_the_short_form_is_a_text(self) -> None:
        short = replace(self.EXAMPLE, parts=())
        assert answer_prompt(short) == "Q: in one\nin two\nwhat {answer}? A:"
        assert rationale_prompt(short, "red", template="{question}|{answer} ") == "in one\nin two\nwhat {answer}?|red"

    def test_a_bad_template_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"\{image\}"):
            answer_prompt(self.EXAMPLE, template="{image} {question} {answer}")


def test_an_example_that_cannot_be_read_is_listed(plain: Vlm, images: list[str]) -> None:
    good = Example("good", tuple(images[:2]), "q", "red", parts=(ImagePart(0), TextPart("then"), ImagePart(1)))
    bad = replace(good, id="bad", parts=(ImagePart(0), TextPart("then"), ImagePart(2)))
    found = list_unreadable(plain, [good, bad], template="{question} {answer}")
    assert [example.id for example, _ in found] == ["bad"]
    assert wrap_prompt(plain, good.parts, 2) == "<image>then<image>"
