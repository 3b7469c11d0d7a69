"""Images."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Query, Request, Security, UploadFile
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api.schemas import ImageOut, image_url
from app.errors import Invalid
from app.http.dependencies import ActorDep, ApiRoute, JudgingPoolDep, SessionDep, authenticate_reader, bearer_scheme
from app.http.forms import store_image
from app.http.ranges import find_part
from app.models import Image
from app.services.kernel.store import DerivativeWidth, get_store
from app.services.prompts import derivatives, images
from app.services.prompts.decoding import ACCEPTED, DERIVATIVE_TYPE, may_be_transparent

router = APIRouter(tags=["images"], route_class=ApiRoute)
KEEP = "private, max-age=31536000, immutable"


def image_out(image: Image) -> ImageOut:
    """An image and its URL."""
    return ImageOut(
        sha256=image.sha256,
        url=image_url(image.sha256),
        width=image.width,
        height=image.height,
        media_type=image.media_type,
        size=image.size,
        changes=image.changes,
    )


@router.post("/images", status_code=201)
def add_image(
    session: SessionDep,
    actor: ActorDep,
    file: Annotated[UploadFile | None, File(description=f"{ACCEPTED}; at most 20 MB")] = None,
    image: Annotated[UploadFile | None, File(description="The same under another name")] = None,
) -> ImageOut:
    """Store an image: the multipart field `file`. It is decoded, rotated upright and re-encoded."""
    upload = file or image
    if upload is None:
        raise Invalid("Send the image as the multipart field 'file'.", field="file")
    return image_out(store_image(session, actor, upload))


async def read_whole(sha256: str) -> bytes:
    """The bytes of a stored image, read in a thread."""
    return await run_in_threadpool(get_store().read_bytes, sha256)


@router.get("/images/{sha256}", response_class=Response)
async def get_image(
    request: Request,
    pool: JudgingPoolDep,
    _: Annotated[object, Security(bearer_scheme)],
    sha256: str,
    width: Annotated[
        DerivativeWidth | None, Query(description="Pixels: made smaller, as WebP; a narrower image comes as it is")
    ] = None,
) -> Response:
    """Download an image, or a smaller derivative of it, as a member of a project that shows it."""
    async with pool.reading() as transaction:
        actor = await authenticate_reader(request, transaction)
        stored = await images.find_stored(transaction, actor, sha256)
    whole, media_type = None, DERIVATIVE_TYPE
    smaller = width if width is not None and width < stored.width else None
    if width is not None and smaller is None and stored.media_type != "image/jpeg":
        whole = await read_whole(sha256)
        smaller = width if may_be_transparent(whole) else None  # it is as large, but on white
    headers = {"ETag": f'"{sha256}-{smaller:d}"' if smaller else f'"{sha256}"', "Cache-Control": KEEP}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    made = None
    if smaller:
        made = await run_in_threadpool(derivatives.find, sha256, smaller) or await derivatives.make(sha256, smaller)
    if made is None:
        headers["ETag"], media_type = f'"{sha256}"', stored.media_type
    data = made or whole or await read_whole(sha256)
    part = find_part(request.headers, size=len(data), etag=headers["ETag"])
    content = data[part.start : part.stop]
    return Response(content, status_code=part.status, media_type=media_type, headers={**headers, **part.headers})
