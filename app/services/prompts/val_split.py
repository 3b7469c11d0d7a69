"""Which prompts go into val where somebody asks for a share of the images: those that name no split, by their images.

The hash of an image decides, so that all prompts of one image stay together and are put there again by the next import,
form or request. Nothing that has a split, or is in the project already, is moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import DomainError
from app.models import Project, Prompt, PromptImage, Split
from app.services.prompts.prompts import PromptIn
from illume.records import stable_seed

VAL_SHARE = 0.1
"""The share of the images whose prompts are put into val unless another one is asked for."""
LARGEST_SHARE = 0.5
ImageSplits = dict[str, set[Split]]
"""A cache of the splits that images occur in."""


def load_splits(
    session: Session, project: Project, items: Sequence[PromptIn | DomainError], splits: ImageSplits
) -> None:
    """Add the splits that the images of `items` have in the project."""
    wanted = {sha256 for item in items if isinstance(item, PromptIn) for sha256 in item.images} - splits.keys()
    query = (
        select(PromptImage.sha256, Prompt.split)
        .join(Prompt, Prompt.id == PromptImage.prompt_id)
        .where(Prompt.project_id == project.id, PromptImage.sha256.in_(wanted))
        .distinct()
    )
    for sha256, split in session.execute(query) if wanted else ():
        splits.setdefault(sha256, set()).add(Split(split))


def note_split(item: PromptIn, splits: ImageSplits) -> None:
    """Add the split that the images of a new prompt have now."""
    for sha256 in item.images:
        splits.setdefault(sha256, set()).add(item.split)


def place_by_image(item: PromptIn, splits: Mapping[str, set[Split]], share: float = VAL_SHARE) -> PromptIn:
    """Put an item that names no split into the one that its images are in, else into val for `share` of the images.

    The smallest hash of its images decides.
    """
    if "split" in item.model_fields_set:
        return item
    known = next((found for sha256 in item.images if (found := splits.get(sha256))), None)
    if known is not None:
        split = min(known)
    else:
        rank = min(stable_seed("val", sha256) for sha256 in item.images)
        split = Split.val if rank < share * 2**63 else Split.train
    return item.model_copy(update={"split": split})


def place_items(
    session: Session, project: Project, items: Sequence[PromptIn | DomainError], *, share: float = VAL_SHARE
) -> list[PromptIn | DomainError]:
    """The items, of which those that name no split are put into train or val by their images."""
    splits: ImageSplits = {}
    load_splits(session, project, items, splits)
    placed: list[PromptIn | DomainError] = []
    for item in items:
        if not isinstance(item, PromptIn):
            placed.append(item)
            continue
        put = place_by_image(item, splits, share)
        note_split(put, splits)
        placed.append(put)
    return placed
