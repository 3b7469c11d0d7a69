"""What all seeds and arms of a simulation share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from illume.evaluation.meteor import Meteor
from illume.evaluation.tasks import task_of
from illume.model.vision_cache import EncodedPromptCache
from illume.simulation.loop.stages import Models, Stages
from illume.simulation.settings import Data, SimulationSettings

Pool = dict[str, tuple[str, ...]]
"""What was accepted of each prompt: rationales, or structured answers as JSON."""


@dataclass
class Simulation:
    """Everything that the seeds share."""

    settings: SimulationSettings
    data: Data
    stages: Stages
    models: Models
    rates: dict[str, float] = field(
        default_factory=dict
    )  # the selected learning rates of supervised tuning, by baseline
    encoded: EncodedPromptCache = field(default_factory=EncodedPromptCache)  # of the held-out prompts, and of val
    meteor: Meteor | None = None  # in one process only, because the program needs much memory
    arm: str = ""  # the folder of an arm of a comparison, in which its own stages are; empty: there is one arm only

    @property
    def folder(self) -> Path:
        """The folder of all stages."""
        return self.stages.folder

    def in_arm(self, folder: str, settings: SimulationSettings) -> Simulation:
        """The same simulation with the settings of an arm, whose own stages are in `folder`."""
        return replace(self, settings=settings, arm=folder, rates={})

    def place(self, seed: int) -> str:
        """Where the stages of a seed are, below `folder`."""
        return f"{self.arm}/seed-{seed}" if self.arm else f"seed-{seed}"

    @property
    def measures_matched(self) -> bool:
        """Whether versions are also scored at matched entropy: truth can be computed, and there are gold answers."""
        heldout = self.data.heldout
        return (
            self.settings.matched_entropy
            and self.settings.answer_fields is None
            and any(one.answer is not None for one in self.data.val)
            and all(one.answer is not None and task_of(one) is not None for one in heldout)
        )
