"""The pages of imports: permissions, form tokens, templates."""

from __future__ import annotations

import io
import re

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Import, ImportState, Project, Role, Split
from app.services.imports import imports
from app.services.kernel.actors import SYSTEM
from illume.fields.variants import CHANGES
from tests import factories
from tests.app.services.imports.tables.tables import as_xlsx
from tests.app.web.conftest import Browser, person

HERE = "/admin/projects/scenes"


@pytest.mark.usefixtures("admin")
class TestImports:
    def test_a_form_without_its_token_changes_nothing(self, browser: Browser, session: Session) -> None:
        answer = browser.client.post(f"{HERE}/imports", files={"file": ("x.csv", b"question\nq\n")})
        assert answer.status_code == 403
        assert session.scalars(select(Import)).all() == []

    def test_a_template(self, browser: Browser) -> None:
        answer = browser.get(f"{HERE}/imports/template.csv")
        assert answer.status_code == 200
        assert answer.text.startswith("external_id,image,split,question")
        assert browser.get(f"{HERE}/imports/template.exe").status_code == 404

    def test_others_projects_and_unknown_ones(self, browser: Browser, session: Session) -> None:
        other = factories.make_project(session)
        found = factories.add(session, Import(project_id=other.id, filename="x", file_key="0" * 64))
        assert browser.get(f"{HERE}/imports/{found.id}").status_code == 404
        assert browser.get(f"{HERE}/imports/none").status_code == 404

    def test_a_draft_proposes_val_with_a_switch(self, browser: Browser, session: Session, project: Project) -> None:
        rows = b"image,question\n" + b"x.png,q\n" * 240
        made = imports.create_import(session, SYSTEM, project, filename="x.csv", source=io.BytesIO(rows), draft=True)
        address = f"{HERE}/imports/{made.id}"
        words = "These prompts have no val split: put 10 % of the images (about 24 prompts) into val"
        shown = browser.get(address).text
        assert words in shown
        assert "checked> These prompts" in shown
        plan = {"column": ["image", "question"], "target": ["image", "question"], "split": "train", "question": ""}
        browser.post(f"{address}/plan", plan)
        shown = browser.get(address).text
        assert words in shown
        assert "checked> These prompts" not in shown
        browser.post(f"{address}/plan", {**plan, "propose_val": "on", "act": "start"})
        session.refresh(made)
        assert made.plan["propose_val"] is True
        shown = browser.get(address).text
        assert "Of these, in val" in shown

    def test_a_draft_may_scale_large_images_down(self, browser: Browser, session: Session, project: Project) -> None:
        rows = b"image,question\nx.png,q\n"
        made = imports.create_import(session, SYSTEM, project, filename="x.csv", source=io.BytesIO(rows), draft=True)
        address = f"{HERE}/imports/{made.id}"
        plan = {"column": ["image", "question"], "target": ["image", "question"], "split": "train", "question": ""}
        asked: list[dict[str, str]] = [{}, {"scale_down": "on"}, {}]
        for one in asked:
            browser.post(f"{address}/plan", {**plan, **one})
            session.refresh(made)
            assert made.plan["scale_down"] is bool(one)
            shown = browser.get(address).text
            assert ("checked> Scale down images over 40 megapixels" in shown) is bool(one)


class TestSamplePhotographs:
    @pytest.mark.usefixtures("admin")
    def test_one_click_imports_them(self, browser: Browser, session: Session, project: Project) -> None:
        offer = "Try with 8 sample photographs"
        assert offer in browser.get(f"{HERE}/imports").text
        answer = browser.post(f"{HERE}/imports/sample")
        made = session.scalars(select(Import)).one()
        assert answer.headers["location"] == f"{HERE}/imports/{made.id}"
        assert (made.project_id, made.filename, made.state) == (project.id, "photographs.zip", ImportState.queued)
        factories.make_prompt(session, project)
        assert offer not in browser.get(f"{HERE}/imports").text  # the project is not new any more

    def test_are_for_those_who_may_import(self, browser: Browser, session: Session, project: Project) -> None:
        browser.sign_in(factories.make_member(session, project, Role.viewer, user=person(session)))
        browser.get(HERE)
        assert browser.post(f"{HERE}/imports/sample").status_code == 403
        assert session.scalars(select(Import)).all() == []


