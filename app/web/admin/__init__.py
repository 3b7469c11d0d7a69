"""The pages of who looks after projects, versions and people."""

from fastapi import APIRouter

from app.web.admin import compare, critics, overview, prompts, rounds, settings, users, versions

router = APIRouter()
for module in (overview, settings, rounds, versions, compare, prompts, critics, users):
    router.include_router(module.router, prefix="/admin")

__all__ = ["router"]
