"""Pictures as people see them: one conversion of a file into the pixels that pages show and models read."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageCms

ORIENTATION = 0x0112  # of EXIF and TIFF
UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
COLOUR_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}


class Change(StrEnum):
    """What was done to the pixels of a file."""

    turned = "turned"  # as its orientation says
    profile = "profile"  # colours of another profile converted to sRGB
    colours = "colours"  # CMYK, Lab or another space converted to RGB
    depth = "depth"  # more than 8 bits a channel scaled to 8
    flattened = "flattened"  # transparency laid onto white
    first_frame = "first_frame"  # of an animation
    first_page = "first_page"  # of several pictures in the file
    scaled_down = "scaled_down"
    recoded = "recoded"  # into another file format


@dataclass(slots=True)
class Seen:
    """A picture in RGB or grey, 8 bits a channel, and what was done for it."""

    pixels: PIL.Image.Image
    changes: list[Change] = field(default_factory=list)


def as_seen(picture: PIL.Image.Image) -> Seen:
    """Convert an opened picture: its first full frame, upright, in sRGB, 8 bits a channel, no transparency but white.

    A profile or an orientation that cannot be read is passed over, as browsers do. Raises ValueError for pixels that
    say no colours (32-bit numbers), and whatever the decoder raises for a broken file.
    """
    changes: list[Change] = []
    if picture.format == "TIFF" and _orientation(picture) in UPRIGHT:
        changes.append(Change.turned)  # by Pillow itself, as soon as it is loaded
    frame = _first_frame(picture, changes)
    frame = _turn(frame, changes)
    alpha = frame.convert("RGBA").getchannel("A") if _is_transparent(frame) else None
    pixels = _to_srgb(_to_8_bits(frame, changes), changes)
    if alpha is not None and alpha.getextrema()[0] != 255:
        changes.append(Change.flattened)
        white = PIL.Image.new("RGB", pixels.size, "white")
        white.paste(pixels, mask=alpha)
        pixels = white
    return Seen(pixels, changes)


def _is_transparent(picture: PIL.Image.Image) -> bool:
    """Whether a picture may have transparent pixels that Pillow can tell."""
    return picture.has_transparency_data and not picture.mode.startswith(("I", "F"))


def _first_frame(picture: PIL.Image.Image, changes: list[Change]) -> PIL.Image.Image:
    """The first frame that is shown, on the whole canvas."""
    if getattr(picture, "is_animated", False):
        paged = picture.format in ("TIFF", "MPO", "HEIF")
        changes.append(Change.first_page if paged else Change.first_frame)
        if getattr(picture, "default_image", False):  # of an APNG: shown only where animations are not
            picture.seek(1)
    tile = getattr(picture, "tile", None)
    part = tuple(tile[0][1]) if tile and picture.format == "GIF" else None
    depth = "16" in str(tile[0][3]) if tile and picture.mode in ("RGB", "RGBA", "LA") else False
    picture.load()
    if depth:
        changes.append(Change.depth)
    if part is None or part == (0, 0, *picture.size):
        return picture
    canvas = PIL.Image.new("RGBA", picture.size)
    canvas.paste(picture.convert("RGBA").crop(part), part)
    return canvas


def _orientation(picture: PIL.Image.Image) -> int | None:
    """How the camera was held, as the picture's EXIF data say."""
    try:
        orientation = picture.getexif().get(ORIENTATION)
    except Exception:  # noqa: BLE001 - EXIF data that cannot be read say nothing; the picture is there
        return None
    return orientation if isinstance(orientation, int) else None


def _turn(picture: PIL.Image.Image, changes: list[Change]) -> PIL.Image.Image:
    """Turn a picture as its EXIF data say. Pillow's own function writes them again, and fails for a mistyped field."""
    turn = UPRIGHT.get(_orientation(picture) or 0)
    if turn is None:
        return picture
    changes.append(Change.turned)
    return picture.transpose(turn)


def _to_8_bits(picture: PIL.Image.Image, changes: list[Change]) -> PIL.Image.Image:
    """Scale 16-bit greys to 8 bits. Raises ValueError for greater numbers and fractions."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    if picture.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65_535:
        raise ValueError("its pixels are numbers of 32 bits, which say no colours")
    changes.append(Change.depth)
    grey = PIL.Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    grey.info = {name: value for name, value in picture.info.items() if name == "icc_profile"}
    return grey


def _to_srgb(picture: PIL.Image.Image, changes: list[Change]) -> PIL.Image.Image:
    """Convert the colours to RGB as browsers take it (sRGB); greys without a profile stay grey."""
    embedded = picture.info.get("icc_profile")
    if picture.mode in ("1", "LA", "La"):
        picture = picture.convert("L")
    elif picture.mode in ("P", "PA", "RGBA", "RGBa", "RGBX"):
        picture = picture.convert("RGB")
    if isinstance(embedded, bytes) and embedded:
        converted = _from_profile(picture, embedded)
        if converted is not None:
            changes.append(Change.profile)
            return converted
    if picture.mode == "LAB":
        changes.append(Change.colours)
        return _transformed(picture, ImageCms.createProfile("LAB"))
    if picture.mode not in ("RGB", "L"):
        changes.append(Change.colours)
        return picture.convert("RGB")
    return picture


def _from_profile(picture: PIL.Image.Image, embedded: bytes) -> PIL.Image.Image | None:
    """The picture in sRGB; None where it is already, or where the profile is broken or another mode's."""
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        if COLOUR_SPACES.get(profile.profile.xcolor_space) != picture.mode:
            return None
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return None
        return _transformed(picture, profile)
    return None


def _transformed(picture: PIL.Image.Image, profile: Any) -> PIL.Image.Image:
    """A copy in sRGB. Raises PyCMSError for a profile that cannot be used."""
    found = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if found is None:
        raise ImageCms.PyCMSError("no picture")
    return found


def enlarged(pixels: PIL.Image.Image, *, least: int = 56) -> PIL.Image.Image:
    """The picture with a shorter side of at least `least` pixels: some models fail for smaller ones."""
    short = min(pixels.size)
    if short >= least:
        return pixels
    scale = least / short
    return pixels.resize((round(pixels.width * scale), round(pixels.height * scale)), PIL.Image.Resampling.BICUBIC)


def scaled_down(picture: PIL.Image.Image, *, most_pixels: int, most_side: int) -> PIL.Image.Image:
    """The picture with at most so many pixels, and pixels a side, its sides in the same proportion."""
    scale = min((most_pixels / (picture.width * picture.height)) ** 0.5, most_side / max(picture.size))
    if scale >= 1:
        return picture
    size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    return picture.resize(size, PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
