"""The client of docs/rest.md judges what a server offers; its lines for curl add a prompt and fetch every format."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from app.models import Role, Scope
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.settings import ROOT
from tests import factories
from tests.conftest import CommittedDatabase
from tests.docs.blocks import snippets
from tests.serving import serve

PAGE = ROOT / "docs" / "rest.md"
FORMATS = ("records", "csv", "sft", "preference", "kto", "sharegpt")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_does_what_it_says(committed_db: CommittedDatabase, tmp_path: Path) -> None:
    with committed_db.sessions() as session:
        slug = factories.make_project(session).slug
        admin = factories.make_user(session, role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.write)
        session.commit()
    Image.new("RGB", (64, 48), "tomato").save(tmp_path / "market.jpg")
    with serve() as url:
        world = {**os.environ, "URL": url, "TOKEN": token, "PROJECT": slug}

        def run(command: list[str]) -> str:
            done = subprocess.run(
                command, env=world, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, done.stderr + done.stdout
            return done.stdout

        adding, every_format = snippets(PAGE, "sh")
        added = run(["bash", "-euc", adding])
        assert '"external_id":"market"' in added
        with httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}) as server:
            sha256 = re.findall(r'"sha256":"(\w+)"', added)[0]
            long, short = "the stalls are full of red fruit", "it is fruit"
            items = [
                {"question": "What?", "images": [sha256], "candidates": candidates}
                for candidates in ([long, short], [short, "fruit"])
            ]
            server.post(f"/projects/{slug}/prompts", json={"items": items}).raise_for_status()
            [client] = snippets(PAGE, "python")
            assert run([sys.executable, "-c", client]) == "2 sets judged\n"
            feed = server.get(f"/projects/{slug}/verdicts").json()["items"]
        assert sorted(one["kind"] for one in feed) == ["none_fit", "picked"]
        run(["bash", "-euc", every_format])
    rows = {name: len((tmp_path / f"{name}.txt").read_text().splitlines()) for name in FORMATS}
    assert rows == {"records": 2, "csv": 3, "sft": 1, "preference": 1, "kto": 4, "sharegpt": 1}
    assert (tmp_path / "sft.parquet").read_bytes().startswith(b"PAR1")
