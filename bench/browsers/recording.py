"""What Chromium sent in a critic's session, kept as JSON so that it can be replayed without a browser.

The recording has a part for loading the page and a turn for each verdict: the verdict and all requests until the next
one, each with the seconds since the verdict was sent. Values that differ from browser to browser are replaced by
placeholders: `{host}`, `{slug}`, `{cookie}`, `{csrf}`, `{key}`, `{assignment}`, `{pick 1}`, `{known}`, `{held}`,
`{image}`, `{version}`.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from bench.browsers.proxy import Exchange

FILE = Path(__file__).with_name("session.json")
KINDS = {
    "verdict": re.compile(r"POST /annotate/[^/]+/assignments/\d+/verdict"),
    "next": re.compile(r"POST /annotate/[^/]+/next"),
    "heartbeat": re.compile(r"POST /annotate/[^/]+/heartbeat"),
    "figures": re.compile(r"GET /annotate/[^/]+/figures"),
    "day": re.compile(r"GET /annotate/[^/]+/day"),
    "image": re.compile(r"GET /api/v1/images/[0-9a-f]{64}(\?width=[0-9]+)?"),
    "static": re.compile(r"GET /static/.*"),
    "page": re.compile(r"GET /annotate/[^/?]+"),
}
AHEAD = 2
"""How many prompts the page keeps ready beside the one that is judged."""
REPLACED = {"x-csrf-token": "{csrf}", "idempotency-key": "{key}"}
REPEATED = {"known": "{known}", "held": "{held}"}
CANDIDATE = re.compile(rb'data-candidate="(\d+)"')
STATIC = re.compile(rb'(?:src|href)="(/static/[^"]+)"')
ASSIGNMENT = re.compile(rb'data-assignment="(\d+)"')
Fields = list[list[str]]


@dataclass(frozen=True)
class Sent:
    """A request: how many seconds after the verdict (or after the page was asked for), its form, and the status."""

    kind: str
    at: float
    target: str
    status: int
    fields: Fields

    def fields_named(self, name: str) -> list[str]:
        """The values of a field."""
        return [value for one, value in self.fields if one == name]

    def picks(self) -> list[int]:
        """The places of the candidates that were picked, from 0."""
        return [int(value.removeprefix("{pick ").rstrip("}")) - 1 for name, value in self.fields if name == "picks"]


@dataclass(frozen=True)
class Recording:
    """A session. `headers` are those of the first request of each kind, in the order in which Chromium sent them.

    `resent`: requests that Chromium sent again since the server closed the connection, kept alive, as they came.
    """

    chromium: str
    seconds: float
    pause: float
    connections: int
    resent: int
    headers: dict[str, list[str]]
    caching: dict[str, str]
    load: list[Sent]
    turns: list[list[Sent]]

    def counts(self) -> Counter[str]:
        """How many requests of each kind the turns have."""
        return Counter(one.kind for turn in self.turns for one in turn)

    def per_verdict(self) -> dict[str, float]:
        """How many requests of each kind come with a verdict."""
        return {kind: number / len(self.turns) for kind, number in sorted(self.counts().items())}

    def save(self, path: Path) -> None:
        """Write it down, a line a request."""
        values = asdict(self)
        load, turns = values.pop("load"), values.pop("turns")
        head = json.dumps(values, indent=1).removesuffix("\n}")
        rows = [",\n  ".join(json.dumps(one) for one in turn) for turn in (load, *turns)]
        body = "\n ],\n [\n  ".join(rows[1:])
        path.write_text(f'{head},\n "load": [\n  {rows[0]}\n ],\n "turns": [[\n  {body}\n ]]\n}}\n', encoding="utf-8")


def load_recording(path: Path = FILE) -> Recording:
    """The recording in a file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    turns = [[Sent(**one) for one in turn] for turn in values["turns"]]
    return Recording(**{**values, "load": [Sent(**one) for one in values["load"]], "turns": turns})


def kind_of(exchange: Exchange) -> str:
    """What a request is for. Raises `ValueError` for one that the replay would not know."""
    line = f"{exchange.method} {exchange.target}"
    for kind, pattern in KINDS.items():
        if pattern.fullmatch(line):
            return kind
    raise ValueError(f"Chromium sent a request of no known kind: {line}")


