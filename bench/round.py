"""How long a round of 40 prompts with a pick takes with the demo's settings. Only the critic is simulated.

Starts its own database, broker and workers, makes the demo's project, judges prompts as a truthful critic until a
round starts by itself, and prints the time of each event. At the end the seconds from the last verdict to the activated
version are split into their parts: by what the database, the tuning process and the files in its folder say of when.

    python bench/round.py [--picks 40] [--critic any] [--set objective=picks_and_rejections]
    python bench/round.py --against epochs=5 guard_per_rationale=10
    python bench/round.py --before COMMIT

With `--against` a second round follows, with these settings of the project, and with `--before` one by the code of an
earlier commit with the starter of this one; the ratio of the times is printed. The memory is the most that the tuning
process was seen to have resident, twenty times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import func, select, text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.cli.server import seeding
from app.cli.server.demo_projects import SCENES
from app.db import migrations
from app.db.sessions import session_scope
from app.models import Candidate, CandidateSet, ModelVersion, Project, Prompt, Round, RoundState
from app.processes.connect import services, set_environment
from app.processes.supervise import Supervised, start_child, stop_all
from app.services.accounts import users
from app.services.candidates import pools
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.verdict_schema import VerdictIn
from app.services.projects import projects
from app.services.rounds import rounds
from app.settings import get_settings
from illume.evaluation.tasks import faithful
from illume.records import Example
from tests import judging

ROOT = Path(__file__).resolve().parents[1]
WORKERS = ([*["beat"]], ["--queues", "model"], ["--queues", "default"])
LOOK_SECONDS = 0.05
TOLD = "from the last verdict to its end: "
FILES = {"written": "job.json", "imported": "progress.json", "tried": "left_out.json"}
"""Files of a round's folder, and what has been done when they appear."""
UNTIL_TRAINING = (
    ("noticed", "the round is noticed"),
    ("snapshot", "its snapshot is made"),
    ("taken up", "a worker takes it up"),
    ("written", "explanations for critics are sampled, and the folder is written"),
    ("process", "the tuning process is started"),
    ("imported", "modules are imported"),
    ("tried", "the model is loaded, and all prompts are tried"),
    ("begun", "texts are made, and where pairs are learnt the parent's log-likelihoods"),
)
"""What happens before the first step, and what ends each part, in order."""


class Clock:
    """Moments since the workers were started, in seconds."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.rows: list[tuple[str, float]] = []

    def note(self, what: str) -> float:
        """Note that `what` happened now."""
        moment = time.monotonic() - self.started
        self.rows.append((what, moment))
        print(f"{moment:8.1f} s  {what}", flush=True)
        return moment


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picks", type=int, default=40)
    parser.add_argument("--critic", choices=["truth", "any"], default="truth", help="any: picks the first candidate")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the project")
    parser.add_argument("--against", nargs="+", metavar="NAME=VALUE", help="settings of a second round")
    parser.add_argument("--before", metavar="COMMIT", help="an earlier commit that runs a second round")
    options = parser.parse_args()
    if options.against is not None or options.before is not None:
        return compare(options)
    with tempfile.TemporaryDirectory(prefix="illume-bench-") as folder:
        Path(folder).chmod(0o711)
        set_environment({"ILLUME_DATA_DIR": folder})
        with services(share=False):
            actor, project_id = seed(options.picks, read_changes(options.set))
            with running_workers():
                measure(actor, project_id, picks=options.picks, truthful=options.critic == "truth")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Run the benchmark here and then otherwise, each time in a process of its own, and print how the times compare."""
    with tempfile.TemporaryDirectory(prefix="illume-bench-before-") as folder:
        tree = Path(folder) / "tree"
        if options.before is None:
            runs = [(ROOT, options.set, "this working tree"), (ROOT, options.against, "against it")]
        else:
            subprocess.run(["git", "worktree", "add", "--detach", str(tree), options.before], cwd=ROOT, check=True)
            shutil.rmtree(tree / "starter" / "model")
            shutil.copytree(ROOT / "starter" / "model", tree / "starter" / "model")
            runs = [(ROOT, options.set, "this working tree"), (tree, [], f"{options.before}, with the same starter")]
        try:
            seconds = [run_once(place, settings, name, options) for place, settings, name in runs]
        finally:
            if options.before is not None:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    print(f"\nthe first one took {seconds[0] / seconds[1]:.2f} times as long as the second")
    return 0


