"""The REST interface under /api/v1: JSON, bearer tokens, problem+json."""

from fastapi import APIRouter

from app.api import (
    assignments,
    comparisons,
    datasets,
    images,
    imports,
    projects,
    prompts,
    quality,
    rounds,
    users,
    webhooks,
)
from app.api.schemas import ProblemOut

router = APIRouter(
    responses={"4XX": {"model": ProblemOut, "description": "What is wrong, as application/problem+json"}}
)
for part in (projects, images, prompts, imports, assignments, quality, rounds, comparisons, datasets, users, webhooks):
    router.include_router(part.router)

__all__ = ["router"]
