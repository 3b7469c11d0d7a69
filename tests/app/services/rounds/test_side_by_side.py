"""Two versions side by side, from what rounds kept of their scores."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.models import Evaluation, ModelVersion, Project, Prompt, Split
from app.services.rounds.side_by_side import side_by_side
from tests import factories


def evaluation(
    session: Session, version: ModelVersion, prompts: list[Prompt], scores: list[float], *, settings: str = "s"
) -> Evaluation:
    """What a round keeps of a version that it scored on `prompts`."""
    texts = [[f"text {version.number} of {prompt.id}"] for prompt in prompts]
    kept: dict[str, Any] = {
        "prompts": [str(prompt.id) for prompt in prompts],
        "gold": {"greedy": {"rationales": texts, "rouge_l": scores}, "sampled": {"rationales": texts}},
    }
    hashes = {"prompts_hash": f"{len(prompts)}", "settings_hash": settings}
    return factories.add(session, Evaluation(version_id=version.id, scores=kept, **hashes))


@pytest.fixture
def project(session: Session) -> Project:
    """A project."""
    return factories.make_project(session)


@pytest.fixture
def pair(session: Session, project: Project) -> tuple[ModelVersion, ModelVersion]:
    """A version and its parent."""
    old = session.get_one(ModelVersion, project.active_version_id)
    return old, factories.make_version(session, project, number=1, parent=old)


@pytest.fixture
def prompts(session: Session, project: Project) -> list[Prompt]:
    """Three val prompts."""
    return [factories.make_prompt(session, project, split=Split.val) for _ in range(3)]


class TestSideBySide:
    def test_pairs_by_prompt_with_an_interval(
        self, session: Session, project: Project, pair: tuple[ModelVersion, ModelVersion], prompts: list[Prompt]
    ) -> None:
        old, new = pair
        evaluation(session, old, prompts, [0.5, 0.5, 0.5])
        evaluation(session, new, list(reversed(prompts)), [0.4, 0.5, 0.9])
        found = side_by_side(session, factories.make_admin(session), project, old=old, new=new, style="greedy")
        differences = {one.prompt_id: one.difference for one in found.pairs}
        assert differences == pytest.approx({prompts[0].id: 0.4, prompts[1].id: 0.0, prompts[2].id: -0.1})
        assert found.change is not None
        assert found.change.mean == pytest.approx(0.1)
        assert (found.count(better=True), found.count(better=False), found.same_settings) == (1, 1, True)
        first = next(one for one in found.pairs if one.prompt_id == prompts[0].id)
        assert (first.old.texts, first.new.texts) == ((f"text 0 of {prompts[0].id}",), (f"text 1 of {prompts[0].id}",))

    def test_equal_settings_come_before_more_prompts(
        self, session: Session, project: Project, pair: tuple[ModelVersion, ModelVersion], prompts: list[Prompt]
    ) -> None:
        old, new = pair
        evaluation(session, old, prompts[:1], [0.5])
        evaluation(session, old, prompts, [0.5, 0.5, 0.5], settings="other")
        evaluation(session, new, prompts, [0.6, 0.6, 0.6])
        found = side_by_side(session, factories.make_admin(session), project, old=old, new=new, style="greedy")
        assert [one.prompt_id for one in found.pairs] == [prompts[0].id]
        assert found.same_settings

    def test_without_scores_there_are_texts_and_no_interval(
        self, session: Session, project: Project, pair: tuple[ModelVersion, ModelVersion], prompts: list[Prompt]
    ) -> None:
        for version in pair:
            evaluation(session, version, prompts, [0.5, 0.5, 0.5])
        found = side_by_side(session, factories.make_admin(session), project, old=pair[0], new=pair[1])
        assert (len(found.pairs), found.change, found.pairs[0].difference) == (3, None, None)

    def test_nothing_in_common(
        self, session: Session, project: Project, pair: tuple[ModelVersion, ModelVersion], prompts: list[Prompt]
    ) -> None:
        evaluation(session, pair[0], prompts[:1], [0.5])
        evaluation(session, pair[1], prompts[1:], [0.5, 0.5])
        assert not side_by_side(session, factories.make_admin(session), project, old=pair[0], new=pair[1]).pairs

    def test_a_stranger(self, session: Session, project: Project, pair: tuple[ModelVersion, ModelVersion]) -> None:
        stranger = factories.actor_of(factories.make_user(session))
        with pytest.raises(NotFound):
            side_by_side(session, stranger, project, old=pair[0], new=pair[1])
