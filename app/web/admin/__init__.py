"""The pages of who looks after projects, versions and people."""

from fastapi import APIRouter

from app.web.admin import (
    audit,
    compare,
    comparisons,
    critics,
    overview,
    prompts,
    review,
    rounds,
    settings,
    users,
    versions,
)

router = APIRouter()
for module in (overview, settings, rounds, versions, compare, comparisons, prompts, review, critics, users, audit):
    router.include_router(module.router, prefix="/admin")

__all__ = ["router"]
