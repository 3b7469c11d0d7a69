"""The graph of versions."""

from __future__ import annotations

from app.models import ModelVersion
from app.web.admin.rounds.lineage import assign_lanes, lineage


def version(number: int, parent: int | None) -> ModelVersion:
    """A version whose id is ten more than its number."""
    return ModelVersion(id=10 + number, number=number, parent_id=None if parent is None else 10 + parent)


CHAIN = [version(0, None), version(1, 0), version(2, 1)]


class TestLineage:
    def test_a_chain_is_one_lane(self) -> None:
        found = lineage(CHAIN, {10: 0.5, 11: 0.6, 12: None}, active_id=11)
        assert found is not None
        assert len({node.y for node in found.nodes}) == 1
        assert [node.x for node in found.nodes] == sorted(node.x for node in found.nodes)
        assert [edge.label for edge in found.edges] == ["+0.100", ""]
        assert [node.active for node in found.nodes] == [False, True, False]
        assert "v1 0.600, from v0, active" in found.summary

    def test_a_second_child_begins_a_lane(self) -> None:
        lanes = assign_lanes([*CHAIN, version(3, 1), version(4, 3), version(5, 0)])
        assert [lanes[10 + number] for number in range(6)] == [0, 0, 0, 1, 1, 2]

    def test_one_version_is_no_graph(self) -> None:
        assert lineage(CHAIN[:1], {}, active_id=10) is None
