"""Images: which are accepted, and that every served byte was written by us."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import PIL.Image
import PIL.ImageCms
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from app.errors import Invalid, NotFound, TooLarge
from app.models import Role
from app.services.kernel.store import get_store
from app.services.prompts import images
from app.services.prompts.decoding import MAX_BYTES, decode
from illume.pictures import Change
from tests import factories
from tests.mutation import mutated

pillow_heif.register_heif_opener()


def encoded(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (16, 9), **options: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def several_pictures() -> bytes:
    """A JPEG with a second picture behind the first, as some cameras write it; Pillow calls it MPO."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (16, 9)).save(file, "MPO", save_all=True, append_images=[PIL.Image.new("RGB", (16, 9), "red")])
    return file.getvalue()


def exif_with(entries: bytes, count: int) -> bytes:
    """A JPEG with EXIF data of these entries, as they would never be written by a program that keeps the rules."""
    tiff = b"MM\x00*\x00\x00\x00\x08" + struct.pack(">H", count) + entries + b"\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    jpeg = encoded(kind="JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


TURNED = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
MISTYPED = struct.pack(">HHI4s", 0x0100, 2, 4, b"six\x00")  # a width that is a text


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, and that ends where its pixels should begin."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
FRAMES: dict[str, Any] = {
    "save_all": True,
    "append_images": [PIL.Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")],
}
PICTURES = {
    "png": encoded(size=(40, 30)),
    "png with transparency": encoded("RGBA", size=(40, 30)),
    "png of 16 bits": encoded("I;16", size=(40, 30)),
    "png with a profile": encoded(size=(40, 30), icc_profile=PROFILE),
    "png with frames": encoded(size=(40, 30), **FRAMES),
    "tiff": encoded(kind="TIFF", size=(40, 30)),
    "tiff of four colours": encoded("CMYK", "TIFF", size=(40, 30), compression="tiff_lzw"),
    "tiff with a jpeg": encoded(kind="TIFF", size=(40, 30), compression="jpeg"),
    "tiff with pages": encoded(kind="TIFF", size=(40, 30), compression="tiff_deflate", **FRAMES),
    "bmp": encoded(kind="BMP", size=(40, 30)),
    "avif": encoded(kind="AVIF", size=(40, 30)),
    "heic": encoded(kind="HEIF", size=(40, 30)),
    "heic with a profile": encoded(kind="HEIF", size=(40, 30), icc_profile=PROFILE),
    "jpeg 2000": encoded(kind="JPEG2000", size=(40, 30)),
    "gif": encoded("P", "GIF", size=(40, 30)),
    "gif with frames": encoded(kind="GIF", size=(40, 30), **FRAMES),
    "jpeg": encoded(kind="JPEG", size=(40, 30)),
    "jpeg of four colours": encoded("CMYK", "JPEG", size=(40, 30)),
    "webp": encoded(kind="WEBP", size=(40, 30)),
    "webp with frames": encoded(kind="WEBP", size=(40, 30), **FRAMES),
    "mpo": several_pictures(),
    "jpeg with odd exif": exif_with(MISTYPED + TURNED, 2),
}


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
            (several_pictures(), "image/jpeg"),
            (encoded("P", "GIF"), "image/png"),
            (encoded(kind="TIFF"), "image/png"),
            (encoded("CMYK", "TIFF", compression="tiff_lzw"), "image/png"),
            (encoded(kind="BMP"), "image/png"),
            (encoded(kind="AVIF"), "image/jpeg"),
            (encoded(kind="HEIF"), "image/jpeg"),
            (encoded(kind="JPEG2000"), "image/jpeg"),
        ],
    )
    def test_accepted_formats(self, data: bytes, media_type: str) -> None:
        picture = images.reencode(data)
        assert (picture.media_type, picture.width, picture.height) == (media_type, 16, 9)
        with PIL.Image.open(io.BytesIO(picture.data)) as again:
            assert again.size == (16, 9)
            assert again.mode in ("RGB", "L")

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

    def test_mistyped_exif_data_cost_nothing(self) -> None:
        turned = images.reencode(exif_with(MISTYPED + TURNED, 2))
        assert (turned.width, turned.height) == (9, 16)
        mistyped_turn = struct.pack(">HHI4s", 0x0112, 2, 4, b"six\x00")
        for data in (exif_with(mistyped_turn, 1), exif_with(TURNED[:5], 9), exif_with(b"", 0)):
            assert images.reencode(data).media_type == "image/jpeg"

    def test_too_many_pixels_by_the_header_alone(self) -> None:
        for size in ((8000, 8000), (60_000, 60_000), (30_000, 1)):
            with pytest.raises(TooLarge):
                images.reencode(png_that_claims(*size))

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_too_many_pixels_are_scaled_down_on_request(self, kind: str) -> None:
        data = encoded("L", kind, size=(9000, 5000))
        with pytest.raises(TooLarge, match=r"9,000 x 5,000 pixels \(45\.0 megapixels\); at most 40 megapixels"):
            images.reencode(data)
        made = decode(data, scale_down=True)
        assert (made.width, made.height) == (8485, 4714)
        assert made.changes == (Change.scaled_down,)
        with pytest.raises(TooLarge, match="250 megapixels"):
            decode(png_that_claims(20_000, 14_000), scale_down=True)

    def test_what_was_done_is_told(self) -> None:
        exif = PIL.Image.Exif()
        exif[0x0112] = 3
        assert images.reencode(encoded("CMYK", "JPEG", exif=exif)).changes == (Change.turned, Change.colours)
        assert images.reencode(encoded("RGBA")).changes == (Change.flattened,)
        assert images.reencode(encoded(kind="BMP")).changes == (Change.recoded,)
        assert images.reencode(encoded()).changes == ()

    def test_too_many_bytes(self) -> None:
        with pytest.raises(TooLarge):
            images.reencode(b"\x00" * (MAX_BYTES + 1))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"nothing",
            encoded(kind="ICO", size=(16, 16)),
            encoded(kind="TGA"),
            encoded(kind="TIFF", size=(300, 300))[:200],
            encoded(kind="AVIF", size=(300, 300))[:200],
            encoded(size=(300, 300))[:60],
            encoded(kind="JPEG", size=(300, 300))[:200],
            encoded(kind="WEBP", size=(300, 300))[:20],
            png_that_claims(10, 10),
        ],
    )
    def test_rejected_files(self, data: bytes) -> None:
        with pytest.raises(Invalid):
            images.reencode(data)


