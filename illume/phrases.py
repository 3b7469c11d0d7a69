"""Sentences that people read, kept together with their values so that a page can tell them in another language.

A `Phrase` is a `str`: the English sentence. Programs, logs and REST see nothing else. A page shows it in its reader's
language: markup asks a value for `__html__`, and this one answers with the translation. No torch.

The functions have the names that gettext gives them, by which `tools/catalogues.py` finds the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol, Self

from markupsafe import escape


class Catalogue(Protocol):
    """The translations of one language, as `gettext.NullTranslations` gives them."""

    def gettext(self, message: str, /) -> str: ...
    def ngettext(self, msgid1: str, msgid2: str, n: int, /) -> str: ...
    def pgettext(self, context: str, message: str, /) -> str: ...
    def npgettext(self, context: str, msgid1: str, msgid2: str, n: int, /) -> str: ...


class Reader:
    """Who reads what is being written now. `catalogue` is None for a reader of English."""

    __slots__ = ("catalogue",)

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        self.catalogue = catalogue

    def write_number(self, value: float, digits: int) -> str:
        """A number of zero or more with so many digits after the point, as the reader's language writes it."""
        return f"{value:,.{digits}f}"


reader: ContextVar[Reader | None] = ContextVar("reader", default=None)
"""The reader of the current request. Threads that work for the request see the same object."""


class Number(str):
    """A number within a phrase. As a text it is written in English, with separators of thousands.

    With `signed` a plus sign stands before what is not negative.
    """

    __slots__ = ("digits", "signed", "value")
    value: float
    digits: int
    signed: bool

    def __new__(cls, value: float, digits: int = 0, *, signed: bool = False) -> Self:
        self = super().__new__(cls, _sign(value, signed) + f"{abs(value):,.{digits}f}")
        self.value, self.digits, self.signed = value, digits, signed
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Numbers travel between processes with their phrases."""
        return _number_from_stored, (self.stored(),)

    def told_to(self, now: Reader) -> str:
        """The number as the language of a reader writes it."""
        return _sign(self.value, self.signed) + now.write_number(abs(self.value), self.digits)

    def stored(self) -> dict[str, Any]:
        """The number as JSON can hold it."""
        return {"value": self.value, "digits": self.digits, "signed": self.signed}


def _sign(value: float, signed: bool) -> str:
    return "\u2212" if value < 0 else "+" if signed else ""


def _number_from_stored(kept: Mapping[str, Any]) -> Number:
    return Number(kept["value"], kept["digits"], signed=kept["signed"])


class Phrase(str):
    """A message with its values. As a text it is in English.

    `message` and `plural` hold places for values, `%(name)s`, and a percent sign is doubled. With a `plural`, `number`
    decides between them. `context` keeps apart messages that are the same in English only.
    """

    __slots__ = ("context", "message", "number", "plural", "values")
    message: str
    plural: str | None
    number: int
    context: str | None
    values: Mapping[str, Any]

    def __new__(
        cls,
        message: str,
        values: Mapping[str, Any],
        *,
        plural: str | None = None,
        number: int = 1,
        context: str | None = None,
    ) -> Self:
        """Raises KeyError for a value that the message names and that is not given."""
        self = super().__new__(cls, (message if plural is None or number == 1 else plural) % values)
        self.message, self.plural, self.number, self.context, self.values = message, plural, number, context, values
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Phrases travel between processes."""
        return from_stored, (self.stored(),)

    def __html__(self) -> str:
        """The phrase in the reader's language, for markup."""
        return escape(self.told())  # a Markup, which is a str

    def told(self) -> str:
        """The phrase in the language of the current reader."""
        now = reader.get()
        return str(self) if now is None or now.catalogue is None else self._told_to(now, now.catalogue)

    def _told_to(self, now: Reader, catalogue: Catalogue) -> str:
        """The phrase in the language of `catalogue`, that of the reader; English where it has no such message."""
        if self.plural is None:
            pattern = (
                catalogue.gettext(self.message)
                if self.context is None
                else catalogue.pgettext(self.context, self.message)
            )
        elif self.context is None:
            pattern = catalogue.ngettext(self.message, self.plural, self.number)
        else:
            pattern = catalogue.npgettext(self.context, self.message, self.plural, self.number)
        values = {
            name: value._told_to(now, catalogue)
            if isinstance(value, Phrase)
            else value.told_to(now)
            if isinstance(value, Number)
            else value
            for name, value in self.values.items()
        }
        return pattern % values

    def stored(self) -> dict[str, Any]:
        """The phrase as JSON can hold it; `from_stored` reads it."""
        values = {name: _storable(value) for name, value in self.values.items()}
        kept: dict[str, Any] = {"message": self.message, "values": values}
        if self.plural is not None:
            kept |= {"plural": self.plural, "number": self.number}
        if self.context is not None:
            kept["context"] = self.context
        return kept

    def changed(self, change: Callable[[str], str]) -> Phrase:
        """The same sentence with each value that is a text replaced by `change` of it."""
        values = {
            name: value.changed(change)
            if isinstance(value, Phrase)
            else change(value)
            if isinstance(value, str) and not isinstance(value, Number)
            else value
            for name, value in self.values.items()
        }
        return Phrase(self.message, values, plural=self.plural, number=self.number, context=self.context)


