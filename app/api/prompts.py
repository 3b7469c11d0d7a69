"""Prompts, and the policies that they are judged by."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.api.schemas import (
    CandidateOut,
    CandidateSetOut,
    ItemError,
    Limit,
    ListOut,
    PolicyOut,
    PromptOut,
    PromptsAdded,
    VariantsIn,
    VariantsOut,
    prompt_out,
)
from app.errors import DomainError, Invalid
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body, in_project
from app.http.responses import Json, Problem
from app.models import Project, Prompt, PromptState, Split
from app.services.acceptance.machine import accepted_by
from app.services.kernel.actors import parse_id, project_rights
from app.services.kernel.rights import Right
from app.services.kernel.text_rules import refuse_unstorable
from app.services.kernel.visible_fields import AnswerShape, may_see, shown_to
from app.services.machine_critics import scores
from app.services.projects import policies, projects
from app.services.projects.policies import CategoryIn, CategoryTexts, PolicyIn, VersionInUse
from app.services.prompts import listing, prompts, variants
from app.services.prompts.filters import PromptQuery
from app.services.prompts.prompts import PromptIn
from app.services.prompts.val_split import place_items
from illume.fields.policies import STATUSES

router = APIRouter(tags=["prompts"], route_class=ApiRoute)


@router.get("/projects/{slug}/prompts", response_model=ListOut[PromptOut])
def list_prompts(
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    limit: Limit = 100,
    cursor: str | None = None,
    split: Split | None = None,
    state: PromptState | None = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    external_id: str | None = None,
) -> Response:
    """The prompts of a project; `q` is part of the question, the answer or the external id."""
    project = projects.get_project(session, actor, slug)
    page = listing.list_prompts(
        session,
        actor,
        project,
        PromptQuery(split=split, state=state, query=q, external_id=external_id),
        limit=limit,
        cursor=cursor,
    )
    rights = project_rights(session, actor, project)
    hidden = {"answer": None} if listing.hides_answers_from(session, project, rights) else {}
    return Json({"items": [prompt_json(prompt, rights) | hidden for prompt in page.items], "next": page.next})


def prompt_json(prompt: Prompt, rights: frozenset[Right], sets: list[CandidateSetOut] | None = None) -> dict[str, Any]:
    """A prompt as JSON, with the fields that a member with these rights may see."""
    body = prompt_out(prompt, sets=sets).model_dump(mode="json", exclude={"candidate_sets"} if sets is None else None)
    return shown_to(rights, AnswerShape.prompt, body)


@router.post(
    "/projects/{slug}/prompts",
    status_code=201,
    response_model=PromptOut | PromptsAdded,
    responses={200: {"model": PromptOut | PromptsAdded, "description": "All of them existed already"}},
)
@before_body(in_project(Right.reviews))
def add_prompts(
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    body: Annotated[dict[str, Any], Body()],
    propose_val: Annotated[
        bool, Query(description="Put prompts that name no split into val for a tenth of the images")
    ] = False,
) -> Response:
    """Add one prompt, or several as `{"items": [...]}`. Each stands on its own: good ones are kept.

    `images` are sha256s. If the `external_id` exists already, that prompt is returned and nothing is added.
    """
    project = projects.get_project(session, actor, slug, Right.reviews)
    if "items" in body:
        return add_several(session, actor, project, body, propose_val=propose_val)
    items: list[PromptIn | DomainError] = [prompts.parse_prompt(body)]
    if propose_val:
        items = place_items(session, project, items)
    result = prompts.add_prompts(session, actor, project, items)[0]
    if result.prompt is None:
        raise result.error or Invalid("The prompt was rejected.")
    prompt = prompts.get_prompt(session, actor, result.prompt.id)
    rights = project_rights(session, actor, project)
    return Json(prompt_json(prompt, rights), status_code=201 if result.created else 200)


def add_several(
    session: Session, actor: ActorDep, project: Project, body: dict[str, Any], *, propose_val: bool
) -> Response:
    """Add each item on its own; 422 only if none was valid."""
    items = body["items"]
    if not isinstance(items, list) or not items or len(body) > 1:
        raise Invalid('Send {"items": [prompt, ...]} with at least one prompt and no other fields.', field="items")
    parsed = [parse_item(item) for item in items]
    if propose_val:
        parsed = place_items(session, project, parsed)
    results = prompts.add_prompts(session, actor, project, parsed)
    errors = [
        ItemError(index=index, field=result.error.field, detail=result.error.detail)
        for index, result in enumerate(results)
        if result.error is not None
    ]
    if len(errors) == len(results):
        found = [error.model_dump() for error in errors]
        return Problem(422, Invalid.title, f"None of the {len(items)} prompts was accepted.", extra={"errors": found})
    good = prompts.load_prompts(session, [result.prompt.id for result in results if result.prompt is not None])
    rights = project_rights(session, actor, project)
    created = sum(result.created for result in results)
    return Json(
        {
            "items": [prompt_json(prompt, rights) for prompt in good],
            "created": created,
            "unchanged": len(good) - created,
            "errors": [error.model_dump() for error in errors],
        },
        status_code=201 if created else 200,
    )


@router.get("/projects/{slug}/policies", response_model=ListOut[PolicyOut])
def list_policies(
    session: SessionDep, actor: ActorDep, slug: str, limit: Limit = 100, cursor: str | None = None
) -> Response:
    """The versions of a project's policies, oldest first. Critics are not told how many verdicts are stale."""
    project = projects.get_project(session, actor, slug)
    page = policies.list_policies(session, actor, project, limit=limit, cursor=cursor)
    rights = project_rights(session, actor, project)
    return Json({"items": [policy_json(one, rights) for one in page.items], "next": page.next})


