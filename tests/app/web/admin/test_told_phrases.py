"""Errors and reasons that were stored are told in the reader's language, and are English for programs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import languages
from app.db.base import PHRASE, Base, phrased
from app.models import (
    BaseCheck,
    CandidateSet,
    CandidateSetState,
    CheckState,
    Comparison,
    ComparisonState,
    Engine,
    Erasure,
    ErasureKind,
    Import,
    ImportProblem,
    ImportState,
    Project,
    Publication,
    PublicationState,
    RepositoryKind,
    Round,
    RoundState,
    Webhook,
    WebhookDelivery,
)
from app.services.imports.running import store_problems
from app.services.kernel.actors import SYSTEM
from app.services.projects import pauses
from app.services.rounds import snapshots
from illume.phrases import _, kept, stored_of
from tests import factories
from tests.app.web.catalogues import speaking
from tests.app.web.conftest import Browser

GERMAN = {
    "It broke at %(place)s.": "Es brach bei %(place)s.",
    "It is no better.": "Es ist nicht besser.",
    "Not activated: another version became active during the round.": "Nicht aktiviert.",
    "%(first)s %(second)s": "%(first)s %(second)s",
    "must be at most %(bound)s": "darf höchstens %(bound)s sein",
    "%(problem)s.": "%(problem)s!",
}
BROKE = _("It broke at %(place)s.", place="<row 7>")
TOLD = "Es brach bei &lt;row 7&gt;."


@pytest.fixture(autouse=True)
def german(tmp_path: Path) -> Iterator[None]:
    """A catalogue of German that knows the messages of this test."""
    with speaking(tmp_path, {"de": GERMAN}):
        yield


def fail_round(session: Session, project: Project) -> str:
    made = factories.make_round(session, project, state=RoundState.failed)
    made.error = BROKE
    return "/admin/projects/scenes/rounds"


def decide_round(session: Session, project: Project) -> str:
    made = factories.make_round(session, project, state=RoundState.succeeded)
    made.decision, made.reason_phrase = {"activate": False, "reason": str(BROKE)}, stored_of(BROKE)
    return "/admin/projects/scenes/rounds"


def leave_out(session: Session, project: Project) -> str:
    made = factories.make_round(session, project, state=RoundState.succeeded)
    snapshot = factories.make_snapshot(session, project, number=2)
    plan = {"parent": project.active_version_id, "base_model": "starter", "metric": "rouge_l", "seed": 1}
    snapshot.settings = {**plan, "project": snapshot.settings}
    made.snapshot_id = snapshot.id
    made.metrics = {
        "left_out": [{"prompt": "7", "role": "guard", "rows": 1, "reason": BROKE, "phrase": BROKE.stored()}]
    }
    return "/admin/projects/scenes/rounds/1"


def close_comparison(session: Session, project: Project) -> str:
    versions = [factories.make_version(session, project, number=number) for number in (1, 2)]
    made = Comparison(
        project_id=project.id, number=1, old_id=versions[0].id, new_id=versions[1].id, state=ComparisonState.closed
    )
    made.outcome = BROKE
    factories.add(session, made)
    return "/admin/projects/scenes/comparisons/1"


def fail_import(session: Session, project: Project) -> str:
    made = Import(project_id=project.id, filename="a.jsonl", file_key="a", state=ImportState.failed)
    made.error = BROKE
    factories.add(session, made)
    return f"/admin/projects/scenes/imports/{made.id}"


def reject_line(session: Session, project: Project) -> str:
    made = factories.add(
        session, Import(project_id=project.id, filename="a.jsonl", file_key="a", state=ImportState.succeeded)
    )
    store_problems(session, made.id, {7: (None, [BROKE])})
    return f"/admin/projects/scenes/imports/{made.id}"


def pause_sampling(session: Session, project: Project) -> str:
    factories.make_prompt(session, project)
    pauses.pause(session, project.id, project.active_version_id or 0, BROKE)
    return "/admin/projects/scenes"


def fail_set(session: Session, project: Project) -> str:
    made = factories.make_candidate_set(session, project, state=CandidateSetState.failed)
    session.execute(update(CandidateSet).where(CandidateSet.id == made.id).values(**phrased(error=BROKE)))
    return f"/admin/projects/scenes/prompts/{made.prompt_id}"


def fail_check(session: Session, project: Project) -> str:
    made = BaseCheck(base_model="/models/a", state=CheckState.failed, finished_at=func.now() - timedelta(hours=1))
    made.detail = BROKE
    factories.add(session, made)
    return f"/admin/base-checks/{made.id}"


def fail_engine(session: Session, project: Project) -> str:
    factories.add(session, Engine(name="one", base_url="http://127.0.0.1:9", model="a", error=BROKE))
    return "/admin/engines"


def block_erasure(session: Session, project: Project) -> str:
    factories.add(session, Erasure(kind=ErasureKind.project, subject="1", name="old", error=BROKE))
    return "/admin/erasures"


def fail_delivery(session: Session, project: Project) -> str:
    hook = factories.add(
        session, Webhook(project_id=project.id, url="https://example.org", events=["verdict.created"], salt="a")
    )
    sent = WebhookDelivery(webhook_id=hook.id, event="verdict.created", payload={}, error=BROKE)
    factories.add(session, sent)
    return "/admin/projects/scenes/webhooks"


def fail_publication(session: Session, project: Project) -> str:
    snapshots.freeze(session, SYSTEM, project, name="first")
    made = Publication(project_id=project.id, kind=RepositoryKind.dataset, number=1, repo="me/birds", public=False)
    made.licence, made.languages, made.state, made.error = "", [], PublicationState.failed, BROKE
    factories.add(session, made)
    return "/admin/projects/scenes/export"


@pytest.mark.usefixtures("admin")
@pytest.mark.parametrize(
    "happen",
    [
        fail_round,
        decide_round,
        leave_out,
        close_comparison,
        fail_import,
        reject_line,
        pause_sampling,
        fail_set,
        fail_check,
        fail_engine,
        block_erasure,
        fail_delivery,
        fail_publication,
    ],
)
def test_what_went_wrong_is_told_in_the_readers_language(
    browser: Browser, session: Session, project: Project, happen: object
) -> None:
    assert callable(happen)
    address = happen(session, project)
    session.flush()
    session.expire_all()
    assert TOLD in browser.get(address, headers={"Accept-Language": "de"}).text
    assert "It broke at &lt;row 7&gt;." in browser.get(address).text


@pytest.mark.usefixtures("admin")
def test_programs_read_english(browser: Browser, session: Session, project: Project) -> None:
    fail_round(session, project)
    [made] = session.scalars(select(Round))
    made.decision, made.reason_phrase = {"activate": False, "reason": str(BROKE)}, stored_of(BROKE)
    made.metrics = {
        "left_out": [{"prompt": "7", "role": "guard", "rows": 1, "reason": BROKE, "phrase": BROKE.stored()}]
    }
    session.flush()
    session.expire_all()
    answer = browser.get(f"/api/v1/rounds/{made.id}", headers={"Accept-Language": "de"}).json()
    assert answer["error"] == "It broke at <row 7>."
    assert answer["decision"] == {"activate": False, "reason": "It broke at <row 7>."}
    assert answer["left_out"] == [{"prompt": "7", "role": "guard", "rows": 1, "reason": "It broke at <row 7>."}]


def test_a_line_with_several_problems_tells_them_all(session: Session, project: Project) -> None:
    made = factories.add(session, Import(project_id=project.id, filename="a", file_key="a"))
    store_problems(session, made.id, {7: ("a", [BROKE, BROKE]), 8: (None, ["It is no phrase."])})
    store_problems(session, made.id, {7: ("a", [_("It is no better.")])})
    found = {one.line: kept(one.reason, one.reason_phrase) for one in session.scalars(select(ImportProblem))}
    assert found == {7: "It broke at <row 7>. It is no better.", 8: "It is no phrase."}
    with languages.reading(languages.languages()["de"]) as now:
        assert now.catalogue is not None
        told = found[7].told()  # type: ignore[attr-defined]
    assert told == "Es brach bei <row 7>. Es ist nicht besser."


def test_a_text_without_its_phrase_is_told_as_it_stands(session: Session, project: Project) -> None:
    made = factories.make_round(session, project, state=RoundState.failed)
    made.error = BROKE
    session.flush()
    made.error = "Something else."
    assert made.error_phrase is None
    made.error = BROKE
    session.flush()
    session.execute(update(Round).values(error="Something else."))
    session.expire_all()
    assert kept(made.error, made.error_phrase) == "Something else."
    assert (
        kept("It broke at %(place)s.", {"message": "It broke at %(place)s.", "values": {}}) == "It broke at %(place)s."
    )


@pytest.mark.usefixtures("admin")
def test_what_is_wrong_with_a_setting_is_told_too(browser: Browser, project: Project) -> None:
    for language, text in (("de", "Darf höchstens 1 sein!"), ("en", "Must be at most 1.")):
        browser.get("/admin/projects/scenes/settings")
        how = {"headers": {"Accept-Language": language}}
        answer = browser.post("/admin/projects/scenes/settings", {"top_p": "3"}, **how)
        assert answer.status_code == 422
        assert text in answer.text


def test_every_column_for_a_phrase_stands_beside_its_text() -> None:
    found = [
        (table.name, column.name.removesuffix(PHRASE), table.columns)
        for table in Base.metadata.tables.values()
        for column in table.columns
        if column.name.endswith(PHRASE)
    ]
    assert len(found) == 15
    lonely = {(table, name) for table, name, columns in found if name not in columns}
    assert lonely == {("rounds", "reason")}  # it stands in the decision
