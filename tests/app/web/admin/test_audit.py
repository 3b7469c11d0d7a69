"""The details of the audit log are words, not JSON."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app.models import Project, User
from app.services.kernel import audit
from tests import factories
from tests.app.web.conftest import Browser


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"changed": ["answer", "split"]}, "changed answer, split"),
        ({"practice": False, "prompt": 7}, "prompt 7, practice no"),
        ({"changed": []}, "changed –"),
        ({"sets": [1, 2]}, "sets [1, 2]"),
    ],
)
def test_details(
    browser: Browser, session: Session, project: Project, admin: User, data: dict[str, object], words: str
) -> None:
    audit.record(session, factories.actor_of(admin), "prompt.change", "prompt:7", project.id, **data)
    session.flush()
    assert f'data-label="Details">{words}</td>' in browser.get("/admin/audit").text
