"""A reviewer's decision in what is exported."""

from __future__ import annotations

from app.services.judging import decide
from tests import factories
from tests.app.services.exports.test_plan import records
from tests.app.services.judging.test_claim_order import project_with
from tests.app.services.quality.test_reviews import judged, queue, reviewer_of, said
from tests.conftest import CommittedDatabase


def test_stands_instead_of_what_the_critics_said(committed_db: CommittedDatabase) -> None:
    with committed_db.sessions() as session:
        project = project_with(session, overlap=2)
        disputed = factories.make_candidate_set(session, project, slots=2)
        judged(session, project, disputed, 0)
        judged(session, project, disputed, 1)
        agreed = factories.make_candidate_set(session, project, slots=2)
        judged(session, project, agreed, 0)
        judged(session, project, agreed, 0)
        assert len(records(session, project)) == 4
        reviewer = reviewer_of(session, project)
        decide.decide(session, reviewer, int(queue(session, project)[0]["id"]), said(disputed, session, 2))
        found = records(session, project)
        assert [one["candidate_set"] for one in found].count(str(agreed.id)) == 2
        decided = [one for one in found if one["candidate_set"] == str(disputed.id)]
        assert [(one["slots"], [c["picked"] for c in one["candidates"]]) for one in decided] == [
            (1, [False, False, True])
        ]
