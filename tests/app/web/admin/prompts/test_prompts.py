"""Prompts on pages: filtering, adding and changing them; and the rows of a round's snapshot."""

from __future__ import annotations

import pytest
from markupsafe import escape
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import CandidateSet, Project, Prompt, PromptState, Role, VerdictKind
from app.services.quality import set_agreements
from tests import factories
from tests.app.services.feedback import judge, start_prepared
from tests.app.web.conftest import Browser, person

BASE = "/admin/projects/scenes/prompts"
FIELDS: dict[str, object] = {"question": "What floats?", "answer": "a boat", "split": "train", "priority": "2"}


def judged(session: Session, project: Project, question: str, *counts: int) -> None:
    """Make a prompt whose set was judged by one critic for each of `counts`, who picked that many candidates."""
    made = factories.make_candidate_set(
        session, project, prompt=factories.make_prompt(session, project, question=question), slots=max(1, len(counts))
    )
    for slot, count in enumerate(counts, start=1):
        assignment = factories.make_assignment(session, made, factories.make_critic(session, project), slot=slot)
        kind = VerdictKind.picked if count else VerdictKind.none_fit
        factories.make_verdict(session, assignment, kind=kind, picks=assignment.shown[:count])


@pytest.mark.usefixtures("admin")
class TestLookingFor:
    def test_by_what_critics_said(self, browser: Browser, session: Session, project: Project) -> None:
        judged(session, project, "both the same?", 1, 1)
        judged(session, project, "not the same?", 1, 2)
        judged(session, project, "one alone?", 1)
        made = factories.make_candidate_set(
            session, project, prompt=factories.make_prompt(session, project, question="odd?")
        )
        assignment = factories.make_assignment(session, made, factories.make_critic(session, project))
        factories.make_verdict(session, assignment, kind=VerdictKind.flagged)
        set_agreements.update_agreements(session, project.id, session.scalars(select(CandidateSet.id)).all())

        def found(said: str) -> set[str]:
            page = browser.get(f"{BASE}?said={said}").text
            return {one for one in ("both the same?", "not the same?", "one alone?", "odd?") if f">{one}<" in page}

        assert found("apart") == {"not the same?"}
        assert found("alike") == {"both the same?"}
        assert found("flagged") == {"odd?"}
        assert found("accepted") == set()
        assert len(found("")) == 4

    def test_by_what_only_a_machine_accepted(self, browser: Browser, session: Session, project: Project) -> None:
        sets = [
            factories.make_candidate_set(
                session, project, prompt=factories.make_prompt(session, project, question=question)
            )
            for question in ("a machine's?", "people's since?", "nobody's?")
        ]
        critic = factories.make_machine_critic(session, project)
        for offered in sets[:2]:
            factories.make_machine_accept(session, project, offered, critic.id)
        assignment = factories.make_assignment(session, sets[1], factories.make_critic(session, project))
        factories.make_verdict(session, assignment, kind=VerdictKind.none_fit)
        page = browser.get(f"{BASE}?said=machine").text
        found = {one for one in ("a machine's?", "people's since?", "nobody's?") if f">{escape(one)}<" in page}
        assert found == {"a machine's?"}
        marked = [browser.get(f"{BASE}/{one.prompt_id}").text.count("Accepted by machine") for one in sets]
        assert marked == [1, 0, 0], "the candidate, until somebody judges its prompt"

    def test_by_the_version_that_wrote(self, browser: Browser, session: Session, project: Project) -> None:
        version = factories.make_version(session, project, number=1)
        for number, one in ((0, None), (1, version)):
            prompt = factories.make_prompt(session, project, question=f"by {number}?")
            factories.make_candidate_set(session, project, prompt=prompt, version=one)
        page = browser.get(f"{BASE}?version=1").text
        assert ">by 1?<" in page
        assert ">by 0?<" not in page


