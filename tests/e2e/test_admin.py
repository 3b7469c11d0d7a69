"""The admin's pages in a browser: the loop live, rounds, versions, settings, people."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from app.models import ModelVersion, Project, Round, RoundState, User
from app.services.projects.projects import settings_of
from tests.e2e import world
from tests.e2e.conftest import Site, Visit, Visitor, any_size

pytestmark = pytest.mark.browser


class TestLoop:
    def test_shows_the_loop_and_follows_it(self, admin: Visit, history: world.World, site: Site) -> None:
        page = admin.page
        verdicts = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="Verdicts"))
        expect(verdicts.first).to_have_attribute("aria-current", "step")
        expect(page.get_by_text("12 ready to judge")).to_be_visible()
        with site.sessions.begin() as session:
            world.add_running_round(session, history)
        expect(page.get_by_role("progressbar", name="Progress of training round 9")).to_be_visible()
        station = page.get_by_role("listitem").filter(
            has=page.get_by_role("heading", name="Training round", exact=True)
        )
        expect(station.first).to_have_attribute("aria-current", "step")

    @any_size
    def test_unchanged_pages_are_not_sent_again(self, admin: Visit) -> None:
        page = admin.page
        with page.expect_response(lambda answer: answer.status == 304):
            pass

    @any_size
    def test_a_hidden_page_asks_nothing(self, admin: Visit) -> None:
        page = admin.page
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        hide = """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
        with page.expect_response(lambda answer: answer.status == 304):
            pass
        page.evaluate(hide, True)
        page.wait_for_timeout(500)  # for requests that are under way
        asked.clear()
        page.wait_for_timeout(5000)
        assert asked == []
        with page.expect_response(lambda answer: answer.status in (200, 304), timeout=1500):
            page.evaluate(hide, False)

    @any_size
    def test_a_round_is_previewed_started_and_cancelled(self, admin: Visit, site: Site) -> None:
        page = admin.page
        page.get_by_role("link", name="Start a training round…").click()
        dialog = page.get_by_role("dialog", name="Start a training round")
        expect(dialog).to_contain_text("Accepted explanations")
        expect(dialog).to_contain_text("takes about")
        dialog.get_by_role("button", name="Start training").click()
        expect(page.get_by_role("heading", name=re.compile("Training round 4"))).to_be_visible()
        expect(page.get_by_text("Training round queued")).to_be_visible()
        page.on("dialog", lambda question: question.accept())
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("heading", name=re.compile("cancelled"))).to_be_visible()
        with site.sessions() as session:
            found = session.scalars(select(Round).where(Round.number == 4)).one()
            assert found.state == RoundState.cancelled

    @any_size
    def test_rolling_back(self, admin: Visit, history: world.World, site: Site) -> None:
        page = admin.page
        page.get_by_role("navigation", name="Project").get_by_role("link", name="Versions").click()
        page.on("dialog", lambda question: question.accept())
        row = page.get_by_role("row", name=re.compile("^Version 1 "))
        row.get_by_role("button", name="Activate").click()
        expect(page.get_by_text("Version activated.")).to_be_visible()
        expect(page.get_by_role("row", name=re.compile("^Version 1 active"))).to_be_visible()
        with site.sessions() as session:
            project = session.get_one(Project, history.project_id)
            assert session.get_one(ModelVersion, project.active_version_id).number == 1


class TestRound:
    @any_size
    def test_curves_have_their_numbers_behind_them(self, admin: Visit) -> None:
        page = admin.open("/admin/projects/scenes/rounds/2")
        loss = page.get_by_role("region", name="Loss", exact=True)
        expect(loss.get_by_role("img", name=re.compile("^Loss: loss from"))).to_be_visible()
        loss.get_by_text("Show as a table").click()
        expect(loss.get_by_role("table").get_by_role("row")).to_have_count(61)
        expect(page.get_by_text("Version 2 was activated.")).to_be_visible()

    @any_size
    def test_what_is_open_stays_open_while_the_page_follows(
        self, admin: Visit, history: world.World, site: Site
    ) -> None:
        with site.sessions.begin() as session:
            world.add_running_round(session, history)
        page = admin.open("/admin/projects/scenes/rounds/9")
        page.get_by_text("Settings used").click()
        expect(page.get_by_text("Learning rate")).to_be_visible()
        with site.sessions.begin() as session:
            running = session.scalars(select(Round).where(Round.number == 9)).one()
            running.progress = {**running.progress, "fraction": 0.81}
        expect(page.get_by_text("81 %")).to_be_visible(timeout=15_000)
        expect(page.get_by_text("Learning rate")).to_be_visible()


