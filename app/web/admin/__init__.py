"""The pages of admins, reviewers and viewers: projects, rounds, versions, prompts, quality and people."""

from fastapi import APIRouter

from app.web.admin import audit
from app.web.admin.accounts import users
from app.web.admin.erasure import erasures
from app.web.admin.exports import exports, publish
from app.web.admin.imports import imports, photos
from app.web.admin.integrations import engines, webhooks
from app.web.admin.projects import first_steps, overview, policies, settings
from app.web.admin.prompts import many, prompts
from app.web.admin.quality import critics, gold, review
from app.web.admin.rounds import comparisons, contents, rounds, side_by_side, versions

router = APIRouter()
LOOP = (overview, first_steps, settings, policies, rounds, contents, versions, side_by_side, comparisons)
PROJECT = (*LOOP, many, prompts, gold, review, imports, photos, exports, publish, critics, webhooks)
for module in (*PROJECT, users, audit, erasures, engines):
    router.include_router(module.router, prefix="/admin")

__all__ = ["router"]
