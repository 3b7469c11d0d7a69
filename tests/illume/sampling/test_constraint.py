"""Structured answers are sampled from exactly those texts that are valid, and the same whatever is in the batch."""

from __future__ import annotations

import codecs
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from illume.fields.answers import answer_json, parse_answer
from illume.fields.definitions import AnswerField, AnswerFields
from illume.model.vlm import Vlm, bare_model, encode_continuation, load_vlm
from illume.prompts_file import load_prompts, write_prompts
from illume.records import Example
from illume.sampling.constraint import AnswerConstraint, Vocabulary, answer_constraint, token_bytes
from illume.sampling.file import main
from illume.sampling.generation import sample_rationales
from illume.sampling.grammar import AnswerGrammar
from illume.sampling.sampler import SamplingParams, sample_tokens
from illume.settings import SamplingSettings
from tests.illume.families import FAMILIES, make_images, make_llava
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY

torch.set_num_threads(1)

TEMPLATE = "{policy}\nQ: {question} A: {answer}, seeing that"
NONE = "NA: None applying"

# The exact set of tokens

CHOICES = ("Safe", "Safety", "Sa", 'S"x', "صورة", "a, b")
HINT = AnswerField(name="hint", kind="text", required=False)
SMALL = AnswerFields(
    (
        AnswerField(name="rating", kind="choice", choices=CHOICES),
        AnswerField(name="level", kind="choice", choices=("1", "12", "null"), required=False),
        FIELDS.rationale,
        HINT,
    )
)
MERGES = [
    "Safe", "Safety", 'Safe"', 'fe", ', 'Sa"', 'Safe",', 'y", "level', '": ', '": "', '": "a', '": " ', 'a"}', '"}',
    '"}x', ' {"', '{"rating": "S', "صو", "رة", '\\"', "\\n", '"x', "null", 'null, "', 'null}',
    '1", "rationale": "go', "abc", 'end", "hint": null}', '", "hint": "', "\n",
    "é", "\\u0041", "\\", 'a\\"b"', "}", '12"', "ab\u3042", " a", "  ",
]  # fmt: skip
TOKENS = {n: bytes([n]) for n in range(256)} | {256 + n: text.encode() for n, text in enumerate(MERGES)}
STOP = len(TOKENS)
FREE = re.compile(r'(?:[^"\\\x00-\x1f\x7f]|\\["\\/nrt])*')


def heads() -> Iterator[str]:
    for rating, level in product(CHOICES, ("1", "12", "null", None)):
        values = json.dumps({"rating": rating, "level": level}, ensure_ascii=False)
        yield f' {values[:-1]}, "rationale": "'


HEADS = list(heads())


def goes_on_after_text(text: str, tails: list[str]) -> bool:
    """Whether a free text goes on with `text`, which may go beyond its end: then one of `tails` follows."""
    found = FREE.match(text)
    assert found is not None
    content, rest = found[0], text[found.end() :]
    if rest in ("", "\\"):
        return True
    if not rest.startswith('"') or not json.loads(f'"{content}"').strip(" \n\r\t"):
        return False
    return any(tail.startswith(rest[1:]) for tail in tails)


