"""Instructions, their examples and their versions."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.services.projects import projects
from app.services.projects.instructions import InstructionExample, load_instructions, parse_examples
from app.services.projects.projects import parse_settings
from tests import factories


def test_parse_examples() -> None:
    lines = ["+ a red kite | it is seen", "-it is so because it is so"]
    assert parse_examples(lines) == (
        InstructionExample("a red kite", True, "it is seen"),
        InstructionExample("it is so because it is so", False, ""),
    )


@pytest.mark.parametrize("line", ["a red kite", "+ | why", "*  a kite"])
def test_an_invalid_example_is_refused(line: str) -> None:
    with pytest.raises(Invalid, match="instruction_examples"):
        parse_settings({"instruction_examples": [line]})


def test_versions_count_their_changes_only(session: Session) -> None:
    project = factories.make_project(session)
    admin = factories.make_admin(session)

    def version() -> int:
        settings = projects.settings_of(session, project)
        return load_instructions(session, project, settings).version

    first = load_instructions(session, project, projects.settings_of(session, project)).changed_at
    assert version() == 1
    for changes, wanted in (
        ({"overlap": 3}, 1),
        ({"instructions": "Look twice."}, 2),
        ({"epochs": 7}, 2),
        ({"instruction_examples": ["+ a kite"]}, 3),
        ({"instructions": "Look."}, 4),
    ):
        projects.update_project(session, admin, project.slug, changes)
        assert version() == wanted
    assert load_instructions(session, project, projects.settings_of(session, project)).changed_at >= first
