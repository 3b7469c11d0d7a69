"""Pictures of others, decoded and written anew, in a child process. Keep imports few.

`images.reencode` and `derivatives.make` ask for it.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pillow_heif
from PIL import ImageFile, UnidentifiedImageError

from app.errors import Invalid, TooLarge
from illume.phrases import Number, Phrase, _
from illume.pictures import Change, as_seen, scaled_down

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000
MAX_SIDE = 20_000
MAX_SCALED_PIXELS = 250_000_000  # what is scaled down on request: its pixels have to fit into the memory of a child
# What Pillow calls a file, and how it is written anew: photographs as JPEG, everything else without loss. MPO is JPEG
# with further pictures behind the first.
OUTPUT_FORMATS = {
    "PNG": "PNG",
    "GIF": "PNG",
    "BMP": "PNG",
    "TIFF": "PNG",
    "JPEG": "JPEG",
    "MPO": "JPEG",
    "HEIF": "JPEG",
    "AVIF": "JPEG",
    "JPEG2000": "JPEG",
    "WEBP": "WEBP",
}
SAME_FORMAT = frozenset({("PNG", "PNG"), ("JPEG", "JPEG"), ("MPO", "JPEG"), ("WEBP", "WEBP")})
ACCEPTED = "PNG, JPEG, WebP, GIF, TIFF, BMP, HEIC, AVIF, JPEG 2000"
# WebP is a third smaller than JPEG. Of thumbnails a page shows many at once, and the judging page loads the large ones
# of the next prompts ahead: both have a number of bytes, and as much quality as fits. Large ones keep a quality that
# shows what a critic looks for; to zoom, the original is loaded.
DERIVATIVE_TYPE = "image/webp"
WEBP_MAX_SIDE = 16_383
DERIVATIVE_BYTES = {96: 4_000, 480: 16_000, 1600: 280_000}
THUMBNAIL_QUALITIES = (80, 65, 50, 35, 20, 5)
LARGE_QUALITIES = (85, 75)
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_WITH_ALPHA = (4, 6)  # its colour types
MARKUP = {b"<svg": "SVG", b"<!doctype html": "HTML", b"<html": "HTML", b"<?xml": "XML or SVG"}

pillow_heif.register_heif_opener(thumbnails=False)
PIL.Image.MAX_IMAGE_PIXELS = MAX_SCALED_PIXELS  # `_opened` has the limits


class TooManyPixels(TooLarge):
    """An image that is too large as it is, and would be taken if it were scaled down."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A decoded and re-encoded image, not yet stored."""

    data: bytes
    media_type: str
    width: int
    height: int
    changes: tuple[Change, ...] = ()
    name: str | None = None  # of the file that it was

    @property
    def sha256(self) -> str:
        """Its name in the store."""
        return hashlib.sha256(self.data).hexdigest()


def decode(data: bytes, scale_down: bool = False) -> EncodedImage:
    """Decode `data` and re-encode it as people see it (`illume.pictures`), without metadata.

    With `scale_down`, what has over 40 megapixels is scaled down to them. Raises `TooLarge` over 20 MB or else over 40
    megapixels, `Invalid` for a file that is no picture of an accepted format, and whatever the decoder raises for a
    broken one.
    """
    check_bytes(data)
    with _opened(data, most_pixels=MAX_SCALED_PIXELS if scale_down else MAX_PIXELS) as picture:
        return _write(picture)


def may_be_transparent(data: bytes) -> bool:
    """Whether a stored picture may have transparent pixels, as its first bytes say: few do, stored long ago."""
    if data.startswith(PNG_START):
        return data[25] in PNG_WITH_ALPHA or b"tRNS" in data[: data.find(b"IDAT")]
    if data[12:16] == b"VP8X":
        return bool(data[20] & 0x10)
    return data[12:16] == b"VP8L" and bool(data[24] & 0x10)