def draft(session: Session, project: Project, data: bytes, name: str) -> Import:
    """An import that waits for its preview to be checked."""
    return imports.create_import(session, SYSTEM, project, filename=name, source=io.BytesIO(data), draft=True)


ROWS = b"image,question,policy,rating,category\nx.png,q,House rules,Unsafe,O1: Animals\n"
PLAN: dict[str, object] = {
    "column": ["image", "question", "policy", "rating", "category"],
    "target": ["image", "question", "policy", "field", "field"],
    "split": "train",
    "question": "",
}
OFFER = "Add rows with a policy and known values of rating and category again"


class TestVariants:
    @pytest.fixture
    def structured(self, session: Session) -> Project:
        """A project whose answers have fields."""
        project, _ = factories.structured_project(session)
        return project

    @pytest.mark.usefixtures("admin")
    def test_are_chosen_kept_and_told(self, browser: Browser, session: Session, structured: Project) -> None:
        made = draft(session, structured, ROWS, "x.csv")
        address = f"/admin/projects/{structured.slug}/imports/{made.id}"
        shown = browser.get(address).text
        assert OFFER in shown
        assert chosen_variants(shown) == dict.fromkeys(CHANGES, False)
        assert "All other categories strict." in shown
        asked: list[list[str]] = [["own_allowed", "others_strict", "nonsense"], [], ["own_strict"]]
        for changes in asked:
            assert browser.post(f"{address}/plan", {**PLAN, "variant": changes}).status_code == 303
            session.refresh(made)
            kept = [change for change in CHANGES if change in changes]
            assert made.plan["variants"] == kept
            assert chosen_variants(browser.get(address).text) == {change: change in kept for change in CHANGES}
        browser.post(f"{address}/plan", {**PLAN, "variant": ["own_strict"], "act": "start"})
        assert "<dt>Prompts under variants</dt><dd>0</dd>" in browser.get(address).text

    @pytest.mark.usefixtures("admin")
    def test_stay_when_letters_are_read_anew(self, browser: Browser, session: Session, structured: Project) -> None:
        made = draft(session, structured, ROWS + "x.png,kişi,House rules,,\n".encode("cp1254"), "x.csv")
        plan = {**PLAN, "variant": ["others_allowed"], "encoding": "cp1254"}
        browser.get(f"/admin/projects/{structured.slug}/imports/{made.id}")
        assert browser.post(f"/admin/projects/{structured.slug}/imports/{made.id}/plan", plan).status_code == 303
        session.refresh(made)
        assert (made.plan["encoding"], made.plan["variants"]) == ("cp1254", ["others_allowed"])

    @pytest.mark.usefixtures("admin")
    def test_need_fields_and_a_policy(self, browser: Browser, session: Session, project: Project) -> None:
        made = draft(session, project, ROWS, "x.csv")
        assert OFFER not in browser.get(f"{HERE}/imports/{made.id}").text
        answer = browser.post(f"{HERE}/imports/{made.id}/plan", {**PLAN, "variant": ["own_strict"]})
        assert answer.status_code == 422
        other = factories.make_project(
            session, answer_fields=factories.ANSWER_FIELDS, template="{policy} Q: {question} A: {answer}"
        )
        made = draft(session, other, ROWS, "x.csv")
        assert OFFER not in browser.get(f"/admin/projects/{other.slug}/imports/{made.id}").text
        factories.make_policy(session, other)
        assert OFFER in browser.get(f"/admin/projects/{other.slug}/imports/{made.id}").text

    def test_are_for_admins_who_start_the_import(self, browser: Browser, session: Session, structured: Project) -> None:
        reviewer = factories.make_member(session, structured, Role.reviewer, user=person(session))
        made = imports.create_import(
            session,
            factories.actor_of(reviewer),
            structured,
            filename="x.csv",
            source=io.BytesIO(ROWS),
            draft=True,
        )
        address = f"/admin/projects/{structured.slug}/imports/{made.id}"
        browser.sign_in(reviewer)
        assert OFFER not in browser.get(address).text
        browser.post(f"{address}/plan", {**PLAN, "variant": ["own_strict"]})
        session.refresh(made)
        assert (made.plan["variants"], made.created_by) == ([], reviewer.id)
        admin = factories.make_admin(session)
        imports.change_plan(
            session, admin, made.id, columns={}, split=Split.train, question="", variants=["others_strict"]
        )
        shown = browser.get(address).text
        assert chosen_variants(shown)["others_strict"]
        assert re.search(r"<fieldset[^>]* disabled>", shown)
        assert "Only admins may choose these." in shown
        assert "Only admins may start this import." in shown
        assert "Start import" not in shown
        browser.post(f"{address}/plan", PLAN)
        session.refresh(made)
        assert (made.plan["variants"], made.created_by) == (["others_strict"], reviewer.id)
        assert browser.post(f"{address}/plan", {**PLAN, "act": "start"}).status_code == 403
        session.refresh(made)
        assert made.state is ImportState.draft


