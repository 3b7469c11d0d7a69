"""The pixels that pages show and models read, for every kind of file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import pillow_heif
import pytest
from PIL import ImageCms

from illume.model.vlm import open_image
from illume.pictures import ORIENTATION, UPRIGHT, Change, as_seen, enlarged, scaled_down

pillow_heif.register_heif_opener()
CORNERS = {"red": (0, 0), "lime": (1, 0), "blue": (0, 1), "white": (1, 1)}  # by column and row


def corners(size: tuple[int, int] = (48, 32)) -> PIL.Image.Image:
    """A picture with another colour in each quarter."""
    picture = PIL.Image.new("RGB", size)
    width, height = size[0] // 2, size[1] // 2
    for colour, (column, row) in CORNERS.items():
        left, top = column * width, row * height
        picture.paste(colour, (left, top, left + width, top + height))
    return picture


def reopened(picture: PIL.Image.Image, kind: str, **options: Any) -> PIL.Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return PIL.Image.open(io.BytesIO(file.getvalue()))


def difference(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    """The mean difference of two pictures, in steps of 0 to 255."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int)).mean())


def display_p3() -> ImageCms.ImageCmsProfile:
    """A profile whose red lies far outside sRGB: built from sRGB's by exchanging red and green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    data = bytes(profile).replace("sRGB built-in".encode("utf-16-be"), "Exchanged ink".encode("utf-16-be"))
    return ImageCms.ImageCmsProfile(io.BytesIO(data.replace(b"sRGB built-in", b"Exchanged ink")))


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_all_eight(self, orientation: int, kind: str) -> None:
        upright = corners()
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        back = {6: 8, 8: 6}.get(orientation, orientation)  # how a camera held like this stores the scene
        stored = upright.transpose(UPRIGHT[back]) if back in UPRIGHT else upright
        seen = as_seen(reopened(stored, kind, exif=exif))
        assert difference(seen.pixels, upright) < 10  # over 80 for every other orientation
        assert seen.changes == ([Change.turned] if orientation > 1 else [])

    @pytest.mark.parametrize("orientation", [0, 9, 65_535])
    def test_one_that_is_none_is_passed_over(self, orientation: int) -> None:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        assert as_seen(reopened(corners(), "JPEG", exif=exif)).changes == []


class TestColours:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
    def test_a_profile_is_followed(self, kind: str) -> None:
        options = {"lossless": True} if kind == "WEBP" else {}
        seen = as_seen(reopened(corners(), kind, icc_profile=display_p3().tobytes(), **options))
        assert seen.changes == [Change.profile]
        red, green = seen.pixels.getpixel((4, 4)), seen.pixels.getpixel((40, 4))
        assert isinstance(red, tuple)
        assert isinstance(green, tuple)
        assert red[1] > 200 > 60 > red[0]  # what the file calls red is green
        assert green[0] > 200 > 60 > green[1]

    def test_srgb_stays_to_the_bit(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        seen = as_seen(reopened(corners(), "PNG", icc_profile=profile))
        assert difference(seen.pixels, corners()) == 0
        assert seen.changes == []

    @pytest.mark.parametrize("profile", [b"nothing", b"\x00" * 200])
    def test_a_broken_profile_is_passed_over(self, profile: bytes) -> None:
        seen = as_seen(reopened(corners(), "PNG", icc_profile=profile))
        assert difference(seen.pixels, corners()) == 0

    def test_a_profile_of_another_mode_is_passed_over(self) -> None:
        seen = as_seen(reopened(corners().convert("L"), "PNG", icc_profile=display_p3().tobytes()))
        assert (seen.pixels.mode, seen.changes) == ("L", [])

    @pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
    def test_cmyk(self, kind: str) -> None:
        seen = as_seen(reopened(corners().convert("CMYK"), kind))
        assert seen.changes == [Change.colours]
        assert difference(seen.pixels, corners()) < 4

    def test_lab(self) -> None:
        seen = as_seen(PIL.Image.new("LAB", (60, 60), (200, 128, 128)))
        assert seen.changes == [Change.colours]
        pixel = seen.pixels.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        assert max(pixel) - min(pixel) < 4


class TestDepth:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bit_greys(self, kind: str) -> None:
        values = np.array([[0, 257 * 10, 257 * 128, 65_535]], np.uint16).repeat(4, axis=0)
        seen = as_seen(reopened(PIL.Image.fromarray(values), kind))
        assert np.asarray(seen.pixels.convert("L"))[0].tolist() == [0, 10, 128, 255]
        assert seen.changes == [Change.depth]

    @pytest.mark.parametrize("mode", ["F", "I"])
    def test_32_bit_numbers_are_refused(self, mode: str) -> None:
        values = np.full((4, 4), 70_000, np.float32 if mode == "F" else np.int32)
        with pytest.raises(ValueError, match="32 bits"):
            as_seen(reopened(PIL.Image.fromarray(values), "TIFF"))


class TestTransparency:
    def test_is_laid_onto_white(self) -> None:
        picture = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))
        picture.putpixel((1, 1), (255, 0, 0, 255))
        picture.putpixel((2, 2), (0, 0, 0, 128))
        seen = as_seen(reopened(picture, "PNG"))
        assert seen.changes == [Change.flattened]
        assert [seen.pixels.getpixel(one) for one in ((0, 0), (1, 1), (2, 2))] == [
            (255, 255, 255),
            (255, 0, 0),
            (127, 127, 127),
        ]

    @pytest.mark.parametrize("mode", ["LA", "P", "RGB"])
    def test_in_other_modes(self, mode: str) -> None:
        if mode == "LA":
            file = reopened(PIL.Image.new("LA", (4, 4), (0, 0)), "PNG")
        else:
            black = PIL.Image.new(mode, (4, 4), 0)
            file = reopened(black, "PNG", transparency=0 if mode == "P" else (0, 0, 0))
        assert as_seen(file).pixels.convert("RGB").getpixel((0, 0)) == (255, 255, 255)

    def test_an_opaque_picture_is_not_changed(self) -> None:
        assert as_seen(reopened(corners().convert("RGBA"), "PNG")).changes == []

    def test_the_model_reads_the_same(self, tmp_path: Any) -> None:
        path = tmp_path / "logo.png"
        PIL.Image.new("RGBA", (60, 60), (0, 0, 0, 0)).save(path)
        assert open_image(path).getpixel((0, 0)) == (255, 255, 255)
        assert open_image(PIL.Image.open(path)).getpixel((0, 0)) == (255, 255, 255)


class TestFrames:
    @pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
    def test_animations(self, kind: str) -> None:
        options = {"lossless": True} if kind == "WEBP" else {}
        later = PIL.Image.new("RGB", (48, 32), "black")
        seen = as_seen(reopened(corners(), kind, save_all=True, append_images=[later], **options))
        assert seen.changes == [Change.first_frame]
        assert difference(seen.pixels, corners()) < 4

    def test_a_first_frame_that_is_smaller_than_the_canvas(self) -> None:
        file = io.BytesIO()
        PIL.Image.new("RGB", (8, 8), "red").save(file, "GIF")
        data = bytearray(file.getvalue())
        data[6:10] = (16).to_bytes(2, "little") * 2  # the canvas, of which the frame covers a quarter
        seen = as_seen(PIL.Image.open(io.BytesIO(bytes(data))))
        assert seen.pixels.size == (16, 16)
        assert seen.pixels.getpixel((2, 2)) == (255, 0, 0)
        assert seen.pixels.getpixel((12, 12)) == (255, 255, 255)

    def test_a_default_picture_of_an_animation_is_not_shown(self) -> None:
        file = reopened(
            PIL.Image.new("RGB", (48, 32), "black"),
            "PNG",
            save_all=True,
            default_image=True,
            append_images=[corners(), PIL.Image.new("RGB", (48, 32), "red")],
        )
        assert difference(as_seen(file).pixels, corners()) == 0

    def test_the_first_page(self) -> None:
        later = PIL.Image.new("RGB", (48, 32), "black")
        seen = as_seen(reopened(corners(), "TIFF", save_all=True, append_images=[later], compression="tiff_lzw"))
        assert (seen.changes, difference(seen.pixels, corners())) == ([Change.first_page], 0)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "JPEG2000", "BMP"])
def test_other_formats(kind: str) -> None:
    assert difference(as_seen(reopened(corners((96, 64)), kind)).pixels, corners((96, 64))) < 6


class TestSizes:
    @pytest.mark.parametrize(
        ("size", "expected"), [((1, 1), (56, 56)), ((56, 80), (56, 80)), ((28, 100), (56, 200)), ((300, 7), (2400, 56))]
    )
    def test_small_ones_are_enlarged_for_the_model(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        assert enlarged(PIL.Image.new("RGB", size)).size == expected
        assert open_image(PIL.Image.new("RGB", size)).size == expected

    @pytest.mark.parametrize(
        ("size", "expected"),
        [((40, 20), (40, 20)), ((80, 40), (40, 20)), ((1000, 10), (100, 1)), ((10, 1000), (1, 100))],
    )
    def test_large_ones_are_scaled_down(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        assert scaled_down(PIL.Image.new("RGB", size), most_pixels=800, most_side=100).size == expected
