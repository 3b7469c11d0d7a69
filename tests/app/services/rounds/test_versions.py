"""Model versions: the lineage, activation and roll-back, kept scores."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Forbidden, NotFound
from app.models import AuditEvent, CandidateSet, Project, Role
from app.services.kernel.actors import SYSTEM
from app.services.projects import base_models
from app.services.rounds import versions
from app.settings import get_settings
from tests import factories


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session)


def actions(session: Session, project: Project) -> list[str]:
    return list(session.scalars(select(AuditEvent.action).where(AuditEvent.project_id == project.id)))


class TestActivate:
    def test_and_roll_back(self, session: Session, project: Project) -> None:
        admin = factories.make_admin(session)
        base = project.active_version_id
        assert base is not None
        stale = factories.make_candidate_set(session, project)
        tuned = versions.register(
            session, project, base_model="starter", parent_id=base, round_id=None, adapter="0" * 64, metrics={}
        )
        assert (tuned.number, project.active_version_id) == (1, base)
        versions.activate(session, admin, tuned.id)
        assert project.active_version_id == tuned.id
        assert session.get_one(CandidateSet, stale.id, populate_existing=True).state == "replaced"
        versions.activate(session, admin, tuned.id)
        versions.activate(session, admin, base)
        assert project.active_version_id == base
        assert actions(session, project) == ["version.activate", "version.activate"]

    def test_needs_an_admin(self, session: Session, project: Project) -> None:
        critic = factories.make_critic(session, project)
        stranger = factories.actor_of(factories.make_user(session))
        assert project.active_version_id is not None
        with pytest.raises(Forbidden, match="admin"):
            versions.activate(session, critic, project.active_version_id)
        with pytest.raises(NotFound):
            versions.activate(session, stranger, project.active_version_id)
        with pytest.raises(NotFound):
            versions.activate(session, SYSTEM, 10**12)


class TestListVersions:
    def test_newest_first_for_members(self, session: Session, project: Project) -> None:
        viewer = factories.actor_of(factories.make_member(session, project, Role.viewer))
        made = [factories.make_version(session, project, number=number) for number in (1, 2)]
        assert [one.number for one in versions.list_versions(session, viewer, project)] == [2, 1, 0]
        assert versions.get_version(session, viewer, made[0].id) is made[0]
        with pytest.raises(NotFound):
            versions.list_versions(session, factories.actor_of(factories.make_user(session)), project)


class TestLineage:
    def test_back_to_the_base(self, session: Session, project: Project) -> None:
        base = versions.list_versions(session, SYSTEM, project)[0]
        first = factories.make_version(session, project, number=1, parent=base)
        factories.make_version(session, project, number=2, parent=base)
        third = factories.make_version(session, project, number=3, parent=first)
        assert [one.number for one in versions.lineage(session, third)] == [3, 1, 0]


class TestScores:
    def test_kept_once_for_exact_prompts_and_settings(self, session: Session, project: Project) -> None:
        version = versions.list_versions(session, SYSTEM, project)[0]
        key = {"prompts_hash": "a" * 64, "settings_hash": "b" * 64}
        assert versions.known_scores(session, version.id, **key) is None
        versions.keep_scores(session, version.id, **key, scores={"rouge": 1})
        versions.keep_scores(session, version.id, **key, scores={"rouge": 2})
        assert versions.known_scores(session, version.id, **key) == {"rouge": 1}
        assert versions.known_scores(session, version.id, prompts_hash="c" * 64, settings_hash="b" * 64) is None
        assert [one.scores for one in versions.scores_of(session, version)] == [{"rouge": 1}]


class TestResolveBase:
    def test_the_starter_and_others(self) -> None:
        assert base_models.resolve_base("starter") == str(get_settings().starter_dir / "model")
        assert base_models.resolve_base("some/model") == "some/model"