def is_possible(data: bytes) -> bool:
    """Whether an answer can begin with `data`, found without the grammar."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    pending = data[len(text.encode()) :]
    if pending:  # within a character: some character must be able to follow
        return any(is_possible(data[: -len(pending)] + one) for one in characters_from(pending))
    if any(head.startswith(text) for head in HEADS):
        return True
    head = next((one for one in HEADS if text.startswith(one)), None)
    if head is None:
        return False
    rest, hint = text[len(head) :], ', "hint": '
    if goes_on_after_text(rest, [f"{hint}null}}", f'{hint}"']):
        return True
    cut = re.match(rf'({FREE.pattern})"{re.escape(hint)}"', rest)
    return bool(cut and cut[1].strip() and goes_on_after_text(rest[cut.end() :], ["}"]))


IN_CHOICES = [one.encode() for one in set("".join(CHOICES)) if not one.isascii()]
OTHERS = [chr(one).encode() for one in range(0x80, 0x110000, 37) if not 0xD800 <= one <= 0xDFFF]


@cache
def characters_from(pending: bytes) -> list[bytes]:
    """Characters that begin with these bytes: those of the choices, and any other one."""
    others = (one for one in OTHERS if one.startswith(pending))
    return [*(one for one in IN_CHOICES if one.startswith(pending)), *islice(others, 1)]


def constraint() -> AnswerConstraint:
    vocabulary = Vocabulary(TOKENS, size=STOP + 1, device=torch.device("cpu"))
    return AnswerConstraint(AnswerGrammar(SMALL, None, lead=" "), vocabulary, [STOP])


def allowed_ids(one: AnswerConstraint, state: tuple[int, int]) -> set[int]:
    row = torch.zeros(STOP + 1, dtype=torch.bool)
    one.allowed(state).add_to(row)
    return set(row.nonzero()[:, 0].tolist())


class TestExact:
    def test_allowed_tokens_are_those_that_some_answer_goes_on_with(self) -> None:
        """Along random ways through the grammar, against an oracle that tries each token."""
        rng, finished, seen = random.Random(3), set(), set()
        one = constraint()
        for _ in range(150):
            state, text = one.start, b""
            while state != one.grammar.end:
                allowed = allowed_ids(one, state)
                assert STOP not in allowed
                if state not in seen:
                    seen.add(state)
                    after = {token for token, data in TOKENS.items() if is_possible(text + data)}
                    assert allowed == after, text
                # Long tokens are chosen as often as short ones, and text is closed soon.
                longest = max(allowed, key=lambda token: (len(TOKENS[token]), token))
                closing = [token for token in allowed if b'"' in TOKENS[token]]
                token = rng.choice([longest, rng.choice(sorted(allowed)), *(closing if len(text) > 60 else [])])
                state, text = one.advance(state, token), text + TOKENS[token]
            assert allowed_ids(one, state) == {STOP}
            assert one.advance(state, STOP) == state
            values = parse_answer(text.decode(), SMALL)
            finished.add((values["rating"], values["level"], values["hint"] is None))
        assert {rating for rating, _, _ in finished} == set(CHOICES)
        assert {level for _, level, _ in finished} == {"1", "12", "null", None}
        assert {hint for _, _, hint in finished} == {True, False}

    @pytest.mark.parametrize("values", [["Safe", "12"], ["Safety", None], ["Sa", "null"], ['S"x', "1"], ["صورة", None]])
    def test_every_answer_can_be_written(self, values: list[str | None]) -> None:
        """By single bytes, and by the longest tokens that fit."""
        texts = {"rationale": 'a "b"\nصورة \U0001f511', "hint": None}
        answer = " " + answer_json({"rating": values[0], "level": values[1], **texts}, SMALL)
        one = constraint()
        for longest_first in (False, True):
            state, left = one.start, answer.encode()
            while left:
                fits = [token for token in allowed_ids(one, state) if left.startswith(TOKENS[token])]
                token = sorted(fits, key=lambda token: len(TOKENS[token]))[-longest_first]
                state, left = one.advance(state, token), left[len(TOKENS[token]) :]
            assert state == one.grammar.end

    def test_another_token_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not allowed"):
            constraint().advance((0, 0), ord("x"))

    def test_characters_that_no_token_spells(self) -> None:
        vocabulary = Vocabulary({0: b"a", 1: "é".encode(), 2: b"\xd8"}, size=3, device=torch.device("cpu"))
        assert vocabulary.spells([b"a", "é".encode()])
        assert not vocabulary.spells(["ص".encode()])


class TestTokenBytes:
    def test_byte_level(self, vlm: Vlm) -> None:
        found = token_bytes(vlm.tokenizer)
        text = ' {"é": "\U0001f511", "boat": "the dog\n"}'
        assert b"".join(found[token] for token in encode_continuation(vlm, text)[:-1]).decode() == text
        assert set(found.values()) >= {bytes([byte]) for byte in range(256)}
        assert not set(found) & set(vlm.tokenizer.all_special_ids)

    def test_sentence_piece(self) -> None:
        backend = Tokenizer(models.BPE(vocab={"▁{": 0, '"': 1, "<0x0A>": 2, "é": 3, "<unk>": 4}, merges=[]))
        parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(parts)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
        assert token_bytes(tokenizer) == {0: b" {", 1: b'"', 2: b"\n", 3: "é".encode()}

    def test_others_are_not_known(self) -> None:
        backend = Tokenizer(models.WordPiece(vocab={"a": 0, "<unk>": 1}, unk_token="<unk>"))
        backend.decoder = decoders.WordPiece()
        assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")) == {}


def test_hidden_tokens_are_never_chosen_and_do_not_change_probabilities() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]] * 3)
    allowed = torch.tensor([[False, False, True, True, True], [False] * 4 + [True], [True] * 5])
    for uniform in (0.0, 0.5, 0.999999):
        params = [SamplingParams(1.0, top_k=2), SamplingParams(0.7, top_k=2), SamplingParams(0.0)]
        tokens, logprobs = sample_tokens(logits, params, [uniform] * 3, allowed=allowed)
        assert tokens[0] in (2, 3)
        assert tokens.tolist()[1:] == [4, 0]
        assert logprobs.tolist() == pytest.approx(logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].tolist())
    greedy, _ = sample_tokens(logits, [SamplingParams()] * 3, [0.0] * 3, allowed=allowed)
    assert greedy.tolist() == [2, 4, 0]


# With models


def write_quotes_often(vlm: Vlm, *, more: float = 5.0) -> Callable[[], None]:
    """An untrained model hardly ever closes a text: quotes become more likely. Returns what undoes that."""
    quote = vlm.tokenizer.convert_tokens_to_ids('"')

    def raise_quote(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + more * torch.nn.functional.one_hot(torch.tensor(quote), output.shape[-1])

    undo: Callable[[], None] = bare_model(vlm).get_output_embeddings().register_forward_hook(raise_quote).remove
    return undo


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_images(tmp_path_factory.mktemp("images"), 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("models") / "llava", context=12_000)


@pytest.fixture(scope="module")
def vlm(folder: Path) -> Iterator[Vlm]:
    """With a context for long policies."""
    loaded = load_vlm(str(folder), device="cpu")
    undo = write_quotes_often(loaded)
    yield loaded
    undo()


@pytest.fixture(scope="module")
def examples(images: list[str]) -> list[Example]:
    """Under a long policy and under a variant of it."""
    policies = [POLICY, POLICY.with_status(CATEGORIES[:3], "strict")]
    return [Example(str(n), (images[n],), "does this break the rules?", policy=policies[n]) for n in range(2)]


SETTINGS = SamplingSettings(
    temperatures=((0.0, 1), (1.0, 3)),
    top_k_share=1.0,
    max_new_tokens=220,
    token_budget=40_000,
    template=TEMPLATE,
    answer_fields=FIELDS,
)


class TestSampling:
    def test_answers_under_a_long_policy(self, vlm: Vlm, examples: list[Example]) -> None:
        """Ten categories, with commas, quotes, a line break and in Arabic; 800 words. Nothing depends on the batch."""
        together = sample_rationales(vlm, examples, SETTINGS, seed=3)
        assert [len(group) for group in together] == [4, 4]
        answers = [one for group in together for one in group]
        valid = [parse_answer(one.text, FIELDS, POLICY) for one in answers if one.invalid is None]
        assert {one.invalid for one in answers} <= {None, "cut off"}
        assert len(valid) >= 6
        assert all(one["category"] in (*CATEGORIES, NONE) for one in valid)
        assert len({str(one["category"]) for one in valid}) > 1
        assert sample_rationales(vlm, examples, SETTINGS, seed=3) == together
        other = replace(SETTINGS, token_budget=1)
        alone = [sample_rationales(vlm, [one], other, seed=3)[0] for one in examples]
        assert [[one.text for one in group] for group in alone] == [[one.text for one in group] for group in together]

    def test_free_answers_are_redrawn_then_kept_as_invalid(
        self, vlm: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without the constraint an untrained model writes nothing that is valid."""
        short = [replace(one, policy=None) for one in examples]
        fields = AnswerFields((FIELDS.fields[0], FIELDS.rationale))
        settings = replace(SETTINGS, template="{question} {answer}", answer_fields=fields, max_new_tokens=6, redraws=2)
        monkeypatch.setattr(vlm, "_vocabulary", False)
        found = sample_rationales(vlm, short, settings, seed=3)
        assert answer_constraint(vlm, fields, None) is None
        for group in found:
            assert len(group) == 4
            assert all(one.invalid is not None for one in group)
            again = replace(settings, redraws=0)
            first = {one.seed for one in sample_rationales(vlm, [short[found.index(group)]], again, seed=3)[0]}
            assert not {one.seed for one in group if one.temperature} & first

    def test_constraints_are_shared_by_prompts(self, vlm: Vlm) -> None:
        changed = POLICY.with_status(CATEGORIES, "allowed")
        assert answer_constraint(vlm, FIELDS, POLICY) is answer_constraint(vlm, FIELDS, changed)
        other = replace(POLICY, categories=POLICY.categories[:5])
        assert answer_constraint(vlm, FIELDS, other) is not answer_constraint(vlm, FIELDS, POLICY)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_families(self, family: str, images: list[str], tmp_path: Path) -> None:
        """Also where the prompt ends in white space, and where a chat template does not."""
        vlm = load_vlm(str(FAMILIES[family](tmp_path / family)), device="cpu")
        undo = write_quotes_often(vlm)
        fields = AnswerFields((FIELDS.rationale, FIELDS.fields[0]))
        settings = replace(SETTINGS, template="{question} {answer}", answer_fields=fields, max_new_tokens=150)
        examples = [Example(str(n), (image,), "is it safe?") for n, image in enumerate(images)]
        answers = [one for group in sample_rationales(vlm, examples, settings, seed=1) for one in group]
        undo()
        assert {one.invalid for one in answers} <= {None, "cut off"}
        assert sum(one.invalid is None for one in answers) > len(answers) / 2
        for one in answers:
            if one.invalid is None:
                assert list(parse_answer(one.text, fields)) == ["rationale", "rating"]

    def test_command(self, folder: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Policy and gold fields come from the prompts file. An interrupted run would go on from the same file."""
        row = {"external_id": "a", "images": images[:1], "question": "is it safe?", "policy": POLICY.to_json()}
        write_prompts(tmp_path / "prompts.jsonl", [row | {"fields": {"rating": "Safe"}}])
        (example,) = load_prompts(tmp_path / "prompts.jsonl")
        assert (example.policy, example.fields) == (POLICY, {"rating": "Safe"})
        (tmp_path / "fields.json").write_text(json.dumps(FIELDS.to_json()), encoding="utf-8")
        out = tmp_path / "out.jsonl"
        files = ["--prompts", str(tmp_path / "prompts.jsonl"), "--out", str(out)]
        files += ["--answer-fields", str(tmp_path / "fields.json"), "--model", str(folder)]
        options = ["--template", TEMPLATE, "--temperatures", "0:1", "--max-new-tokens", "30"]
        assert main([*files, *options, "--device", "cpu"]) == 0
        assert f"1 answers of 1 prompts in {out}, 1 of them invalid" in capsys.readouterr().out
        (line,) = (json.loads(one) for one in out.read_text(encoding="utf-8").splitlines()[1:])
        assert line["rationales"][0]["invalid"] == "cut off"
        assert line["rationales"][0]["text"].startswith('{"rating": "')
        (tmp_path / "fields.json").write_text("[{}]", encoding="utf-8")
        assert main([*files, "--out", str(tmp_path / "other.jsonl")]) == 1
        assert "fields.json.0 is incomplete: the field name is missing" in capsys.readouterr().err
