"""The graph of a project's versions as SVG coordinates: parents on the left, each branch in its own lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.models import ModelVersion

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
            label=" ".join((f"v{one.number}", _score(scores.get(one.id)))).strip()
            + (f", from v{numbers[one.parent_id]}" if one.parent_id in numbers else ", the base model")
            + (", active" if one.id == active_id else ""),
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
        summary=f"Version tree: {'; '.join(node.label for node in nodes)}.",
        width=2 * LEFT + STEP * (len(ordered) - 1),
        height=2 * TOP + LANE * max(lanes.values()) + 24,
        radius=RADIUS,
        nodes=nodes,
        edges=edges,
    )


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


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
    label = "" if before is None or after is None else f"{after - before:+.3f}".replace("-", "\u2212")
    return Edge(path, label, x2 - (STEP - 2 * RADIUS) // 2, y2 - 8)
