"""Prompts under variants of their policy: the same image and question, other statuses, other gold values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from app.errors import Invalid
from app.models import Policy, PolicyVersion, Project, Prompt
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.projects import policies
from app.services.projects.projects import settings_of
from app.services.prompts.prompts import PromptIn, add_prompts, parse_prompt
from illume.fields.variants import CHANGES, Change, policy_variants
from illume.phrases import _

VARIANT = "variant"
"""The key of the metadata that says how a prompt's policy was changed; `illume.evaluation.structured` reads it."""
BATCH = 500


@dataclass(frozen=True, slots=True)
class Multiplied:
    """How many prompts were added, how many were there already, and how many prompts allow no variant."""

    created: int = 0
    unchanged: int = 0
    skipped: int = 0

    def __add__(self, other: Multiplied) -> Multiplied:
        return Multiplied(self.created + other.created, self.unchanged + other.unchanged, self.skipped + other.skipped)


def can_vary(session: Session, project: Project) -> bool:
    """Whether a project can have prompts under variants: it has policies, and answers with a rating and a category."""
    fields = policies.answer_fields_of(settings_of(session, project))
    if fields is None or not all(fields.with_role(role) for role in ("rating", "category")):
        return False
    return session.scalar(select(Policy.id).where(Policy.project_id == project.id).limit(1)) is not None


def multiply(
    session: Session,
    actor: Actor,
    project: Project,
    changes: Collection[Change],
    *,
    prompt_ids: Sequence[int] | None = None,
) -> Multiplied:
    """Add prompts under variants of their policy, for all prompts of the project or some of them.

    A prompt needs a policy and gold values of its rating and category; one that was made here is left alone. The
    variants have the split of their prompt, since they show the same images. Raises `Invalid`, `Forbidden`.
    """
    require(session, actor, project, Right.administers)
    if policies.answer_fields_of(settings_of(session, project)) is None:
        raise Invalid(
            _("Answers in this project have no fields, so there are no right values to go by."), field="answer_fields"
        )
    query = select(Prompt.id).where(
        Prompt.project_id == project.id,
        Prompt.policy_version_id.is_not(None),
        Prompt.fields.is_not(None),
        func.coalesce(Prompt.extra[VARIANT].astext, "").not_in(CHANGES),
    )
    if prompt_ids is not None:
        query = query.where(Prompt.id.in_(prompt_ids))
    ids = session.scalars(query.order_by(Prompt.id)).all()
    done = Multiplied()
    for start in range(0, len(ids), BATCH):
        done += _multiply_some(session, actor, project, changes, ids[start : start + BATCH])
    return done


def _multiply_some(
    session: Session, actor: Actor, project: Project, changes: Collection[Change], ids: Sequence[int]
) -> Multiplied:
    fields = policies.answer_fields_of(settings_of(session, project))
    query = select(Prompt).where(Prompt.id.in_(ids)).options(selectinload(Prompt.images)).order_by(Prompt.id)
    prompts = session.scalars(query).all()
    said = policies.load_policies(session, [one.policy_version_id for one in prompts])
    items: list[PromptIn] = []
    skipped = 0
    for prompt in prompts:
        if fields is None or prompt.policy_version_id is None:
            continue
        try:
            found = policy_variants(said[prompt.policy_version_id], prompt.fields or {}, fields)
        except ValueError:
            found = {}
        wanted = [found[change] for change in changes if change in found]
        skipped += not wanted
        base = session.get_one(PolicyVersion, prompt.policy_version_id)
        kept = policies.keep_variants(session, actor, base, [one.policy for one in wanted])
        for one in wanted:
            name = prompt.external_id or f"prompt {prompt.id}"
            # Critics see it: the change would tell them which category is the picture's own.
            external_id = f"{name[:180]} {one.policy.digest[:12]}"
            items.append(
                parse_prompt(
                    {
                        **_shown(prompt),
                        "answer": prompt.answer,
                        "external_id": external_id,
                        "split": prompt.split,
                        "references": [] if one.flips else prompt.references,
                        "metadata": {**prompt.extra, VARIANT: one.change},
                        "priority": prompt.priority,
                        "policy": str(kept[one.policy.digest].id),
                        "fields": dict(one.fields),
                    }
                )
            )
    results = add_prompts(session, actor, project, items) if items else []
    created = sum(one.created for one in results)
    failed = next((one.error for one in results if one.error is not None), None)
    if failed is not None:
        raise failed
    return Multiplied(created, len(results) - created, skipped)


def _shown(prompt: Prompt) -> dict[str, Any]:
    if prompt.parts is not None:
        return {"parts": prompt.parts}
    return {"images": [image.sha256 for image in prompt.images], "question": prompt.question}
