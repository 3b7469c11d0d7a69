"""The admin's routes: live fragments, forms and their problems, permissions."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Evaluation, LinkPurpose, ModelVersion, Project, Role, Round, RoundState, Scope, Token, User
from app.services.accounts import one_time_links, passwords, users
from app.services.kernel.store import get_store
from app.services.projects import projects
from app.services.rounds import base_checks
from tests import factories
from tests.app.web.conftest import Browser, person

FRAGMENT = {"HX-Request": "true"}
PAGES = ("", "/rounds", "/versions", "/prompts", "/critics")


def form_of(text: str) -> dict[str, object]:
    """The fields of a settings page as a browser would send them."""
    fields: dict[str, object] = dict(re.findall(r'<input class="input[^>]* name="(\w+)"[^>]* value="([^"]*)"', text))
    fields |= dict(re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>([^<]*)</textarea>', text))
    for name, options in re.findall(r'<select[^>]* name="(\w+)"[^>]*>(.*?)</select>', text, re.DOTALL):
        chosen = re.search(r'value="(\w+)" selected', options)
        fields[name] = chosen.group(1) if chosen else ""
    for name in re.findall(r'type="checkbox" id="\S+" name="(\w+)" value="yes" checked', text):
        fields[name] = "yes"
    return fields


@pytest.mark.usefixtures("admin")
class TestLive:
    @pytest.mark.parametrize("path", ["/admin", *(f"/admin/projects/scenes{path}" for path in PAGES[:3])])
    def test_the_same_state_is_304(self, browser: Browser, path: str) -> None:
        first = browser.get(path, headers=FRAGMENT)
        assert first.status_code == 200
        assert "<html" not in first.text
        again = browser.get(path, headers={**FRAGMENT, "If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.text) == (304, "")

    def test_a_change_is_a_new_state(self, browser: Browser, session: Session, project: Project) -> None:
        path = "/admin/projects/scenes"
        etag = browser.get(path, headers=FRAGMENT).headers["etag"]
        factories.make_candidate_set(session, project)
        assert browser.get(path, headers={**FRAGMENT, "If-None-Match": etag}).status_code == 200


@pytest.mark.usefixtures("admin")
class TestRounds:
    def test_nothing_accepted_is_said_before_and_refused_after(self, browser: Browser) -> None:
        preview = browser.get("/admin/projects/scenes/rounds/preview")
        assert "Nothing is accepted yet" in preview.text
        browser.get("/admin/projects/scenes/settings")
        assert browser.post("/admin/projects/scenes/rounds").status_code == 409

    def test_cancelled(self, browser: Browser, session: Session, project: Project) -> None:
        snapshot = factories.make_snapshot(session, project)
        plan = {"parent": project.active_version_id, "base_model": "starter", "metric": "rouge_l", "seed": 1}
        snapshot.settings = {**plan, "project": snapshot.settings}
        made = factories.make_round(session, project, snapshot=snapshot)
        browser.get("/admin/projects/scenes/settings")
        response = browser.post("/admin/projects/scenes/rounds/1/cancel")
        assert response.headers["location"] == "/admin/projects/scenes/rounds/1?done=cancelled"
        assert session.get_one(Round, made.id).state is RoundState.cancelled
        assert "The round is being cancelled." in browser.get(response.headers["location"]).text

    def test_the_list_says_why_with_real_minus_signs(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        made = factories.make_round(session, project, state=RoundState.succeeded)
        made.decision = {"activate": False, "reason": "Not clearly better: -0.0130 to +0.0200."}
        assert "\N{MINUS SIGN}0.0130 to +0.0200" in browser.get("/admin/projects/scenes/rounds").text

    def test_an_unknown_one(self, browser: Browser) -> None:
        response = browser.get("/admin/projects/scenes/rounds/7")
        assert response.status_code == 404
        assert "There is no round 7" in response.text


@pytest.mark.usefixtures("admin")
class TestSettings:
    def test_saved_as_shown_changes_nothing(self, browser: Browser, session: Session, project: Project) -> None:
        before = projects.settings_of(session, project)
        page = browser.get("/admin/projects/scenes/settings").text
        response = browser.post("/admin/projects/scenes/settings", form_of(page))
        assert response.status_code == 303
        assert projects.settings_of(session, project) == before
        session.refresh(project)
        assert project.name == "Scenes"

    def test_all_faults_at_once_with_what_was_typed(self, browser: Browser, session: Session, project: Project) -> None:
        page = browser.get("/admin/projects/scenes/settings").text
        typed = {"epochs": "many", "top_p": "3", "temperatures": "0.3 x two", "template": "{question}"}
        response = browser.post("/admin/projects/scenes/settings", {**form_of(page), **typed})
        assert response.status_code == 422
        assert "4 fields need another look" in response.text
        again = form_of(response.text)
        assert {name: again[name] for name in typed} == typed
        assert projects.settings_of(session, project).epochs == 5

    def test_new_values_are_kept(self, browser: Browser, session: Session, project: Project) -> None:
        page = browser.get("/admin/projects/scenes/settings").text
        changes = {"temperatures": "0 x 1, 0,9 x 3", "skip_reasons": "Too dark\n\nBlurred", "name": "Lit scenes"}
        changes["temperatures"] = "0 x 1; 0.9 x 3"
        fields = {**form_of(page), **changes}
        fields.pop("auto_rounds")
        assert browser.post("/admin/projects/scenes/settings", fields).status_code == 303
        settings = projects.settings_of(session, session.get_one(Project, project.id, populate_existing=True))
        assert settings.temperatures == [(0.0, 1), (0.9, 3)]
        assert settings.skip_reasons == ["Too dark", "Blurred"]
        assert not settings.auto_rounds

    def test_a_new_base_model_is_looked_at_before_it_is_taken(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        fields = form_of(browser.get("/admin/projects/scenes/settings").text) | {"base_model": "some/model"}
        refused = browser.post("/admin/projects/scenes/settings", fields)
        assert refused.status_code == 422
        assert "It is looked at before it is taken" in refused.text
        address = re.search(r'hx-get="(/admin/base-checks/\d+)"', refused.text)
        assert address is not None
        assert "No model worker is alive" in browser.get(address[1]).text
        base_checks.finish(session, int(address[1].rpartition("/")[2]), good=True, detail="a fine model")
        answer = browser.get(address[1]).text
        assert "can be used" in answer
        assert "hx-get" not in answer
        assert browser.post("/admin/projects/scenes/settings", fields).status_code == 303
        session.expire_all()
        assert projects.settings_of(session, project).base_model == "some/model"

    def test_a_new_project(self, browser: Browser, session: Session) -> None:
        page = browser.get("/admin/new-project").text
        fields = {**form_of(page), "name": "Signs", "slug": "signs"}
        assert browser.post("/admin/new-project", fields).headers["location"] == "/admin/projects/signs"
        assert session.scalars(select(Project).where(Project.slug == "signs")).one().active_version_id
        again = browser.post("/admin/new-project", fields)
        assert again.status_code == 422
        assert "already" in again.text


@pytest.mark.usefixtures("admin")
class TestUsers:
    def test_a_token_is_shown_once(self, browser: Browser, session: Session, admin: User) -> None:
        browser.get(f"/admin/users/{admin.id}")
        response = browser.post(f"/admin/users/{admin.id}/tokens", {"scope": "read", "name": "mine", "expires": "30"})
        assert "ill_" in response.text
        assert "ill_" not in browser.get(f"/admin/users/{admin.id}").text
        token = session.scalars(select(Token).where(Token.user_id == admin.id)).one()
        assert (token.scope, token.name) == (Scope.read, "mine")
        assert token.expires_at is not None
        assert timedelta(days=29) < token.expires_at - datetime.now(UTC) < timedelta(days=31)

    def test_a_role_in_each_project(self, browser: Browser, session: Session, project: Project) -> None:
        other = factories.make_project(session, slug="signs", name="Signs")
        user = factories.make_member(session, project, Role.critic, user=person(session, role=Role.critic))
        browser.get(f"/admin/users/{user.id}")
        form: dict[str, object] = {"role": "critic", "project-scenes": "", "project-signs": "reviewer"}
        assert browser.post(f"/admin/users/{user.id}/role", form).status_code == 303
        assert users.list_project_roles(session, [user.id]) == {user.id: {other.slug: Role.reviewer}}
        assert "signs (reviewer)" in browser.get("/admin/users").text
        browser.sign_in(user)
        assert "Signs" in browser.get("/admin").text

    def test_an_invitation_becomes_a_password_once(self, browser: Browser, session: Session) -> None:
        browser.get("/admin/users")
        form: dict[str, object] = {"email": "eve@example.org", "role": "critic", "projects": "scenes"}
        page = browser.post("/admin/users", form).text
        found = re.search(r"http://127\.0\.0\.1:8000(/account/link/[\w-]+)", page)
        assert found is not None
        assert found[1] not in browser.get("/admin/users").text
        browser.client.cookies.clear()
        assert "eve@example.org" in browser.get(found[1]).text
        refused = browser.post(found[1], {"password": "long enough", "again": "something else"})
        assert (refused.status_code, "not the same" in refused.text) == (422, True)
        browser.get(found[1])
        assert browser.post(found[1], {"password": "short", "again": "short"}).status_code == 422
        browser.get(found[1])
        done = browser.post(found[1], {"password": "long enough", "again": "long enough"})
        assert done.headers["location"] == "/sign-in?done=password"
        assert browser.get(found[1]).status_code == 404
        user = users.find_user(session, "eve@example.org")
        assert user is not None
        assert passwords.verify_user_password(user, "long enough")

    def test_a_password_needs_the_pages_own_token(self, browser: Browser, session: Session, admin: User) -> None:
        user = person(session)
        _, plain = one_time_links.make_link(session, factories.actor_of(admin), user.id, LinkPurpose.password)
        browser.client.cookies.clear()
        form: dict[str, object] = {"password": "long enough", "again": "long enough"}
        assert browser.post(f"/account/link/{plain}", form).status_code == 403
        assert not passwords.verify_user_password(user, "long enough")

    def test_the_audit_log_is_filtered(self, browser: Browser, session: Session, project: Project) -> None:
        browser.get("/admin/users")
        browser.post("/admin/users", {"email": "eve@example.org", "role": "critic", "projects": "scenes"})
        page = browser.get("/admin/audit").text
        assert "user.add" in page
        assert "user.add" not in browser.get("/admin/audit?kind=link").text
        assert "No deed fits" in browser.get("/admin/audit?person=nobody").text
        assert "is no day" in browser.get("/admin/audit?since=soon").text
        browser.sign_in(person(session, role=Role.reviewer))
        assert browser.get("/admin/audit").status_code == 403

    def test_the_last_admin_stays(self, browser: Browser, session: Session, admin: User) -> None:
        browser.get(f"/admin/users/{admin.id}")
        response = browser.post(f"/admin/users/{admin.id}/role", {"role": "critic"})
        assert response.status_code == 409
        assert "last admin" in response.text


class TestRights:
    @pytest.mark.parametrize("role", [Role.viewer, Role.reviewer])
    def test_who_looks_does_not_change(self, browser: Browser, session: Session, project: Project, role: Role) -> None:
        browser.sign_in(factories.make_member(session, project, role, user=person(session, role=role)))
        factories.make_round(session, project)
        for path in PAGES:
            assert browser.get(f"/admin/projects/scenes{path}").status_code == 200
        assert browser.get("/admin/projects/scenes/settings").status_code == 403
        browser.get("/annotate")
        for path in ("rounds", "rounds/1/cancel", "versions/0/activate", "settings"):
            assert browser.post(f"/admin/projects/scenes/{path}").status_code == 403, path

    def test_a_stranger_finds_nothing(self, browser: Browser, session: Session, project: Project) -> None:
        browser.sign_in(person(session, role=Role.reviewer))
        for path in PAGES:
            assert browser.get(f"/admin/projects/scenes{path}").status_code == 404

    def test_a_prompt_of_another_project(self, browser: Browser, session: Session, project: Project) -> None:
        browser.sign_in(person(session, role=Role.admin))
        prompt = factories.make_prompt(session, factories.make_project(session))
        assert browser.get(f"/admin/projects/scenes/prompts/{prompt.id}").status_code == 404


class TestCompare:
    def test_sorted_by_difference_with_a_list_for_each_kind(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        texts = {"same": "it is red", "better": "a red boat floats", "worse": "no boat"}
        prompts = {name: factories.make_prompt(session, project, question=f"{name}?") for name in texts}
        old = session.get_one(ModelVersion, project.active_version_id)
        new = factories.make_version(session, project, number=1, parent=old)
        for version, scores in ((old, (0.5, 0.2, 0.9)), (new, (0.5, 0.7, 0.1))):
            part = {"rationales": [[text] for text in texts.values()], "rouge_l": list(scores)}
            kept = {"prompts": [str(one.id) for one in prompts.values()], "gold": {"sampled": part, "greedy": part}}
            factories.add(session, Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=kept))
        page = browser.get("/admin/projects/scenes/compare").text
        assert "Version 0 against version 1" in page
        assert [page.index(f">{name}?<") for name in ("better", "same", "worse")] == sorted(
            page.index(f">{name}?<") for name in texts
        )
        worse = browser.get("/admin/projects/scenes/compare?old=0&new=1&show=worse").text
        assert ">worse?<" in worse
        assert ">better?<" not in worse
        assert browser.get("/admin/projects/scenes/compare?old=7").status_code == 404

    def test_nothing_scored_yet(self, browser: Browser, admin: User) -> None:
        assert "Nothing to compare" in browser.get("/admin/projects/scenes/compare").text

    def test_the_adapter_is_downloaded(self, browser: Browser, session: Session, project: Project, admin: User) -> None:
        key = get_store().put_bytes(b"weights")
        version = factories.make_version(session, project, number=1, adapter=key)
        assert f"/api/v1/versions/{version.id}/adapter" in browser.get("/admin/projects/scenes/versions").text
        response = browser.get(f"/api/v1/versions/{version.id}/adapter")
        assert response.content == b"weights"
        assert 'filename="scenes-v1.tar"' in response.headers["content-disposition"]
        assert browser.get(f"/api/v1/versions/{project.active_version_id}/adapter").status_code == 404


class TestCritics:
    def judged_twice(self, session: Session, project: Project) -> list[User]:
        """Two critics who judged the same set differently."""
        critics = [factories.make_member(session, project) for _ in range(2)]
        made = factories.make_candidate_set(session, project, slots=2)
        for slot, critic in enumerate(critics, start=1):
            assignment = factories.make_assignment(session, made, factories.actor_of(critic), slot=slot)
            factories.make_verdict(session, assignment, picks=assignment.shown[:slot])
        return critics

    def test_agreement_is_shown_or_why_there_is_none(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        alone = factories.make_critic(session, project)
        factories.make_verdict(
            session, factories.make_assignment(session, factories.make_candidate_set(session, project), alone)
        )
        assert "No candidate set was judged by two critics yet" in browser.get("/admin/projects/scenes/critics").text
        self.judged_twice(session, project)
        page = browser.get("/admin/projects/scenes/critics").text
        assert "<strong>0.44</strong>" in page
        assert "Over 3 candidates of 1 set that" in page

    def test_one_critic_with_the_verdicts_behind_the_figures(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        first, second = self.judged_twice(session, project)
        page = browser.get(f"/admin/projects/scenes/critics/{second.id}").text
        assert "What is on the beach?" in page
        assert first.email in page
        assert browser.get(f"/admin/projects/scenes/critics/{admin.id}").status_code == 404
