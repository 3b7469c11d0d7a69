"""Restricts a completion to valid answers: before each token is chosen, the logits of all others are hidden.

The tokens that are allowed are found exactly, by their bytes: a token may begin in one segment of the answer and end in
another, such as the end of a choice with its quote and the comma behind it. Any spelling by tokens is allowed, and the
model chooses one.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from illume.fields.definitions import AnswerFields
from illume.fields.policies import Policy
from illume.model.prompting import answer_text
from illume.model.vlm import Vlm, bare_model, encode_continuation, last_prompt_character, stop_token_ids
from illume.sampling.grammar import CLOSED, REFUSED, AnswerGrammar, State, read_text, spelt_characters

_MAX_CONSTRAINTS = 64
"""How many constraints are kept for a model, one for each set of choices."""
_PROBE = '{"a": "\u00e9 \U0001f511\\n", "b": "x, y"}'
"""A text with characters of one, two and four bytes, by which the bytes of tokens are checked."""


@dataclass(frozen=True, slots=True)
class TokenSet:
    """Allowed tokens: those of `mask` (vocabulary,), if there is one, and those of `ids`."""

    ids: tuple[int, ...]
    mask: torch.Tensor | None = None

    def add_to(self, allowed: torch.Tensor) -> None:
        """Sets the tokens in `allowed` (vocabulary,) to True."""
        if self.mask is not None:
            width = min(len(allowed), len(self.mask))  # some models have more logits than their configuration says
            allowed[:width] |= self.mask[:width]
        if self.ids:
            allowed[torch.tensor(self.ids, device=allowed.device)] = True


class Vocabulary:
    """The bytes of each token, and which tokens a free text can go on with; `size` is the width of the logits."""

    def __init__(self, tokens: dict[int, bytes], *, size: int, device: torch.device) -> None:
        self.bytes_of = {token: data for token, data in tokens.items() if data and token < size}
        self.by_bytes = sorted((data, token) for token, data in self.bytes_of.items())
        self.size, self.device = size, device
        self._in_text: dict[int, tuple[torch.Tensor, list[tuple[int, bytes]]]] = {}

    def spells(self, characters: Iterable[bytes]) -> bool:
        """Whether each of these characters is a token, or each of its bytes is."""
        known = set(self.bytes_of.values())
        return all(one in known or all(bytes([byte]) in known for byte in one) for one in characters)

    def in_text(self, place: int) -> tuple[torch.Tensor, list[tuple[int, bytes]]]:
        """The tokens that a free text can go on with from `place`: a mask of those that stay within it.

        The others close it: each is listed with the bytes that follow the closing quote.
        """
        if place not in self._in_text:
            mask = torch.zeros(self.size, dtype=torch.bool)
            closing = []
            for data, token in self.by_bytes:
                then, n_read = read_text(place, data)
                if then == CLOSED:
                    closing.append((token, data[n_read:]))
                elif then != REFUSED:
                    mask[token] = True
            self._in_text[place] = mask.to(self.device), closing
        return self._in_text[place]

    def read_by(self, grammar: AnswerGrammar, state: State) -> TokenSet:
        """The tokens that `grammar` allows from `state`."""
        if grammar.is_text(state):
            mask, closing = self.in_text(state[1])
            after = (state[0] + 1, 0)
            return TokenSet(tuple(token for token, rest in closing if grammar.read(after, rest) is not None), mask)
        ids: list[int] = []
        self._descend(grammar, state, b"", (0, len(self.by_bytes)), ids)
        return TokenSet(tuple(ids))

    def _descend(
        self, grammar: AnswerGrammar, state: State, before: bytes, span: tuple[int, int], ids: list[int]
    ) -> None:
        """Adds the tokens of `span`, which all begin with `before`, that go on from `state` as the grammar allows.

        The sorted tokens are read as a prefix tree, in which each step leads to a part of the span.
        """
        start, stop = span
        if grammar.is_text(state):
            for data, token in self.by_bytes[start:stop]:
                if grammar.read(state, data[len(before) :]) is not None:
                    ids.append(token)
            return
        while start < stop and self.by_bytes[start][0] == before:
            ids.append(self.by_bytes[start][1])
            start += 1
        for byte, then in grammar.next_states(state).items():
            longer = before + bytes([byte])
            low = bisect_left(self.by_bytes, (longer,), start, stop)
            following = _next_prefix(longer)
            high = stop if following is None else bisect_left(self.by_bytes, (following,), low, stop)
            if low < high:
                self._descend(grammar, then, longer, (low, high), ids)


def _next_prefix(prefix: bytes) -> bytes | None:
    """The smallest bytes after all that begin with `prefix`; None if there are none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