class TestFuzzing:
    """Whatever the bytes are, the answer is an image or a reason."""

    def check(self, data: bytes) -> None:
        try:
            assert images.reencode(data).media_type in ("image/png", "image/jpeg", "image/webp")
        except (Invalid, TooLarge) as error:
            assert error.field == "image"  # noqa: PT017 - both outcomes are fine

    @settings(max_examples=60, deadline=None)
    @given(data=mutated(list(PICTURES.values())))
    def test_flipped_bytes(self, data: bytes) -> None:
        self.check(data)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", PICTURES)
    @settings(max_examples=1_000, deadline=None)
    @given(data=st.data())
    def test_many_flipped_bytes(self, kind: str, data: st.DataObject) -> None:
        self.check(data.draw(mutated([PICTURES[kind]])))


class TestReadImage:
    def test_visible_to_uploader_members_and_admins(self, session: Session) -> None:
        project = factories.make_project(session)
        reviewer = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        critic = factories.make_critic(session, project)
        stranger = factories.actor_of(factories.make_user(session))
        image = images.add_image(session, reviewer, factories.image_bytes())
        assert images.read_image(session, reviewer, image.sha256)[1] == get_store().read_bytes(image.sha256)
        for other in (critic, stranger):
            with pytest.raises(NotFound):
                images.read_image(session, other, image.sha256)
        factories.make_prompt(session, project, images=[images.find_image(session, reviewer, image.sha256)])
        assert images.read_image(session, critic, image.sha256)[0].media_type == "image/png"
        with pytest.raises(NotFound):
            images.read_image(session, stranger, image.sha256)
        assert images.read_image(session, factories.make_admin(session), image.sha256)


class TestRecord:
    def test_tells_what_was_done(self, session: Session) -> None:
        member = factories.actor_of(factories.make_user(session))
        image = images.add_image(session, member, encoded("RGBA", "TIFF"), name="scans/logo.tiff")
        session.expire_all()
        assert images.find_image(session, member, image.sha256).changes == ["flattened", "recoded"]

    def test_names_are_those_of_the_project_s_members(self, session: Session) -> None:
        project, other = factories.make_project(session), factories.make_project(session)
        mine = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        theirs = factories.actor_of(factories.make_member(session, other, Role.reviewer))
        data = factories.image_bytes()
        key = images.add_image(session, theirs, data, name="C:\\secret\\client.png").sha256
        assert images.names_in_project(session, mine, project.id, [key]) == {}
        assert images.names_in_project(session, theirs, other.id, [key]) == {key: "client.png"}
        images.add_image(session, mine, data, name="phone.png")
        assert images.names_in_project(session, mine, project.id, [key]) == {key: "phone.png"}

    @pytest.mark.parametrize(
        ("name", "stored"),
        [
            (None, None),
            ("a/b.png", "b.png"),
            ("a\x00b.png", "ab.png"),
            ("x" * 300, "x" * 200),
            ("a/", None),
            ("\ud800", "?"),
        ],
    )
    def test_names_as_they_can_be_stored(self, name: str | None, stored: str | None) -> None:
        assert images.storable_name(name) == stored
