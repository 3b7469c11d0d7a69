"""The lines for curl in the pages about tokens, webhooks and erasing do what the pages say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.models import Role, Scope
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.settings import ROOT
from tests import factories
from tests.conftest import CommittedDatabase
from tests.docs.blocks import snippets
from tests.serving import serve

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def variables(committed_db: CommittedDatabase) -> Iterator[dict[str, str]]:
    """A server with the project and the person that the pages name, and the variables that they use."""
    with committed_db.sessions() as session:
        factories.make_project(session, slug="scenes")
        admin = factories.make_user(session, role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.admin)
        while factories.make_user(session).id < 7:
            pass
        session.commit()
    with serve() as url:
        yield {"URL": url, "TOKEN": token}


def answers(page: str, variables: dict[str, str]) -> list[dict[str, Any]]:
    """What the server answered to each line of the page's only block for a shell."""
    [code] = snippets(ROOT / "docs" / page, "sh")
    # curl prints no line break after an answer; an option in its settings adds one.
    settings = Path(os.environ["ILLUME_DATA_DIR"]) / ".curlrc"
    settings.write_text('silent\nshow-error\nfail-with-body\nwrite-out = "\\n"\n')
    environment = {**os.environ, **variables, "CURL_HOME": str(settings.parent)}
    done = subprocess.run(["bash", "-euc", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_token_is_made(variables: dict[str, str]) -> None:
    [made] = answers("tokens.md", variables)
    assert made["token"].startswith("ill_")


def test_a_webhook_is_made(variables: dict[str, str]) -> None:
    [made] = answers("data/webhooks.md", variables)
    assert made["secret"].startswith("whsec_")


def test_a_person_is_erased(variables: dict[str, str]) -> None:
    first, erased, shown = answers("data/erasing.md", variables)
    assert first.keys() != erased.keys()
    assert erased["id"] == shown["id"] == "1"
