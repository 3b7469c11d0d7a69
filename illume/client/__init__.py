"""A client of the REST interface: what a script does with a running Illume. Loads neither torch nor the server."""

from __future__ import annotations

import io
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from illume.client.connection import Connection, Pages
from illume.client.project import ProjectClient
from illume.client.prompts import Picture, picture_bytes
from illume.client.shapes import Image, Project

if TYPE_CHECKING:
    import PIL.Image


class Client:
    """A connection to an Illume server, with a token. Use it in a `with` block, or call `close`. Threads may share it.

    `url` and `token` default to `ILLUME_URL` and `ILLUME_TOKEN` of the environment. `timeout` is how many seconds the
    server may be silent; `patience` for how many seconds a request is sent again where the connection broke or the
    server asked for it. A request is only sent again where that cannot do anything twice.

    Every call raises `Refused`, with the server's reason, for an error that it reports, and `Unreachable` where no
    answer arrives. A test passes a `transport` of httpx.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        patience: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(url, token, timeout=timeout, patience=patience, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def projects(self) -> Pages[Project]:
        """The projects that you are a member of."""
        return Pages(self._connection, "projects", Project)

    def project(self, slug: str) -> ProjectClient:
        """A project, for all that is done within one. Nothing is sent yet."""
        return ProjectClient(self._connection, slug)

    def create_project(self, slug: str, name: str | None = None, **settings: Any) -> ProjectClient:
        """Create a project; settings that are not given get their defaults. Waits while a worker checks a base model.

        Where the connection breaks before the answer arrives it is not tried again: look whether the project exists.
        """
        body = {"slug": slug, "name": slug if name is None else name, **settings}
        self._connection.ask("POST", "projects", json=body, repeatable=False)
        return ProjectClient(self._connection, slug)

    def add_image(self, picture: Picture) -> Image:
        """Upload a picture: a path, the bytes of a file or a PIL image. The same picture twice is stored once."""
        return picture if isinstance(picture, Image) else self._connection.upload(picture_bytes(picture))

    def image_bytes(self, image: Image | str, *, width: int | None = None) -> bytes:
        """The file of a stored picture; `width` (96, 480 or 1600 pixels) asks for a smaller one."""
        sha256 = image if isinstance(image, str) else image.sha256
        params = {} if width is None else {"width": width}
        return self._connection.send("GET", f"images/{sha256}", params=params).content

    def image(self, image: Image | str, *, width: int | None = None) -> PIL.Image.Image:
        """A stored picture as a PIL image."""
        from PIL import Image as Pillow

        opened = Pillow.open(io.BytesIO(self.image_bytes(image, width=width)))
        opened.load()
        return opened
