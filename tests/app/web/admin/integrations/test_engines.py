"""The page of model servers: adding one, what it can do, probing and removing."""

from __future__ import annotations

import html
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import AdapterState, Engine, EngineState, Project, Role
from app.services.engines.keys import open_key
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.rounds import hand_over
from tests import factories
from tests.app.web.conftest import Browser, person
from tests.engines import FOUND, make_engine

HERE = "/admin/engines"
FIELDS = {
    "name": "gpu-box",
    "base_url": "https://8.8.8.8",
    "model": "org/model",
    "api_key": "secret-7",
    "adapters_path": "",
    "revision": "",
    "in_flight": "16",
}


@pytest.mark.usefixtures("admin")
class TestEngines:
    def test_one_is_added_probed_and_removed(self, browser: Browser, session: Session) -> None:
        assert browser.post(HERE, FIELDS).status_code == 303
        engine = session.scalars(select(Engine)).one()
        engine.state, engine.error = EngineState.failed, "the server <b>failed</b>"
        session.flush()
        shown = browser.get(HERE).text
        assert "the server &lt;b&gt;failed&lt;/b&gt;" in shown
        assert "secret-7" not in shown
        assert browser.post(f"{HERE}/{engine.id}/probe", {}).status_code == 303
        session.refresh(engine)
        assert engine.state is EngineState.probing
        assert browser.post(f"{HERE}/{engine.id}/remove", {}).status_code == 303
        assert session.scalars(select(Engine)).all() == []

    def test_what_is_refused_is_said_and_stays_typed(self, browser: Browser) -> None:
        answer = browser.post(HERE, {**FIELDS, "base_url": "https://127.0.0.1"})
        assert answer.status_code == 422
        assert "ILLUME_ENGINE_ADDRESSES" in answer.text
        assert 'value="https://127.0.0.1"' in answer.text
        assert "secret-7" not in answer.text

    def test_one_is_changed_and_keeps_its_key_unless_told_otherwise(self, browser: Browser, session: Session) -> None:
        browser.post(HERE, {**FIELDS, "revision": "abc", "in_flight": "4"})
        engine = session.scalars(select(Engine)).one()
        assert (engine.revision, engine.in_flight) == ("abc", 4)
        engine.state = EngineState.failed
        session.flush()
        at = f"{HERE}/{engine.id}"
        assert f'href="{at}"' in browser.get(HERE).text
        shown = browser.get(at).text
        assert 'value="https://8.8.8.8"' in shown
        assert "secret-7" not in shown

        typed: dict[str, object] = {**FIELDS, "model": "org/other", "api_key": "", "in_flight": "8"}
        assert browser.post(at, typed).status_code == 303
        session.refresh(engine)
        assert (engine.model, engine.revision, engine.in_flight) == ("org/other", None, 8)
        assert (engine.state, open_key(engine)) == (EngineState.probing, "secret-7")
        browser.post(at, {**typed, "api_key": "secret-8"})
        session.refresh(engine)
        assert open_key(engine) == "secret-8"
        browser.post(at, {**typed, "no_key": "yes"})
        session.refresh(engine)
        assert open_key(engine) == ""

        for name, value in (("in_flight", "257"), ("in_flight", "many"), ("base_url", "https://127.0.0.1")):
            answer = browser.post(at, {**typed, name: value})
            assert answer.status_code == 422
            assert f'value="{value}"' in answer.text
            assert 'class="problem"' in answer.text
        session.refresh(engine)
        assert engine.in_flight == 8

    def test_one_that_is_used_stays(self, browser: Browser, session: Session, project: Project) -> None:
        engine = make_engine(session)
        projects.update_project(session, SYSTEM, project.slug, {"engine": "gpu"})
        shown = browser.get(HERE).text
        assert "loads adapters while it runs" in shown
        assert project.slug in shown
        assert browser.post(f"{HERE}/{engine.id}/remove", {}).status_code == 409

    def test_says_what_is_loaded_and_what_waits_to_be_unloaded(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        engine = make_engine(session)
        assert "Loaded adapters" not in browser.get(HERE).text
        projects.update_project(session, SYSTEM, project.slug, {"engine": "gpu"})
        version = factories.make_version(session, project, number=1, adapter="1" * 64)
        row = hand_over.request_hand_over(session, project, engine, version, activate=False)
        assert "Loaded adapters" not in browser.get(HERE).text
        row.state = AdapterState.loaded

        def shown() -> str:
            session.flush()
            return html.unescape(browser.get(HERE).text)

        found = shown()
        assert row.name in found
        assert '<span class="badge ">loaded, not in use</span></td>' in found
        project.active_version_id = version.id
        assert '<span class="badge good">in use</span></td>' in shown()
        projects.update_project(session, SYSTEM, project.slug, {"engine": "local"})
        session.refresh(row)
        row.requested_at += timedelta(seconds=1)
        assert '<span class="badge warn">waits to be unloaded</span></td>' in shown()
        row.error, row.requested_at = "It was not unloaded: it is <b>away</b>.", row.requested_at - timedelta(hours=1)
        session.flush()
        now = browser.get(HERE).text
        assert '<span class="badge bad">still loaded</span><p class="small">It was not unloaded: it is &lt;b&gt;' in now
        assert f'href="/admin/projects/{project.slug}"' in now
        assert "Probe the server again to retry unloading." in now
        assert "It keeps its loaded adapters" in now
        version.adapter = None
        found = shown()
        assert (f'href="/admin/projects/{project.slug}"' in found, "erased</td>" in found) == (False, True)

    def test_one_that_answers_under_any_name_says_so(self, browser: Browser, session: Session) -> None:
        make_engine(session)
        assert "under any name" not in browser.get(HERE).text
        make_engine(session, name="any", capabilities=FOUND.as_json() | {"any_name": True, "adapters": False})
        assert "it answers under any name: only its list says what answers" in browser.get(HERE).text

    def test_pages_say_why_rounds_are_off_and_how_a_hand_over_goes(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        engine = make_engine(session)
        projects.update_project(session, SYSTEM, project.slug, {"engine": "gpu"})
        version = factories.make_version(session, project, number=1, adapter="1" * 64)
        row = hand_over.request_hand_over(session, project, engine, version, activate=True)
        base = f"/admin/projects/{project.slug}"
        for path in (base, f"{base}/versions"):
            shown = browser.get(path).text
            assert "Training rounds are off" in shown
            assert "Version 1 is being handed over to the model server &#39;gpu&#39;" in shown
        row.error = "Version 1 was not loaded: the rank is too high."
        session.flush()
        assert "the rank is too high" in browser.get(f"{base}/versions").text

    def test_no_round_is_offered_where_they_are_off(self, browser: Browser, session: Session, project: Project) -> None:
        make_engine(session)
        base, off = (
            f"/admin/projects/{project.slug}/rounds",
            "Training rounds are off: the model server 'gpu' runs tiny/m",
        )
        assert off not in html.unescape(browser.get(base).text)
        projects.update_project(session, SYSTEM, project.slug, {"engine": "gpu"})
        listed, preview = (html.unescape(browser.get(path).text) for path in (base, f"{base}/preview"))
        assert off in listed
        assert "A training round starts" not in listed
        assert off in preview
        assert "Start training" not in preview
        viewer = person(session, role=Role.viewer)
        browser.sign_in(factories.make_member(session, project, Role.viewer, user=viewer))
        seen = browser.get(base)
        assert (seen.status_code, "tiny/m" in seen.text) == (200, False)

    def test_pages_say_why_a_version_does_not_fit(self, browser: Browser, session: Session, project: Project) -> None:
        engine = make_engine(session, capabilities=FOUND.as_json() | {"root": "another/model"})
        projects.update_project(session, SYSTEM, project.slug, {"engine": "gpu"})
        version = factories.make_version(session, project, number=1, adapter="1" * 64)
        row = hand_over.request_hand_over(session, project, engine, version, activate=True)
        row.state, row.error = AdapterState.failed, hand_over.why_unfit(engine, version)
        session.flush()
        for path in (f"/admin/projects/{project.slug}", f"/admin/projects/{project.slug}/versions"):
            shown = html.unescape(browser.get(path).text)
            assert "Version 1 cannot be used: the model server 'gpu' runs another/model, and the base model" in shown

    def test_pages_say_what_an_order_lacks_that_was_chosen_before_the_probe(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        engine = make_engine(session, state=EngineState.probing, capabilities={})
        projects.update_project(session, SYSTEM, project.slug, {"engine": "gpu", "next_prompt": "uncertain"})
        said = "Which prompt comes next: the model server 'gpu' gives no log-probabilities of before the temperature"
        here = f"/admin/projects/{project.slug}"
        for logprobs, is_said in ((None, False), ("after", True), ("none", True), ("before", False)):
            if logprobs:
                engine.capabilities = FOUND.as_json() | {"logprobs": logprobs}
                session.flush()
            assert (said in html.unescape(browser.get(here).text)) is is_said


def test_only_admins_see_it(browser: Browser, session: Session) -> None:
    browser.sign_in(person(session, role=Role.critic))
    engine = make_engine(session)
    for path in (HERE, f"{HERE}/{engine.id}"):
        assert browser.get(path).status_code == 403
    assert browser.post(f"{HERE}/{engine.id}", {}).status_code == 403
