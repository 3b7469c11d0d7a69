"""The demo's seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.cli.server import seeding
from app.cli.server.demo_projects import GUARD, PAIRS, PROJECTS
from app.models import PolicyVersion, Project, Prompt, Role, Scope, Split
from app.services.accounts import sessions, users
from app.services.kernel.actors import SYSTEM
from app.services.projects import policies, projects
from app.services.prompts import prompts
from app.settings import Settings, get_settings
from illume.evaluation.tasks import TASKS
from illume.guard.making import make_guard
from illume.guard.policies import FIELDS
from illume.pairs.making import make_pairs
from illume.scenes.emoji import load_sprites
from illume.scenes.making import make_scenes
from tests import factories
from tests.illume.conftest import emoji

FEW = 8
__all__ = ["emoji"]  # a fixture


@pytest.fixture(scope="module")
def starter(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starter that ships a few prompts of each task."""
    folder = tmp_path_factory.mktemp("starter")
    sprites = load_sprites(emoji)
    make_scenes(folder / "scenes", n=FEW, seed=1, sprites=sprites)
    make_pairs(folder / "pairs", n=FEW, seed=1, sprites=sprites)
    make_guard(folder / "guard", n=FEW, seed=1, sprites=sprites, n_policies=4)
    return folder


@pytest.fixture
def small(starter: Path) -> Settings:
    return get_settings().model_copy(update={"starter_dir": starter})


@pytest.fixture
def scenes_only(starter: Path, tmp_path: Path) -> Settings:
    (tmp_path / "scenes").symlink_to(starter / "scenes")
    return get_settings().model_copy(update={"starter_dir": tmp_path})


def lines_of(starter: Path, task: str) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, (starter / task / "prompts.jsonl").read_bytes().splitlines())
    return {item["external_id"]: item for item in lines}


def project_of(session: Session, slug: str) -> Project:
    return session.scalars(select(Project).where(Project.slug == slug)).one()


def prompts_of(session: Session, slug: str) -> dict[str | None, Prompt]:
    query = select(Prompt).where(Prompt.project_id == project_of(session, slug).id).options(*prompts.WITH_IMAGES)
    return {prompt.external_id: prompt for prompt in session.scalars(query)}


def roles_of(session: Session, account: seeding.Account) -> dict[str, Role]:
    user = users.find_user(session, account["email"])
    assert user is not None
    return users.list_project_roles(session, [user.id])[user.id]


class TestSeedDemo:
    def test_twice_is_once(self, session: Session) -> None:
        settings = get_settings()
        made = seeding.seed_demo(session, settings)
        project = project_of(session, "scenes")
        assert projects.settings_of(session, project).round_every == 20
        counts = dict(
            session.execute(
                select(Prompt.split, func.count()).where(Prompt.project_id == project.id).group_by(Prompt.split)
            ).all()
        )
        assert counts[Split.train] >= 300
        assert counts[Split.val] >= 100
        assert {made[name]["email"] for name in made} == {"admin@example.org", "critic@example.org"}
        admin = users.actor_for_token(session, made["admin"]["token"])
        critic = users.actor_for_token(session, made["critic"]["token"])
        assert (admin.role, admin.scope) == (Role.admin, Scope.admin)
        assert (critic.role, critic.scope) == (Role.critic, Scope.write)
        for account in made.values():
            assert sessions.check_password(session, account["email"], account["password"], address="192.0.2.1")
        assert seeding.seed_demo(session, settings, made) == made
        assert session.scalar(select(func.count()).where(Prompt.project_id == project.id)) == sum(counts.values())
        anew = seeding.seed_demo(session, settings)
        assert anew["admin"]["password"] != made["admin"]["password"]
        assert users.actor_for_token(session, made["admin"]["token"])

    def test_all_projects_are_there_at_once_with_their_critic(self, session: Session, small: Settings) -> None:
        made = seeding.seed_demo(session, small)
        names = [project.name for project in projects.list_projects(session, SYSTEM)]
        assert names == [one.name for one in PROJECTS], "the first project is the first in lists, which go by the name"
        assert roles_of(session, made["critic"]) == dict.fromkeys(("scenes", "pairs", "guard"), Role.critic)
        assert len(prompts_of(session, "scenes")) == FEW
        assert not prompts_of(session, "pairs")
        assert not prompts_of(session, "guard")
        for demo in (PAIRS, GUARD):
            assert not seeding.is_complete(session, small)
            seeding.add_prompts(session, small, demo)
        assert seeding.is_complete(session, small)

    def test_makes_no_project_without_prompts(self, session: Session, scenes_only: Settings) -> None:
        seeding.seed_demo(session, scenes_only)
        assert [project.slug for project in projects.list_projects(session, SYSTEM)] == ["scenes"]
        assert len(prompts_of(session, "scenes")) == FEW
        assert seeding.is_complete(session, scenes_only)

    def test_an_older_demo_gets_the_projects_that_it_lacks(
        self, session: Session, small: Settings, scenes_only: Settings
    ) -> None:
        made = seeding.seed_demo(session, scenes_only)
        assert roles_of(session, made["critic"]) == {"scenes": Role.critic}
        critic = users.find_user(session, made["critic"]["email"])
        assert critic is not None
        users.set_project_roles(session, SYSTEM, critic, {"scenes": Role.reviewer})
        assert seeding.seed_demo(session, small, made) == made
        roles = {"scenes": Role.reviewer, "pairs": Role.critic, "guard": Role.critic}
        assert roles_of(session, made["critic"]) == roles
        users.set_project_roles(session, SYSTEM, critic, {"pairs": Role.critic})
        seeding.seed_demo(session, small, made)
        assert roles_of(session, made["critic"]) == {"pairs": Role.critic}, "an admin has said so"


