"""METEOR of the versions of a simulation, in separate stages, so that it can be added to a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from illume.evaluation.evaluation import Scores, add_meteor
from illume.evaluation.meteor import Meteor
from illume.records import Example
from illume.simulation.loop.stages import Stages


def with_meteor(
    stages: Stages, program: Meteor | None, name: str, scores: Scores, examples: Sequence[Example]
) -> Scores:
    """Adds METEOR to the scores of stage `name`, if its stage exists or the program is given."""
    stage = f"{name}/meteor"
    if program is None:
        return _merged(scores, stages.run_once(stage, "meteor", lambda _: {})) if stages.has(stage) else scores
    return _merged(scores, stages.run_once(stage, "meteor", lambda _: _added(add_meteor(scores, examples, program))))


def _added(scores: Scores) -> Scores:
    """The values that `add_meteor` added."""
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
