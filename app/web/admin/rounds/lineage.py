"""The graph of a project's versions as SVG coordinates: parents on the left, each branch in its own lane."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from app.models import ModelVersion
from app.web.rendering import number, signed
from illume.phrases import _

STEP, LANE = 132, 72
LEFT, TOP = 56, 32
RADIUS = 22


@dataclass(frozen=True, slots=True)
class Node:
    """A version in the graph."""

    number: int
    x: int
    y: int
    label: str
    score: str
    active: bool


@dataclass(frozen=True, slots=True)
class Edge:
    """The line from a parent to its child, with the change of the score."""

    path: str
    label: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Everything that a template needs to draw the graph."""

    summary: str
    width: int
    height: int
    radius: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def lineage(versions: Sequence[ModelVersion], scores: dict[int, float | None], active_id: int | None) -> Lineage | None:
    """The graph of `versions`; `scores` are by id. None for fewer than two versions."""
    ordered = sorted(versions, key=lambda one: one.number)
    if len(ordered) < 2:
        return None
    lanes = assign_lanes(ordered)
    columns = {one.id: index for index, one in enumerate(ordered)}
    places = {one.id: (LEFT + STEP * columns[one.id], TOP + LANE * lanes[one.id]) for one in ordered}
    numbers = {one.id: one.number for one in ordered}
    nodes = tuple(
        Node(
            number=one.number,
            x=places[one.id][0],
            y=places[one.id][1],
            label=_label(
                f"v{one.number} {_score(scores.get(one.id))}".strip(),
                None if one.parent_id is None else numbers.get(one.parent_id),
                active=one.id == active_id,
            ),
            score=_score(scores.get(one.id)),
            active=one.id == active_id,
        )
        for one in ordered
    )
    edges = tuple(
        edge(places[one.parent_id], places[one.id], scores.get(one.parent_id), scores.get(one.id))
        for one in ordered
        if one.parent_id is not None and one.parent_id in places
    )
    return Lineage(
        summary=_("Version tree: %(versions)s.", versions=_listed([node.label for node in nodes])),
        width=2 * LEFT + STEP * (len(ordered) - 1),
        height=2 * TOP + LANE * max(lanes.values()) + 24,
        radius=RADIUS,
        nodes=nodes,
        edges=edges,
    )


def _score(score: float | None) -> str:
    return "" if score is None else number(score, 3)


def _listed(labels: Sequence[str]) -> str:
    return functools.reduce(lambda one, other: _("%(one)s; %(other)s", one=one, other=other), labels)


def _label(version: str, parent: int | None, *, active: bool) -> str:
    if parent is None:
        if active:
            return _("%(version)s, the base model, active", version=version)
        return _("%(version)s, the base model", version=version)
    if active:
        return _("%(version)s, from v%(parent)s, active", version=version, parent=parent)
    return _("%(version)s, from v%(parent)s", version=version, parent=parent)


def assign_lanes(ordered: Sequence[ModelVersion]) -> dict[int, int]:
    """The lane of each version: the first child continues its parent's lane, each later one starts a new lane."""
    lanes: dict[int, int] = {}
    continued: set[int] = set()
    last = 0
    for one in ordered:
        parent = one.parent_id
        if parent is None or parent not in lanes:
            lanes[one.id] = last if not lanes else last + 1
        elif parent not in continued:
            lanes[one.id] = lanes[parent]
            continued.add(parent)
        else:
            lanes[one.id] = last + 1
        last = max(last, lanes[one.id])
    return lanes


def edge(start: tuple[int, int], end: tuple[int, int], before: float | None, after: float | None) -> Edge:
    """A line between two points: straight within a lane, curved to another one."""
    x1, y1, x2, y2 = start[0] + RADIUS, start[1], end[0] - RADIUS, end[1]
    middle = x2 - (STEP // 2 - RADIUS)
    path = f"M{x1} {y1}H{x2}" if y1 == y2 else f"M{x1} {y1}C{middle} {y1} {middle - 12} {y2} {x2} {y2}"
    label = "" if before is None or after is None else signed(after - before, 3)
    return Edge(path, label, x2 - (STEP - 2 * RADIUS) // 2, y2 - 8)
