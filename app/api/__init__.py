"""The REST interface under /api/v1: JSON, bearer tokens, problem+json."""

from fastapi import APIRouter

from app.api import (
    assignments,
    comparisons,
    datasets,
    erasures,
    images,
    imports,
    projects,
    prompts,
    quality,
    rounds,
    users,
)
from app.api.integrations import engines, webhooks
from app.api.schemas import ProblemOut

router = APIRouter(responses={"4XX": {"model": ProblemOut, "description": "The error, as application/problem+json"}})
# Routes are tried in this order: those that are used all day come first.
WORK = (assignments, images, projects, prompts, imports, quality, rounds, comparisons, datasets)
for part in (*WORK, users, webhooks, engines, erasures):
    router.include_router(part.router)

__all__ = ["router"]