@router.post(
    "/projects/{slug}/policies",
    status_code=201,
    response_model=PolicyOut,
    responses={200: {"model": PolicyOut, "description": "The newest version says this already"}},
)
@before_body(in_project(Right.administers))
def add_policy(session: SessionDep, actor: ActorDep, slug: str, body: PolicyIn) -> Response:
    """Add a policy, or under the name of one its next version. Prompts keep the version that they name."""
    project = projects.get_project(session, actor, slug, Right.administers)
    made, created = policies.add_policy(session, actor, project, body)
    shown = policy_json(made, project_rights(session, actor, project))
    return Json(shown, status_code=201 if created else 200)


def policy_json(one: VersionInUse, rights: frozenset[Right]) -> dict[str, Any]:
    """A version of a policy as JSON, with what a member with these rights may see."""
    version = one.version
    body = PolicyOut(
        id=str(version.id),
        name=one.name,
        number=version.number,
        preamble=version.header,
        categories=[
            CategoryIn.model_construct(
                name=category["name"],
                status=category["status"],
                texts=CategoryTexts.model_construct(**{status: category[status] for status in STATUSES}),
            )
            for category in version.categories
        ],
        sha256=version.sha256,
        text=version.text,
        is_latest=one.is_latest,
        prompts=one.prompts,
        stale_verdicts=one.stale,
        created_at=version.created_at,
    )
    return shown_to(rights, AnswerShape.policy, body.model_dump(mode="json"))


@router.post("/projects/{slug}/policies/variants", status_code=201, response_model=VariantsOut)
@before_body(in_project(Right.administers))
def add_variants(session: SessionDep, actor: ActorDep, slug: str, body: VariantsIn) -> Response:
    """Add prompts under variants of their policy, wherever gold values say what is right then."""
    project = projects.get_project(session, actor, slug, Right.administers)
    ids = None if body.prompts is None else [parse_id(one) for one in body.prompts]
    done = variants.multiply(session, actor, project, body.changes, prompt_ids=ids)
    return Json(asdict(done), status_code=201)


def parse_item(item: object) -> PromptIn | DomainError:
    """Parse a prompt, or return what is wrong with it."""
    if not isinstance(item, dict):
        return Invalid("A prompt is an object.")
    try:
        refuse_unstorable(item)
        return prompts.parse_prompt(item)
    except Invalid as error:
        return error


@router.get("/prompts/{prompt_id}", response_model=PromptOut)
def get_prompt(session: SessionDep, actor: ActorDep, prompt_id: str) -> Response:
    """A prompt; with its candidate sets, except for critics."""
    prompt = prompts.get_prompt(session, actor, parse_id(prompt_id))
    project = session.get_one(Project, prompt.project_id)
    rights = project_rights(session, actor, project)
    seen = may_see(AnswerShape.prompt, "candidate_sets", rights)
    hidden = {"answer": None} if listing.hides_answers_from(session, project, rights) else {}
    return Json(prompt_json(prompt, rights, candidate_sets_out(session, prompt) if seen else None) | hidden)


def candidate_sets_out(session: Session, prompt: Prompt) -> list[CandidateSetOut]:
    """The candidate sets of a prompt, with everything known about their candidates."""
    sets = prompts.list_candidate_sets(session, prompt)
    rated = scores.scores_of(session, [candidate.id for one in sets for candidate in one.candidates])
    by_machine = accepted_by(session, session.get_one(Project, prompt.project_id), [prompt.id])
    return [
        CandidateSetOut(
            id=str(one.id),
            version=None if one.version_id is None else str(one.version_id),
            source=one.source,
            state=one.state,
            error=one.error,
            selection=one.selection,
            selected_by=None if one.selected_by is None else str(one.selected_by),
            candidates=[
                CandidateOut(
                    id=str(candidate.id),
                    text=candidate.text,
                    version=None if one.version_id is None else str(one.version_id),
                    temperature=candidate.temperature,
                    seed=None if candidate.seed is None else str(candidate.seed),
                    mean_logprob=candidate.mean_logprob,
                    scores=rated.get(candidate.id, {}),
                    fields=candidate.fields,
                    invalid=candidate.invalid,
                    spare=candidate.spare,
                    accepted_by=str(by_machine[candidate.id].version_id) if candidate.id in by_machine else None,
                )
                for candidate in one.candidates
            ],
        )
        for one in sets
    ]


@router.patch("/prompts/{prompt_id}", response_model=PromptOut)
@before_body(
    lambda session, actor, path: prompts.get_prompt(session, actor, parse_id(path["prompt_id"]), Right.reviews)
)
def change_prompt(
    session: SessionDep, actor: ActorDep, prompt_id: str, body: Annotated[dict[str, Any], Body()]
) -> Response:
    """Change a prompt, or retire it (`state`); only the given fields change."""
    prompt = prompts.update_prompt(session, actor, parse_id(prompt_id), body)
    rights = project_rights(session, actor, session.get_one(Project, prompt.project_id))
    return Json(prompt_json(prompt, rights))
