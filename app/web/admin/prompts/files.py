"""What is told of the files that a prompt's images were."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.models import Prompt
from app.services.kernel.actors import Actor
from app.services.prompts import images
from app.web.words import IMAGE_CHANGE_WORDS
from illume.phrases import _
from illume.pictures import Change


def describe_files(session: Session, actor: Actor, prompt: Prompt) -> tuple[str, ...]:
    """A line for each image whose file has a name or was changed when it was taken in."""
    names = images.names_in_project(session, actor, prompt.project_id, [one.sha256 for one in prompt.images])
    lines = []
    for number, one in enumerate(prompt.images, start=1):
        done = ", ".join(IMAGE_CHANGE_WORDS[Change(change)] for change in one.image.changes)
        name = names.get(one.sha256, _("Image %(number)s", number=number) if done else "")
        lines.append(f"{name}: {done}" if done else name)
    return tuple(line for line in lines if line)
