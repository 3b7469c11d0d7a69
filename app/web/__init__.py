"""HTML routes: signing in, the pages of critics, the pages of admins."""

from fastapi import APIRouter

from app.web import rest
from app.web.accounts import account, one_time_links, sign_in
from app.web.admin import router as admin_router
from app.web.judging import annotate, comparing, judge, practice

router = APIRouter()
router.include_router(sign_in.router)
router.include_router(rest.router)
router.include_router(one_time_links.router)
router.include_router(account.router)
router.include_router(comparing.router)
router.include_router(annotate.router)
router.include_router(practice.router)
router.include_router(admin_router)

critics_router = judge.router

__all__ = ["critics_router", "router"]
