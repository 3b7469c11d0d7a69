"""The encoding of a table of text: recognised by its first bytes, by being UTF-8, or guessed; and its decoded lines."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from app.errors import Invalid
from app.services.imports.tables.rows import MAX_LINE, OpenTable
from illume.phrases import _

UTF_8 = "utf-8"
ENCODINGS = {
    UTF_8: "UTF-8",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16, little-endian",
    "utf-16-be": "UTF-16, big-endian",
    "utf-32": "UTF-32",
    "cp1252": "Western European (Windows-1252)",
    "cp1250": "Central European (Windows-1250)",
    "cp1254": "Turkish (Windows-1254)",
    "cp1257": "Baltic (Windows-1257)",
    "cp1258": "Vietnamese (Windows-1258)",
    "mac_roman": "Western European (Mac OS Roman)",
    "cp850": "Western European (DOS, 850)",
    "cp949": "Korean (CP949)",
    "cp932": "Japanese (Shift JIS)",
    "gb18030": "Simplified Chinese (GB 18030)",
    "big5": "Traditional Chinese (Big5)",
    "euc_jp": "Japanese (EUC-JP)",
    "cp1251": "Cyrillic (Windows-1251)",
    "cp1253": "Greek (Windows-1253)",
    "cp1256": "Arabic (Windows-1256)",
    "cp1255": "Hebrew (Windows-1255)",
    "cp874": "Thai (Windows-874)",
    "koi8_r": "Cyrillic (KOI8-R)",
}
"""The encodings that a person can choose, with their names. Of those that fit equally well the first is guessed."""
UNICODE = (UTF_8, "utf-16", "utf-16-le", "utf-16-be", "utf-32")
LATIN = ("cp1252", "cp1250", "cp1254", "cp1257", "cp1258", "mac_roman", "cp850")
OTHERS = tuple(one for one in ENCODINGS if one not in UNICODE and one not in LATIN)
MARKS = {
    b"\xef\xbb\xbf": UTF_8,
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte-order marks, the longer ones first."""


@dataclass(frozen=True, slots=True)
class Script:
    """An encoding whose texts are known by their letters: from `first` to `last` are this share of them.

    `codec` decodes the letters that are common.
    """

    encoding: str
    codec: str
    first: str
    last: str
    share: float


SCRIPTS = (
    Script("cp949", "euc_kr", "\uac00", "\ud7a3", 0.9),  # Hangul; Chinese taken for Korean is half Chinese letters
    Script("cp932", "cp932", "\u3040", "\u30ff", 0.3),  # kana
    Script("euc_jp", "euc_jp", "\u3040", "\u30ff", 0.3),
)
MOST_WRONG = 0.05
ALIKE = 0.02
"""Two encodings whose measures of disorder differ by less fit a text equally well."""
HEAD = 4096
PIECE = 256 * 1024
MOST_SEARCHED = 256 * 1024 * 1024
MOST_SAMPLED = 32 * 1024
SAMPLED_LINE = 2000
BEFORE_LETTER = 200
UNDECODED = "\udcff"
"""Stands for bytes that cannot be decoded; no text that can be encoded contains it."""
MARK_UNDECODED = "illume.undecoded"


def check_encoding(text: str) -> str:
    """The encoding of this name. Raises `Invalid` for an unknown one."""
    try:
        name = codecs.lookup(text.strip()).name if text.strip().isascii() and "\x00" not in text else ""
    except LookupError:
        name = ""
    found = next((one for one in ENCODINGS if codecs.lookup(one).name == name), None)
    if found is None:
        raise Invalid(
            _("encoding: '%(text)s' is none of %(list)s.", text=text[:60], list=", ".join(ENCODINGS)), field="encoding"
        )
    return found


def marked_encoding(first: bytes) -> str:
    """The Unicode encoding that the first bytes of a file tell, by a mark or by the zeros of UTF-16; else UTF-8.

    Raises `Invalid` where they are not text.
    """
    for mark, encoding in MARKS.items():
        if first.startswith(mark):
            return encoding
    low, high = first[::2].count(0), first[1::2].count(0)
    if high > len(first) // 8 and not low:
        return "utf-16-le"
    if low > len(first) // 8 and not high:
        return "utf-16-be"
    if b"\x00" in first[:4]:
        raise Invalid(_("The file is not a text file: its first bytes contain NUL."), field="file")
    return UTF_8


def guess_encoding(open_table: OpenTable) -> str:
    """The encoding of a table of text: as marked, else UTF-8 where more lines are than are not, else the likeliest one.

    Only lines with letters outside ASCII count, those of the first 256 MB. Raises `Invalid` where it is not text.
    """
    with open_table() as source:
        first = source.read(HEAD)
        marked = marked_encoding(first)
        if marked != UTF_8 or first.startswith(codecs.BOM_UTF8):
            return marked
        lines = sample_lines(first, source)
    good = sum(is_utf8(line) for line in lines)
    return UTF_8 if not lines or 2 * good >= len(lines) else likeliest_encoding(b"\n".join(lines))


