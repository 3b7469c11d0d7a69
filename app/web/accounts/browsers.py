"""The browsers in which a person is signed in, as pages list them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.services.accounts import sessions
from app.services.accounts.sessions import SessionShown
from app.services.kernel.actors import Actor
from illume.phrases import _

# The first that fits: most browsers name others too, so that old sites know them.
BROWSERS = (
    ("Edge", r"Edg(?:e|A|iOS)?/"),
    ("Opera", r"OPR/"),
    ("Samsung Internet", r"SamsungBrowser/"),
    ("Firefox", r"(?:Firefox|FxiOS)/"),
    ("Chrome", r"(?:Chrome|Chromium|CriOS|HeadlessChrome)/"),
    ("Safari", r"Safari/"),
)
SYSTEMS = (
    ("iPad", r"iPad"),
    ("iPhone", r"iPhone"),
    ("Android", r"Android"),
    ("Windows", r"Windows"),
    ("ChromeOS", r"CrOS"),
    ("macOS", r"Mac OS X|Macintosh"),
    ("Linux", r"Linux"),
)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A signed-in browser in the list."""

    browser: str
    shown: SessionShown


def session_rows(session: Session, actor: Actor, user_id: int, *, cookie: str = "") -> tuple[SessionRow, ...]:
    """The browsers in which a person is signed in, the one with this cookie first. Raises `Forbidden`, `NotFound`."""
    shown = sessions.list_sessions(session, actor, user_id, cookie=cookie)
    return tuple(SessionRow(describe_browser(one.browser), one) for one in shown)


def describe_browser(user_agent: str) -> str:
    """The browser and its system in words, as it calls itself."""
    browser = next((name for name, pattern in BROWSERS if re.search(pattern, user_agent)), "")
    system = next((name for name, pattern in SYSTEMS if re.search(pattern, user_agent)), "")
    if browser and system:
        return _("%(browser)s on %(system)s", browser=browser, system=system)
    return browser or system or user_agent[:60] or _("Unknown browser")