class AnswerConstraint:
    """The tokens that may follow in each state of an answer. Its states are those of a grammar."""

    def __init__(self, grammar: AnswerGrammar, vocabulary: Vocabulary, stop_tokens: Sequence[int]) -> None:
        self.grammar, self.vocabulary, self.stop_tokens = grammar, vocabulary, tuple(stop_tokens)
        self._allowed: dict[State, TokenSet] = {grammar.end: TokenSet(self.stop_tokens)}

    @property
    def start(self) -> State:
        """The state before the first token."""
        return self.grammar.start

    def allowed(self, state: State) -> TokenSet:
        """The tokens that may follow in `state`: at the end, only those that end generation."""
        if state not in self._allowed:
            self._allowed[state] = self.vocabulary.read_by(self.grammar, state)
        return self._allowed[state]

    def advance(self, state: State, token: int) -> State:
        """The state after an allowed token. Raises ValueError for another one."""
        if state == self.grammar.end and token in self.stop_tokens:
            return state
        then = self.grammar.read(state, self.vocabulary.bytes_of[token])
        if then is None:
            raise ValueError(f"the token {token} is not allowed in the state {state}")
        return then


def allowed_tokens(
    states: Sequence[tuple[AnswerConstraint, State] | None], *, size: int, device: torch.device
) -> torch.Tensor | None:
    """The allowed tokens of each row, (rows, `size`); all for a row without a constraint. None if no row has one."""
    if not any(states):
        return None
    allowed = torch.zeros((len(states), size), dtype=torch.bool, device=device)
    for row, one in zip(allowed, states, strict=True):
        if one is None:
            row[:] = True
        else:
            one[0].allowed(one[1]).add_to(row)
    return allowed


def answer_constraint(vlm: Vlm, fields: AnswerFields, policy: Policy | None) -> AnswerConstraint | None:
    """The constraint of answers that follow an answer prompt of `vlm`; None if the tokenizer does not allow one.

    It does not where the bytes of its tokens are not known, or where it cannot spell the keys and choices. Constraints
    are kept with the model, since prompts share their choices.
    """
    if vlm._vocabulary is None:
        vlm._vocabulary = _read_vocabulary(vlm)
        vlm._constraints.clear()
    vocabulary: Vocabulary | bool = vlm._vocabulary
    if isinstance(vocabulary, bool):
        return None
    choices = tuple(one.values(policy) for one in fields.fields)
    key = (fields, choices)
    if key not in vlm._constraints:
        while len(vlm._constraints) >= _MAX_CONSTRAINTS:
            del vlm._constraints[next(iter(vlm._constraints))]
        grammar = AnswerGrammar(fields, policy, lead="" if last_prompt_character(vlm).isspace() else answer_text(""))
        spelt = vocabulary.spells(spelt_characters(grammar))
        vlm._constraints[key] = AnswerConstraint(grammar, vocabulary, stop_token_ids(vlm)) if spelt else None
    found: AnswerConstraint | None = vlm._constraints[key]
    return found


# The bytes of tokens


def _read_vocabulary(vlm: Vlm) -> Vocabulary | bool:
    """The vocabulary of the model; False if the bytes of its tokens cannot be found."""
    tokens = token_bytes(vlm.tokenizer)
    spelt = [tokens.get(token) for token in encode_continuation(vlm, answer_text(_PROBE))[:-1]]
    if None in spelt or b"".join(one or b"" for one in spelt).decode(errors="replace").strip() != _PROBE:
        return False
    size = bare_model(vlm).config.get_text_config().vocab_size
    return Vocabulary(tokens, size=size, device=vlm.device)


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """The bytes that each token stands for, without special and added tokens; empty for an unknown kind of tokenizer.

    Known are byte-level BPE, and SentencePiece with or without single bytes as tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    kinds = _kinds(json.loads(backend.to_str()).get("decoder"))
    left_out = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    tokens = {
        token: text for text, token in backend.get_vocab(with_added_tokens=False).items() if token not in left_out
    }
    if "ByteLevel" in kinds:
        alphabet = _byte_alphabet()
        return {
            token: bytes(alphabet[character] for character in text)
            for token, text in tokens.items()
            if all(character in alphabet for character in text)
        }
    if kinds & {"ByteFallback", "Metaspace", "Replace"}:
        return {token: _piece_bytes(text) for token, text in tokens.items()}
    return {}


def _kinds(decoder: Any) -> set[str]:
    """The types of a decoder's description, and of those within it."""
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*(_kinds(one) for one in decoder.get("decoders", [])))


def _piece_bytes(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable characters of Latin-1 stand for themselves, and the other bytes in their order for U+0100 and on (Radford
    et al. 2019, GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
