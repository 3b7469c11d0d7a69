"""Pictures of others, decoded and written anew, in a child process. Keep imports few.

`images.reencode` and `derivatives.make` ask for it.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from PIL import ImageFile, UnidentifiedImageError

from app.errors import Invalid, TooLarge

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000
MAX_SIDE = 20_000
# What Pillow calls a file, and how it is written anew. MPO is JPEG with further pictures behind the first.
OUTPUT_FORMATS = {"PNG": "PNG", "GIF": "PNG", "JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP"}
OUTPUT_MODES = {"PNG": ("RGB", "RGBA", "L"), "JPEG": ("RGB", "L"), "WEBP": ("RGB", "RGBA")}
# WebP has transparency, and is a third smaller than JPEG. Thumbnails are kept under a number of bytes, because a page
# shows many at once.
DERIVATIVE_TYPE = "image/webp"
WEBP_MAX_SIDE = 16_383
THUMBNAIL_BYTES = {96: 4_000, 480: 16_000}
THUMBNAIL_QUALITIES = (80, 65, 50, 35, 20, 5)
DERIVATIVE_QUALITY = 85
MARKUP = {b"<svg": "SVG", b"<!doctype html": "HTML", b"<html": "HTML", b"<?xml": "XML or SVG"}
ORIENTATION = 0x0112
UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


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


def decode(data: bytes) -> EncodedImage:
    """Decode `data` and re-encode it, upright and without metadata.

    Raises `TooLarge` over 20 MB or 40 megapixels, `Invalid` for anything but PNG, JPEG, WebP and GIF, and whatever the
    decoder raises for a broken image.
    """
    check_bytes(data)
    with _opened(data) as picture:
        return _write(picture)


def shrink(data: bytes, width: int) -> bytes:
    """Return a stored picture as a WebP file `width` pixels wide. Raises whatever the decoder raises."""
    with PIL.Image.open(io.BytesIO(data)) as picture:
        scale = min(width / picture.width, WEBP_MAX_SIDE / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture.draft(picture.mode, (size[0] * 2, size[1] * 2))  # a JPEG is decoded at about the size that is needed
        mode = "RGBA" if picture.has_transparency_data else "RGB"
        small = picture.convert(mode).resize(size, PIL.Image.Resampling.LANCZOS)
    most = THUMBNAIL_BYTES.get(width)
    if most is None:
        return _webp(small, DERIVATIVE_QUALITY)
    for quality in THUMBNAIL_QUALITIES:
        made = _webp(small, quality)
        if len(made) <= most:
            break
    return made


def _webp(picture: PIL.Image.Image, quality: int) -> bytes:
    """Write a picture as WebP."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality)
    return file.getvalue()


def check_bytes(data: bytes) -> None:
    """Raise `TooLarge` for too many bytes, and `Invalid` for markup disguised as an image."""
    if len(data) > MAX_BYTES:
        raise TooLarge(f"The image has over {MAX_BYTES // 1024 // 1024} MB.", field="image")
    start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = next((kind for mark, kind in MARKUP.items() if start.startswith(mark)), None)
    if kind is not None:
        raise Invalid(f"This is {kind}, not an image: PNG, JPEG, WebP and GIF are accepted.", field="image")


def check_file(path: Path) -> None:
    """Raise as `decode` for what the first bytes of a file say, without decoding a pixel."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    check_bytes(data)
    _opened(data).close()


def _opened(data: bytes) -> ImageFile.ImageFile:
    """Open a picture whose size is allowed by its header. Raises `TooLarge`, `Invalid`."""
    too_large = f"The image has over {MAX_PIXELS // 1_000_000} megapixels."
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=[one for one in OUTPUT_FORMATS if one != "MPO"])
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise TooLarge(too_large, field="image") from error
    except UnidentifiedImageError as error:
        raise Invalid("This is not a PNG, JPEG, WebP or GIF image.", field="image") from error
    if picture.width * picture.height > MAX_PIXELS or max(picture.size) > MAX_SIDE:
        raise TooLarge(too_large, field="image")
    return picture


def _write(picture: ImageFile.ImageFile) -> EncodedImage:
    """Write the first frame of `picture`, upright and without metadata."""
    target = OUTPUT_FORMATS[picture.format or "PNG"]
    upright = _upright(picture)
    if upright.mode not in OUTPUT_MODES[target]:
        upright = _to_rgb(upright, transparent=target != "JPEG")
    clean = PIL.Image.new(upright.mode, upright.size)
    clean.paste(upright)
    file = io.BytesIO()
    options = {"PNG": {"compress_level": 4}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
    clean.save(file, target, **options[target])
    return EncodedImage(file.getvalue(), f"image/{target.lower()}", clean.width, clean.height)


def _upright(picture: ImageFile.ImageFile) -> PIL.Image.Image:
    """Turn a picture as its EXIF data say. Pillow's own function writes them again, and fails for a mistyped field."""
    picture.load()
    try:
        orientation = picture.getexif().get(ORIENTATION)
    except Exception:  # noqa: BLE001 - EXIF data that cannot be read say nothing; the picture is there
        return picture
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: PIL.Image.Image, *, transparent: bool) -> PIL.Image.Image:
    """Convert to RGB, or to RGBA if the picture is transparent and may stay so; 16-bit greys keep their high byte."""
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if transparent and picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("RGB")
