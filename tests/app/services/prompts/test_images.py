"""Images: which are accepted, and that every served byte was written by us."""

from __future__ import annotations

import io
import struct
import zlib

import PIL.Image
import pytest
from sqlalchemy.orm import Session

from app.errors import Invalid, NotFound, TooLarge
from app.models import Role
from app.services.prompts import images
from tests import factories


def encoded(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (16, 9), **options: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, and that ends where its pixels should begin."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


class TestReencode:
    @pytest.mark.parametrize(
        ("data", "media_type"),
        [
            (encoded(), "image/png"),
            (encoded("RGBA"), "image/png"),
            (encoded("L"), "image/png"),
            (encoded("1"), "image/png"),
            (encoded("P"), "image/png"),
            (encoded("LA"), "image/png"),
            (encoded("I;16"), "image/png"),
            (encoded(kind="JPEG"), "image/jpeg"),
            (encoded("CMYK", "JPEG"), "image/jpeg"),
            (encoded("L", "JPEG"), "image/jpeg"),
            (encoded(kind="WEBP"), "image/webp"),
            (encoded("P", "GIF"), "image/png"),
        ],
    )
    def test_accepted_formats(self, data: bytes, media_type: str) -> None:
        picture = images.reencode(data)
        assert (picture.media_type, picture.width, picture.height) == (media_type, 16, 9)
        with PIL.Image.open(io.BytesIO(picture.data)) as again:
            assert again.size == (16, 9)
            assert again.mode in ("RGB", "RGBA", "L")

    def test_is_equal_for_equal_images(self) -> None:
        once = images.reencode(encoded())
        assert images.reencode(encoded()) == once
        assert images.reencode(once.data) == once

    def test_appended_bytes_are_removed(self) -> None:
        data = encoded(kind="JPEG", comment=b"<script>alert(1)</script>") + b"<html>tail</html>"
        picture = images.reencode(data)
        assert b"script" not in picture.data
        assert b"html" not in picture.data

    def test_upright_and_without_metadata(self) -> None:
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # rotated by a quarter turn
        exif[0x010E] = "where it was taken"
        picture = images.reencode(encoded(kind="JPEG", exif=exif))
        assert (picture.width, picture.height) == (9, 16)
        assert b"where it was taken" not in picture.data

    def test_too_many_pixels_by_the_header_alone(self) -> None:
        for size in ((8000, 8000), (60_000, 60_000), (30_000, 1)):
            with pytest.raises(TooLarge):
                images.reencode(png_that_claims(*size))

    def test_too_many_bytes(self) -> None:
        with pytest.raises(TooLarge):
            images.reencode(b"\x00" * (images.MAX_BYTES + 1))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"nothing",
            encoded(kind="TIFF"),
            encoded(kind="BMP"),
            encoded(size=(300, 300))[:60],
            encoded(kind="JPEG", size=(300, 300))[:200],
            encoded(kind="WEBP", size=(300, 300))[:20],
            png_that_claims(10, 10),
        ],
    )
    def test_rejected_files(self, data: bytes) -> None:
        with pytest.raises(Invalid):
            images.reencode(data)


class TestReadImage:
    def test_visible_to_uploader_members_and_admins(self, session: Session) -> None:
        project = factories.make_project(session)
        reviewer = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        critic = factories.make_critic(session, project)
        stranger = factories.actor_of(factories.make_user(session))
        image = images.add_image(session, reviewer, factories.image_bytes())
        assert images.read_image(session, reviewer, image.sha256)[1] == images.get_store().read_bytes(image.sha256)
        for other in (critic, stranger):
            with pytest.raises(NotFound):
                images.read_image(session, other, image.sha256)
        factories.make_prompt(session, project, images=[images.find_image(session, reviewer, image.sha256)])
        assert images.read_image(session, critic, image.sha256)[0].media_type == "image/png"
        with pytest.raises(NotFound):
            images.read_image(session, stranger, image.sha256)
        assert images.read_image(session, factories.make_admin(session), image.sha256)
