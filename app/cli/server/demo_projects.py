"""The projects of the demo with their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from illume.guard.policies import FIELDS


@dataclass(frozen=True, slots=True)
class DemoProject:
    """A project of the demo. Its slug also names the folder with its prompts."""

    slug: str
    name: str
    settings: Mapping[str, Any]

    def table(self, starter: Path) -> Path:
        """The file of its prompts, if the starter ships any."""
        return starter / self.slug / "prompts.jsonl"


SCENES = DemoProject(
    "scenes",
    "Scenes",
    {
        "round_every": 20,
        "instructions": (
            "Look at the scene, the question and the answer. Pick every explanation that is true of the scene and says "
            "why the answer is right: it names the things, colours or places that matter. Pick none when none fits."
        ),
    },
)
PAIRS = DemoProject(
    "pairs",
    "Scenes in pairs",
    {
        "round_every": 20,
        "max_new_tokens": 80,  # an explanation has a clause about either picture
        "instructions": (
            "Look at both pictures in their order, at the question and at the answer; half of the questions are in "
            "German. Pick every explanation that is true of both pictures and says why the answer is right: what each "
            "of them shows of what is asked for. One that mixes up the first and the second picture is wrong. Pick "
            "none when none fits, and skip what is in a language that you do not read."
        ),
        "instruction_examples": [
            "+ the first picture shows three pears, and in the second picture there is no pear | says of both pictures "
            "what decides the answer",
            "- that is what the pictures show | only repeats that the answer is right, which is not a reason",
            "- the second picture shows two pears at the front left | there is no pear in the second picture",
        ],
        "skip_reasons": ["Not my language", "Not sure", "Too hard to see"],
    },
)
GUARD = DemoProject(
    "guard",
    "Scenes under house rules",
    {
        "round_every": 20,
        "answer_fields": FIELDS.to_json(),
        "template": "{policy}\nQ: {question} A: {answer}",
        "instructions": (
            "Read the rules beside the scene; they change from prompt to prompt. First say what holds of the scene: "
            "Unsafe if it breaks a rule, with the category of that rule, else Safe and none. Then pick every "
            "explanation that is true of the scene and cites the rule that decides, as it is written here. Pick none "
            "when none fits."
        ),
        "instruction_examples": [
            "+ the rules forbid vehicles indoors, and there is a car near the shelves | names what is seen, where that "
            "is, and the rule that forbids it",
            "- that is what the rules say | only repeats that the answer is right, which is not a reason",
            "- vehicles are not allowed at all, and there is a car | the rule here forbids them indoors only",
        ],
    },
)
PROJECTS = (SCENES, PAIRS, GUARD)
"""In the order in which explanations are written for them at the first start."""


def shipped_projects(starter: Path) -> list[DemoProject]:
    """Those whose prompts the starter ships. `SCENES` is always there, since the first steps lead to it."""
    return [one for one in PROJECTS if one is SCENES or one.table(starter).exists()]
