"""Languages of the pages for the time of a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import write_po

from app import languages


@contextmanager
def speaking(folder: Path, translations: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
    """The pages come in these languages, beside English, with these translations of messages."""
    for code, messages in translations.items():
        catalogue = Catalog(locale=code)
        for message, translation in messages.items():
            catalogue.add(message, translation)
        (folder / code).mkdir()
        with (folder / code / languages.CATALOGUE).open("wb") as file:
            write_po(file, catalogue)
    caches = (languages.languages, languages.translations, languages.script_messages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(languages, "LOCALE", folder)
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()
