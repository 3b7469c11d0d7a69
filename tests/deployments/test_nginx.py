"""Illume behind the real nginx with TLS, below a sub-path: in a browser, over REST, and what a client may not claim."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from sqlalchemy import func, select

from app.models import Scope, Verdict
from app.processes.embedded import free_port
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from tests import factories
from tests.conftest import CommittedDatabase
from tests.deployments.browser import judge_in_browser
from tests.deployments.servers import Certificates, make_certificates, nginx, server_below
from tests.deployments.site import behind_proxy, serving
from tests.e2e import world

pytestmark = pytest.mark.slow


def environment(url: str, *, trusted: str = "127.0.0.1") -> dict[str, str]:
    """This test's settings, with the public URL `url`."""
    own = {name: value for name, value in os.environ.items() if name.startswith("ILLUME_")}
    return {**own, **behind_proxy(url, trusted=trusted)}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture(params=["", "/"], ids=["passed on", "taken off"])
def url(
    request: pytest.FixtureRequest, committed_db: CommittedDatabase, certificates: Certificates, tmp_path: Path
) -> Iterator[str]:
    """The public address of an installation with a world in it."""
    with committed_db.sessions() as session, session.begin():
        world.build(session)
    port, public = free_port(), free_port()
    url = f"https://127.0.0.1:{public}/illume"
    server = server_below(port).replace(f":{port};", f":{port}{request.param};")
    with serving(port, tmp_path, environment(url)), nginx(tmp_path / "nginx", certificates, server, port=public):
        yield url


def test_a_critic_judges_in_a_browser(url: str, committed_db: CommittedDatabase) -> None:
    visit = judge_in_browser(url, "scenes", email="critic@example.org", password=world.PASSWORD, sets=1)
    assert visit.outside == []
    assert [one for one in visit.failed if "/help/" not in one] == []  # the guide may not be built
    assert {(one["path"], one["secure"]) for one in visit.cookies} == {("/illume", True)}
    with committed_db.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Verdict)) == 1


def test_scripts_upload_and_export(url: str, committed_db: CommittedDatabase, certificates: Certificates) -> None:
    with committed_db.sessions() as session, session.begin():
        admin = users.find_user(session, "admin@example.org")
        assert admin is not None
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.admin)
    headers = {"Authorization": f"Bearer {token}"}
    large = factories.photograph(size=(3000, 2000))
    context = ssl.create_default_context(cafile=certificates.authority)
    with httpx.Client(base_url=f"{url}/api/v1/", headers=headers, verify=context, timeout=60) as rest:
        added = rest.post("images", files={"file": ("photo.jpg", large)})
        assert added.status_code == 201, added.text
        assert rest.get(urljoin(url, added.json()["url"])).headers["content-type"].startswith("image/")
        assert rest.get("projects/scenes/dataset").status_code == 200
        assert rest.get("openapi.json").json()["servers"] == [{"url": "/illume"}]


@pytest.mark.parametrize(("trusted", "scheme"), [("127.0.0.1", "https"), ("10.0.0.1", "http")])
def test_only_named_proxies_are_believed(
    committed_db: CommittedDatabase, certificates: Certificates, tmp_path: Path, trusted: str, scheme: str
) -> None:
    port, public = free_port(), free_port()
    url = f"https://127.0.0.1:{public}/illume"
    server = server_below(port).replace("location /illume/", "location /illume")
    with (
        serving(port, tmp_path, environment(url, trusted=trusted)),
        nginx(tmp_path / "nginx", certificates, server, port=public),
    ):
        context = ssl.create_default_context(cafile=certificates.authority)
        answer = httpx.get(url, verify=context, headers={"X-Forwarded-Proto": "ftp"})
        assert answer.headers["location"] == f"{scheme}://127.0.0.1:{public}/illume/"
