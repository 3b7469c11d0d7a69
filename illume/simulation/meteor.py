"""METEOR of a simulation's versions, each a stage of its own: added later to a run that began without its program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from illume.evaluation.evaluation import Scores, add_meteor
from illume.evaluation.meteor import Meteor
from illume.records import Example
from illume.simulation.stages import Stages


def with_meteor(
    stages: Stages, program: Meteor | None, name: str, scores: Scores, examples: Sequence[Example]
) -> Scores:
    """`scores`, those of stage `name`, with METEOR; as they are where there is neither its stage nor its program."""
    stage = f"{name}/meteor"
    if program is None:
        return _merged(scores, stages.once(stage, "meteor", lambda _: {})) if stages.has(stage) else scores
    return _merged(scores, stages.once(stage, "meteor", lambda _: _added(add_meteor(scores, examples, program))))


def _added(scores: Scores) -> Scores:
    """What `add_meteor` added."""
    return {
        part: {
            style: {"meteor": rows["meteor"]}
            | {name: _of_meteor(rows[name]) for name in ("means", "filtered") if name in rows}
            for style, rows in scores[part].items()
        }
        for part in ("gold", "own")
        if part in scores
    }


def _of_meteor(means: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in means.items() if name.startswith("meteor")}


def _merged(scores: Scores, added: Scores) -> Scores:
    return scores | {
        part: {
            style: rows
            | {name: rows[name] | more if name in rows else more for name, more in added[part][style].items()}
            for style, rows in scores[part].items()
        }
        for part in added
    }