def make_recording(exchanges: Sequence[Exchange], *, chromium: str, slug: str, pause: float) -> Recording:
    """The session that the exchanges of a browser are."""
    first = next(number for number, one in enumerate(exchanges) if kind_of(one) == "page")
    everything = sorted(exchanges[first:], key=lambda one: one.began)
    session = [one for one in everything if one.status]
    shown = candidates_shown(session)
    headers: dict[str, list[str]] = {}
    caching: dict[str, str] = {}
    load, turns = list[Sent](), list[list[Sent]]()
    began = session[0].began
    for one in session:
        kind = kind_of(one)
        headers.setdefault(kind, generic_headers(one, slug))
        caching.setdefault(kind, one.answer_headers.get("cache-control", ""))
        if kind == "verdict":
            began = one.began
            turns.append([])
        sent = Sent(
            kind, round(one.began - began, 3), generic_target(one, slug), one.status, generic_fields(one, shown)
        )
        (turns[-1] if turns else load).append(sent)
    made = Recording(
        chromium=chromium,
        seconds=round(session[-1].ended - session[0].began, 1),
        pause=pause,
        connections=len({one.connection for one in session}),
        resent=len(everything) - len(session),
        headers=headers,
        caching=caching,
        load=load,
        turns=turns,
    )
    named = {generic_address(html.unescape(one.decode())) for one in STATIC.findall(session[0].answer)}
    fetched = {one.target for one in made.load if one.kind == "static"}
    if named != fetched:
        raise ValueError(f"static files that only the page names, or that only Chromium fetched: {named ^ fetched}")
    check_rules(made)
    return made


def check_rules(made: Recording) -> None:
    """Raise `ValueError` where Chromium did not do what the replay does by rule."""
    loaded = Counter(one.kind for one in made.load)
    beside = made.counts()
    wrong = {
        "prompts ahead": loaded["next"] != AHEAD,
        "images of the first prompts": loaded["image"] != AHEAD + 1,
        "prompts asked for without a verdict": beside["next"],
        "images besides one a verdict": beside["image"] != len(made.turns),
        "verdicts without room": [one for one in (turn[0] for turn in made.turns) if ["room", "yes"] not in one.fields],
        "known claims": {len(turn[0].fields_named("known")) for turn in made.turns} != {AHEAD + 1},
    }
    found = {what: value for what, value in wrong.items() if value}
    if found:
        raise ValueError(f"the replay would not do what Chromium did: {found}")


def candidates_shown(session: Sequence[Exchange]) -> dict[str, int]:
    """The number on the key of each candidate that was shown."""
    found: dict[str, int] = {}
    for one in session:
        for card in ASSIGNMENT.split(one.answer)[1:]:
            found |= {name.decode(): number for number, name in enumerate(CANDIDATE.findall(card), start=1)}
    return found


def generic_headers(exchange: Exchange, slug: str) -> list[str]:
    """A request's headers without what only this browser has; `Content-Length` is left out."""
    host = {name.lower(): value for name, value in exchange.headers}["host"]
    found = list[str]()
    for name, value in exchange.headers:
        generic = REPLACED.get(
            name.lower(), value.replace(host, "{host}").replace(f"/annotate/{slug}", "/annotate/{slug}")
        )
        if name.lower() == "cookie":
            generic = re.sub(r"illume_session=[^;]+", "illume_session={cookie}", value).replace(f"={slug}", "={slug}")
        if name.lower() != "content-length":
            found.append(f"{name}: {generic}")
    return found


def generic_target(exchange: Exchange, slug: str) -> str:
    """A request's target without what only this browser has."""
    return generic_address(exchange.target).replace(f"/annotate/{slug}", "/annotate/{slug}")


def generic_address(target: str) -> str:
    """An address without ids, hashes and versions."""
    target = re.sub(r"/assignments/\d+/", "/assignments/{assignment}/", target)
    target = re.sub(r"/images/[0-9a-f]{64}", "/images/{image}", target)
    return re.sub(r"/at-[0-9a-f]{12}/", "/at-{version}/", re.sub(r"\?v=[0-9a-f]+", "?v={version}", target))


def generic_fields(exchange: Exchange, shown: dict[str, int]) -> Fields:
    """A request's form; picks as the numbers of their keys."""
    fields = list[list[str]]()
    for name, value in parse_qsl(exchange.body.decode(), keep_blank_values=True):
        if name == "picks":
            fields.append([name, f"{{pick {shown[value]}}}"])
        else:
            fields.append([name, REPEATED.get(name, value)])
    return fields