def shrink(data: bytes, width: int) -> bytes:
    """Return a stored picture as a WebP file at most `width` pixels wide. Raises whatever the decoder raises."""
    with PIL.Image.open(io.BytesIO(data)) as picture:
        scale = min(1.0, width / picture.width, WEBP_MAX_SIDE / max(picture.size))
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture.draft(picture.mode, (size[0] * 2, size[1] * 2))  # a JPEG is decoded at about the size that is needed
        small = as_seen(picture).pixels.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
    for quality in LARGE_QUALITIES if width == max(DERIVATIVE_BYTES) else THUMBNAIL_QUALITIES:
        made = _webp(small, quality)
        if len(made) <= DERIVATIVE_BYTES[width]:
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
        raise TooLarge(_("The image is over %(value)s MB.", value=MAX_BYTES // 1024 // 1024), field="image")
    start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = next((kind for mark, kind in MARKUP.items() if start.startswith(mark)), None)
    if kind is not None:
        raise Invalid(
            _("This is %(kind)s, not an image of a format that is read: %(accepted)s.", kind=kind, accepted=ACCEPTED),
            field="image",
        )


def check_file(path: Path) -> None:
    """Raise as `decode` with `scale_down` for what the first bytes of a file say, without decoding a pixel."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    check_bytes(data)
    _opened(data, most_pixels=MAX_SCALED_PIXELS).close()


def _opened(data: bytes, *, most_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """Open a picture whose size is allowed by its header. Raises `TooLarge`, `Invalid`."""
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=[one for one in OUTPUT_FORMATS if one != "MPO"])
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise TooLarge(
            _("The image has over %(value)s megapixels.", value=most_pixels // 1_000_000), field="image"
        ) from error
    except UnidentifiedImageError as error:
        raise Invalid(
            _("This is not an image of a format that is read: %(accepted)s.", accepted=ACCEPTED), field="image"
        ) from error
    pixels, side = picture.width * picture.height, max(picture.size)
    if pixels > most_pixels or (side > MAX_SIDE and most_pixels == MAX_PIXELS):
        kind = TooManyPixels if pixels <= MAX_SCALED_PIXELS else TooLarge
        raise kind(_describe_size(picture, most_pixels), field="image")
    return picture


def _describe_size(picture: PIL.Image.Image, most_pixels: int) -> Phrase:
    """Why a picture is too large: its size, and which limit that exceeds."""
    pixels = picture.width * picture.height
    size = {"width": Number(picture.width), "height": Number(picture.height), "n": Number(pixels / 1_000_000, 1)}
    if pixels > most_pixels:
        return _(
            "The image has %(width)s x %(height)s pixels (%(n)s megapixels); at most %(most)s megapixels are taken.",
            most=most_pixels // 1_000_000,
            **size,
        )
    return _(
        "The image has %(width)s x %(height)s pixels (%(n)s megapixels); at most %(most)s pixels a side are taken.",
        most=Number(MAX_SIDE),
        **size,
    )


def _write(picture: ImageFile.ImageFile) -> EncodedImage:
    """Write the first frame of `picture` as people see it, with at most `MAX_PIXELS`, without metadata."""
    kind = picture.format or "PNG"
    target = OUTPUT_FORMATS[kind]
    seen = as_seen(picture)
    changes, pixels = list(seen.changes), seen.pixels
    small = scaled_down(pixels, most_pixels=MAX_PIXELS, most_side=MAX_SIDE)
    if small.size != pixels.size:
        changes.append(Change.scaled_down)
    if (kind, target) not in SAME_FORMAT:
        changes.append(Change.recoded)
    if target == "WEBP":
        small = small.convert("RGB")
    clean = PIL.Image.new(small.mode, small.size)
    clean.paste(small)
    file = io.BytesIO()
    options = {"PNG": {"compress_level": 4}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
    clean.save(file, target, **options[target])
    return EncodedImage(file.getvalue(), f"image/{target.lower()}", clean.width, clean.height, tuple(changes))