class TestSettings:
    @any_size
    def test_a_fault_stays_beside_its_field_with_what_was_typed(
        self, admin: Visit, history: world.World, site: Site
    ) -> None:
        admin.watch.allow.append("422")
        page = admin.open("/admin/projects/scenes/settings")
        page.get_by_label("Epochs").fill("many")
        page.get_by_label("Learning rate").fill("0.002")
        page.get_by_role("button", name="Save settings").click()
        epochs = page.get_by_label("Epochs")
        expect(epochs).to_have_value("many")
        expect(epochs).to_have_attribute("aria-invalid", "true")
        expect(epochs).to_have_accessible_description(re.compile("Enter a whole number."))
        expect(page.get_by_label("Learning rate")).to_have_value("0.002")
        epochs.fill("7")
        page.get_by_role("button", name="Save settings").click()
        expect(page.get_by_text("Settings saved")).to_be_visible()
        with site.sessions() as session:
            settings = settings_of(session, session.get_one(Project, history.project_id))
            assert (settings.epochs, settings.learning_rate) == (7, 0.002)

    @any_size
    def test_searched_marked_and_reset(self, admin: Visit, history: world.World, site: Site) -> None:
        page = admin.open("/admin/projects/scenes/settings")
        page.get_by_label("Search settings").fill("lora RANK")
        expect(page.get_by_text("1 setting found")).to_be_visible()
        rank = page.get_by_label("LoRA rank")
        expect(rank).to_be_visible()
        expect(page.get_by_label("Epochs")).to_be_hidden()
        before = rank.input_value()
        rank.fill("3")
        reset = page.get_by_role("button", name="Reset LoRA rank to its default")
        expect(reset).to_be_visible()
        reset.click()
        expect(reset).to_be_hidden()
        page.get_by_label("Search settings").fill("")
        expect(page.get_by_label("Epochs")).to_be_visible()
        expect(rank).to_be_hidden()
        page.get_by_label("Epochs").fill("9")
        expect(page.get_by_role("button", name="Reset Epochs to its default")).to_be_visible()
        page.get_by_role("button", name="Save settings").click()
        expect(page.get_by_text("Settings saved")).to_be_visible()
        with site.sessions() as session:
            settings = settings_of(session, session.get_one(Project, history.project_id))
            assert (settings.epochs, before) == (9, str(settings.lora_rank))

    @any_size
    def test_the_template_is_previewed_as_it_is_typed(self, admin: Visit) -> None:
        page = admin.open("/admin/projects/scenes/settings")
        page.get_by_label("Prompt template").fill("{question} Because {answer}: <b>")
        expect(page.locator("#template-preview")).to_contain_text("Because")
        expect(page.locator("#template-preview")).to_contain_text("<b>")
        page.get_by_label("Prompt template").fill("{question} {nothing}")
        expect(page.locator("#template-preview")).to_contain_text("unknown placeholder {nothing}")

    @any_size
    def test_a_new_project(self, admin: Visit) -> None:
        admin.watch.allow.append("422")
        page = admin.open("/admin")
        page.get_by_role("link", name="New project").click()
        page.get_by_role("textbox", name="Name", exact=True).fill("Street signs")
        page.get_by_label("Name in URLs").fill("Street signs")
        page.get_by_role("button", name="Create project").click()
        expect(page.get_by_label("Name in URLs")).to_have_accessible_description(re.compile("lower-case"))
        page.get_by_label("Name in URLs").fill("street-signs")
        page.get_by_role("button", name="Create project").click()
        expect(page.get_by_role("heading", name="Street signs", level=1)).to_be_visible()


@any_size
class TestUsers:
    def test_a_person_is_added_and_signs_in(self, admin: Visit, visitor: Visitor) -> None:
        page = admin.open("/admin/users")
        page.get_by_label("Email").fill("eve@example.org")
        page.get_by_role("button", name="Add", exact=True).click()
        link = page.locator("#secret").inner_text()
        page.reload()
        expect(page.locator("#secret")).to_have_count(0)
        other = visitor()
        other.page.goto(link)
        other.page.get_by_label("Password", exact=True).fill("horse and staple")
        other.page.get_by_label("Repeat password").fill("horse and staple")
        other.page.get_by_role("button", name="Set password").click()
        expect(other.page.get_by_label("Account eve@example.org")).to_be_visible()

    def test_a_known_address_is_said_beside_the_field(self, admin: Visit) -> None:
        admin.watch.allow.append("409")
        page = admin.open("/admin/users")
        page.get_by_label("Email").fill("ada@example.org")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.get_by_label("Email")).to_have_value("ada@example.org")
        expect(page.get_by_label("Email")).to_have_accessible_description(re.compile("already"))

    def test_tokens_are_shown_once_and_revoked(self, admin: Visit) -> None:
        page = admin.open("/admin/users")
        page.get_by_role("link", name="ada@example.org", exact=True).click()
        page.get_by_label("Name").fill("her notebook")
        page.get_by_role("button", name="Create token").click()
        expect(page.locator("#secret")).to_contain_text("ill_")
        page.on("dialog", lambda question: question.accept())
        page.get_by_role("row", name=re.compile("her notebook")).get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("Token revoked.")).to_be_visible()
        expect(page.get_by_text("her notebook")).to_have_count(0)

    def test_disabling_signs_out_at_once(self, admin: Visit, visitor: Visitor, site: Site) -> None:
        other = visitor()
        other.sign_in("ada@example.org", to="/annotate")
        page = admin.open("/admin/users")
        page.get_by_role("link", name="ada@example.org", exact=True).click()
        page.on("dialog", lambda question: question.accept())
        page.get_by_role("button", name="Disable").click()
        expect(page.get_by_text("Account disabled")).to_be_visible()
        other.page.reload()
        expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible()
        with site.sessions() as session:
            assert session.scalars(select(User).where(User.email == "ada@example.org")).one().disabled_at


class TestPrompts:
    @any_size
    def test_filter_and_look_at_one(self, admin: Visit) -> None:
        page = admin.open("/admin/projects/scenes/prompts")
        page.get_by_label("State").select_option("judged")
        page.get_by_role("button", name="Filter").click()
        expect(page).to_have_url(re.compile("state=judged"))
        page.get_by_role("rowheader").first.get_by_role("link").click()
        expect(page.get_by_role("img", name="Image 1 of 1")).to_be_visible()
        expect(page.get_by_role("table")).to_contain_text("Picked by")

    @any_size
    def test_retire_and_bring_back(self, admin: Visit, history: world.World) -> None:
        page = admin.open(f"/admin/projects/scenes/prompts/{history.prompt_ids[0]}")
        page.get_by_role("button", name="Archive").click()
        expect(page.get_by_text("Prompt saved.")).to_be_visible()
        page.get_by_role("button", name="Restore").click()
        expect(page.get_by_role("button", name="Archive")).to_be_visible()