@pytest.mark.usefixtures("admin")
class TestPage:
    def test_it_says_what_wrote(self, browser: Browser, session: Session, project: Project) -> None:
        made = factories.make_candidate_set(session, project)
        page = f"{BASE}/{made.prompt_id}"
        assert "by version 0" in browser.get(page).text
        assert "a model server" not in browser.get(page).text
        made.served_model = "org/model"
        session.flush()
        assert "by version 0, for which a model server ran org/model" in browser.get(page).text

    def test_what_can_be_done_is_in_the_readers_language(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        prompt = factories.make_prompt(session, project, state=PromptState.retired)
        page = browser.client.get(f"{BASE}/{prompt.id}", headers={"Accept-Language": "de"}).text
        assert "Wiederherstellen" in page
        assert "Restore" not in page


@pytest.mark.usefixtures("admin")
class TestForms:
    def test_one_is_added_with_its_image(self, browser: Browser, session: Session, project: Project) -> None:
        browser.get(f"{BASE}/new")
        data = {**FIELDS, "references": "it is on water\n\nit has a sail", "metadata": '{"scene": 1}'}
        image = {"images": ("boat.png", factories.image_bytes(), "image/png")}
        response = browser.post(f"{BASE}/new", data, files=image)
        prompt = session.scalars(select(Prompt).where(Prompt.question == "What floats?")).one()
        assert response.headers["location"] == f"{BASE}/{prompt.id}?done=prompt-saved"
        assert (prompt.references, prompt.extra, prompt.priority) == (
            ["it is on water", "it has a sail"],
            {"scene": 1},
            2,
        )
        page = browser.get(response.headers["location"])
        assert page.status_code == 200
        assert "<li>boat.png</li>" in page.text

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({}, "Choose an image."),
            ({"priority": "high"}, "Enter a whole number."),
            ({"metadata": "{"}, "This is not valid JSON"),
        ],
    )
    def test_faults_stay_beside_their_field(
        self, browser: Browser, session: Session, wrong: dict[str, object], said: str
    ) -> None:
        browser.get(f"{BASE}/new")
        response = browser.post(f"{BASE}/new", {**FIELDS, **wrong})
        assert response.status_code == 422
        assert said in response.text
        assert "What floats?" in response.text
        assert session.scalars(select(Prompt)).all() == []

    def test_what_is_no_image_is_named(self, browser: Browser) -> None:
        browser.get(f"{BASE}/new")
        response = browser.post(f"{BASE}/new", FIELDS, files={"images": ("boat.txt", b"no image", "text/plain")})
        assert response.status_code == 422
        assert "boat.txt" in response.text

    def test_changed_until_candidates_are_made(self, browser: Browser, session: Session, project: Project) -> None:
        prompt = factories.make_prompt(session, project)
        assert "What is on the beach?" in browser.get(f"{BASE}/{prompt.id}/edit").text
        assert browser.post(f"{BASE}/{prompt.id}/edit", FIELDS).status_code == 303
        session.expire_all()
        assert (prompt.question, prompt.priority) == ("What floats?", 2)
        factories.make_candidate_set(session, project, prompt=prompt)
        refused = browser.post(f"{BASE}/{prompt.id}/edit", {**FIELDS, "question": "What sinks?"})
        assert refused.status_code == 409
        assert "the prompt has explanations" in refused.text
        assert "What sinks?" in refused.text

    def test_of_structured_answers_policy_and_right_values(self, browser: Browser, session: Session) -> None:
        project, rules = factories.structured_project(session, slug="guard")
        shorter = factories.make_policy(session, project, "Shorter rules")
        base = "/admin/projects/guard/prompts"
        page = browser.get(f"{base}/new").text
        assert f'<option value="{rules.id}">House rules, version 1</option>' in page
        given = {**FIELDS, "policy": str(rules.id), "gold-0": "Unsafe", "gold-1": factories.CATEGORIES[1]}
        image = {"images": ("boat.png", factories.image_bytes(), "image/png")}
        for wrong, said in (
            ({"policy": ""}, "a policy is needed"),
            ({"gold-1": "O9: No such rule"}, "O9: No such rule"),
        ):
            refused = browser.post(f"{base}/new", {**given, **wrong}, files=image)
            assert refused.status_code == 422
            assert said in refused.text.partition('class="problem"')[2]
        assert browser.post(f"{base}/new", given, files=image).status_code == 303
        prompt = session.scalars(select(Prompt)).one()
        assert prompt.fields == {"rating": "Unsafe", "category": factories.CATEGORIES[1]}
        assert prompt.policy_version_id == rules.id
        page = browser.get(f"{base}/{prompt.id}/edit").text
        assert f'<option value="{rules.id}" selected>' in page
        assert '<option value="Unsafe" selected>' in page
        changed = {**given, "policy": str(shorter.id), "gold-0": "", "gold-1": ""}
        assert browser.post(f"{base}/{prompt.id}/edit", changed).status_code == 303
        stored = session.execute(select(Prompt.policy_version_id, Prompt.fields)).one()
        assert tuple(stored) == (shorter.id, None)
        factories.make_policy(session, project, "Shorter rules", O1="strict")
        kept = browser.get(f"{base}/{prompt.id}/edit").text
        assert f'<option value="{shorter.id}" selected>Shorter rules, version 1</option>' in kept
        factories.make_candidate_set(session, project, prompt=prompt)
        refused = browser.post(f"{base}/{prompt.id}/edit", {**changed, "policy": str(rules.id)})
        assert refused.status_code == 409
        assert "the prompt has explanations" in refused.text

    def test_a_viewer_changes_nothing(self, browser: Browser, session: Session, project: Project) -> None:
        prompt = factories.make_prompt(session, project)
        viewer = person(session, role=Role.viewer)
        browser.sign_in(factories.make_member(session, project, Role.viewer, user=viewer))
        assert "Add a prompt" not in browser.get(BASE).text
        for path in ("new", f"{prompt.id}/edit"):
            assert browser.get(f"{BASE}/{path}").status_code == 403


