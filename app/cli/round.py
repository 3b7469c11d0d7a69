"""`illume round`: start, list, cancel and resume tuning rounds."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
from sqlalchemy.orm import Session

from app.cli.terminal import Say, confirmer, data_dir_option, prepared, say
from app.db.sessions import session_scope
from app.models import ModelVersion, Round, RoundState
from app.processes.connect import Refused
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.rounds import rounds
from app.services.rounds.rounds import RoundPreview
from app.web.rendering import duration
from app.web.words import METRIC_WORDS, TRIGGER_WORDS, round_words

POLL_SECONDS = 1.0

slug_argument = click.argument("slug", help="The project's slug.")


@click.group("round")
def tuning_round() -> None:
    """Start, list, cancel and resume tuning rounds."""


@tuning_round.command("start")
@slug_argument
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--follow", is_flag=True, help="Wait, and show the round's progress until it ends.")
@data_dir_option
def start_command(slug: str, *, yes: bool, follow: bool) -> int:
    """Show what a round would train on, then start it."""
    with prepared():
        return start(slug, ask=confirmer("Start the round?", yes=yes), follow=follow, say=say)


@tuning_round.command("list")
@slug_argument
@data_dir_option
def list_command(slug: str) -> int:
    """List a project's rounds, newest first."""
    with prepared():
        return show(slug, say=say)


@tuning_round.command("cancel")
@slug_argument
@data_dir_option
def cancel_command(slug: str) -> int:
    """Cancel the project's running round."""
    with prepared():
        return cancel(slug, say=say)


@tuning_round.command("resume")
@slug_argument
@data_dir_option
def resume_command(slug: str) -> int:
    """Resume the project's last round, which failed or was cancelled."""
    with prepared():
        return resume(slug, say=say)


def start(slug: str, *, ask: Callable[[], bool], follow: bool, say: Say) -> int:
    """Show what a round would train on, ask for confirmation, start it, and with `follow` watch it."""
    with session_scope() as session:
        project = projects.get_project(session, SYSTEM, slug)
        rounds.refuse_second(session, project)
        learns_rejections = projects.settings_of(session, project).learns_rejections
        say(preview_words(rounds.preview(session, SYSTEM, project), learns_rejections=learns_rejections))
    if not ask():
        say("Nothing was started.")
        return 1
    with session_scope() as session:
        made = rounds.start(session, SYSTEM, projects.get_project(session, SYSTEM, slug))
        round_id, number = made.id, made.number
    say(f"Round {number} is queued.")
    return watch(round_id, say=say) if follow else 0


def preview_words(seen: RoundPreview, *, learns_rejections: bool) -> str:
    """What a round would train on and be scored on, and its estimated duration, one line each."""
    prompts = "1 prompt" if seen.n_prompts == 1 else f"{seen.n_prompts} prompts"
    heldout = f" and {seen.n_heldout} held-out prompts" if seen.n_heldout else ""
    about = "" if seen.exact else "about "
    more = ""
    if seen.n_machine:
        more += f"Also on {seen.n_machine} that only the machine critic accepted, each counting half.\n"
    if seen.n_rejections is not None:
        more += f"Learns from {seen.n_rejections} rejected rationales, {seen.n_pairs} of them beside an accepted one.\n"
    elif learns_rejections:
        more += "Rejected rationales are counted when the round starts, and the time below does not include them.\n"
    return (
        f"Trains on {about}{seen.n_rationales} accepted rationales from {prompts}, "
        f"and on {about}{seen.n_guard} answer-only examples, so that answers stay right.\n{more}"
        f"Scored by {METRIC_WORDS.get(seen.metric, seen.metric)} on {seen.n_val} val prompts{heldout}.\n"
        f"Takes about {duration(seen.estimated_seconds)}."
    )


def watch(round_id: int, *, say: Say) -> int:
    """Print a round's progress whenever it changes, until it ends. Returns the exit code: 0 if it succeeded."""
    said = ""
    while True:
        with session_scope() as session:
            found = session.get_one(Round, round_id)
            state, words = RoundState(found.state), round_words(found)
            if not state.is_active:
                say(ending_words(session, found))
                return 0 if state is RoundState.succeeded else 1
        if words != said:
            say(words[:1].upper() + words[1:])
            said = words
        time.sleep(POLL_SECONDS)


def ending_words(session: Session, found: Round) -> str:
    """How a round ended, and whether its version is active."""
    state = RoundState(found.state)
    if state is not RoundState.succeeded:
        return f"Round {found.number} {state.value}{f': {found.error}' if found.error else ''}"
    made = session.get_one(ModelVersion, found.version_id)
    active = "now active" if found.decision.get("activate") else "not active"
    return f"Round {found.number} made version {made.number}, {active}: {found.decision.get('reason', '')}"


def show(slug: str, *, say: Say) -> int:
    """Print one line for each round, newest first."""
    with session_scope() as session:
        project = projects.get_project(session, SYSTEM, slug)
        found = rounds.list_rounds(session, SYSTEM, project).items
        for one in found:
            say(
                f"round {one.number}  {one.created_at:%Y-%m-%d %H:%M}  {TRIGGER_WORDS[one.trigger]}  {round_words(one)}"
            )
        if not found:
            say(f"There are no rounds yet. Start one with `illume round start {slug}`.")
    return 0


def cancel(slug: str, *, say: Say) -> int:
    """Cancel the active round. Raises Refused if there is none."""
    with session_scope() as session:
        project = projects.get_project(session, SYSTEM, slug)
        running = rounds.active_round(session, project)
        if running is None:
            raise Refused(f"No round of {slug} is running.")
        rounds.cancel(session, SYSTEM, running.id)
        say(f"Round {running.number} is {'cancelled' if not running.state.is_active else 'being cancelled'}.")
    return 0


def resume(slug: str, *, say: Say) -> int:
    """Let the newest round go on from its last checkpoint. Raises Refused if there is none, Conflict if it cannot."""
    with session_scope() as session:
        project = projects.get_project(session, SYSTEM, slug)
        newest = rounds.list_rounds(session, SYSTEM, project, limit=1).items
        if not newest:
            raise Refused(f"There are no rounds of {slug} yet.")
        found = rounds.retry(session, SYSTEM, newest[0].id)
        say(f"Round {found.number} is queued; it goes on from its last checkpoint.")
    return 0
