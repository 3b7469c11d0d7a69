"""Projects: revisions of settings, and the effect of changed settings on work in progress."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid
from app.models import CandidateSet, CandidateSetState, ModelVersion, Prompt, PromptState, SettingRevision
from app.services.acceptance import rules
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import parse_verdict
from app.services.projects import pauses, projects
from tests import factories, judging
from tests.conftest import CommittedDatabase


class TestCreateProject:
    def test_with_revision_and_version(self, session: Session) -> None:
        project = projects.create_project(session, SYSTEM, slug="s", name=" Name ", settings={"base_model": "m"})
        assert project.name == "Name"
        assert projects.settings_of(session, project).base_model == "m"
        assert session.get_one(SettingRevision, project.revision_id).number == 1
        version = session.get_one(ModelVersion, project.active_version_id)
        assert (version.number, version.base_model, version.parent_id) == (0, "m", None)


class TestUpdateProject:
    def test_makes_a_revision_only_if_something_changed(self, session: Session) -> None:
        project = factories.make_project(session, round_every=5)
        before = project.revision_id
        projects.update_project(session, SYSTEM, project.slug, {"round_every": 5, "name": "Other"})
        assert project.revision_id == before
        projects.update_project(session, SYSTEM, project.slug, {"round_every": 6})
        assert project.revision_id != before
        old = session.get_one(SettingRevision, before)
        assert old.settings["round_every"] == 5
        assert session.get_one(SettingRevision, project.revision_id).number == 2

    def test_the_base_model_until_there_is_another_version(self, session: Session) -> None:
        project = factories.make_project(session)
        projects.update_project(session, SYSTEM, project.slug, {"base_model": "other"})
        base = session.get_one(ModelVersion, project.active_version_id)
        assert base.base_model == "other"
        factories.make_version(session, project, number=2, parent=base)
        with pytest.raises(Conflict) as caught:
            projects.update_project(session, SYSTEM, project.slug, {"base_model": "third"})
        assert caught.value.field == "base_model"

    @pytest.mark.parametrize(
        ("changes", "ends"),
        [
            ({"base_model": "other"}, True),
            ({"max_new_tokens": 20}, True),
            ({"overlap": 2}, False),
            ({"name": "N"}, False),
        ],
    )
    def test_a_change_of_what_is_sampled_ends_a_pause(
        self, session: Session, changes: dict[str, object], ends: bool
    ) -> None:
        project, other = factories.make_project(session), factories.make_project(session)
        for one in (project, other):
            pauses.pause(session, one.id, one.active_version_id or 0, "it lacks a shard")
        projects.update_project(session, SYSTEM, project.slug, changes)
        assert pauses.is_paused(session, project) is not ends
        assert pauses.is_paused(session, other)

    def test_overlap_changes_apply_to_offered_sets(self, session: Session) -> None:
        project = factories.make_project(session)
        offered = factories.make_candidate_set(session, project)
        critic = factories.make_critic(session, project)
        projects.update_project(session, SYSTEM, project.slug, {"overlap": 3})
        session.refresh(offered)
        assert offered.slots == 3
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        judging.give(session, critic, claimed.assignment_id, parse_verdict({"kind": "none_fit"}))
        projects.update_project(session, SYSTEM, project.slug, {"overlap": 1})
        session.expire_all()
        assert session.get_one(CandidateSet, offered.id).state is CandidateSetState.judged
        assert session.get_one(Prompt, offered.prompt_id).state is PromptState.judged

    def test_aggregation_changes_recompute_acceptance(self, session: Session) -> None:
        project = factories.make_project(session, overlap=2)
        offered = factories.make_candidate_set(session, project, slots=2)
        for number in range(2):
            critic = factories.make_critic(session, project)
            claimed = judging.claim(session, critic, project)
            assert claimed is not None
            body = {"kind": "picked", "picks": [claimed.candidates[0]["id"]]} if number else {"kind": "none_fit"}
            judging.give(session, critic, claimed.assignment_id, parse_verdict(body))
        assert rules.fresh_count(session, project) == 1
        projects.update_project(session, SYSTEM, project.slug, {"aggregation": "all"})
        session.expire_all()
        assert not session.get_one(Prompt, offered.prompt_id).has_accepted
        assert rules.accepted_rationales(session, project) == []
        projects.update_project(session, SYSTEM, project.slug, {"aggregation": "any"})
        assert rules.fresh_count(session, project) == 1

    def test_does_not_wait_for_critics(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session)
            critic = factories.make_critic(session, project)
            factories.make_candidate_set(session, project)
            session.commit()
        with committed_db.sessions() as busy, committed_db.sessions() as changing:
            assert judging.claim(busy, critic, project) is not None  # its row refers to the project's
            changing.execute(text("SET LOCAL lock_timeout = 100"))
            projects.update_project(changing, SYSTEM, project.slug, {"max_open": 5})
            changing.commit()
            busy.commit()

    @pytest.mark.parametrize("language", ["de", "pt-BR", "zh-Hans-CN", ""])
    def test_the_language_of_the_texts(self, session: Session, language: str) -> None:
        project = factories.make_project(session)
        projects.update_project(session, SYSTEM, project.slug, {"language": language})
        assert projects.settings_of(session, project).language == language

    @pytest.mark.parametrize("language", ["German", 'de" x', "d", "de_DE", "de-" + "x" * 40])
    def test_no_language(self, session: Session, language: str) -> None:
        project = factories.make_project(session)
        with pytest.raises(Invalid, match="language: must") as caught:
            projects.update_project(session, SYSTEM, project.slug, {"language": language})
        assert caught.value.field == "language"

    def test_an_invalid_setting_changes_nothing(self, session: Session) -> None:
        project = factories.make_project(session)
        with pytest.raises(Invalid) as caught:
            projects.update_project(session, SYSTEM, project.slug, {"overlap": 2, "epochs": -1})
        assert caught.value.field == "epochs"
        session.expire_all()
        assert projects.settings_of(session, project).overlap == 1
        numbers = session.scalars(select(SettingRevision.number).where(SettingRevision.project_id == project.id))
        assert numbers.all() == [1]