@pytest.mark.usefixtures("admin")
class TestSnapshot:
    def test_row_by_row(self, browser: Browser, session: Session, project: Project) -> None:
        judge(session, project, factories.make_critic(session, project))
        start_prepared(session, project)
        page = browser.get("/admin/projects/scenes/rounds/1/snapshot").text
        assert "Explanations trained on <strong" in page
        assert "What is on the beach?" in page
        assert "No rows of this kind" in browser.get("/admin/projects/scenes/rounds/1/snapshot?role=val").text


@pytest.mark.usefixtures("admin")
class TestBlur:
    def test_a_switch_on_the_page_and_in_the_form(self, browser: Browser, session: Session, project: Project) -> None:
        prompt = factories.make_prompt(session, project, question="What floats?")
        prompt.extra = {"scene": 1}
        session.flush()
        here = f"{BASE}/{prompt.id}"
        assert "shown at once" in browser.get(here).text
        assert browser.post(f"{here}/blur", {"blur": "yes"}).status_code == 303
        session.expire_all()
        assert prompt.extra == {"scene": 1, "blur": True}
        form = browser.get(f"{here}/edit").text
        assert 'name="blur" value="yes" checked' in form
        assert "&#34;blur&#34;" not in form
        # Saved with the box ticked, and then without it.
        data = {**FIELDS, "metadata": '{"scene": 2}'}
        for ticked, expected in (({"blur": "yes"}, {"scene": 2, "blur": True}), ({}, {"scene": 2})):
            assert browser.post(f"{here}/edit", {**data, **ticked}).status_code == 303
            session.expire_all()
            assert prompt.extra == expected
        assert browser.post(f"{here}/blur", {"blur": "no"}).status_code == 303

    @pytest.mark.parametrize("said", [True, "true", "yes", False, "no", 1, None, "True"])
    def test_the_page_of_a_prompt_says_what_the_critics_page_does(
        self, browser: Browser, session: Session, project: Project, said: object
    ) -> None:
        prompt = factories.make_prompt(session, project, question="What floats?")
        prompt.extra = {"blur": said}
        factories.make_candidate_set(session, project, prompt=prompt)
        session.flush()
        is_blurred = "blurred until a critic asks" in browser.get(f"{BASE}/{prompt.id}").text
        browser.sign_in(factories.make_member(session, project, user=person(session, role=Role.critic)))
        assert is_blurred is ('class="work blurred"' in browser.get("/annotate/scenes").text)
