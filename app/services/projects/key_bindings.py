"""The key bindings of the judging page: the defaults, and those a person chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import User
from app.services.kernel.actors import Actor

MAX_KEY_LENGTH = 20


@dataclass(frozen=True, slots=True)
class KeyAction:
    """An action: its name in scripts, its default key as browsers name it, and a description."""

    name: str
    first: str
    does: str


ACTIONS = (
    KeyAction("submit", "Enter", "submit; in a text field, Ctrl + Enter"),
    KeyAction("none", "0", "none fits"),
    KeyAction("edit", "e", "edit an explanation: the one you picked, or the number you press next"),
    KeyAction("write", "w", "write your own explanation; Esc leaves the field"),
    KeyAction("lacks", "t", "say what is wrong with an explanation, after its number"),
    KeyAction("skip", "s", "skip, with a reason"),
    KeyAction("flag", "f", "flag a broken prompt"),
    KeyAction("back", "u", "go back to your last verdict to change it; press again to go further back"),
    KeyAction("zoom", "z", "enlarge the images; the wheel or a pinch zooms in place"),
    KeyAction("differences", "d", "highlight the words in which explanations differ"),
    KeyAction("unfold", "l", "show long texts in full"),
    KeyAction("reveal", "b", "show blurred images"),
    KeyAction("instructions", "i", "show or hide the instructions"),
    KeyAction("keys", "?", "show these shortcuts"),
)


def load_key_bindings(session: Session, actor: Actor) -> dict[str, str]:
    """The keys a person chose, by action; actions with their default key are left out."""
    return dict(session.scalar(select(User.judging_keys).where(User.id == actor.user_id)) or {})


def keys_in_force(session: Session, actor: Actor) -> tuple[str, ...]:
    """The keys that shortcuts use, chosen or default, in the order of `ACTIONS`."""
    chosen = load_key_bindings(session, actor)
    return tuple(chosen.get(action.name, action.first) for action in ACTIONS)


def save_key_bindings(session: Session, actor: Actor, chosen: Mapping[str, str]) -> None:
    """Store the keys a person chose. Raises `Invalid` for an unknown action, or if two share a key."""
    first = {action.name: action.first for action in ACTIONS}
    for name, key in chosen.items():
        if name not in first:
            raise Invalid(f"The judging page has no action '{name[:MAX_KEY_LENGTH]}'.", field="keys")
        if not (0 < len(key) <= MAX_KEY_LENGTH and key.isprintable()):
            raise Invalid(f"The key for '{name}' cannot be used.", field="keys")
    in_force = first | dict(chosen)
    if len(set(in_force.values())) < len(in_force):
        raise Invalid("Two actions share a key. Choose another key for one of them.", field="keys")
    kept = {name: key for name, key in chosen.items() if key != first[name]}
    session.execute(update(User).where(User.id == actor.user_id).values(judging_keys=kept))
