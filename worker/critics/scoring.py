"""Rates candidates by a project's machine critic."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from app import queue
from app.db.sessions import session_scope
from app.errors import DomainError, NotFound
from app.models import ModelVersion, Project
from app.services.candidates.batches import make_example
from app.services.candidates.candidates import PromptData, load_prompts_data
from app.services.machine_critics import accepting, scores
from app.services.machine_critics.scores import UnscoredSet
from app.services.projects import pauses, trials
from app.services.projects.policies import answer_fields_of
from app.services.projects.projects import settings_of
from app.services.rounds import lease
from app.settings import get_settings
from illume.critics.fitting import FittedCritic
from illume.critics.scoring import score_rationales
from illume.critics.structured import explained_by
from illume.errors import UNEXPECTED_ERRORS, VlmError
from illume.fields.definitions import AnswerFields
from illume.model.prompting import DEFAULT_TEMPLATE
from illume.model.vlm import Vlm
from illume.phrases import _, said_by
from illume.records import Example, stable_seed
from illume.settings import CriticSettings, MachineCritic, TuningSettings
from worker.critics.fitting import HALVES
from worker.device import hold_device
from worker.model_cache import ModelCache, adapter_folder
from worker.process import AWAY, StepTimeoutError, WorkerProcess, step_deadline

log = logging.getLogger(__name__)

BATCH = 8
LOOKED_UP = 25 * BATCH
"""For how many sets together it is looked up which come next: that goes through all that are not rated."""
TURN_SECONDS = 45.0
"""How long one project's candidates are rated before others get a turn."""


def score_candidates(process: WorkerProcess, models: ModelCache, project_id: int) -> int:
    """Rate candidates that have no scores, for a turn. Returns the number of sets rated."""
    with session_scope() as session:
        project = session.get(Project, project_id)
        if project is None:
            return 0
        accepting.drop_stale(session, project)
        critic = scores.critic_with_work(session, project)
    if critic is None:
        _accept_all(process, project_id)
        return 0
    with hold_device(process, purpose="rating explanations") as held:
        if not held:
            return 0
        done = _score_or_pause(process, models, project, critic)
    with session_scope() as session:
        is_left = scores.critic_with_work(session, session.get_one(Project, project_id)) is not None
    if done and not is_left:
        _accept_all(process, project_id)
    return done


def _accept_all(process: WorkerProcess, project_id: int) -> None:
    """Accept what passes of all that was rated, also before that was wanted, in short transactions."""
    after: int | None = 0
    while after is not None:
        process.check()
        with session_scope() as session:
            after = accepting.accept_next(session, session.get_one(Project, project_id), after)


def _score_or_pause(process: WorkerProcess, models: ModelCache, project: Project, critic: ModelVersion) -> int:
    """As `_score_for_a_turn`; a critic that cannot be used is paused with the reason."""
    with session_scope() as session:
        trials.begin(session, project.id, critic.id, worker=process.name)
    try:
        done = _score_for_a_turn(process, models, project, critic)
    except AWAY:
        raise
    except (DomainError, StepTimeoutError, *UNEXPECTED_ERRORS) as error:
        reason = said_by(error)
        log.warning("explanations of project %s are not rated for now: %s", project.id, reason)
        models.drop()
        with session_scope() as session:
            pauses.pause(session, project.id, critic.id, reason)
        return 0
    finally:
        process.heartbeat.doing = ""
        with session_scope() as session:
            trials.end(session, worker=process.name)
    if done:
        with session_scope() as session:
            trials.succeed(session, project.id, critic.id)
    return done


def _score_for_a_turn(process: WorkerProcess, models: ModelCache, project: Project, critic: ModelVersion) -> int:
    until, done = time.monotonic() + TURN_SECONDS, 0
    with session_scope() as session:
        fields = answer_fields_of(settings_of(session, session.get_one(Project, project.id)))
    folder = Path(adapter_folder(str(critic.adapter)))
    process.heartbeat.doing = _("rating explanations of %(slug)s", slug=project.slug)
    with step_deadline(get_settings().step_seconds, what=f"rating explanations of {project.slug}") as begin_step:
        vlm = models.get(critic.base_model, None)
        following: list[UnscoredSet] = []
        while True:
            process.check()
            begin_step()
            with session_scope() as session:
                if lease.is_round_waiting(session):
                    return done
                following = following or scores.next_unscored(session, project, critic, limit=LOOKED_UP)
                sets, following = following[:BATCH], following[BATCH:]
                prompts = load_prompts_data(session, [one.prompt_id for one in sets])
            if not sets:
                return done

            def check() -> None:
                begin_step()
                process.check()

            found = _rate(vlm, critic, folder, sets, _examples_of(sets, prompts), fields, check)
            for set_id, mine in found.items():
                with session_scope() as session:
                    scores.store(session, session.get_one(Project, project.id), critic, {set_id: mine})
            with session_scope() as session:
                accepting.accept_sets(session, session.get_one(Project, project.id), list(found))
            done += len(sets)
            if time.monotonic() > until:
                queue.send_now(queue.SCORE_CANDIDATES, project.id)
                return done


