"""Encodings: recognised, guessed, chosen; the same table is the same in each of them."""

from __future__ import annotations

import io
import itertools
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.errors import Invalid
from app.services.imports.tables.encodings import check_encoding, guess_encoding
from app.services.imports.tables.table import TableKind
from tests.app.services.imports.tables.tables import IMAGE, as_csv, opened, read

GERMAN = ("Was trägt der Mann, und wozu?", "Er hält einen großen Schirm; es „regnet“ | sehr.")
KOREAN = ("이 사람은 무엇을, 왜 하고 있습니까?", "우산을 들고 있다; 비가 | 많이 온다.")
TEXTS = {
    "utf-8": (*GERMAN, "utf-8"),
    "utf-8-sig": (*KOREAN, "utf-8"),
    "utf-16": (*KOREAN, "utf-16"),
    "utf-16-le": (*GERMAN, "utf-16-le"),
    "utf-16-be": (*GERMAN, "utf-16-be"),
    "utf-32": (*KOREAN, "utf-32"),
    "cp1252": (*GERMAN, "cp1252"),
    "cp949": (*KOREAN, "cp949"),
}


class TestTheSameTable:
    @pytest.mark.parametrize("encoding", TEXTS)
    def test_is_the_same_with_every_encoding_separator_and_line_ending(self, tmp_path: Path, encoding: str) -> None:
        question, answer, found = TEXTS[encoding]
        two_lines = f"{question}\n{answer}"
        rows = [
            ["007", IMAGE, question, answer, "web"],
            ["12345678901234567890", IMAGE, two_lines, 'a "b", c; d\te|f', ""],
            ["1E+05", IMAGE, "plain", "1,5", "a;b"],
        ]
        expected = [
            ("007", question, answer, {"source": "web"}),
            ("12345678901234567890", two_lines, 'a "b", c; d\te|f', {}),
            ("1E+05", "plain", "1,5", {"source": "a;b"}),
        ]
        kinds = itertools.product(",;\t|", ("\n", "\r\n", "\r"), ("plain", "trailing", "named"))
        for delimiter, ending, shape in kinds:
            text = as_csv(rows, delimiter, ending, trailing=shape == "trailing")
            data = (f"sep={delimiter}{ending}{text}" if shape == "named" else text).encode(encoding)
            assert read(tmp_path, data, "t.csv") == expected, (delimiter, ending, shape)
            form = opened(tmp_path, data, "t.csv").form()
            assert (form.kind, form.encoding, form.guess, form.delimiter) == (TableKind.csv, found, found, delimiter)

    def test_quoted_line_breaks_of_a_file_of_carriage_returns(self, tmp_path: Path) -> None:
        data = f'image,question\r{IMAGE},"two\rlines"\r{IMAGE},q\r'.encode()
        assert [one[1] for one in read(tmp_path, data, "t.csv")] == ["two\nlines", "q"]

    def test_unicode_text_of_excel(self, tmp_path: Path) -> None:
        data = f"image\tquestion\r\n{IMAGE}\tWas trägt er?\r\n".encode("utf-16")
        assert read(tmp_path, data, "Mappe1.txt") == [(None, "Was trägt er?", None, {})]

    @pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.txt"])
    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
    def test_json_of_windows(self, tmp_path: Path, name: str, encoding: str) -> None:
        row = f'{{"images": ["{IMAGE}"], "question": "Was trägt er?"}}'
        data = (f"[{row}]" if name == "t.json" else row + "\r\n").encode(encoding)
        assert read(tmp_path, data, name) == [(None, "Was trägt er?", None, {})]


class TestGuess:
    @pytest.mark.parametrize(
        ("encoding", "text"),
        [
            ("cp1252", "¿Qué está haciendo el niño?"),
            ("cp1252", "café"),
            ("cp1252", "The sign says “stop” – it’s red"),
            ("cp1250", "Co dělá ten člověk? Příliš žluťoučký kůň"),
            ("cp949", "빨간 연"),
            ("cp932", "この人は何をしていますか？"),
            ("gb18030", "这个人在做什么？"),
            ("big5", "這個人在做什麼？"),
            ("cp1251", "Что делает этот человек?"),
            ("cp1253", "Τι κάνει αυτός;"),
            ("cp1256", "ماذا يفعل هذا الرجل؟"),
        ],
    )
    def test_a_short_text(self, encoding: str, text: str) -> None:
        data = ("question\n" + "plain\n" * 20_000 + text).encode(encoding)
        assert guess_encoding(lambda: nullcontext(io.BytesIO(data))) == encoding

    def test_another_one_can_be_chosen(self, tmp_path: Path) -> None:
        data = f"image,question\n{IMAGE},Bu kişi ne yapıyor?\n".encode("cp1254")
        assert opened(tmp_path, data, "t.csv").form().guess == "cp1252"
        form = opened(tmp_path, data, "t.csv", "cp1254").form()
        assert (form.encoding, form.guess) == ("cp1254", "cp1252")
        assert read(tmp_path, data, "t.csv", "cp1254") == [(None, "Bu kişi ne yapıyor?", None, {})]

    @pytest.mark.parametrize(
        ("encoding", "data", "word"),
        [
            ("cp1252", b"\x81", "is not Western European (Windows-1252): choose another encoding"),
            ("cp949", "\ud55c".encode("cp949") + b"\xff\xff", "is not Korean (CP949): choose"),
            ("utf-8", "\ud55c".encode("cp949"), "is not UTF-8: save"),
        ],
    )
    def test_bytes_that_it_lacks_cost_their_line(self, tmp_path: Path, encoding: str, data: bytes, word: str) -> None:
        lines = b"image,question\n" + IMAGE.encode() + b"," + data + b"\n" + IMAGE.encode() + b",q\n"
        bad, good = read(tmp_path, lines, "t.csv", encoding)
        assert word in bad
        assert good == (None, "q", None, {})

    @pytest.mark.parametrize(("text", "found"), [("UTF8", "utf-8"), ("windows-1252", "cp1252"), ("uhc", "cp949")])
    def test_other_names(self, text: str, found: str) -> None:
        assert check_encoding(text) == found

    @pytest.mark.parametrize("text", ["rot13", "utf-7", "none", "é", "a\x00b", "x" * 1000])
    def test_unknown_names(self, text: str) -> None:
        with pytest.raises(Invalid, match="encoding: ") as caught:
            check_encoding(text)
        assert caught.value.field == "encoding"
