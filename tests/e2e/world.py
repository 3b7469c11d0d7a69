"""A small made-up world: a project of scenes with hand-made candidates, and if wanted a history of three rounds."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from app.models import (
    CandidateSet,
    CandidateSetState,
    Membership,
    ModelVersion,
    Project,
    Prompt,
    PromptState,
    Role,
    Round,
    RoundEvent,
    RoundState,
    RoundTrigger,
    Snapshot,
    SnapshotItem,
    SnapshotItemRole,
    Split,
    User,
    Verdict,
    VerdictKind,
    Worker,
)
from app.services.kernel.actors import Actor
from app.services.kernel.store import get_store
from app.settings import ROOT
from illume.evaluation.activation import opening, outcome_of
from tests import factories
from tests.e2e import history

PASSWORD = "a long password"
SCENES = ROOT / "starter" / "scenes"
VAL_SCENES = 12
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


@dataclass(frozen=True)
class World:
    """The rows that were made. Their ids stay valid in other sessions."""

    project_id: int
    slug: str
    admin: str
    critic: str
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """One prompt of the shipped scenes, with the bytes of its image."""

    question: str
    answer: str
    references: tuple[str, ...]
    image: bytes


def scenes(count: int, photos: Sequence[bytes] = ()) -> list[Scene]:
    """The first shipped train scenes, or made-up ones where none are shipped. With `photos` they show these in turn."""
    found = shipped(count)
    return [replace(scene, image=photos[n % len(photos)]) for n, scene in enumerate(found)] if photos else found


def shipped(count: int) -> list[Scene]:
    """The first shipped train scenes, or made-up ones where none are shipped."""
    path = SCENES / "prompts.jsonl"
    if not path.exists():
        return [made_up(number) for number in range(count)]
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    train = [row for row in rows if row["split"] == "train"][:count]
    return [
        Scene(row["question"], row["answer"], tuple(row["references"]), (path.parent / row["images"][0]).read_bytes())
        for row in train
    ]


def made_up(number: int) -> Scene:
    """A scene of one colour."""
    colour = COLOURS[number % len(COLOURS)]
    references = (f"the whole picture is {colour}", f"nothing but {colour} can be seen", f"it is {colour} all over")
    return Scene(f"what colour is picture {number}?", colour, references, factories.image_bytes(size=(96, 96)))


def candidate_texts(scene: Scene, other: Scene, draw: random.Random) -> list[str]:
    """Six candidates of mixed quality, as a base model writes them."""
    texts = [
        *scene.references[:3],
        *other.references[:2],
        f"it is {scene.answer} because the answer is {scene.answer}",
    ]
    draw.shuffle(texts)
    return list(dict.fromkeys(texts))


def build(
    session: Session, *, prompts: int = 12, rich: bool = False, photos: Sequence[bytes] = (), **settings: Any
) -> World:
    """A project `scenes` with `prompts` sets ready to judge, an admin and a critic; `rich`: with a history.

    With `photos` prompts show these in place of the scenes.
    """
    draw = random.Random(7)
    project = factories.make_project(session, slug="scenes", name="Scenes", **({"round_every": 20} | settings))
    factories.make_user(session, email="admin@example.org", role=Role.admin, password=PASSWORD)
    critic = factories.make_user(session, email="critic@example.org", role=Role.critic, password=PASSWORD)
    session.add(Membership(user_id=critic.id, project_id=project.id, role=Role.critic))
    found = scenes(prompts + (70 + VAL_SCENES if rich else 0), photos)
    past, now = found[prompts:], found[:prompts]
    if rich:
        add_history(session, project, past, critic, draw)
    ids = []
    for number, scene in enumerate(now):
        prompt = add_prompt(session, project, scene, f"scene-{number:04d}")
        factories.make_candidate_set(
            session, project, prompt=prompt, texts=candidate_texts(scene, found[number - 1], draw)
        )
        ids.append(prompt.id)
    session.flush()
    return World(project.id, project.slug, "admin@example.org", "critic@example.org", tuple(ids))


def add_prompt(
    session: Session, project: Project, scene: Scene, external_id: str, *, state: PromptState = PromptState.waiting
) -> Prompt:
    """A train prompt of a scene."""
    return factories.make_prompt(
        session,
        project,
        images=[factories.make_image(session, scene.image)],
        question=scene.question,
        answer=scene.answer,
        references=scene.references,
        external_id=external_id,
        state=state,
    )


# A history


def add_history(session: Session, project: Project, past: Sequence[Scene], critic: User, draw: random.Random) -> None:
    """Three rounds by five critics, the last of them not activated, and a worker."""
    critics = [
        critic,
        *(factories.make_member(session, project, user=named(session, name)) for name in ("ada", "ben", "cleo", "dan")),
    ]
    past, val = past[:-VAL_SCENES], past[-VAL_SCENES:]
    versions = add_rounds(session, project)
    for number, scene in enumerate(past):
        judged(session, project, scene, past[number - 1], critics[number % 5], versions[number % 3], number, draw)
    history.add_second_opinions(session, project, critics, draw)
    history.add_evaluations(session, project, versions, val)
    add_items(session, project)
    history.add_comparison(session, project, versions, critics)
    for number in range(12):
        factories.make_prompt(session, project, question=f"what stands behind the {number + 2} trees?", answer="a tent")
    beat = {"queues": "model", "device": "cpu", "memory_mb": 1432}
    factories.add(session, Worker(name="hall:4127", doing="writing explanations for scenes, 8 at a time", **beat))
    factories.add(session, Worker(name="hall:4130", doing="", **(beat | {"queues": "default", "memory_mb": 148})))


def add_items(session: Session, project: Project) -> None:
    """The snapshots of the rounds: the first picks for the first round, and more for each later one."""
    verdicts = session.query(Verdict).filter_by(project_id=project.id, kind=VerdictKind.picked).order_by(Verdict.id)
    for snapshot in session.query(Snapshot).filter_by(project_id=project.id):
        for position, verdict in enumerate(verdicts.limit(18 * snapshot.number), start=1):
            row = {"role": SnapshotItemRole.rationale, "prompt_id": verdict.prompt_id, "verdict_id": verdict.id}
            session.add(SnapshotItem(snapshot_id=snapshot.id, position=position, **row))
    session.flush()


def named(session: Session, name: str) -> User:
    """A critic called `name`."""
    return factories.make_user(session, email=f"{name}@example.org", role=Role.critic, password=PASSWORD)


def judged(
    session: Session,
    project: Project,
    scene: Scene,
    other: Scene,
    critic: User,
    version: ModelVersion,
    number: int,
    draw: random.Random,
) -> None:
    """Add a prompt that was judged some time ago."""
    prompt = add_prompt(session, project, scene, f"past-{number:04d}", state=PromptState.judged)
    texts = candidate_texts(scene, other, draw)
    made: CandidateSet = factories.make_candidate_set(
        session, project, prompt=prompt, texts=texts, version=version, state=CandidateSetState.judged
    )
    actor = Actor(critic.id, critic.email, Role.critic)
    assignment = factories.make_assignment(session, made, actor)
    ids = {one.text: one.id for one in factories.candidates_of(session, made)}
    picks = [ids[text] for text in scene.references[: draw.choice((1, 2, 3))] if text in ids]
    kind = draw.choices((VerdictKind.picked, VerdictKind.none_fit, VerdictKind.skipped), (8, 2, 1))[0]
    verdict = factories.make_verdict(session, assignment, kind=kind, picks=picks)
    verdict.seconds = round(draw.lognormvariate(math.log(7), 0.4), 1)
    verdict.created_at = datetime.now(UTC) - timedelta(minutes=3 * (70 - number))
    if kind is VerdictKind.skipped:
        verdict.reason = "Not sure"
    prompt.has_accepted = kind is VerdictKind.picked
    prompt.fresh = prompt.has_accepted and number > 52
    session.flush()


SCORES = ((0.512, 0.866), (0.573, 0.871), (0.608, 0.868), (0.611, 0.842))


def means(score: float, accuracy: float) -> dict[str, Any]:
    """Mean scores that fit the primary one."""
    return {
        "score": score,
        "means": {
            "sampled_rouge_l": score,
            "greedy_rouge_l": score + 0.04,
            "sampled_faithful": score - 0.1,
            "greedy_faithful": score - 0.02,
            "sampled_bleu_4": score / 2.2,
            "answer_accuracy": accuracy,
        },
    }


def metrics_of(number: int) -> dict[str, Any]:
    """The metrics of a round's version, with its parent's scores and the change."""
    new, parent = SCORES[number], SCORES[number - 1]
    gain = new[0] - parent[0]
    change = {"mean": gain, "low": gain - 0.016, "high": gain + 0.017, "n": 100}
    lost = new[1] - parent[1]
    return {
        **means(*new),
        "parent": means(*parent),
        "change": {
            "score": change,
            "sampled_rouge_l": change,
            "answer_accuracy": {"mean": lost, "low": lost - 0.01, "high": lost + 0.01, "n": 100},
        },
        "metric": "rouge_l",
        "best_epoch": 3,
        "n_rationale": 22 * number,
        "n_vqa_only": 220 * number,
        "w": 10.0,
    }


def add_rounds(session: Session, project: Project) -> list[ModelVersion]:
    """Versions 0 to 3, made by three rounds; version 2 is active, version 3 waits for an admin."""
    base = session.get_one(ModelVersion, project.active_version_id)
    versions = [base]
    for number in (1, 2, 3):
        versions.append(add_round(session, project, versions[-1], number))
    project.active_version_id = versions[2].id
    session.flush()
    return versions


def add_round(session: Session, project: Project, parent: ModelVersion, number: int) -> ModelVersion:
    """A finished round."""
    metrics = metrics_of(number)
    version = factories.make_version(
        session,
        project,
        number=number,
        parent=parent,
        adapter=get_store().put_bytes(b"an adapter %d" % number),
        metrics=metrics,
    )
    snapshot = factories.make_snapshot(session, project, number=number)
    snapshot.counts = {"prompts": 20 * number, "rationale": 22 * number, "guard": 220 * number, "val": 100}
    snapshot.settings = {
        "parent": parent.id,
        "base_model": "starter",
        "metric": "rouge_l",
        "seed": number,
        "project": snapshot.settings,
    }
    made = factories.make_round(
        session, project, number=number, state=RoundState.succeeded, trigger=RoundTrigger.auto, snapshot=snapshot
    )
    made.parent_id, made.version_id, version.round_id = parent.id, version.id, made.id
    made.started_at = datetime.now(UTC) - timedelta(hours=9 - 2 * number)
    made.finished_at = made.started_at + timedelta(seconds=142 + 11 * number)
    made.created_at = made.started_at - timedelta(seconds=2)
    version.created_at = made.finished_at
    made.metrics = metrics
    made.decision = decision_of(number, metrics)
    made.progress = {"fraction": 1.0, "eta_seconds": 0}
    add_curve(session, made, steps=60)
    session.flush()
    return version


def decision_of(number: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """The activation rule's decision about a round's version."""
    change = metrics["change"]["score"]
    gain = (
        f"ROUGE-L of samples changed by {change['mean']:+.4f} "
        f"(95 % interval {change['low']:+.4f} to {change['high']:+.4f}, 100 prompts)"
    )
    outcome = outcome_of(change["low"], change["high"], change["n"])
    return {"activate": outcome == "better", "outcome": outcome, "reason": f"{opening(outcome, 100)}: {gain}."}


def add_curve(session: Session, made: Round, *, steps: int, epochs: int = 5) -> None:
    """The log of a round that trained for `steps` steps."""
    draw = random.Random(made.number)
    position = 0

    def event(kind: str, **data: Any) -> None:
        nonlocal position
        position += 1
        session.add(RoundEvent(round_id=made.id, position=position, kind=kind, data={"kind": kind, **data}))

    event("log", message="22 rationales, 220 examples without one, w = 10.0")
    for step in range(1, steps + 1):
        loss = 0.4 + 1.6 * math.exp(-step / 18) + draw.uniform(-0.06, 0.06)
        answer = loss * 0.35
        event(
            "step",
            epoch=1 + step * epochs // (steps + 1),
            step=step,
            loss=loss,
            answer_loss=answer,
            rationale_loss=loss - answer,
        )
        if step % (steps // epochs) == 0:
            epoch = step // (steps // epochs)
            score = 0.5 + 0.03 * epoch - 0.0045 * epoch**2 + 0.02 * made.number
            event("epoch", epoch=epoch, loss=loss, score=score, metric="rouge_l")
    event("log", message="the best epoch and its parent are scored on 100 val prompts")


def add_running_round(session: Session, world: World) -> None:
    """Add a round that is in its third epoch."""
    project = session.get_one(Project, world.project_id)
    snapshot = factories.make_snapshot(session, project, number=9)
    snapshot.counts = {"prompts": 40, "rationale": 44, "guard": 440, "val": 100, "heldout": 0}
    snapshot.settings = {
        "parent": project.active_version_id,
        "base_model": "starter",
        "metric": "rouge_l",
        "seed": 9,
        "project": snapshot.settings,
    }
    made = factories.make_round(session, project, number=9, state=RoundState.training, snapshot=snapshot)
    made.started_at = datetime.now(UTC) - timedelta(seconds=70)
    made.progress = {"stage": "training", "epoch": 3, "fraction": 0.46, "eta_seconds": 83}
    made.worker, made.beats_at = "hall:4127", datetime.now(UTC)
    add_curve(session, made, steps=36, epochs=3)
    session.flush()


def empty_pool(session: Session, world: World) -> None:
    """Remove all open candidate sets, so that their prompts wait for new ones."""
    for made in session.query(CandidateSet).filter_by(project_id=world.project_id, state=CandidateSetState.ready):
        made.state = CandidateSetState.replaced
    for prompt in session.query(Prompt).filter_by(project_id=world.project_id, split=Split.train):
        if prompt.state == PromptState.ready:
            prompt.state = PromptState.waiting
    session.flush()


def refill(session: Session, world: World) -> None:
    """Make new candidate sets for the prompts that wait for one."""
    project = session.get_one(Project, world.project_id)
    for prompt in session.query(Prompt).filter_by(project_id=world.project_id, state=PromptState.waiting):
        factories.make_candidate_set(session, project, prompt=prompt)


def beat_workers(session: Session) -> None:
    """Make all workers alive now."""
    for worker in session.query(Worker):
        worker.beats_at = datetime.now(UTC)
