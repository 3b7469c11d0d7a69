"""The page about policies: its fields, its policy and its table are accepted as they stand there."""

from __future__ import annotations

import json

from app.models import Prompt
from app.services.kernel.actors import SYSTEM
from app.services.projects import policies, projects
from app.services.projects.policies import PolicyIn
from app.settings import ROOT
from tests import factories
from tests.app.services.imports.importing import archive, problems, prompts_of, run
from tests.conftest import CommittedDatabase
from tests.docs.blocks import snippets

PAGE = ROOT / "docs" / "policies.md"


def test_the_table_of_ones_own_pictures_is_imported(committed_db: CommittedDatabase) -> None:
    fields, policy = (json.loads(block) for block in snippets(PAGE, "json"))
    [table] = snippets(PAGE, "text")
    with committed_db.sessions() as session:
        project = projects.create_project(session, SYSTEM, slug="mine", name="Mine", settings={"answer_fields": fields})
        version, _ = policies.add_policy(session, SYSTEM, project, PolicyIn.model_validate(policy))
        version_id = version.version.id
        session.commit()
    pictures = {name: factories.image_bytes() for name in ("kitchen.jpg", "hall.jpg", "street.jpg")}
    data = archive({"pictures.csv": table.encode(), **pictures})
    found = run(committed_db, project, data, "pictures.zip")
    assert [one.reason for one in problems(committed_db, found)] == []

    def gold(one: Prompt) -> tuple[str | None, dict[str, str | None] | None, list[str]]:
        return one.external_id, one.fields, one.references

    made = prompts_of(committed_db, project)
    assert [gold(one) for one in made] == [
        ("1", {"rating": "Unsafe", "category": "O1: Animals, Pets"}, ["A cat sits on the worktop."]),
        ("2", {"rating": "Safe", "category": "NA: None applying"}, []),
        ("3", None, []),
    ]
    assert {one.policy_version_id for one in made} == {version_id}
