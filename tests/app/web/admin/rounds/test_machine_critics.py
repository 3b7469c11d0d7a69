"""What the page Versions says of machine critics."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.models import CriticJob, CriticState, Project, Role, RoundState, Selection, VersionKind
from app.services.candidates.choosing import SelectionEffect
from app.services.kernel.actors import SYSTEM
from app.services.projects import pauses
from app.services.projects.machine_critic import newest_critic
from app.services.projects.projects import update_project
from app.services.rounds import versions
from app.web.admin.rounds.machine_critics import critic_cards, selection_card
from illume.critics.quality import difference_of_shares, wilson_interval
from tests import factories
from tests.app.web.conftest import Browser, person


def measured(low: float, *, length: float = 0.55) -> dict[str, Any]:
    shares = {"critic": (low, low + 0.1), "permuted labels": (0.4, 0.6), "length": (length - 0.1, length + 0.1)}
    everything = {
        name: {"mean": (lowest + highest) / 2, "low": lowest, "high": highest, "n": 40}
        for name, (lowest, highest) in shares.items()
    }
    return {
        "critic": "verifier",
        "picked": 31,
        "turned_down": 75,
        "leaking_share": 0.25,
        "quality": {"all": everything, "within_sets": {}},
    }


def add(session: Session, project: Project, metrics: dict[str, Any]) -> None:
    factories.make_machine_critic(session, project, metrics)


@pytest.mark.usefixtures("admin")
class TestVersions:
    def test_shows_the_newest_critic_beside_what_knows_less(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        add(session, project, measured(0.2))
        add(session, project, measured(0.8))
        page = browser.get("/admin/projects/scenes/versions").text
        assert page.count("Machine critic <span") == 1
        assert "It ranks clearly better than each of the comparisons below." in page
        assert "Measured on 31 picked and 75 rejected explanations" in page
        assert "25 % of the explanations say the answer" in page
        assert "80 % to 90 %" in page
        assert "/versions/2/activate" not in page
        assert browser.get("/admin/projects/scenes/compare").text.count("Version 2") == 0

    def test_says_why_nothing_is_rated_to_those_who_can_mend_it(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        update_project(session, SYSTEM, project.slug, {"machine_critic": "verifier"})
        add(session, project, measured(0.8))
        critic = newest_critic(session, project)
        assert critic is not None
        path = "/admin/projects/scenes/versions"
        assert "cannot rate explanations" not in browser.get(path).text
        pauses.pause(session, project.id, critic.id, "/srv/models/it lacks a shard")
        page = browser.get(path).text
        assert "The machine critic cannot rate explanations." in page
        assert "/srv/models/it lacks a shard" in page
        assert 'action="/admin/projects/scenes/resume"' in page
        browser.client.cookies.clear()
        browser.sign_in(factories.make_member(session, project, user=person(session), role=Role.viewer))
        page = browser.get(path).text
        assert "The machine critic cannot rate explanations." in page
        assert "/srv/models" not in page
        assert "/resume" not in page

    def test_shows_what_goes_on_and_stops_it(self, browser: Browser, session: Session, project: Project) -> None:
        done = factories.make_round(session, project, state=RoundState.succeeded)
        job = factories.add(session, CriticJob(project_id=project.id, round_id=done.id, kind="verifier"))
        assert "The machine critic waits for a worker." in browser.get("/admin/projects/scenes/versions").text
        answer = browser.post("/admin/projects/scenes/machine-critic/cancel")
        assert answer.headers["location"] == "/admin/projects/scenes/versions?done=critic-stopped"
        assert session.get_one(CriticJob, job.id).state is CriticState.cancelled
        job.state, job.error = CriticState.failed, "a verifier needs rationales that were turned down"
        session.flush()
        page = browser.get("/admin/projects/scenes/versions").text
        assert "The machine critic could not be trained. a verifier needs rationales" in page
        assert "/machine-critic/cancel" not in page


class TestSelection:
    @pytest.mark.parametrize(
        ("selected", "unselected", "words"),
        [
            ((90, 100), (5, 20), "Where the machine critic chooses, critics more often find"),
            ((5, 20), (90, 100), "Where the machine critic chooses, critics less often find"),
            ((5, 10), (4, 10), "No clear difference so far."),
            ((5, 10), None, "Nothing to compare with yet"),
        ],
    )
    def test_the_sentence_says_what_the_interval_says(
        self, selected: tuple[int, int], unselected: tuple[int, int] | None, words: str
    ) -> None:
        shares = [wilson_interval(*one) if one else None for one in (selected, unselected)]
        difference = difference_of_shares(selected, unselected) if unselected else None
        card = selection_card(SelectionEffect(shares[0], shares[1], difference))
        assert card is not None
        assert card.verdict.startswith(words)
        assert len(card.rows) == (3 if unselected else 1)
        assert selection_card(None) is None

    @pytest.mark.usefixtures("admin")
    def test_is_shown_with_versions_and_with_the_prompt(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        path = "/admin/projects/scenes/versions"
        assert "What its choice does" not in browser.get(path).text
        add(session, project, measured(0.8))
        [critic] = versions.list_versions(session, SYSTEM, project, kind=VersionKind.critic)
        for selection in (Selection.selected, Selection.unselected):
            offered = factories.make_candidate_set(session, project, shown=2)
            offered.selection, offered.selected_by = selection, critic.id
            person = factories.make_critic(session, project)
            factories.make_verdict(session, factories.make_assignment(session, offered, person))
        session.flush()
        page = browser.get(path).text
        assert "What its choice does" in page
        assert "No clear difference so far." in page
        assert re.search(r"Chosen by the machine critic</th>.*?>1</td>.*?>100 %</td>", page)
        prompt = browser.get(f"/admin/projects/scenes/prompts/{offered.prompt_id}").text
        assert "Left as written, for comparison with what machine critic v1 chooses." in prompt
        assert prompt.count("not shown") == 1


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (measured(0.45), "cannot be told from guessing"),
        (measured(0.6, length=0.7), "not clearly better than each"),
        (measured(0.75), "clearly better than each"),
        ({"critic": "helpfulness", "quality": {"all": {"critic": None}}}, "Not measured"),
    ],
)
def test_the_sentence_says_what_the_figures_say(session: Session, metrics: dict[str, Any], words: str) -> None:
    project = factories.make_project(session)
    add(session, project, metrics)
    admin = factories.make_admin(session)
    [card] = critic_cards(versions.list_versions(session, admin, project, kind=VersionKind.critic))
    assert words in card.verdict