def sample_lines(first: bytes, source: IO[bytes]) -> list[bytes]:
    """The first lines with bytes outside ASCII, shortened; `first` was read already."""
    found: list[bytes] = []
    size, searched = 0, 0
    piece = first
    while piece and size < MOST_SAMPLED and searched < MOST_SEARCHED:
        if not piece.isascii():
            if piece[0] & 0xC0 == 0x80:  # within a character of UTF-8
                piece = piece[:4].lstrip(bytes(range(0x80, 0xC0))) + piece[4:]
            for line in re.split(rb"[\r\n]+", piece):
                if not line.isascii() and size < MOST_SAMPLED:
                    found.append(around_letter(line))
                    size += len(found[-1])
        searched += len(piece)
        try:
            piece = source.read(PIECE)
        except Exception:  # noqa: BLE001 - where the file breaks off is said when its rows are read
            break
    return found


def around_letter(line: bytes) -> bytes:
    """The part of a line around its first byte outside ASCII."""
    high = re.search(rb"[\x80-\xff]", line)
    begin = max(0, high.start() - BEFORE_LETTER) if high else 0
    return line[begin : begin + SAMPLED_LINE]


def is_utf8(part: bytes) -> bool:
    """Whether a part of a text is UTF-8 with letters outside ASCII; its last character may be cut."""
    try:
        return not codecs.getincrementaldecoder(UTF_8)().decode(part).isascii()
    except UnicodeDecodeError:
        return False


def likeliest_encoding(sample: bytes) -> str:
    """The encoding in which a text that is not UTF-8 looks most like one.

    Where bytes outside ASCII mostly stand alone, it is one for the Latin script, else one for another script.
    """
    from charset_normalizer import from_bytes

    runs = [len(one) for one in re.findall(rb"[\x80-\xff]+", sample)]
    choices = LATIN if 2 * runs.count(1) > len(runs) else OTHERS
    known = next((script.encoding for script in SCRIPTS if is_written_in(sample, script)), None)
    if known is not None and choices is OTHERS:
        return known
    matches = list(from_bytes(sample, cp_isolation=list(choices)))
    if not matches:
        return choices[0]
    least = min(match.chaos for match in matches)
    fitting = {
        encoding for match in matches if match.chaos <= least + ALIKE for encoding in match.could_be_from_charset
    }
    return next((one for one in choices if one in fitting), choices[0])


def is_written_in(sample: bytes, script: Script) -> bool:
    """Whether a text, decoded so, has as many letters of a script as its texts have."""
    letters = [letter for letter in sample.decode(script.codec, "replace") if letter.isalpha() or letter == "\ufffd"]
    letters = [letter for letter in letters if not letter.isascii()]
    wrong = letters.count("\ufffd")
    own = sum(script.first <= letter <= script.last for letter in letters)
    return own > 0 and own >= script.share * len(letters) and wrong <= MOST_WRONG * len(letters)


def text_lines(source: IO[bytes], encoding: str) -> Iterator[tuple[str, bool]]:
    """The lines with what ends them, each with whether it was cut off at 4 MB; a byte-order mark is dropped.

    What cannot be decoded becomes lone surrogates, see `is_text`.
    """
    codecs.register_error(MARK_UNDECODED, mark_undecoded)
    errors = "surrogateescape" if encoding == UTF_8 else MARK_UNDECODED
    text = io.TextIOWrapper(source, encoding=encoding, errors=errors, newline="")
    first = True
    try:
        while line := text.readline(MAX_LINE):
            if first:
                line, first = line.removeprefix("\ufeff"), False
            rest, cut = line, False
            while not rest.endswith(("\n", "\r")) and (rest := text.readline(MAX_LINE)):
                cut = True
            yield line, cut
    finally:
        with contextlib.suppress(ValueError):  # the file was closed before
            text.detach()


def to_utf8(data: bytes, encoding: str) -> bytes:
    """A document in UTF-8; what cannot be decoded is no UTF-8 there either."""
    codecs.register_error(MARK_UNDECODED, mark_undecoded)
    return data.decode(encoding, MARK_UNDECODED).encode(errors="surrogateescape")


def mark_undecoded(error: UnicodeError) -> tuple[str, int]:
    """Put `UNDECODED` in the place of bytes that cannot be decoded."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return UNDECODED, max(error.end, error.start + 1)


def is_text(text: str) -> bool:
    """Whether all of a text could be decoded."""
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


def not_encoded(encoding: str) -> str:
    """What to say of a text of which something could not be decoded."""
    if encoding == UTF_8:
        return _("is not UTF-8: save the file as UTF-8.")
    return _(
        "is not %(encoding)s: choose another encoding, or save the file as UTF-8.",
        encoding=ENCODINGS.get(encoding, encoding),
    )