def chosen_variants(shown: str) -> dict[str, bool]:
    """The variants that a page offers, and whether each is chosen."""
    found = re.findall(r'<input type="checkbox" name="variant" value="(\w+)"( checked)?>', shown)
    return {value: bool(checked) for value, checked in found}


@pytest.mark.usefixtures("admin")
class TestHowATableIsRead:
    def test_another_encoding_is_chosen(self, browser: Browser, session: Session, project: Project) -> None:
        data = f"image;Soru;kişi\n{'0' * 64};Bu kişi ne yapıyor?;öğretmen\n".encode("cp1254")
        made = draft(session, project, data, "t.csv")
        address = f"{HERE}/imports/{made.id}"
        shown = browser.get(address).text
        assert "Text in Western European (Windows-1252), separated by semicolons." in shown
        assert "Bu kiþi ne yapýyor?" in shown
        plan = {"column": ["image", "Soru", "kiþi"], "target": ["image", "question", "answer"], "split": "train"}
        plan |= {"question": "", "act": "check", "encoding": "cp1254"}
        assert browser.post(f"{address}/plan", plan).status_code == 303
        shown = browser.get(address).text
        assert "Text in Turkish (Windows-1254), separated by semicolons." in shown
        assert "Bu kişi ne yapıyor?" in shown
        assert '<option value="cp1254" selected>' in shown
        session.refresh(made)
        assert made.plan["encoding"] == "cp1254"
        assert made.plan["columns"] == [["image", "image"], ["Soru", "question"], ["kişi", "metadata"]]
        assert browser.post(f"{address}/plan", {**plan, "column": [], "target": [], "encoding": "x"}).status_code == 422

    @pytest.mark.parametrize(
        ("data", "name", "words"),
        [
            ("image\tquestion\n{image}\tä\n".encode("utf-16"), "t.csv", "Text in UTF-16, separated by tabs."),
            ("image,question\n{image},ä\n".encode(), "t.csv", "Text in UTF-8, separated by commas."),
            (b'{"image": "x", "question": "q"}', "t.jsonl", "JSON, one object per line."),
            (as_xlsx([["image", "question"], ["x", "q"]]), "t.xlsx", "Excel file, sheet “Prompts”."),
            (
                as_xlsx([["image", "question"], ["x", "q"]], [["a"]]),
                "t.xlsx",
                "Excel file, sheet “Prompts”, the first of 2; the others are not read.",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_is_named_where_it_is_sure(
        self, browser: Browser, session: Session, project: Project, data: bytes, name: str, words: str
    ) -> None:
        shown = browser.get(f"{HERE}/imports/{draft(session, project, data, name).id}").text
        assert words in shown
        assert 'name="encoding"' not in shown

    @pytest.mark.parametrize(
        ("data", "name"),
        [
            (b'{"image": "x", "question": "q\\ud800", "a": ["\\udfff", "\\u0000"]}', "t.jsonl"),
            (as_xlsx([["image", "question"], ["x", "q_xD800_ _x0000_"]]), "t.xlsx"),
        ],
        ids=["json", "xlsx"],
    )
    def test_what_cannot_be_encoded_is_shown_written_out(
        self, browser: Browser, session: Session, project: Project, data: bytes, name: str
    ) -> None:
        answer = browser.get(f"{HERE}/imports/{draft(session, project, data, name).id}")
        assert answer.status_code == 200
        assert "q\\ud800" in answer.text


class TestWho:
    @pytest.mark.parametrize(("role", "status"), [(Role.reviewer, 200), (Role.viewer, 403), (Role.critic, 403)])
    def test_imports_are_for_reviewers(
        self, session: Session, project: Project, browser: Browser, role: Role, status: int
    ) -> None:
        browser.sign_in(factories.make_member(session, project, role, user=person(session)))
        assert browser.get(f"{HERE}/imports").status_code == status
        assert browser.get(f"{HERE}/webhooks").status_code == 403
