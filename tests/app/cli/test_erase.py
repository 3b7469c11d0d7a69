"""`illume erase`: says what would go, asks, and stays until it is done."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from app.cli import main
from app.models import Prompt, User
from tests import factories
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase


def test_a_person_and_a_project(committed_db: CommittedDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    with committed_db.sessions.begin() as session:
        project, [critic] = make_judged(session)
        factories.make_user(session)
        slug, email = project.slug, session.get_one(User, critic.user_id).email
    assert main.main(["erase", "person", email]) == 2  # nobody is there to say yes
    assert f"Erasing {email} removes or changes: 4 verdicts" in capsys.readouterr().out
    assert main.main(["erase", "person", email, "--yes"]) == 0
    assert "Erased: 4 verdicts" in capsys.readouterr().out
    assert main.main(["erase", "person", email, "--yes"]) == 1
    assert f"There is no account for {email}." in capsys.readouterr().err
    assert main.main(["erase", "project", slug, "--yes"]) == 0
    with committed_db.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Prompt)) == 0
