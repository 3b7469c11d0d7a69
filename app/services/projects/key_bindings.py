"""The key bindings of the judging page: the defaults, and those a person chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import User
from app.services.kernel.actors import Actor
from illume.phrases import _

MAX_KEY_LENGTH = 20


@dataclass(frozen=True, slots=True)
class KeyAction:
    """An action: its name in scripts, its default key as browsers name it, and a description, also a short one."""

    name: str
    first: str
    does: str
    short: str = ""


ACTIONS = (
    KeyAction("submit", "Enter", _("submit; in a text field, Ctrl + Enter"), _("submit")),
    KeyAction("none", "0", _("none fits")),
    KeyAction(
        "edit",
        "e",
        _("edit an explanation: the one you picked, or the number you press next"),
        _("edit an explanation"),
    ),
    KeyAction("write", "w", _("write your own explanation; Esc leaves the field"), _("write your own explanation")),
    KeyAction(
        "lacks",
        "t",
        _("say what is wrong with an explanation, after its number"),
        _("say what is wrong with an explanation"),
    ),
    KeyAction(
        "correct",
        "Backspace",
        _("change the rating and category that you gave, where there are such"),
        _("change your rating"),
    ),
    KeyAction("skip", "s", _("skip, with a reason"), _("skip")),
    KeyAction("flag", "f", _("flag a broken prompt")),
    KeyAction(
        "back",
        "u",
        _("go back to your last verdict to change it; press again to go further back"),
        _("go back to your last verdict to change it"),
    ),
    KeyAction("zoom", "z", _("enlarge the images; the wheel or a pinch zooms in place"), _("enlarge the images")),
    KeyAction("differences", "d", _("highlight the words in which explanations differ")),
    KeyAction("unfold", "l", _("show long texts in full")),
    KeyAction("reveal", "b", _("show blurred images")),
    KeyAction("instructions", "i", _("show or hide the instructions")),
    KeyAction("keys", "?", _("show these shortcuts")),
)


def load_key_bindings(session: Session, actor: Actor) -> dict[str, str]:
    """The keys a person chose, by action; actions with their default key are left out."""
    return dict(session.scalar(select(User.judging_keys).where(User.id == actor.user_id)) or {})


def keys_in_force(session: Session, actor: Actor) -> dict[str, str]:
    """The keys that shortcuts use, chosen or default, by action."""
    chosen = load_key_bindings(session, actor)
    return {action.name: chosen.get(action.name, action.first) for action in ACTIONS}


def save_key_bindings(session: Session, actor: Actor, chosen: Mapping[str, str]) -> None:
    """Store the keys a person chose. Raises `Invalid` for an unknown action, or if two share a key."""
    first = {action.name: action.first for action in ACTIONS}
    for name, key in chosen.items():
        if name not in first:
            raise Invalid(_("The judging page has no action '%(name)s'.", name=name[:MAX_KEY_LENGTH]), field="keys")
        if not (0 < len(key) <= MAX_KEY_LENGTH and key.isprintable()):
            raise Invalid(_("The key for '%(name)s' cannot be used.", name=name), field="keys")
    in_force = first | dict(chosen)
    if len(set(in_force.values())) < len(in_force):
        raise Invalid(_("Two actions share a key. Choose another key for one of them."), field="keys")
    kept = {name: key for name, key in chosen.items() if key != first[name]}
    session.execute(update(User).where(User.id == actor.user_id).values(judging_keys=kept))
