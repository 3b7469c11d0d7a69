"""Prompts."""

from __future__ import annotations

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
    PromptOut,
    PromptsAdded,
    prompt_out,
)
from app.errors import DomainError, Invalid
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body, in_project
from app.http.responses import Json, Problem
from app.models import Project, Prompt, PromptState, Split
from app.services.kernel.actors import parse_id, project_rights
from app.services.kernel.rights import Right
from app.services.kernel.text_rules import refuse_unstorable
from app.services.kernel.visible_fields import AnswerShape, may_see, shown_to
from app.services.projects import projects
from app.services.prompts import listing, prompts
from app.services.prompts.filters import PromptQuery
from app.services.prompts.prompts import PromptIn
from app.services.prompts.val_split import place_items

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
    return Json({"items": [prompt_json(prompt, rights) for prompt in page.items], "next": page.next})


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
    rights = project_rights(session, actor, session.get_one(Project, prompt.project_id))
    seen = may_see(AnswerShape.prompt, "candidate_sets", rights)
    return Json(prompt_json(prompt, rights, candidate_sets_out(session, prompt) if seen else None))


def candidate_sets_out(session: Session, prompt: Prompt) -> list[CandidateSetOut]:
    """The candidate sets of a prompt, with everything known about their candidates."""
    return [
        CandidateSetOut(
            id=str(one.id),
            version=None if one.version_id is None else str(one.version_id),
            source=one.source,
            state=one.state,
            candidates=[
                CandidateOut(
                    id=str(candidate.id),
                    text=candidate.text,
                    version=None if one.version_id is None else str(one.version_id),
                    temperature=candidate.temperature,
                    seed=None if candidate.seed is None else str(candidate.seed),
                    mean_logprob=candidate.mean_logprob,
                )
                for candidate in one.candidates
            ],
        )
        for one in prompts.list_candidate_sets(session, prompt)
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
