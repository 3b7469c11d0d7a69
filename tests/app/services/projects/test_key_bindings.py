"""Personal key bindings: stored with the person, refused if they clash."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import Role
from app.services.kernel.actors import Actor
from app.services.projects.key_bindings import keys_in_force, load_key_bindings, save_key_bindings
from tests import factories


@pytest.fixture
def critic(session: Session) -> Actor:
    user = factories.make_user(session, role=Role.critic)
    return Actor(user.id, user.email, user.role)


def test_are_stored_with_the_person(session: Session, critic: Actor) -> None:
    other = factories.make_user(session, role=Role.critic)
    save_key_bindings(session, critic, {"none": "x", "submit": "Enter"})
    assert load_key_bindings(session, critic) == {"none": "x"}
    assert load_key_bindings(session, Actor(other.id, other.email, other.role)) == {}
    save_key_bindings(session, critic, {"skip": "f", "flag": "s"})  # two actions swap their keys
    assert load_key_bindings(session, critic) == {"skip": "f", "flag": "s"}
    assert tuple(keys_in_force(session, critic).values())[:8] == ("Enter", "0", "e", "w", "t", "Backspace", "f", "s")


@pytest.mark.parametrize(
    "chosen",
    [{"fly": "x"}, {"none": ""}, {"none": "s"}, {"none": "x", "skip": "x"}, {"none": "\n"}, {"none": "x" * 21}],
)
def test_a_clash_is_refused(session: Session, critic: Actor, chosen: Mapping[str, str]) -> None:
    save_key_bindings(session, critic, {"none": "n"})
    with pytest.raises(Invalid):
        save_key_bindings(session, critic, chosen)
    assert load_key_bindings(session, critic) == {"none": "n"}
