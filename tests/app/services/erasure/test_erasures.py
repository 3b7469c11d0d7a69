"""Erasing a person, an image or a project leaves nothing of it, and every reader of the feed learns that it is gone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app import queue
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.models import (
    AssignmentState,
    AuditEvent,
    Candidate,
    DeliveryState,
    EngineAdapter,
    Erasure,
    ErasureState,
    Image,
    Import,
    Project,
    Prompt,
    PromptImage,
    PromptState,
    Role,
    Round,
    RoundState,
    Scope,
    Snapshot,
    StoreRemoval,
    User,
    Verdict,
    VerdictKind,
    WebhookDelivery,
)
from app.processes.connect import forget_settings
from app.services import sweep
from app.services.acceptance import rules
from app.services.accounts import users
from app.services.engines import handing_over, removing
from app.services.erasure import erasures, running
from app.services.exports import plan as export_plan
from app.services.exports.plan import ExportRequest
from app.services.exports.shapes import Format
from app.services.imports import imports
from app.services.imports.running import run_import
from app.services.integrations import webhooks
from app.services.judging import change, feed
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.leases import LeaseLostError
from app.services.kernel.store import DerivativeWidth, get_store
from app.services.kernel.verdict_schema import parse_verdict
from app.services.projects import projects
from app.services.prompts import prompts
from app.services.rounds import lease, preparing, rounds, snapshots
from tests import factories, judging
from tests.app.services.feedback import start_prepared
from tests.app.services.imports.importing import table
from tests.app.services.invariants import broken
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase
from tests.engines import make_engine

WORDS = "words of this critic's own"


@dataclass
class World:
    """A project that two critics judged, with the snapshot of a round, and an admin."""

    session: Session
    project: Project
    critics: list[Actor]
    admin: Actor
    snapshot: Snapshot
    folder: Path

    def lines(self, form: Format = Format.records, **wanted: Any) -> list[dict[str, Any]]:
        plan = export_plan.plan_export(self.session, SYSTEM, self.project, ExportRequest(format=form, **wanted))
        self.session.commit()
        return [json.loads(line) for page in export_plan.file_pages(plan) for line in page.splitlines()]

    def feed(self, cursor: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
        page = feed.feed(self.session, SYSTEM, self.project, cursor=cursor, limit=1000)
        self.session.commit()
        return list(page.items), page.next

    def run(self, erasure: Erasure) -> Erasure:
        self.session.commit()
        running.run_erasure(erasure.id)
        self.session.expire_all()
        found = self.session.get_one(Erasure, erasure.id)
        assert found.state is ErasureState.done
        return found

    def everything(self) -> str:
        """The whole content of the database and the store, as one text."""
        tables = self.session.scalars(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1")
        ).all()
        query = "SELECT coalesce(string_agg(to_jsonb(t)::text, ''), '') FROM {} t"
        found = [str(self.session.scalar(text(query.format(table)))) for table in tables]
        self.session.commit()
        files = (path for path in Path(self.folder).rglob("*") if path.is_file())
        return "\n".join([*found, *(f"{path} {path.read_bytes().decode('utf-8', 'replace')}" for path in files)])


@pytest.fixture
def world(committed_db: CommittedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("ILLUME_STORE_URL", (tmp_path / "store").as_uri())
    forget_settings()
    with committed_db.sessions() as session:
        project, critics = make_judged(session, prompts=8, critics=2)
        session.execute(
            text(
                "UPDATE verdicts SET rationale = :words, rationale_key = lower(:words), comment = :words "
                "WHERE critic_id = :critic AND kind = 'picked'"
            ),
            {"words": WORDS, "critic": critics[1].user_id},
        )
        session.execute(text("UPDATE candidate_sets SET state = 'judged'"))
        session.execute(text("UPDATE prompts SET state = 'judged'"))
        rules.refresh_prompts(session, project.id)
        assert broken(session) == {}
        admin = factories.actor_of(factories.make_user(session, role=Role.admin))
        snapshot = snapshots.freeze(session, SYSTEM, project)
        session.commit()
        yield World(session, project, critics, admin, snapshot, tmp_path / "store")
    forget_settings()


class TestPerson:
    def test_nothing_of_them_is_left(self, world: World) -> None:
        critic = world.critics[1]
        person = world.session.get_one(User, critic.user_id)
        email, person.name = person.email, "Zelda Unmistakable"
        _, token = users.create_token(world.session, SYSTEM, user_id=critic.user_id, scope=Scope.write)
        world.session.commit()
        before, cursor = world.feed()
        live, frozen = world.lines(), world.lines(snapshot=str(world.snapshot.id))
        hashes = world.snapshot.sha256
        assert WORDS in world.everything()
        loss = erasures.person_impact(world.session, world.admin, critic.user_id)
        assert (loss.name, loss.verdicts, loss.snapshots, loss.tokens) == (email, 8, 1, 1)
        assert loss.projects == (world.project.slug,)

        done = world.run(erasures.erase_person(world.session, world.admin, critic.user_id))

        assert WORDS not in world.everything()
        assert email not in world.everything()
        assert "Zelda" not in world.everything()
        assert users.find_actor_for_token(world.session, token) is None
        assert (done.counts["verdicts"], done.counts["snapshots"]) == (8, 1)
        theirs = {record["id"] for record in live if record["critic"] != live[0]["critic"]}
        assert len(theirs) == 8
        assert [record["id"] for record in world.lines()] == [r["id"] for r in live if r["id"] not in theirs]
        told, _ = world.feed(cursor)
        assert {one["id"] for one in told} == theirs
        assert {(one["deleted"], one["critic"], one["kind"], one["rationale"]) for one in told} == {
            (True, None, None, None)
        }
        assert len(world.feed()[0]) == len(before)

        world.session.refresh(world.snapshot)
        assert (world.snapshot.sha256, world.snapshot.redacted) == (hashes, done.counts["redacted"])
        kept_lines = world.lines(snapshot=str(world.snapshot.id))
        assert [line["id"] for line in kept_lines] == [line["id"] for line in frozen]
        for line, was in zip(kept_lines, frozen, strict=True):
            if was["id"] in theirs:
                assert line == {"id": was["id"], "prompt": was["prompt"], "redacted": True, "schema_version": 1}
            else:
                assert line == was
        assert all(row.rationale != WORDS for row in snapshots.read(world.snapshot))
        assert world.lines(Format.sft, snapshot=str(world.snapshot.id))
        assert broken(world.session) == {}
        deeds = world.session.scalars(select(AuditEvent.action).where(AuditEvent.user_id == world.admin.user_id)).all()
        assert "person.erase" in deeds
        assert users.list_users(world.session, world.admin)[-1].id != critic.user_id

    def test_they_are_found_in_snapshots_made_with_another_secret_key(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Records name critics by a pseudonym, which is another one then."""
        monkeypatch.setenv("ILLUME_SECRET_KEY", "another-key-than-the-one-of-the-snapshot")
        forget_settings()
        world.run(erasures.erase_person(world.session, world.admin, world.critics[1].user_id))
        assert WORDS not in world.everything()

    def test_webhooks_are_told_and_keep_nothing(self, world: World) -> None:
        hook, _ = webhooks.add_webhook(world.session, SYSTEM, url="https://8.8.8.8/", events=["verdict"], project=None)
        hook.feed_xid = "0"  # as if it had existed before the verdicts
        world.session.commit()
        sweep.run()
        log = select(WebhookDelivery).order_by(WebhookDelivery.id)
        world.session.execute(update(WebhookDelivery).values(state=DeliveryState.delivered, finished_at=func.now()))
        before = {one.payload["data"]["id"]: one for one in world.session.scalars(log)}
        theirs = {id_ for id_, one in before.items() if WORDS in str(one.payload)}
        gone = set(
            map(str, world.session.scalars(select(Verdict.id).where(Verdict.critic_id == world.critics[1].user_id)))
        )
        assert theirs
        assert theirs < gone < before.keys()

        world.run(erasures.erase_person(world.session, world.admin, world.critics[1].user_id))

        assert [one.payload["data"]["id"] for one in world.session.scalars(log)] == [i for i in before if i not in gone]
        sweep.run()
        world.session.rollback()
        told = [one for one in world.session.scalars(log) if one.payload["data"]["deleted"]]
        assert sorted(one.payload["data"]["id"] for one in told) == sorted(gone)
        assert {one.state for one in told} == {DeliveryState.pending}
        said = ("critic", "kind", "reason", "rationale", "comment", "seconds")
        assert {tuple(one.payload["data"][name] for name in said) for one in told} == {(None,) * len(said)}
        assert all(one.payload["data"]["picks"] == one.payload["data"]["shown"] == [] for one in told)
        assert WORDS not in world.everything()
        sweep.run()
        world.session.rollback()
        assert len(list(world.session.scalars(log))) == len(before)  # each once

    def test_their_slots_are_free_for_others(self, world: World) -> None:
        other = factories.make_critic(world.session, world.project)
        world.run(erasures.erase_person(world.session, world.admin, world.critics[1].user_id))
        claimed = judging.claim(world.session, other, world.project)
        world.session.commit()
        assert claimed is not None
        assert world.session.scalar(select(func.count()).where(Prompt.state == PromptState.ready)) == 8

    def test_a_round_cannot_be_rerun(self, world: World) -> None:
        made = Round(
            project_id=world.project.id,
            number=1,
            state=RoundState.failed,
            trigger="manual",
            snapshot_id=world.snapshot.id,
            parent_id=world.project.active_version_id,
        )
        world.session.add(made)
        world.session.commit()
        world.run(erasures.erase_person(world.session, world.admin, world.critics[0].user_id))
        for again in (rounds.rerun, rounds.retry):
            with pytest.raises(
                Conflict, match="rows of its snapshot have been erased: it can no longer be repeated exactly"
            ):
                again(world.session, SYSTEM, made.id)
            world.session.rollback()

    def test_a_round_that_trains_on_it_is_cancelled(self, world: World) -> None:
        started = start_prepared(world.session, world.project)
        world.run(erasures.erase_person(world.session, world.admin, world.critics[0].user_id))
        assert world.session.get_one(Round, started.id).state is RoundState.cancelled

    def test_a_snapshot_that_is_being_made_is_made_anew(self, world: World) -> None:
        rounds.start(world.session, SYSTEM, world.project)
        world.session.commit()
        claim = lease.claim_round(world.session, worker="a", prepared=False)
        world.session.commit()
        assert claim is not None

        def erase_meanwhile(share: float) -> None:
            if share > 0.7 and world.session.get_one(User, world.critics[1].user_id).erased_at is None:
                world.run(erasures.erase_person(world.session, world.admin, world.critics[1].user_id))

        with pytest.raises(LeaseLostError):
            preparing.prepare(claim, report=erase_meanwhile)
        again = lease.claim_round(world.session, worker="b", prepared=False)
        world.session.commit()
        assert again is not None
        assert (again.round_id, again.fence) == (claim.round_id, claim.fence + 2)
        preparing.prepare(again)
        assert world.session.get_one(Round, claim.round_id, populate_existing=True).snapshot_id is not None
        assert WORDS not in world.everything()

    def test_their_flags_no_longer_hold_prompts(self, world: World) -> None:
        critic = world.critics[0]
        mine = feed.history(world.session, critic, world.project)[0]
        flag = parse_verdict({"kind": "flagged", "reason": "Offensive"})
        change.change(world.session, critic, int(mine["id"]), flag)
        world.session.commit()
        assert world.session.get_one(Prompt, int(mine["prompt"])).state is PromptState.held
        world.run(erasures.erase_person(world.session, world.admin, critic.user_id))
        assert world.session.get_one(Prompt, int(mine["prompt"])).state is PromptState.ready

    def test_permissions(self, world: World) -> None:
        with pytest.raises(Forbidden):
            erasures.erase_person(world.session, world.critics[0], world.critics[1].user_id)
        with pytest.raises(Conflict, match="You cannot erase yourself"):
            erasures.erase_person(world.session, world.admin, world.admin.user_id)
        with pytest.raises(Conflict, match="last admin"):
            erasures.erase_person(world.session, SYSTEM, world.admin.user_id)
        erasures.erase_person(world.session, world.admin, world.critics[1].user_id)
        with pytest.raises(NotFound, match="already been erased"):
            erasures.erase_person(world.session, world.admin, world.critics[1].user_id)

    def test_an_interrupted_erasure_continues(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        class Stopping(Exception):
            pass

        def stop() -> None:
            raise Stopping

        monkeypatch.setattr(running, "VERDICT_BATCH", 3)
        asked = erasures.erase_person(world.session, world.admin, world.critics[1].user_id)
        world.session.commit()
        with pytest.raises(Stopping):
            running.run_erasure(asked.id, check=stop)
        world.session.expire_all()
        assert running.list_open_erasures(world.session) == [asked.id]
        assert world.session.get_one(Erasure, asked.id).counts == {"verdicts": 3}
        done = world.run(asked)
        assert done.counts["verdicts"] == 8
        assert WORDS not in world.everything()


class TestImage:
    def test_nothing_that_shows_it_is_left(self, world: World) -> None:
        records = world.lines(snapshot=str(world.snapshot.id))
        sha256 = records[3]["images"][0]["sha256"]
        data = table({"images": [sha256], "question": "an imported question on it"})
        made = imports.create_import(world.session, SYSTEM, world.project, filename="a.jsonl", source=io.BytesIO(data))
        world.session.commit()
        run_import(made.id, worker="w", check=lambda: None)
        shown = {int(record["prompt"]) for record in records if sha256 in str(record["images"])}
        said = {r["id"] for r in records if int(r["prompt"]) in shown}
        _, cursor = world.feed()
        loss = erasures.image_impact(world.session, world.admin, sha256)
        assert (loss.prompts, loss.verdicts, loss.images, loss.snapshots) == (2, 2, 1, 1)

        get_store().put_derivative(sha256, DerivativeWidth.medium, b"a smaller one")
        done = world.run(erasures.erase_image(world.session, world.admin, sha256))

        assert done.counts["prompts"] == 2
        assert get_store().read_derivative(sha256, DerivativeWidth.medium) is None
        assert sha256 not in world.everything().replace(f'"subject": "{sha256}"', "").replace(f"image:{sha256}", "")
        assert "an imported question on it" not in world.everything()
        assert not get_store().has(sha256)
        assert world.session.get(Image, sha256) is None
        assert world.session.get_one(Import, made.id).file_key == ""
        for prompt_id in shown:
            prompt = prompts.get_prompt(world.session, SYSTEM, prompt_id)
            assert (prompt.state, prompt.question, prompt.external_id, prompt.images) == (
                PromptState.retired,
                "(erased)",
                None,
                [],
            )
        told, _ = world.feed(cursor)
        assert {one["id"] for one in told if one["deleted"]} == said
        kept_lines = world.lines(snapshot=str(world.snapshot.id))
        assert {line["id"] for line in kept_lines if line.get("redacted")} == said
        assert said.isdisjoint(record["id"] for record in world.lines())
        assert broken(world.session) == {}

    def test_an_open_claim_on_it_ends(self, world: World) -> None:
        prompt = factories.make_prompt(world.session, world.project)
        offered = factories.make_candidate_set(world.session, world.project, prompt=prompt)
        claim = factories.make_assignment(world.session, offered, world.critics[0], state=AssignmentState.open)
        offered.taken = 1
        sha256 = world.session.scalars(select(PromptImage.sha256).where(PromptImage.prompt_id == prompt.id)).one()
        candidate = world.session.scalars(select(Candidate.id).where(Candidate.candidate_set_id == offered.id)).first()
        world.run(erasures.erase_image(world.session, world.admin, sha256))
        picked = parse_verdict({"kind": "picked", "picks": [str(candidate)]})
        with pytest.raises(Invalid, match="not in this set"):
            judging.give(world.session, world.critics[0], claim.id, picked)

    def test_images_of_other_prompts_stay(self, world: World) -> None:
        one = world.lines()[0]["images"][0]["sha256"]
        others = set(world.session.scalars(select(Image.sha256))) - {one}
        assert others
        world.run(erasures.erase_image(world.session, world.admin, one))
        assert set(world.session.scalars(select(Image.sha256))) == others
        assert all(get_store().has(other) for other in others)
        assert world.session.scalar(select(func.count()).select_from(StoreRemoval)) == 0


class TestProject:
    def test_only_numbers_and_hashes_are_left(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        slug = world.project.slug
        instructions = "secret instructions"
        projects.update_project(world.session, SYSTEM, slug, {"instructions": instructions, "name": "Secret name"})
        later = snapshots.freeze(world.session, SYSTEM, world.project, name="secret snapshot")
        started = start_prepared(world.session, world.project)
        shown = set(world.session.scalars(select(Image.sha256)))
        other = factories.make_project(world.session, slug="other")
        [shared, *_] = shown
        image = world.session.get_one(Image, shared)
        factories.make_prompt(world.session, other, images=[image])
        world.session.commit()
        loss = erasures.project_impact(world.session, world.admin, slug)
        assert (loss.prompts, loss.verdicts, loss.snapshots, loss.images) == (8, 16, 3, len(shown))
        assert not loss.images_at_least
        monkeypatch.setattr(erasures, "MAX_PROMPTS_SEARCHED", 1)
        large = erasures.project_impact(world.session, world.admin, slug)
        assert (large.prompts, large.images_at_least) == (8, True)
        assert 1 <= large.images < len(shown)

        done = world.run(erasures.erase_project(world.session, world.admin, slug))

        assert (done.counts["prompts"], done.counts["verdicts"]) == (8, 16)
        assert world.session.get_one(Round, started.id).state is RoundState.cancelled
        found = world.everything()
        for gone in (WORDS, instructions, "secret snapshot", "Secret name", "<script>", *(shown - {shared})):
            assert gone not in found, gone
        assert shared in found
        assert get_store().has(shared)
        assert [one.slug for one in projects.list_projects(world.session, world.admin)] == ["other"]
        with pytest.raises(NotFound):
            projects.get_project(world.session, world.admin, slug)
        assert world.session.scalar(select(func.count()).where(Verdict.project_id == world.project.id)) == 0
        for snapshot in (world.snapshot, later):
            sha256 = snapshot.sha256
            world.session.refresh(snapshot)
            assert snapshot.sha256 == sha256
            assert snapshot.redacted > 0
            lines = get_store().read_bytes(str(snapshot.file_key)).splitlines()
            assert {json.loads(line)["redacted"] for line in lines} == {True}
            assert snapshots.read(snapshot) == []
        projects.create_project(world.session, SYSTEM, slug=slug, name="anew")

    def test_its_adapters_are_taken_off_model_servers(self, world: World) -> None:
        other = factories.make_project(world.session, slug="other")
        engine = make_engine(world.session)
        made = [
            factories.add(
                world.session,
                EngineAdapter(
                    engine_id=engine.id,
                    version_id=factories.make_version(world.session, project, number=5, adapter="1" * 64).id,
                    name=project.slug,
                ),
            ).id
            for project in (world.project, other)
        ]
        world.session.commit()
        world.run(erasures.erase_project(world.session, world.admin, world.project.slug))
        assert removing.list_due(world.session) == made[:1]
        assert handing_over.list_due(world.session) == made[1:]
        assert (queue.REMOVE_ADAPTER, made[0]) in sweep.sweep(world.session)

    def test_a_webhook_of_all_projects_keeps_nothing(self, world: World) -> None:
        other = factories.make_project(world.session, slug="other")
        hook, _ = webhooks.add_webhook(world.session, SYSTEM, url="https://8.8.8.8/", events=["verdict"], project=None)
        hook.feed_xid = "0"
        world.session.add(WebhookDelivery(webhook_id=hook.id, event="verdict", payload={"project": other.slug}))
        world.session.commit()
        sweep.run()
        assert WORDS in str(world.session.scalars(select(WebhookDelivery.payload)).all())
        hook.feed_xid, hook.feed_id = "0", 0  # as if nothing had been delivered yet
        erasure = erasures.erase_project(world.session, world.admin, world.project.slug)
        world.session.commit()
        sweep.run()
        world.run(erasure)
        assert WORDS not in world.everything()
        assert world.session.scalars(select(WebhookDelivery.payload)).all() == [{"project": other.slug}]

    def test_waits_for_a_round_that_runs(self, world: World) -> None:
        started = rounds.start(world.session, SYSTEM, world.project)
        started.state = RoundState.training
        asked = erasures.erase_project(world.session, world.admin, world.project.slug)
        world.session.commit()
        running.run_erasure(asked.id)
        world.session.expire_all()
        found = world.session.get_one(Erasure, asked.id)
        assert (found.state, found.error) == (ErasureState.open, "Round 1 of the project is still running.")
        world.session.get_one(Round, started.id).state = RoundState.cancelled
        assert world.run(asked).error is None


def test_a_tombstone_counts_nowhere(world: World) -> None:
    """A tombstone counts nowhere."""
    world.run(erasures.erase_person(world.session, world.admin, world.critics[1].user_id))
    rows = world.session.scalars(select(Verdict).where(Verdict.critic_id == world.critics[1].user_id)).all()
    assert {(row.kind, row.current, row.deleted) for row in rows} == {(VerdictKind.skipped, False, True)}