class TestAddPrompts:
    def test_leaves_a_project_of_somebodys_own_as_it_is(self, session: Session, small: Settings) -> None:
        for slug, n in (("pairs", 0), ("guard", 1)):
            projects.create_project(session, SYSTEM, slug=slug, name="Mine")
            for _ in range(n):
                factories.make_prompt(session, project_of(session, slug))
        seeding.seed_demo(session, small)
        assert seeding.is_complete(session, small)
        for demo in (PAIRS, GUARD):
            seeding.add_prompts(session, small, demo)
        assert [len(prompts_of(session, slug)) for slug in ("scenes", "pairs", "guard")] == [FEW, 0, 1]

    def test_pairs_keep_the_order_of_texts_and_pictures(self, session: Session, small: Settings, starter: Path) -> None:
        seeding.seed_demo(session, small)
        for _ in range(2):
            seeding.add_prompts(session, small, PAIRS)
        found, given = prompts_of(session, "pairs"), lines_of(starter, "pairs")
        assert found.keys() == given.keys()
        assert {one.extra["language"] for one in found.values()} == {"en", "de"}
        for name, item in given.items():
            parts = found[name].parts
            assert parts is not None
            assert [part["type"] for part in parts] == ["text", "image", "text", "image", "text"]
            assert [part.get("text") for part in parts] == [part.get("text") for part in item["parts"]]
            images = [image.sha256 for image in found[name].images]
            assert [part["sha256"] for part in parts if part["type"] == "image"] == images
            assert (found[name].answer, found[name].references) == (item["answer"], item["references"])
        chosen = projects.settings_of(session, project_of(session, "pairs"))
        assert chosen.max_new_tokens == TASKS["pairs"].rationale_tokens

    def test_guard_binds_each_prompt_to_its_policy(self, session: Session, small: Settings, starter: Path) -> None:
        seeding.seed_demo(session, small)
        for _ in range(2):
            seeding.add_prompts(session, small, GUARD)
        found, given = prompts_of(session, "guard"), lines_of(starter, "guard")
        assert found.keys() == given.keys()
        said = policies.load_policies(session, [one.policy_version_id for one in found.values()])
        for name, item in given.items():
            prompt = found[name]
            assert prompt.policy_version_id is not None
            policy = said[prompt.policy_version_id]
            assert (policy.to_json()["categories"], policy.header) == (
                item["policy"]["categories"],
                item["policy"]["header"],
            )
            assert (policy.name, policy.version) == (item["policy"]["name"], 1)
            assert (prompt.fields, prompt.answer) == (item["fields"], item["answer"])
            version = session.get_one(PolicyVersion, prompt.policy_version_id)
            assert (version.base_id is not None) == ("variant" in item["metadata"])
        project = project_of(session, "guard")
        names = {item["policy"]["name"] for item in given.values()}
        listed = policies.list_policies(session, SYSTEM, project).items
        assert {one.name for one in listed} == names
        assert len(listed) == len(names)
        chosen = projects.settings_of(session, project)
        assert policies.answer_fields_of(chosen) == FIELDS
        assert chosen.template == TASKS["guard"].template
        assert "cites the wrong rule" in chosen.shortcoming_tags

    def test_leaves_a_project_of_somebody_elses_alone(self, session: Session, small: Settings) -> None:
        project = factories.make_project(session, slug="pairs", name="Pairs of shoes")
        prompt = factories.make_prompt(session, project, external_id="shoe-1")
        seeding.seed_demo(session, small)
        seeding.add_prompts(session, small, PAIRS)
        assert prompts_of(session, "pairs").keys() == {prompt.external_id}
        assert project.name == "Pairs of shoes"
