"""Images: decoded, re-encoded so that no byte of the upload is ever served, and stored."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
from PIL import ImageFile, ImageOps, UnidentifiedImageError
from sqlalchemy import TextClause, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.judging_pool import Transaction, Values, statement
from app.errors import Invalid, NotFound, TooLarge
from app.models import Image, ImageGrant
from app.services.kernel.actors import Actor
from app.services.kernel.store import get_store

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000
MAX_SIDE = 20_000
OUTPUT_FORMATS = {"PNG": "PNG", "GIF": "PNG", "JPEG": "JPEG", "WEBP": "WEBP"}
OUTPUT_MODES = {"PNG": ("RGB", "RGBA", "L"), "JPEG": ("RGB", "L"), "WEBP": ("RGB", "RGBA")}


NO_IMAGE = "There is no such image, or none that you may see."
# Whether a person may see a row of `images`: they uploaded it, or are a member of a project with a prompt that shows
# it; an admin sees everything.
VISIBLE = """
(
    :is_admin
    OR EXISTS (SELECT FROM image_grants g WHERE g.sha256 = images.sha256 AND g.user_id = CAST(:user AS bigint))
    OR EXISTS (
        SELECT FROM prompt_images x JOIN prompts p ON p.id = x.prompt_id
        JOIN memberships m ON m.project_id = p.project_id AND m.user_id = CAST(:user AS bigint)
        WHERE x.sha256 = images.sha256
    )
)
"""
FIND = statement(f"SELECT sha256, media_type FROM images WHERE sha256 = :sha256 AND {VISIBLE}")  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A decoded and re-encoded image, not yet stored."""

    data: bytes
    media_type: str
    width: int
    height: int

    @property
    def sha256(self) -> str:
        """Its name in the store."""
        return hashlib.sha256(self.data).hexdigest()


def reencode(data: bytes) -> EncodedImage:
    """Decode `data` and re-encode it, upright and without metadata.

    Raises `TooLarge` over 20 MB or 40 megapixels, and `Invalid` for a broken image or anything but PNG, JPEG, WebP and
    GIF.
    """
    if len(data) > MAX_BYTES:
        raise TooLarge(f"The image has over {MAX_BYTES // 1024 // 1024} MB.", field="image")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=tuple(OUTPUT_FORMATS)) as picture:
            check_size(picture)
            return _write(picture)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise TooLarge(f"The image has over {MAX_PIXELS // 1_000_000} megapixels.", field="image") from error
    except UnidentifiedImageError as error:
        raise Invalid("This is not a PNG, JPEG, WebP or GIF image.", field="image") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, MemoryError) as error:
        raise Invalid("The image is broken: it could not be decoded.", field="image") from error


def check_size(picture: ImageFile.ImageFile) -> None:
    """Raise `TooLarge` by the size in the header, before a pixel is decoded."""
    if picture.width * picture.height > MAX_PIXELS or max(picture.size) > MAX_SIDE:
        raise TooLarge(f"The image has over {MAX_PIXELS // 1_000_000} megapixels.", field="image")


def _write(picture: ImageFile.ImageFile) -> EncodedImage:
    """Write the first frame of `picture`, upright and without metadata."""
    target = OUTPUT_FORMATS[picture.format or "PNG"]
    upright: PIL.Image.Image = ImageOps.exif_transpose(picture)
    if upright.mode not in OUTPUT_MODES[target]:
        upright = _to_rgb(upright, transparent=target != "JPEG")
    clean = PIL.Image.new(upright.mode, upright.size)
    clean.paste(upright)
    file = io.BytesIO()
    options = {"PNG": {"compress_level": 4}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
    clean.save(file, target, **options[target])
    return EncodedImage(file.getvalue(), f"image/{target.lower()}", clean.width, clean.height)


def _to_rgb(picture: PIL.Image.Image, *, transparent: bool) -> PIL.Image.Image:
    """Convert to RGB, or to RGBA if the picture is transparent and may stay so; 16-bit greys keep their high byte."""
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if transparent and picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("RGB")


def add_image(session: Session, actor: Actor, data: bytes) -> Image:
    """Check, re-encode and store an image; the same image is stored once. Raises as `reencode`."""
    return add_images(session, actor, [reencode(data)])[0]


def add_images(session: Session, actor: Actor, pictures: Sequence[EncodedImage]) -> list[Image]:
    """Store re-encoded images, their rows and who uploaded them. Returns the images in order."""
    store = get_store()
    images = [
        Image(
            sha256=store.put_bytes(picture.data),
            media_type=picture.media_type,
            width=picture.width,
            height=picture.height,
            size=len(picture.data),
        )
        for picture in pictures
    ]
    rows = {
        image.sha256: {name: getattr(image, name) for name in ("sha256", "media_type", "width", "height", "size")}
        for image in images
    }
    if not rows:
        return []
    # Sorted, so that two uploads of the same images cannot deadlock.
    ordered = [rows[key] for key in sorted(rows)]
    session.execute(insert(Image).on_conflict_do_nothing(), ordered)
    if actor.user_id:
        grants = [{"sha256": row["sha256"], "user_id": actor.user_id} for row in ordered]
        session.execute(insert(ImageGrant).on_conflict_do_nothing(), grants)
    return images


def visible_to(actor: Actor) -> TextClause:
    """`VISIBLE` for an actor, as a condition of a query of images."""
    return text(VISIBLE).bindparams(is_admin=actor.is_admin, user=actor.user_id)


def find_image(session: Session, actor: Actor, sha256: str) -> Image:
    """Find an image that `actor` may see. Raises `NotFound`."""
    session.flush()
    row = session.execute(FIND.clause, find_values(actor, sha256)).one_or_none()
    if row is None:
        raise NotFound(NO_IMAGE)
    return session.get_one(Image, row.sha256)


async def find_media_type(transaction: Transaction, actor: Actor, sha256: str) -> str:
    """The media type of an image that `actor` may see, in a judging transaction. Raises `NotFound`."""
    [row] = await transaction.run((FIND, find_values(actor, sha256)))
    if row is None:
        raise NotFound(NO_IMAGE)
    return str(row["media_type"])


def find_values(actor: Actor, sha256: str) -> Values:
    """What `FIND` is run with."""
    return {"sha256": sha256, "user": actor.user_id, "is_admin": actor.is_admin}


def read_image(session: Session, actor: Actor, sha256: str) -> tuple[Image, bytes]:
    """Read an image that `actor` may see, with its bytes. Raises `NotFound`."""
    image = find_image(session, actor, sha256)
    return image, get_store().read_bytes(image.sha256)
