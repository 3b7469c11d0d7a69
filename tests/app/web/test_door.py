"""What a request's headers decide, over the whole application: hosts, encodings, HEAD, and the sizes of fields."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.testclient import TestClient

from app.http import door, forms
from app.http.headers import CONTENT_SECURITY_POLICY
from app.models import Role, Scope
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.settings import get_settings
from tests import factories
from tests.app.http.test_forms import PARTS, QUERY, parts_of
from tests.app.web.conftest import Browser, person


class TestHosts:
    @pytest.mark.parametrize("path", ["/sign-in", "/static/css/base.css", "/api/v1/projects", "/no-such-page"])
    @pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "a b", "[::1"])
    def test_a_name_that_is_not_ours_is_refused(self, client: TestClient, path: str, host: str) -> None:
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert get_settings().address in answer.text
        assert "evil" not in answer.text

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "app.localhost."])
    def test_this_machine_is_ours(self, client: TestClient, host: str) -> None:
        assert client.get("/sign-in", headers={"Host": host}).status_code == 200

    def test_probes_may_use_any_name(self, client: TestClient) -> None:
        assert client.get("/healthz", headers={"Host": "web"}).status_code == 200
        assert client.get("/readyz", headers={"Host": "10.1.2.3:8000"}).status_code == 200

    def test_an_invitation_leads_to_the_public_url(
        self, browser: Browser, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        browser.sign_in(person(session, role=Role.admin))
        browser.get("/admin/users")
        monkeypatch.setattr(get_settings(), "public_url", "https://illume.example.org")
        fields: dict[str, object] = {"email": "eve@example.org", "role": "critic"}
        page = browser.post("/admin/users", fields, headers={"Host": "localhost:1"}).text
        assert "https://illume.example.org/account/link/" in page
        assert "localhost" not in page


class TestEncodings:
    @pytest.mark.parametrize("charset", ["punycode", "utf-7", "utf-16", "latin-1", '"idna"', "nonsense"])
    @pytest.mark.parametrize("path", ["/sign-in", "/api/v1/images", "/admin/projects/x/imports", "/annotate/x/next"])
    def test_only_utf8_is_read(self, browser: Browser, path: str, charset: str) -> None:
        answer = browser.client.post(path, content=b"", headers={"Content-Type": f"{PARTS}; charset={charset}"})
        assert answer.status_code == 415
        assert "UTF-8" in answer.text

    @pytest.mark.parametrize("content_type", [f"{PARTS}; charset=UTF-8", f'{QUERY};charset="utf8"', "text/plain"])
    def test_utf8_may_be_named(self, browser: Browser, content_type: str) -> None:
        answer = browser.client.post("/sign-in", content=b"", headers={"Content-Type": content_type})
        assert answer.status_code == 403, "the form's token is missing, no more"


class TestCookies:
    def test_escapes_of_others_are_not_undone(self) -> None:
        scope = {"type": "http", "headers": [(b"cookie", b'a="\\073"; b=2;c=\\; d="4"'), (b"x", b"\\;")]}
        door.drop_escaped_cookies(scope)
        assert Request(scope).cookies == {"b": "2", "d": "4"}
        assert scope["headers"][1] == (b"x", b"\\;")

    def test_ours_are_read_beside_them(self, browser: Browser, session: Session) -> None:
        browser.sign_in(person(session, role=Role.admin))
        ours = "; ".join(f"{one.name}={one.value}" for one in browser.client.cookies.jar)
        others = 'x="' + "\\0" * 100 + '"'
        for cookies in (f"{others}; {ours}", f"{ours}; {others}"):
            answer = browser.client.get("/admin", headers={"Cookie": cookies}, follow_redirects=False)
            assert answer.status_code == 200
        octal = {ord(letter): f"\\{ord(letter):03o}" for letter in map(chr, range(33, 127))}
        escaped = "; ".join(f'{one.name}="{(one.value or "").translate(octal)}"' for one in browser.client.cookies.jar)
        assert browser.client.get("/admin", headers={"Cookie": escaped}, follow_redirects=False).status_code == 303


class TestHead:
    def test_pages_and_files_answer_as_get_without_a_body(self, browser: Browser, session: Session) -> None:
        admin = person(session, role=Role.admin)
        project = factories.make_project(session)
        image = factories.make_image(session)
        factories.make_prompt(session, project, images=[image])
        browser.sign_in(admin)
        slug = project.slug
        for path in (
            "/sign-in",
            "/healthz",
            "/admin",
            f"/admin/projects/{slug}",
            f"/api/v1/images/{image.sha256}",
            f"/api/v1/projects/{slug}/dataset",
            f"/api/v1/projects/{slug}/prompts",
            "/static/css/base.css",
            "/api/v1/openapi.json",
        ):
            full, head = browser.client.get(path), browser.client.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            dropped = {"date", "set-cookie"}
            assert {name: value for name, value in head.headers.items() if name not in dropped} == {
                name: value for name, value in full.headers.items() if name not in dropped
            }, path
            assert full.status_code == 200

    def test_what_cannot_be_read_has_no_head(self, browser: Browser) -> None:
        assert browser.client.head("/sign-out").status_code == 405
        assert browser.client.head("/no-such-page").status_code == 404
        assert browser.client.head("/admin").headers["location"].startswith("/sign-in")


class TestRoutes:
    def test_a_sign_in_field_is_short(self, browser: Browser) -> None:
        browser.get("/sign-in")
        answer = browser.post("/sign-in", {"email": "a" * (forms.CREDENTIAL_BYTES + 1), "password": "x"})
        assert answer.status_code == 413
        assert "email" in answer.text

    def test_errors_without_a_sentence_of_ours_are_worded_for_people(self, browser: Browser, session: Session) -> None:
        browser.sign_in(person(session, role=Role.admin))
        factories.make_project(session, slug="scenes")
        for method, path, said in (
            ("PUT", "/sign-in", ["Method not allowed", "This address takes no PUT requests."]),
            ("GET", "/admin/projects/scenes/rounds/x", ["Invalid", "number: must be a whole number."]),
        ):
            page = browser.client.request(method, path).text
            assert [one for one in said if one not in page] == []
        unknown = browser.client.get("/sign-in", headers={"Host": "evil.example"}).text
        assert "<h1>Unknown host</h1>" in unknown

    def test_a_page_names_the_field_that_is_no_text(self, browser: Browser, session: Session) -> None:
        browser.sign_in(person(session, role=Role.admin))
        answer = browser.client.post(
            "/admin/users", content=b"email=caf%E9", headers={"Content-Type": QUERY, "X-CSRF-Token": browser.token}
        )
        assert answer.status_code == 422
        assert "email: is not UTF-8." in answer.text

    def test_rest_forms_have_limits_too(self, browser: Browser, session: Session) -> None:
        project, admin = factories.make_project(session), person(session, role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.write)
        body = parts_of([(b"mapping", b"x" * (forms.MAPPING_BYTES + 1))])
        answer = browser.client.post(
            f"/api/v1/projects/{project.slug}/imports",
            content=body,
            headers={"Content-Type": PARTS, "Authorization": f"Bearer {token}"},
        )
        assert (answer.status_code, answer.json()["field"]) == (413, "mapping")


class TestHeaders:
    def test_forms_are_sent_to_us_alone(self, client: TestClient) -> None:
        policy = client.get("/sign-in").headers["content-security-policy"]
        assert policy == CONTENT_SECURITY_POLICY
        assert "form-action 'self'" in policy.split("; ")
