"""The pages of who looks after projects, versions and people."""

from fastapi import APIRouter

from app.web.admin import (
    audit,
    compare,
    comparisons,
    critics,
    erasing,
    gold,
    imports,
    overview,
    prompts,
    review,
    round_contents,
    rounds,
    settings,
    users,
    versions,
    webhooks,
)

router = APIRouter()
LOOP = (overview, settings, rounds, round_contents, versions, compare, comparisons)
PROJECT = (*LOOP, prompts, gold, review, imports, critics, webhooks)
for module in (*PROJECT, users, audit, erasing):
    router.include_router(module.router, prefix="/admin")

__all__ = ["router"]