def _storable(value: Any) -> Any:
    if isinstance(value, Phrase | Number):
        return value.stored()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def from_stored(kept: Mapping[str, Any]) -> Phrase:
    """The phrase that `Phrase.stored` wrote. Raises KeyError, TypeError for anything else."""
    values = {name: _value_from_stored(value) for name, value in kept["values"].items()}
    return Phrase(
        kept["message"],
        values,
        plural=kept.get("plural"),
        number=kept.get("number", 1),
        context=kept.get("context"),
    )


def _value_from_stored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return from_stored(value) if "message" in value else _number_from_stored(value)


def stored_of(text: str | None) -> dict[str, Any] | None:
    """What is stored beside an English text, so that `kept` finds the phrase again; None for what is no phrase."""
    return text.stored() if isinstance(text, Phrase) else None


def kept(text: str | None, stored: Mapping[str, Any] | None) -> str:
    """The phrase whose English is `text` and that was stored beside it; else `text` as it is, or nothing for None.

    A text that was changed or shortened without its phrase is thus never told as something else.
    """
    if stored is not None:
        try:
            phrase = from_stored(stored)
        except (KeyError, TypeError, ValueError, AttributeError):
            return text or ""
        if phrase == text:
            return phrase
    return text or ""


def said_by(error: BaseException) -> str:
    """What an error says: the phrase that it was raised with, else its text, else the name of its type."""
    if error.args and isinstance(error.args[0], Phrase):
        return error.args[0]
    return str(error) or type(error).__name__


def changed(text: str, change: Callable[[str], str]) -> str:
    """`change` of a text; of a phrase, the phrase with `change` of each of its values."""
    return text.changed(change) if isinstance(text, Phrase) else change(text)


def told(text: str) -> str:
    """`text` in the language of the current reader, if it is a phrase; else as it is."""
    return text.told() if isinstance(text, Phrase) else text


def gettext(message: str, /, **values: Any) -> Phrase:
    """A phrase. Where English is the only reader this is `message % values`."""
    return Phrase(message, values)


_ = gettext


def ngettext(message: str, plural: str, number: int, /, **values: Any) -> Phrase:
    """A phrase about a number of things. `%(num)s` is that number, if no other value is given for it."""
    return Phrase(message, {"num": number, **values}, plural=plural, number=number)


def pgettext(context: str, message: str, /, **values: Any) -> Phrase:
    """A phrase whose translation depends on where it stands; `context` says where."""
    return Phrase(message, values, context=context)


def npgettext(context: str, message: str, plural: str, number: int, /, **values: Any) -> Phrase:
    """A phrase about a number of things whose translation depends on where it stands."""
    return Phrase(message, {"num": number, **values}, plural=plural, number=number, context=context)


def followed_by(first: str, second: str) -> str:
    """Two whole sentences, one after the other; only the second one where the first is empty."""
    return gettext("%(first)s %(second)s", first=first, second=second) if first else second
