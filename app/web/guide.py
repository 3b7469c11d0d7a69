"""The guide under /help: the pages that `make docs` built, as files, or else as they are written."""

from __future__ import annotations

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.web import guide_texts
from app.web.rendering import STATIC

FOLDER = STATIC / "help"


class Guide(StaticFiles):
    """The files of the built guide. Without them its pages are shown as they are written, if they are there."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, html=True, check_dir=False)

    async def check_config(self) -> None:
        """Take a folder that is not there as it is: it may be built while the server runs."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file, or the page of its folder. Raises `NotFound` where it is not there at all."""
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code == 404 and not (FOLDER / "index.html").exists():
                return await to_thread.run_sync(guide_texts.render, path)
            raise
        if response.status_code in (200, 304):
            response.headers["Cache-Control"] = "public, max-age=300"
        return response
