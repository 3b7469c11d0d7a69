"""Candidate sets that are sampled together: claimed, turned into examples, stored. Whatever samples them, uses this."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.errors import NotFound
from app.models import Project, SamplingFailure
from app.services.candidates import candidates, pools
from app.services.candidates.candidates import NewCandidate, PromptData, SamplingClaim
from app.services.candidates.choosing import count_to_sample
from app.services.kernel.store import get_store
from app.services.projects.policies import answer_fields_of
from app.services.projects.projects import ProjectSettings, settings_of
from app.settings import get_settings
from illume.critics.choosing import count_samples, more_temperatures
from illume.fields.answers import parse_answer
from illume.parts import join_texts
from illume.phrases import Phrase, _, ngettext, said_by
from illume.records import Example, Rationale, stable_seed
from illume.settings import SamplingSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """The claims that are sampled together, outside any transaction.

    With `of`, so many candidates are sampled, and as many shown as would be sampled without it.
    """

    claims: Sequence[SamplingClaim]
    prompts: dict[int, PromptData]
    settings: ProjectSettings
    of: int | None = None

    @property
    def seed(self) -> int:
        """The seed of the batch, which depends on the version only."""
        return stable_seed("candidates", self.claims[0].version_id)

    @property
    def sampling(self) -> SamplingSettings:
        """How the candidate sets are sampled."""
        found = sampling_settings(self.settings)
        return found if self.of is None else replace(found, temperatures=more_temperatures(found.temperatures, self.of))

    @property
    def shown(self) -> int | None:
        """How many candidates of a set are shown; None: all of them."""
        return None if self.of is None else count_samples(self.settings.temperatures)

    def example_of(self, claim: SamplingClaim) -> Example:
        """The example of a claim. Seeds derive from its id, the set's: sampled again, a prompt gets other candidates.

        Raises NotFound if an image is missing.
        """
        example = make_example(self.prompts[claim.prompt_id], language=self.settings.language)
        return replace(example, id=f"set {claim.set_id}")


def claim_batch(
    session: Session, project: Project, version_id: int, *, worker: str, target: int | None, limit: int
) -> Batch | None:
    """Claim the next sets to sample with a version. None if there are none, or another version is active by now."""
    if project.active_version_id != version_id:
        return None
    wanted = min(limit, pools.count_missing_sets(session, project, target=target))
    claims = candidates.claim_sampling_batch(session, project, worker=worker, limit=wanted)
    prompts = candidates.load_prompts_data(session, [claim.prompt_id for claim in claims])
    if not claims:
        return None
    settings = settings_of(session, project)
    return Batch(claims, prompts, settings, count_to_sample(session, project, settings))


def sampling_settings(settings: ProjectSettings) -> SamplingSettings:
    """How a project's candidate sets are sampled."""
    return SamplingSettings(
        temperatures=tuple((float(temperature), count) for temperature, count in settings.temperatures),
        top_k_share=settings.top_k_share,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        redraws=settings.redraws,
        template=settings.template,
        answer_fields=answer_fields_of(settings),
    )


def make_example(prompt: PromptData, *, language: str = "") -> Example:
    """Convert a prompt to an example with local image files. Raises NotFound if an image is missing.

    `language` is that of the texts where the prompt's metadata name none.
    """
    cache = get_settings().data_dir / "cache" / "images"
    if not prompt.images:
        raise NotFound(_("The prompt has no image."))
    try:
        images = tuple(str(get_store().local_path(sha256, cache)) for sha256 in prompt.images)
    except NotFound as error:
        raise NotFound(_("An image is missing in the store that this machine uses (ILLUME_STORE_URL).")) from error
    return Example(
        id=str(prompt.id),
        images=images,
        question=join_texts(prompt.parts) if prompt.parts else prompt.question,
        answer=prompt.answer,
        references=prompt.references,
        split=prompt.split.value,
        metadata={"language": language, **prompt.metadata} if language else prompt.metadata,
        parts=prompt.parts,
        policy=prompt.policy,
        fields=prompt.fields,
    )


def store_set(
    session: Session,
    batch: Batch,
    claim: SamplingClaim,
    made: list[Rationale],
    *,
    served_model: str | None = None,
) -> bool:
    """Store what was sampled for a claim. False if its lease was lost, or there is nothing to store.

    `served_model` is what a model server ran, where that is another model than the version's base model.
    """
    fields, policy = answer_fields_of(batch.settings), batch.prompts[claim.prompt_id].policy
    if fields is None:
        return candidates.store_candidates(
            session,
            claim.set_id,
            claim.fence,
            answer=made[0].answer if made else None,
            answer_source=made[0].answer_source if made else None,
            rationales=[_written(one) for one in made],
            shown=batch.shown,
            served_model=served_model,
        )
    answers = [
        replace(
            _written(one), fields=None if one.invalid else parse_answer(one.text, fields, policy), invalid=one.invalid
        )
        for one in made
    ]
    return candidates.store_answers(session, claim.set_id, claim.fence, answers, served_model=served_model)


def _written(one: Rationale) -> NewCandidate:
    return NewCandidate(one.text, one.temperature, one.seed, one.mean_logprob, one.n_tokens)


def none_sampled(n: int, error: Exception) -> Phrase:
    """What to say where none of `n` prompts could be sampled; `error` is the last of their errors."""
    return ngettext(
        "none of %(num)s prompt could be sampled: %(error)s",
        "none of %(num)s prompts could be sampled: %(error)s",
        n,
        error=said_by(error),
    )


def note_failure(claim: SamplingClaim, error: Exception | str, failure: SamplingFailure | None = None) -> None:
    """Record that a claim could not be sampled, and why; with a `failure` it is not tried again."""
    log.warning("no candidates for prompt %s: %s", claim.prompt_id, error)
    reason = error if isinstance(error, str) else said_by(error)
    with session_scope() as session:
        if failure is None:
            candidates.fail_sampling(session, claim.set_id, claim.fence, error=reason)
        else:
            candidates.refuse_sampling(session, claim.set_id, claim.fence, error=reason, failure=failure)
