"""Two versions side by side, on the prompts on which rounds scored both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response
from rapidfuzz.distance import LCSseq

from app.errors import NotFound
from app.http.dependencies import SessionDep
from app.models import ModelVersion
from app.services.rounds import versions
from app.services.rounds.side_by_side import TOLERANCE, Pair, SideBySide, Style, VersionTexts, side_by_side
from app.web.access import Me
from app.web.admin.frame import frame_of
from app.web.admin.next_steps import NextStep, next_round_step
from app.web.judging.views import Picture, ReadPart, read_in_order
from app.web.rendering import page, signed
from app.web.words import OUTCOME_TONES, image_url, outcome_words, prompt_words
from illume.phrases import _, pgettext

router = APIRouter()
PAGE_SIZE = 25
MAX_COMPARED_WORDS = 3000
SORTS = (
    ("better", _("most improved first")),
    ("worse", _("most worsened first")),
    ("most", _("largest difference first")),
    ("prompt", _("in the order added")),
)
STYLES = (("sampled", _("sampled at T = 0.7")), ("greedy", _("greedy")))
ORDERS: Mapping[str, Callable[[Pair], tuple[float, int]]] = {
    "better": lambda one: (-(one.difference or 0.0), one.prompt_id),
    "worse": lambda one: (one.difference or 0.0, one.prompt_id),
    "most": lambda one: (-abs(one.difference or 0.0), one.prompt_id),
    "prompt": lambda one: (0.0, one.prompt_id),
}
SHOWN: Mapping[str, Callable[[float | None], bool]] = {
    "": lambda _difference: True,
    "better": lambda difference: difference is not None and difference > TOLERANCE,
    "worse": lambda difference: difference is not None and difference < -TOLERANCE,
    "same": lambda difference: difference is None or abs(difference) <= TOLERANCE,
}
Word = tuple[str, bool]


@dataclass(frozen=True, slots=True)
class SideView:
    """The texts of one version. Each text is a list of words, marked where the other version's text differs."""

    texts: tuple[tuple[Word, ...], ...]
    score: float | None
    own_answer: str


@dataclass(frozen=True, slots=True)
class PairView:
    """A prompt with the texts of both versions."""

    prompt: str
    question: str
    answer: str
    image: str
    reading: tuple[ReadPart, ...]
    references: tuple[str, ...]
    old: SideView
    new: SideView
    difference: str
    tone: str


@dataclass(frozen=True, slots=True)
class Share:
    """The number of pairs of a kind, with a link to them."""

    label: str
    count: int
    url: str
    current: bool


@dataclass(frozen=True, slots=True)
class CompareView:
    """The page of two versions side by side."""

    slug: str
    numbers: tuple[int, ...]
    old: int | None
    new: int | None
    style: str
    styles: tuple[tuple[str, str], ...]
    sort: str
    sorts: tuple[tuple[str, str], ...]
    show: str
    total: int
    change: str
    outcome: str
    tone: str
    same_settings: bool
    shares: tuple[Share, ...]
    pairs: tuple[PairView, ...]
    previous: str
    next: str
    step: NextStep | None


@router.get("/projects/{slug}/compare")
def show(
    request: Request,
    session: SessionDep,
    who: Me,
    slug: str,
    old: int | None = None,
    new: int | None = None,
    style: Style = "sampled",
    sort: str = "better",
    show: str = "",
    start: int = 0,
) -> Response:
    """Show two versions side by side; by default the newest one and its parent."""
    frame = frame_of(request, session, who, slug, tab="Versions", title=_("Compare"))
    known = versions.list_versions(session, who.actor, frame.project)
    left, right = chosen(known, old, new)
    found = SideBySide((), None, same_settings=True)
    if left is not None and right is not None:
        found = side_by_side(session, who.actor, frame.project, old=left, new=right, style=style)
    sort = sort if sort in ORDERS else "better"
    kind = show if show in SHOWN else ""
    fields: dict[str, str | int] = {"style": style, "sort": sort}
    if left is not None and right is not None:
        fields |= {"old": left.number, "new": right.number}

    def address(**changed: str | int) -> str:
        return "?" + urlencode({**fields, **changed})

    listed = sorted((one for one in found.pairs if SHOWN[kind](one.difference)), key=ORDERS[sort])
    start = max(0, start)
    view = CompareView(
        slug=slug,
        numbers=tuple(sorted(one.number for one in known)),
        old=left.number if left else None,
        new=right.number if right else None,
        style=style,
        styles=STYLES,
        sort=sort,
        sorts=SORTS,
        show=kind,
        total=len(found.pairs),
        change=change_words(found),
        outcome="" if found.change is None or found.outcome is None else outcome_words(found.outcome, found.change.n),
        tone="" if found.outcome is None else OUTCOME_TONES[found.outcome],
        same_settings=found.same_settings,
        shares=count_kinds(found, kind, address),
        pairs=tuple(pair_view(one) for one in listed[start : start + PAGE_SIZE]),
        previous=address(show=kind, start=max(0, start - PAGE_SIZE)) if start else "",
        next=address(show=kind, start=start + PAGE_SIZE) if start + PAGE_SIZE < len(listed) else "",
        step=next_round_step(session, frame) if len(known) < 2 else None,
    )
    return page("admin/rounds/compare.html", shell=frame.shell, view=view)


