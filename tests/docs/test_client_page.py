"""What docs/client.md shows works, one example after the other, against a server."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import update

from app.models import Role, Round, RoundState, Scope
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.settings import ROOT
from tests import factories
from tests.conftest import CommittedDatabase
from tests.docs.blocks import snippets
from tests.serving import serve

PAGE = ROOT / "docs" / "client.md"


def test_the_page_does_what_it_says(
    committed_db: CommittedDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with committed_db.sessions() as session:
        factories.make_project(session, slug="boats")
        admin = factories.make_user(session, role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.admin)
        session.commit()

    def work(_: float) -> None:
        """Do what a worker does while a script waits."""
        with committed_db.sessions() as session:
            session.execute(update(Round).values(state=RoundState.succeeded))
            session.commit()

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (600, 400), "brown").save(tmp_path / "photos" / "robin.jpg")
    (tmp_path / "photos" / "text.jpg").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", work)
    names: dict[str, Any] = {}
    said: list[str] = []
    with serve() as url:
        monkeypatch.setenv("ILLUME_URL", url)
        monkeypatch.setenv("ILLUME_TOKEN", token)
        for code in snippets(PAGE, "python"):
            exec(code.replace('"http://127.0.0.1:8000", token="..."', ""), names)  # noqa: S102 - our own page
            said.append(capsys.readouterr().out)
        names["server"].close()
    projects_, folder, pil, parts, judged, structured, rounds, tables, feed, errors = said
    assert projects_ == "boats 20\n"
    assert re.fullmatch(r"1 prompts added\nphotos/text\.jpg .+\n", folder)
    assert re.fullmatch(r"\d+ ready\n", pil)
    assert parts == ("['In the first picture:', 600, 'In the second picture:', 600, 'Which one shows a robin?']\n")
    assert judged == "(480, 320) Which bird is this? picked\n"
    assert structured == "True House rules\n{'rating': 'Unsafe', 'category': 'Animals'}\n"
    assert rounds == "round 1 succeeded\nversion 0 active\n"
    assert tables.startswith("{'picked': 1}\n(600, 400) its breast is red\n2 rows\n")
    assert feed == "1 verdicts\n0 since then\n"
    assert re.match(r"422 round_every round_every: .+\n", errors)