def _examples_of(sets: list[UnscoredSet], prompts: Mapping[int, PromptData]) -> dict[int, Example]:
    """The examples of sets, with the answer that their candidates explain; without those that cannot be read."""
    found = {}
    for one in sets:
        prompt = prompts.get(one.prompt_id)
        if prompt is None:  # it was erased meanwhile
            continue
        try:
            example = make_example(prompt)
        except NotFound as error:
            log.warning("prompt %s cannot be rated: %s", one.prompt_id, error)
            continue
        found[one.id] = dataclasses.replace(example, answer=example.answer or one.answer)
    return found


def _rate(
    vlm: Vlm,
    critic: ModelVersion,
    folder: Path,
    sets: list[UnscoredSet],
    examples: Mapping[int, Example],
    fields: AnswerFields | None,
    check: Callable[[], None],
) -> dict[int, dict[int, float | None]]:
    """The scores by set and candidate. What cannot be rated has None: one broken image must not fail the others.

    `fields` are those of structured answers, of which invalid ones cannot be rated. Raises VlmError if none of several
    sets can be rated: that is the critic's or the device's fault, not theirs.
    """
    fitted = load_critic(critic, folder, [examples[one] for one in examples])
    kind = fitted.settings.kind
    rows = [
        (one.id, candidate, read)
        for one in sets
        if one.id in examples
        for candidate in one.texts
        if (read := _as_explained(examples[one.id], one, candidate, fields, kind)) is not None
    ]
    found: dict[int, dict[int, float | None]] = {one.id: dict.fromkeys(one.texts) for one in sets}
    try:
        rated = score_rationales(vlm, fitted, [read for _set, _candidate, read in rows], check=check)
    except UNEXPECTED_ERRORS as error:
        if len(sets) == 1:
            log.warning("candidate set %s cannot be rated: %s", sets[0].id, error)
            return found
        for one in sets:
            mine = {one.id: examples[one.id]} if one.id in examples else {}
            found |= _rate(vlm, critic, folder, [one], mine, fields, check)
        if all(score is None for mine in found.values() for score in mine.values()):
            raise VlmError(_("none of the explanations could be rated: %(reason)s", reason=said_by(error))) from error
        return found
    for (set_id, candidate, _read), score in zip(rows, rated, strict=True):
        found[set_id][candidate] = score.value(fitted.settings)
    return found


def _as_explained(
    example: Example, one: UnscoredSet, candidate: int, fields: AnswerFields | None, kind: MachineCritic
) -> tuple[Example, str] | None:
    """A candidate as a critic reads it: the answer in its example, and the rationale. None of an invalid answer."""
    if fields is None:
        return example, one.texts[candidate]
    values = one.values[candidate]
    return None if values is None else explained_by(example, values, fields, kind)


def load_critic(critic: ModelVersion, folder: Path, examples: Sequence[Example]) -> FittedCritic:
    """The critic whose adapters are in `folder`, which rates each example by the half that learnt nothing of it.

    It reads prompts by the template that it was fitted with, whatever the project's is by now. A prompt that came later
    is of the half of its image, or else of one that its id decides.
    """
    known = json.loads((folder / HALVES).read_text())
    halves = {}
    for one in examples:
        of_images = (known["images"][name] for name in map(_stem, one.images) if name in known["images"])
        half = known["prompts"].get(one.id)
        halves[one.id] = next(of_images, stable_seed("half", one.id) % 2) if half is None else half
    settings = CriticSettings(
        kind="helpfulness" if critic.metrics["critic"] == "helpfulness" else "verifier",
        tuning=TuningSettings(template=critic.metrics.get("template", DEFAULT_TEMPLATE)),
    )
    adapters = (str(folder / "half-0"), str(folder / "half-1"))
    return FittedCritic(settings, halves, adapters)


def _stem(path: str) -> str:
    return Path(path).stem
