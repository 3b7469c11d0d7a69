"""Data sets, streamed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from app.deps import ActorDep, SessionDep
from app.models import Split
from app.services import datasets, projects

router = APIRouter(tags=["datasets"])
NDJSON = "application/x-ndjson"


@router.get("/projects/{slug}/dataset", response_class=StreamingResponse)
def get_dataset(
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    format: Literal["records"] = "records",  # noqa: A002, ARG001 - the parameter's name in the contract
    round: Annotated[str | None, Query(description="A round's id: the verdicts in its snapshot")] = None,  # noqa: A002
    version: Annotated[str | None, Query(description="The id of the version that wrote the candidates")] = None,
    critic: Annotated[str | None, Query(description="A pseudonym, an id, or 'me'")] = None,
    since: datetime | None = None,
    split: Split | None = None,
    snapshot: Annotated[str | None, Query(description="A snapshot's id")] = None,
) -> StreamingResponse:
    """The verdicts that stand, one a line, with their prompts and candidates; critics are under a pseudonym."""
    project = projects.get_project(session, actor, slug)
    plan = datasets.plan_records(
        session,
        actor,
        project,
        round_id=round,
        version=version,
        critic=critic,
        since=since,
        split=split,
        snapshot=snapshot,
    )
    name = f'attachment; filename="{project.slug}-records.ndjson"'
    return StreamingResponse(datasets.stream_records(plan), media_type=NDJSON, headers={"Content-Disposition": name})
