"""Pages in the reader's language."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from jinja2 import Environment
from markupsafe import Markup, escape
from sqlalchemy.orm import Session

from app import languages
from app.models import Role
from app.web import charts, rendering
from illume.phrases import Number, Phrase, _, from_stored, ngettext, pgettext, reader, told
from tests.app.web.catalogues import speaking
from tests.app.web.conftest import Browser, person


class Shouting:
    """A catalogue that is easily told from English."""

    def gettext(self, message: str) -> str:
        return message.upper().replace("%(NAME)S", "%(name)s").replace("%(NUM)S", "%(num)s")

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return self.gettext(msgid1 if n == 1 else msgid2)

    def pgettext(self, context: str, message: str) -> str:
        return f"{context}: {self.gettext(message)}"

    def npgettext(self, context: str, msgid1: str, msgid2: str, n: int) -> str:
        return f"{context}: {self.ngettext(msgid1, msgid2, n)}"


@pytest.fixture(autouse=True)
def some_languages(tmp_path: Path) -> Iterator[None]:
    """German, Spanish, Chinese and Arabic have a catalogue, of one message."""
    codes = ("ar", "de", "es", "zh_Hans")
    with speaking(tmp_path, {code: {"Language": f"Language in {code}"} for code in codes}):
        yield


@pytest.fixture
def shouted() -> Iterator[None]:
    """What is told goes through `Shouting`."""
    with languages.reading(languages.languages()["en"]) as now:
        now.catalogue = Shouting()
        yield


class TestPhrases:
    def test_programs_see_english(self) -> None:
        phrase = _("Hello, %(name)s: 5 %%", name="Ada")
        assert phrase == "Hello, Ada: 5 %"
        assert f"{phrase}!" == "Hello, Ada: 5 %!"
        assert told(phrase) == "Hello, Ada: 5 %"

    def test_a_reader_is_told_in_their_language(self, shouted: None) -> None:
        assert told(_("Hello, %(name)s", name="Ada")) == "HELLO, Ada"
        assert told(ngettext("%(num)s verdict", "%(num)s verdicts", 1)) == "1 VERDICT"
        assert told(ngettext("%(num)s verdict", "%(num)s verdicts", 2)) == "2 VERDICTS"
        assert told(pgettext("state", "judged")) == "state: JUDGED"
        assert told("not a phrase") == "not a phrase"

    def test_phrases_within_phrases_are_told_too(self, shouted: None) -> None:
        assert told(_("Hello, %(name)s", name=_("you"))) == "HELLO, YOU"

    def test_markup_tells_and_escapes(self, shouted: None) -> None:
        phrase = _("<b> %(name)s", name="<i>")
        assert escape(phrase) == "&lt;B&gt; &lt;i&gt;"
        assert Markup("<p>%s</p>") % phrase == "<p>&lt;B&gt; &lt;i&gt;</p>"

    @pytest.mark.parametrize(
        "phrase",
        [
            _("Hello, %(name)s", name=_("you")),
            ngettext("%(num)s verdict", "%(num)s verdicts", 2),
            pgettext("state", "judged"),
        ],
    )
    def test_stored_or_sent_to_another_process_it_stays_a_phrase(self, phrase: Phrase, shouted: None) -> None:
        for again in (from_stored(phrase.stored()), pickle.loads(pickle.dumps(phrase))):  # noqa: S301 - our own
            assert isinstance(again, Phrase)
            assert (again, again.told()) == (phrase, phrase.told())

    @pytest.mark.parametrize(
        ("number", "english", "german"),
        [
            (Number(1234567), "1,234,567", "1.234.567"),
            (Number(1234.56, 1), "1,234.6", "1.234,6"),
            (Number(0.5, 4, signed=True), "+0.5000", "+0,5000"),
            (Number(-0.00001, 4, signed=True), "\u22120.0000", "\u22120,0000"),
            (Number(-12.3456, 4), "\u221212.3456", "\u221212,3456"),
        ],
    )
    def test_numbers_are_written_as_the_reader_does(self, number: Number, english: str, german: str) -> None:
        phrase = _("Hello, %(name)s", name=_("%(n)s years", n=number))
        assert phrase == f"Hello, {english} years"
        for again in (
            phrase,
            from_stored(phrase.stored()),
            pickle.loads(pickle.dumps(phrase)),  # noqa: S301 - our own
            phrase.changed(str.upper),
        ):
            assert again == phrase
            with languages.reading(languages.languages()["en"]):
                assert told(again) == phrase
            with languages.reading(languages.languages()["de"]):
                assert told(again) == f"Hello, {german} years"

    def test_without_a_value_it_names_it(self) -> None:
        with pytest.raises(KeyError, match="name"):
            _("Hello, %(name)s")


class TestTemplates:
    @pytest.fixture
    def env(self) -> Environment:
        env = Environment(autoescape=True, extensions=["jinja2.ext.i18n"])
        rendering.install_phrases(env)
        return env

    def test_values_and_blocks_are_told(self, env: Environment, shouted: None) -> None:
        template = env.from_string(
            '{{ word }} {{ _("Hello, %(name)s", name=who) }} '
            "{% trans num=2 %}{{ num }} verdict{% pluralize %}{{ num }} verdicts{% endtrans %}"
        )
        assert template.render(word=_("picked"), who="<Ada>") == "PICKED HELLO, &lt;Ada&gt; 2 VERDICTS"

    def test_one_template_serves_many_languages(self, env: Environment, shouted: None) -> None:
        template = env.from_string('{{ _("picked") }}')
        assert template.render() == "PICKED"
        with languages.reading(languages.languages()["en"]):
            assert template.render() == "picked"


class TestAccepted:
    @pytest.mark.parametrize(
        ("header", "code"),
        [
            ("", "en"),
            ("de", "de"),
            ("de-AT, en;q=0.5", "de"),
            ("fr, en;q=0.5, de;q=0.6", "de"),
            ("zh-CN", "zh_Hans"),
            ("ar-EG;q=0.9, es;q=0.95", "es"),
            ("de;q=0, es;q=0.1", "es"),
            ("de;q=x, ar", "ar"),
            ("*", "en"),
            ("xx" * 5000, "en"),
        ],
    )
    def test_the_first_that_the_pages_have(self, header: str, code: str) -> None:
        assert languages.accepted(header).code == code


class TestNumbersAndTimes:
    AT = datetime(2026, 3, 1, 14, 5, tzinfo=UTC)

    def test_english_ones_stay(self) -> None:
        assert rendering.number(1234.5, 1) == "1\u202f234.5"
        assert rendering.percent(0.5) == "50 %"
        assert rendering.duration(100) == "2 min"
        assert languages.day_and_time(self.AT) == "1 Mar 2026, 14:05"
        assert languages.day_of_month(self.AT.date()) == "1 Mar"

    def test_german_ones(self) -> None:
        with languages.reading(languages.languages()["de"]):
            assert rendering.number(1234.5, 1) == "1.234,5"
            assert rendering.number(-3) == "\u22123"
            assert languages.day(self.AT) == "01.03.2026"
            assert languages.day_of_month(self.AT.date()) == "1. M\u00e4rz"

    def test_numbers_beside_axes(self) -> None:
        shown = (0.5, 0.123456, 12345.6, 1e-9)
        assert [charts.plain(value) for value in shown] == ["0.5", "0.1235", "12\u202f346", "1e-09"]
        with languages.reading(languages.languages()["de"]):
            assert [charts.plain(value) for value in shown] == ["0,5", "0,1235", "12.346", "1e-09"]
        with languages.reading(languages.languages()["zh_Hans"]):
            assert languages.day_of_month(self.AT.date()) == "3\u67081\u65e5"

    def test_signs_stay_before_their_numbers_in_arabic(self) -> None:
        assert rendering.signed(-0.5, 1) == "\u22120.5"
        with languages.reading(languages.languages()["ar"]):
            assert rendering.signed(0.5, 1) == "\u2066+0.5\u2069"
            assert rendering.with_minus("changed by -0.5") == "\u2066changed by \u22120.5\u2069"
            assert rendering.with_minus("") == ""

    def test_arabic_is_written_from_the_right(self) -> None:
        assert languages.languages()["ar"].direction == "rtl"


class TestOnPages:
    @pytest.fixture(autouse=True)
    def critic(self, session: Session, browser: Browser) -> None:
        """Somebody is signed in."""
        browser.sign_in(person(session, role=Role.critic))
        browser.get("/account")

    def test_the_browsers_language_until_one_is_chosen(self, browser: Browser) -> None:
        page = browser.get("/account", headers={"Accept-Language": "ar"}).text
        assert '<html lang="ar" dir="rtl">' in page
        assert '<html lang="en" dir="ltr">' in browser.get("/account").text

    def test_the_chosen_one_stays(self, browser: Browser) -> None:
        assert (
            browser.post("/account/language", {"language": "de"}).headers["location"] == "/account?done=language-saved"
        )
        page = browser.get("/account", headers={"Accept-Language": "ar"}).text
        assert '<html lang="de" dir="ltr">' in page
        assert '<option value="de" selected>Deutsch</option>' in page
        assert "<h2>Language in de</h2>" in page
        browser.post("/account/language", {"language": ""})
        assert '<html lang="ar" dir="rtl">' in browser.get("/account", headers={"Accept-Language": "ar"}).text

    def test_one_that_is_not_there_is_refused(self, browser: Browser) -> None:
        assert browser.post("/account/language", {"language": "../de"}).status_code == 422

    def test_strangers_are_answered_in_theirs(self, browser: Browser) -> None:
        assert (
            '<html lang="zh-Hans" dir="ltr">'
            in browser.client.get("/sign-in", headers={"Accept-Language": "zh-TW"}).text
        )

    def test_no_reader_is_left_behind(self, browser: Browser) -> None:
        browser.get("/account", headers={"Accept-Language": "ar"})
        assert reader.get() is None