def run_once(tree: Path, settings: Sequence[str], name: str, options: argparse.Namespace) -> float:
    """The seconds from the last verdict to the activated version with the code in `tree`."""
    print(f"\n## {name}: {' '.join(settings) or 'settings of the demo'}\n", flush=True)
    command = [sys.executable, str(tree / "bench" / "round.py"), "--picks", str(options.picks)]
    command += ["--critic", options.critic, *(["--set", *settings] if settings else [])]
    run = subprocess.Popen(
        command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    found = None
    for line in run.stdout:
        print(line, end="", flush=True)
        if line.startswith(TOLD):
            found = float(line.removeprefix(TOLD).split()[0])
    if run.wait() != 0 or found is None:
        raise SystemExit(f"{name}: the round did not end")
    return found


def read_changes(given: Sequence[str]) -> dict[str, Any]:
    """Settings as `NAME=VALUE`, whose values are JSON or else texts."""
    changes = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise SystemExit(f"{one}: not as NAME=VALUE")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return changes


def seed(picks: int, changes: Mapping[str, Any]) -> tuple[Actor, int]:
    """The demo's project with a round after `picks` prompts and these settings, and its critic."""
    settings = get_settings()
    migrations.upgrade(settings.database_url)
    with session_scope() as session:
        session.execute(text("SET LOCAL transaction_timeout = 0"))
        accounts = seeding.seed_demo(session, settings)
        projects.update_project(session, SYSTEM, SCENES.slug, {"round_every": picks, **changes})
        actor = users.actor_for_token(session, accounts["critic"]["token"])
        project = session.scalars(select(Project).where(Project.slug == SCENES.slug)).one()
        return actor, project.id


@contextmanager
def running_workers() -> Iterator[None]:
    """The demo's workers, stopped at the end."""
    logs = get_settings().data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    children = [
        Supervised(name=arguments[-1], start=starter([sys.executable, "-m", "worker", *arguments], logs / "worker.log"))
        for arguments in WORKERS
    ]
    try:
        for child in children:
            child.check(time.monotonic())
        yield
    finally:
        stop_all(children)


def starter(command: list[str], log: Path) -> Callable[[], subprocess.Popen[bytes]]:
    """What starts a worker."""
    return lambda: start_child(command, log=log, env=dict(os.environ))


def measure(actor: Actor, project_id: int, *, picks: int, truthful: bool) -> None:
    """Judge, watch the round, print the table."""
    clock = Clock()
    wait_for(lambda: ready_sets(project_id) > 0)
    clock.note("first candidate set ready")
    picked, judged = 0, 0
    while picked < picks:
        outcome = judge_one(actor, project_id, truthful=truthful)
        if outcome is None:
            time.sleep(0.1)
            continue
        judged += 1
        picked += outcome
    asked = time.time()
    clock.note(f"{picked} prompts with a pick, {judged} judged")
    trace, state = Trace(), None
    while True:
        found = latest_round(project_id)
        trace.look(found)
        if found is not None and found.state != state:
            state = found.state
            clock.note(f"round {found.number}: {RoundState(state).value}")
            if not RoundState(state).is_active:
                break
        time.sleep(LOOK_SECONDS)
    parts = name_parts(asked, trace.moments, events_of(found), seconds_of(found.finished_at))
    wait_for(lambda: new_sets(project_id) > 0)
    clock.note("first candidate set by the new version")
    report(found, parts, trace.memory)


@dataclass
class Trace:
    """When what was first seen to be done, in seconds since 1970, and the memory of the tuning process."""

    moments: dict[str, float] = field(default_factory=dict)
    memory: int = 0

    def look(self, found: Round | None) -> None:
        """Look at the round as it is stored, at its folder and at its process."""
        if found is None:
            return
        self.moments.setdefault("noticed", seconds_of(found.created_at))
        if found.snapshot_id is not None:
            self.moments.setdefault("snapshot", time.time())
        if found.progress.get("stage") == "filling":
            self.moments.setdefault("taken up", time.time())
        folder = get_settings().data_dir / "rounds" / str(found.id)
        for name, file in FILES.items():
            with suppress(FileNotFoundError):
                self.moments.setdefault(name, (folder / file).stat().st_mtime)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "illume.tuning" in process.cmdline():
                    self.moments.setdefault("process", process.create_time())
                    self.memory = max(self.memory, process.memory_info().rss)


def seconds_of(moment: datetime | None) -> float:
    """A moment in seconds since 1970; 0 for none."""
    return 0.0 if moment is None else moment.timestamp()


def events_of(found: Round) -> list[dict[str, Any]]:
    """The lines of a round's event file."""
    with session_scope() as session:
        return [dict(one.data) for one in rounds.events(session, found)]


def name_parts(
    asked: float, moments: Mapping[str, float], events: Sequence[Mapping[str, Any]], ended: float
) -> list[tuple[str, float]]:
    """The parts of the time from `asked` to `ended`, each with its seconds; together they are all of it.

    What was not seen belongs to the part that comes next. Training and scoring are those of all epochs.
    """
    known = dict(moments)
    timed = [(datetime.fromisoformat(str(one["at"])).timestamp(), one["kind"]) for one in events]
    before_training = timed[: next((place for place, (_, kind) in enumerate(timed) if kind == "step"), None)]
    if before_training:
        known["begun"] = before_training[-1][0]
    parts, before = [], asked
    for name, words in UNTIL_TRAINING:
        if name in known:
            parts.append((words, known[name] - before))
            before = known[name]
    spent = {"step": 0.0, "epoch": 0.0}
    last = before
    for at, kind in timed:
        if kind in spent:
            spent[kind] += at - last
            last = at
    parts += [("training, all epochs", spent["step"]), ("scoring after each epoch", spent["epoch"])]
    decided = max((at for at, _ in timed), default=last)
    parts.append(("the best epoch and its parent are scored and compared", decided - last))
    return [*parts, ("the version is stored and activated", ended - decided)]


def judge_one(actor: Actor, project_id: int, *, truthful: bool) -> int | None:
    """Judge the next set: 1 with a pick, 0 without, None when no set was ready."""
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        claim = judging.claim(session, actor, project)
        if claim is None:
            return None
        prompt = session.get_one(Prompt, int(claim.prompt["id"]))
        texts = session.execute(
            select(Candidate.id, Candidate.text).where(Candidate.id.in_([int(one["id"]) for one in claim.candidates]))
        )
        asked = Example(str(prompt.id), (), prompt.question, prompt.answer, metadata=prompt.extra)
        picks = [str(candidate_id) for candidate_id, words in texts if faithful(words, asked)]
        picks = picks if truthful else [claim.candidates[0]["id"]]
        verdict = VerdictIn.model_validate({"kind": "picked" if picks else "none_fit", "picks": picks})
        judging.give(session, actor, claim.assignment_id, verdict)
        return int(bool(picks))


def ready_sets(project_id: int) -> int:
    """How many sets critics could claim."""
    with session_scope() as session:
        return pools.count_claimable(session, session.get_one(Project, project_id))


def new_sets(project_id: int) -> int:
    """How many sets of versions beyond the base are ready; 1 where the new version was not activated."""
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        active = session.get_one(ModelVersion, project.active_version_id)
        if active.number == 0:
            return 1
        query = select(func.count()).select_from(CandidateSet).where(CandidateSet.version_id == active.id)
        return session.scalar(query.where(CandidateSet.state == "ready")) or 0


def latest_round(project_id: int) -> Round | None:
    """The project's last round."""
    with session_scope() as session:
        page = rounds.list_rounds(session, SYSTEM, session.get_one(Project, project_id), limit=1)
        return page.items[0] if page.items else None


def wait_for(condition: Callable[[], bool], *, seconds: float = 600.0) -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("it did not come about; see the logs")
        time.sleep(0.1)


def report(found: Round, parts: Sequence[tuple[str, float]], memory: int) -> None:
    """What the round did, and how long each part of it took, in tables."""
    seconds = sum(taken for _, taken in parts)
    print("\n| from the last verdict to the activated version | seconds | share |\n|---|---|---|")
    for words, taken in parts:
        print(f"| {words} | {taken:.1f} | {taken / seconds:.0%} |")
    print(f"| all | {seconds:.1f} | |")
    print()
    print(f"round of {found.metrics.get('n_rationale')} rationales, {found.metrics.get('n_vqa_only')} VQA-only rows")
    print(f"{TOLD}{seconds:.1f} s; tuning process: {found.metrics.get('seconds')} s")
    print(f"memory of the tuning process: {memory / 2**20:.0f} MB resident")
    print(f"decision: {found.decision.get('reason') or found.error}")
    print()
    print("| score | parent | new | change (95 % interval) |")
    print("|---|---|---|---|")
    means, before = found.metrics["means"], found.metrics["parent"]["means"]
    for name, value in sorted(means.items()):
        change = found.metrics["change"].get(name)
        interval = f"{change['mean']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" if change else ""
        print(f"| {name} | {before.get(name, float('nan')):.3f} | {value:.3f} | {interval} |")


if __name__ == "__main__":
    sys.exit(main())
