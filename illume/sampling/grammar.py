"""The texts that are answers under given fields and a policy, as a machine that reads them byte by byte. No torch.

An answer is a row of segments. Most are prefix trees: of the braces, keys and commas, of which there is one text each,
and of the choices of a field as JSON writes them, with their quotes, so that none is the beginning of another. The
others are free texts, up to their closing quote, as UTF-8 with the escapes of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from illume.fields.definitions import AnswerField, AnswerFields
from illume.fields.policies import Policy

State = tuple[int, int]
"""The index of a segment, and a place within it; 0 is its beginning."""

CLOSED = -1
"""What follows the closing quote of a free text."""
REFUSED = -2
"""What follows a byte that a free text does not allow."""


def _text_machine() -> list[dict[int, int]]:
    """A free text by its places: where each byte leads. A text that consists of spaces only cannot be closed.

    Escapes of code points (`\\u0041`) are left out: nothing needs them but control characters, which no answer has.
    """
    start, inside, start_escape, escape, one, two, three, two_low, two_plain, three_high, three_low = range(11)
    plain = [byte for byte in range(0x20, 0x7F) if byte not in b'"\\']
    # The lead bytes of UTF-8 by what may follow (Unicode 16, table 3-7).
    leads = dict.fromkeys(range(0xC2, 0xE0), one) | dict.fromkeys(range(0xE1, 0xF0), two)
    leads |= dict.fromkeys(range(0xF1, 0xF4), three)
    leads |= {0xE0: two_low, 0xED: two_plain, 0xF0: three_high, 0xF4: three_low}
    machine: list[dict[int, int]] = [{} for _ in range(11)]
    machine[start] = dict.fromkeys(plain, inside) | leads | {0x20: start, ord("\\"): start_escape}
    machine[inside] = dict.fromkeys(plain, inside) | leads | {ord("\\"): escape, ord('"'): CLOSED}
    machine[start_escape] = dict.fromkeys(b'"\\/', inside) | dict.fromkeys(b"nrt", start)
    machine[escape] = dict.fromkeys(b'"\\/nrt', inside)
    for place, lowest, highest, then in (
        (one, 0x80, 0xBF, inside),
        (two, 0x80, 0xBF, one),
        (three, 0x80, 0xBF, two),
        (two_low, 0xA0, 0xBF, one),
        (two_plain, 0x80, 0x9F, one),
        (three_high, 0x90, 0xBF, two),
        (three_low, 0x80, 0x8F, two),
    ):
        machine[place] = dict.fromkeys(range(lowest, highest + 1), then)
    return machine


TEXT = _text_machine()


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Texts of which none is the beginning of another. `ends` has the segment that follows each of them."""

    children: list[dict[int, int]] = field(default_factory=lambda: [{}])
    ends: dict[int, int] = field(default_factory=dict)

    def add(self, text: str, *, then: int) -> None:
        """Adds a text."""
        node = 0
        for byte in text.encode():
            if byte not in self.children[node]:
                self.children.append({})
                self.children[node][byte] = len(self.children) - 1
            node = self.children[node][byte]
        self.ends[node] = then


class AnswerGrammar:
    """All answers with these fields under a policy, after `lead`."""

    def __init__(self, fields: AnswerFields, policy: Policy | None, *, lead: str = "") -> None:
        self.segments: list[PrefixTree | None] = []  # None is a free text
        before = f"{lead}{{"
        for one in fields.fields:
            self._add_tree([f"{before}{json.dumps(one.name, ensure_ascii=False)}: "])
            self._add_value(one, policy)
            before = ", "
        self._add_tree(["}"])
        self.start: State = (0, 0)
        self.end: State = (len(self.segments), 0)

    def _add_tree(self, texts: Iterable[str]) -> None:
        tree = PrefixTree()
        for text in texts:
            tree.add(text, then=len(self.segments) + 1)
        self.segments.append(tree)

    def _add_value(self, one: AnswerField, policy: Policy | None) -> None:
        null = [] if one.required else ["null"]
        if one.kind == "choice":
            self._add_tree([*(json.dumps(value, ensure_ascii=False) for value in one.values(policy)), *null])
            return
        tree, index = PrefixTree(), len(self.segments)
        tree.add('"', then=index + 1)
        for text in null:
            tree.add(text, then=index + 2)
        self.segments += [tree, None]

    def next_states(self, state: State) -> dict[int, State]:
        """Where each byte leads from `state`. Nothing is missing: other bytes are not allowed."""
        segment, place = state
        if state == self.end:
            return {}
        tree = self.segments[segment]
        if tree is None:
            found = TEXT[place]
            return {byte: (segment + 1, 0) if then == CLOSED else (segment, then) for byte, then in found.items()}
        return {
            byte: (tree.ends[node], 0) if node in tree.ends else (segment, node)
            for byte, node in tree.children[place].items()
        }

    def is_text(self, state: State) -> bool:
        """Whether `state` is within a free text."""
        return state != self.end and self.segments[state[0]] is None

    def read(self, state: State, data: bytes) -> State | None:
        """Where `data` leads from `state`; None if it is not allowed there."""
        for byte in data:
            segment, place = state
            if segment == len(self.segments):
                return None
            tree = self.segments[segment]
            then = (TEXT[place] if tree is None else tree.children[place]).get(byte)
            if then is None:
                return None
            if tree is None:
                state = (segment + 1, 0) if then == CLOSED else (segment, then)
            else:
                state = (tree.ends[then], 0) if then in tree.ends else (segment, then)
        return state


def read_text(place: int, data: bytes) -> tuple[int, int]:
    """Reads a free text on from `place`: where `data` leads, and how many bytes of it were read.

    Those are all, unless the text is CLOSED before, or a byte is REFUSED.
    """
    for index, byte in enumerate(data):
        then = TEXT[place].get(byte, REFUSED)
        if then in (CLOSED, REFUSED):
            return then, index + 1
        place = then
    return place, len(data)


def spelt_characters(grammar: AnswerGrammar) -> set[bytes]:
    """The characters that a tokenizer needs to write every answer of the grammar, as UTF-8."""
    found: set[str] = set('"\\nrt')
    for tree in grammar.segments:
        if tree is not None:
            found.update(_texts_of(tree))
    return {one.encode() for one in found}


def _texts_of(tree: PrefixTree) -> str:
    """The characters of all texts of the tree, in any order."""
    gathered: list[str] = []
    open_nodes: list[tuple[int, bytes]] = [(0, b"")]
    while open_nodes:
        node, before = open_nodes.pop()
        for byte, child in tree.children[node].items():
            text = before + bytes([byte])
            try:
                gathered.append(text.decode())
                open_nodes.append((child, b""))
            except UnicodeDecodeError:  # the middle of a character
                open_nodes.append((child, text))
    return "".join(gathered)
