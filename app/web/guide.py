"""The guide under /help: the pages that `make docs` built, as files."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.errors import NotFound
from app.web.rendering import STATIC
from illume.phrases import _

FOLDER = STATIC / "help"
NOT_BUILT = _(
    "The guide has not been built on this machine: run `make docs` in the folder that Illume was started from, and "
    "reload this page. The same pages are in its folder docs."
)


class Guide(StaticFiles):
    """The files of the built guide. Without them each address says how to build it."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, html=True, check_dir=False)

    async def check_config(self) -> None:
        """Take a folder that is not there as it is: it may be built while the server runs."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file, or the page of its folder. Raises `NotFound` where the guide is not there at all."""
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code == 404 and not (FOLDER / "index.html").exists():
                raise NotFound(NOT_BUILT) from error
            raise
        if response.status_code in (200, 304):
            response.headers["Cache-Control"] = "public, max-age=300"
        return response