def chosen(
    known: Sequence[ModelVersion], old: int | None, new: int | None
) -> tuple[ModelVersion | None, ModelVersion | None]:
    """The two requested versions; by default the newest one and its parent. Raises `NotFound`."""
    by_number = {one.number: one for one in known}
    for number in (old, new):
        if number is not None and number not in by_number:
            raise NotFound(_("There is no version %(number)s in this project.", number=number))
    by_id = {one.id: one for one in known}
    right = by_number[new] if new is not None else max(known, key=lambda one: one.number, default=None)
    if old is not None:
        return by_number[old], right
    return (by_id.get(right.parent_id or 0), right) if right is not None else (None, None)


def change_words(found: SideBySide) -> str:
    """The mean difference, with its interval where there are enough prompts for one."""
    if found.change is None:
        return ""
    if found.outcome == "too few to tell":
        return signed(found.change.mean, 3)
    mean, low, high = (signed(one, 3) for one in (found.change.mean, found.change.low, found.change.high))
    return _("%(mean)s (%(low)s to %(high)s)", mean=mean, low=low, high=high)


def count_kinds(found: SideBySide, kind: str, address: Callable[..., str]) -> tuple[Share, ...]:
    """The numbers of better, equal and worse pairs, with links to them."""
    better, worse = found.count(better=True), found.count(better=False)
    same = len(found.pairs) - better - worse
    counts = (
        ("", pgettext("prompts", "all"), len(found.pairs)),
        ("better", pgettext("prompts", "better"), better),
        ("same", pgettext("prompts", "unchanged"), same),
        ("worse", pgettext("prompts", "worse"), worse),
    )
    return tuple(Share(label, count, address(show=key), current=key == kind) for key, label, count in counts)


def pair_view(one: Pair) -> PairView:
    """A pair as the page shows it."""
    old, new = mark_differences(one.old.texts, one.new.texts)
    difference = one.difference
    thumbs = [Picture(image_url(part["sha256"]), 0, 0) for part in one.parts if part["type"] == "image"]
    return PairView(
        prompt=str(one.prompt_id),
        question=prompt_words(one.question),
        answer=one.answer or "",
        image=image_url(one.image),
        reading=read_in_order(one.parts, thumbs),
        references=one.references,
        old=side_view(one.old, old),
        new=side_view(one.new, new),
        difference="" if difference is None else signed(difference, 3),
        tone="" if difference is None or abs(difference) <= TOLERANCE else "good" if difference > 0 else "bad",
    )


def side_view(one: VersionTexts, texts: tuple[tuple[Word, ...], ...]) -> SideView:
    """The texts of one version as the page shows them."""
    return SideView(texts, one.rouge_l, one.own_answer or "")


def mark_differences(
    old: Sequence[str], new: Sequence[str]
) -> tuple[tuple[tuple[Word, ...], ...], tuple[tuple[Word, ...], ...]]:
    """The words of both sides' texts, marked where they differ from the text at the same position on the other side."""
    left, right = [], []
    for index in range(max(len(old), len(new))):
        before = old[index].split() if index < len(old) else []
        after = new[index].split() if index < len(new) else []
        kept_before, kept_after = common_words(before, after)
        if index < len(old):
            left.append(tuple((word, place not in kept_before) for place, word in enumerate(before)))
        if index < len(new):
            right.append(tuple((word, place not in kept_after) for place, word in enumerate(after)))
    return tuple(left), tuple(right)


def common_words(before: Sequence[str], after: Sequence[str]) -> tuple[Set[int], Set[int]]:
    """The places of the words that both texts have in the same order. Very long texts are not compared: all count."""
    if max(len(before), len(after)) > MAX_COMPARED_WORDS:
        return set(range(len(before))), set(range(len(after)))
    kept_before: set[int] = set()
    kept_after: set[int] = set()
    for part in LCSseq.opcodes(before, after):
        if part.tag == "equal":
            kept_before.update(range(part.src_start, part.src_end))
            kept_after.update(range(part.dest_start, part.dest_end))
    return kept_before, kept_after
