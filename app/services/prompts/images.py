"""Images: decoded, re-encoded so that no byte of the upload is ever served, and stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import TextClause, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.judging_pool import Transaction, Values, statement
from app.errors import Invalid, NotFound
from app.models import Image, ImageGrant, Membership
from app.services.kernel import isolated
from app.services.kernel.actors import Actor
from app.services.kernel.store import get_store
from app.services.prompts.decoding import EncodedImage, check_bytes, decode
from illume.phrases import _

MAX_NAME = 200
NO_IMAGE = _("There is no such image, or none that you may see.")
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
FIND = statement(f"SELECT sha256, media_type, width FROM images WHERE sha256 = :sha256 AND {VISIBLE}")  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The media type of an image, and its width in pixels."""

    media_type: str
    width: int


def reencode(data: bytes, *, scale_down: bool = False, waiting: Callable[[], None] = isolated.nothing) -> EncodedImage:
    """Decode `data` in a child process and re-encode it as people see it, without metadata.

    With `scale_down`, what has over 40 megapixels is scaled down to them. `waiting` is called about once a second.
    Raises `TooLarge` over 20 MB or else 40 megapixels, and `Invalid` for a broken image or a format that is not read.
    """
    check_bytes(data)
    try:
        return isolated.call(decode, data, scale_down, waiting=waiting)
    except isolated.Unreadable as error:
        raise Invalid(_("The image is broken: %(detail)s.", detail=error.detail), field="image") from error


def add_image(session: Session, actor: Actor, data: bytes, *, name: str | None = None) -> Image:
    """Check, re-encode and store an image of a file `name`; the same image is stored once. Raises as `reencode`.

    What takes long comes first: a caller whose transaction is open would keep it open for that time.
    """
    return add_images(session, actor, [replace(reencode(data), name=name)])[0]


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
            changes=[str(one) for one in picture.changes],
        )
        for picture in pictures
    ]
    columns = ("sha256", "media_type", "width", "height", "size", "changes")
    rows = {image.sha256: {name: getattr(image, name) for name in columns} for image in images}
    if not rows:
        return []
    # Sorted, so that two uploads of the same images cannot deadlock.
    ordered = [rows[key] for key in sorted(rows)]
    session.execute(insert(Image).on_conflict_do_nothing(), ordered)
    if actor.user_id:
        names = {image.sha256: storable_name(one.name) for image, one in zip(images, pictures, strict=True)}
        grants = [{"sha256": row["sha256"], "user_id": actor.user_id, "name": names[row["sha256"]]} for row in ordered]
        session.execute(insert(ImageGrant).on_conflict_do_nothing(), grants)
    return images


def storable_name(name: str | None) -> str | None:
    """The last part of a file's name, as it can be stored."""
    if name is None:
        return None
    last = re.split(r"[/\\]", name)[-1].replace("\x00", "").encode(errors="replace").decode()
    return last[-MAX_NAME:] or None


def names_in_project(session: Session, actor: Actor, project_id: int, sha256s: Sequence[str]) -> dict[str, str]:
    """The names of the files that `actor`, or a member of a project, uploaded as these images."""
    members = select(Membership.user_id).where(Membership.project_id == project_id)
    rows = session.execute(
        select(ImageGrant.sha256, func.min(ImageGrant.name))
        .where(ImageGrant.sha256.in_(sha256s), ImageGrant.name.is_not(None))
        .where((ImageGrant.user_id == actor.user_id) | ImageGrant.user_id.in_(members))
        .group_by(ImageGrant.sha256)
    )
    return {row[0]: str(row[1]) for row in rows}


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


async def find_stored(transaction: Transaction, actor: Actor, sha256: str) -> StoredImage:
    """What is stored of an image that `actor` may see, read in a judging transaction. Raises `NotFound`."""
    [row] = await transaction.run((FIND, find_values(actor, sha256)))
    if row is None:
        raise NotFound(NO_IMAGE)
    return StoredImage(str(row["media_type"]), int(row["width"]))


def find_values(actor: Actor, sha256: str) -> Values:
    """What `FIND` is run with."""
    return {"sha256": sha256, "user": actor.user_id, "is_admin": actor.is_admin}


def read_image(session: Session, actor: Actor, sha256: str) -> tuple[Image, bytes]:
    """Read an image that `actor` may see, with its bytes. Raises `NotFound`."""
    image = find_image(session, actor, sha256)
    return image, get_store().read_bytes(image.sha256)
