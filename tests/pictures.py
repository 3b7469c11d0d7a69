"""Forty files of pictures, as cameras, scanners and drawing programs write them, and what a person sees in each."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image
import pillow_heif
from PIL import ImageCms

from illume.pictures import ORIENTATION, UPRIGHT

pillow_heif.register_heif_opener()
SIZE = (128, 80)
# The quarters of a picture, from left to right and from top to bottom: none is pure, so that every profile has them.
QUARTERS = ((200, 70, 60), (80, 170, 90), (70, 90, 180), (235, 225, 215))
GREYS = (20, 90, 160, 230)
OPACITIES = (255, 0, 128, 255)
CLEAR = tuple((*colour, alpha) for colour, alpha in zip(QUARTERS, OPACITIES, strict=True))
# Columns: red, green and blue of Display P3 as XYZ under D50.
P3 = np.array([[0.515102, 0.291965, 0.157153], [0.241182, 0.692236, 0.066582], [-0.00105, 0.041882, 0.784378]])
SRGB = np.array([[0.436066, 0.385147, 0.143066], [0.222488, 0.716873, 0.060608], [0.013916, 0.097076, 0.714096]])
Colour = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file, and the picture in it as a person sees it.

    `browser`: how well a browser reads the file itself: like everybody, or not at all, or in its own way.
    `most`: by how many steps of 255 a pixel may differ on the average, for what is written with losses.
    """

    name: str
    data: bytes
    seen: PIL.Image.Image
    browser: Literal["same", "none", "other"] = "same"
    most: float = 1.0


def quarters(
    colours: tuple[Any, ...] = QUARTERS, *, mode: str = "RGB", size: tuple[int, int] = SIZE
) -> PIL.Image.Image:
    """A picture with another colour in each quarter."""
    picture = PIL.Image.new(mode, size)
    width, height = size[0] // 2, size[1] // 2
    for number, colour in enumerate(colours):
        left, top = number % 2 * width, number // 2 * height
        picture.paste(colour, (left, top, left + width, top + height))
    return picture


def written(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    """A file of a picture."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def onto_white(colour: Colour, alpha: int) -> Colour:
    """A colour of some opacity, laid onto white."""
    return tuple(round((value * alpha + 255 * (255 - alpha)) / 255) for value in colour)


# Profiles


def p3_profile() -> bytes:
    """Display P3: the curve and white of sRGB with other primaries."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(int.from_bytes(profile[128:132], "big")):
        name, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            column = P3[:, b"rgb".index(name[:1])]
            struct.pack_into(">3i", profile, start + 8, *(round(value * 65_536) for value in column))
        elif name == b"desc":
            text = profile[start : start + size].replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
            profile[start : start + size] = text
    return bytes(profile)


def as_p3(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The values that mean the colours of an sRGB picture under `p3_profile`."""
    values = np.asarray(picture) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    other = (linear @ (np.linalg.inv(P3) @ SRGB).T).clip(0, 1)
    curved = np.where(other <= 0.0031308, other * 12.92, 1.055 * other ** (1 / 2.4) - 0.055)
    return PIL.Image.fromarray((curved * 255).round().astype(np.uint8))


def ink_profile() -> bytes:
    """A profile of four inks: each alone makes one of `QUARTERS`, no ink is white and all others are black."""
    lab = ImageCms.createProfile("LAB")
    strip = PIL.Image.new("RGB", (4, 1))
    strip.putdata(QUARTERS)
    values = ImageCms.profileToProfile(strip, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert values is not None
    table = [bytes((0, 128, 128))] * 16
    table[0] = bytes((255, 128, 128))
    # Pillow keeps a and b as signed bytes; the table has them from 0 to 255.
    for number, ink in enumerate(np.asarray(values)[0] ^ np.array((0, 128, 128), np.uint8)):
        table[8 >> number] = bytes(ink)
    straight = bytes(range(256))
    matrix = struct.pack(">9i", *(65_536 if number % 4 == 0 else 0 for number in range(9)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + straight * 4 + b"".join(table) + straight * 3
    said = b"Four strange inks\x00"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(said)) + said + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\x00",
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63_190, 65_536, 54_061),
        b"A2B0": lut,
    }
    entries, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        entries += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = bytearray(128)
    struct.pack_into(">I4sI4s4s4s", header, 0, start + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, 63_190, 65_536, 54_061)
    return bytes(header) + struct.pack(">I", len(tags)) + entries + body


INKS = tuple(tuple(255 if place == number else 0 for place in range(4)) for number in range(4))


# Files that Pillow does not write


def deep_png(colours: tuple[Colour, ...]) -> bytes:
    """A PNG with 16 bits a channel: colours of 3 or 4 channels, or of 1, given in 8 bits."""
    width, height = SIZE
    channels = len(colours[0])
    values = np.zeros((height, width, channels), ">u2")
    for number, colour in enumerate(colours):
        rows = slice(number // 2 * height // 2, (number // 2 + 1) * height // 2)
        columns = slice(number % 2 * width // 2, (number % 2 + 1) * width // 2)
        values[rows, columns] = np.array(colour) * 257
    lines = b"".join(b"\x00" + line.tobytes() for line in values)
    kind = {1: 0, 3: 2, 4: 6}[channels]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    )


def partial_gif() -> tuple[bytes, PIL.Image.Image]:
    """A GIF whose first frame covers a part of its canvas, and what is seen: white lies around it."""
    part = quarters().quantize(4)
    data = bytearray(written(part, "GIF"))
    canvas = (160, 112)
    data[6:10] = struct.pack("<HH", *canvas)
    place = data.index(b"\x2c", 13 + 3 * 4)
    data[place + 1 : place + 5] = struct.pack("<HH", 16, 8)
    seen = PIL.Image.new("RGB", canvas, "white")
    seen.paste(part.convert("RGB"), (16, 8))
    return bytes(data), seen


# The forty


def oriented() -> Iterator[PictureFile]:
    """The eight orientations of a camera, and some of them in other formats."""
    for kind, orientation in [
        *(("JPEG", one) for one in range(1, 9)),
        ("PNG", 6),
        ("WEBP", 5),
        ("WEBP", 8),
        ("TIFF", 6),
    ]:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        back = {6: 8, 8: 6}.get(orientation, orientation)
        stored = quarters().transpose(UPRIGHT[back]) if back in UPRIGHT else quarters()
        by_kind: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
        options = by_kind.get(kind, {})
        browser: Any = {"TIFF": "none", "WEBP": "other"}.get(kind, "same")  # Chromium does not turn WebP
        yield PictureFile(
            f"turned-{orientation}.{kind.lower()}", written(stored, kind, exif=exif, **options), quarters(), browser, 3
        )


def coloured() -> Iterator[PictureFile]:
    """Profiles, inks, greys and depths."""
    wide, profile, inks = as_p3(quarters()), p3_profile(), ink_profile()
    grey = quarters(GREYS, mode="L")
    four = quarters(INKS, mode="CMYK")
    plain = quarters().convert("CMYK")
    sharp = {"quality": 95, "subsampling": 0}
    yield PictureFile("p3.jpg", written(wide, "JPEG", icc_profile=profile, **sharp), quarters(), most=3)
    yield PictureFile("p3.png", written(wide, "PNG", icc_profile=profile), quarters(), most=2)
    yield PictureFile("p3.webp", written(wide, "WEBP", icc_profile=profile, lossless=True), quarters(), most=3)
    yield PictureFile("cmyk.jpg", written(plain, "JPEG", **sharp), quarters(), "other", 4)
    yield PictureFile("cmyk-profile.jpg", written(four, "JPEG", icc_profile=inks, **sharp), quarters(), "other", 4)
    yield PictureFile("cmyk-profile.tiff", written(four, "TIFF", icc_profile=inks), quarters(), "none", 2)
    yield PictureFile("grey.jpg", written(grey, "JPEG", progressive=True, **sharp), grey.convert("RGB"), most=3)
    yield PictureFile("deep-grey.png", deep_png(tuple((one,) for one in GREYS)), grey)
    yield PictureFile("deep.png", deep_png(QUARTERS), quarters(), most=1)
    on_white = quarters(tuple(onto_white(one[:3], one[3]) for one in CLEAR))
    yield PictureFile("deep-clear.png", deep_png(CLEAR), on_white, most=1)
    deep = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    yield PictureFile("deep.tiff", written(deep, "TIFF", compression="tiff_lzw"), grey, "none")


def clear() -> Iterator[PictureFile]:
    """Transparent files: black or a colour lies under what is not seen."""
    seen = quarters(tuple(onto_white(one[:3], one[3]) for one in CLEAR))
    picture = quarters(CLEAR, mode="RGBA")
    yield PictureFile("clear.png", written(picture, "PNG"), seen)
    yield PictureFile("clear.webp", written(picture, "WEBP", lossless=True, exact=True), seen, most=3)
    yield PictureFile("clear.avif", written(picture, "AVIF", quality=95), seen, most=4)
    yield PictureFile("clear.heic", written(picture, "HEIF", quality=95), seen, "none", 4)
    palette = quarters().quantize(4)
    index = palette.getpixel((0, 0))
    holed = quarters(((255, 255, 255), *QUARTERS[1:]))
    yield PictureFile("palette.png", written(palette, "PNG", transparency=index), holed)
    yield PictureFile("palette.gif", written(palette, "GIF", transparency=index), holed)
    shade = quarters(tuple(zip(GREYS, OPACITIES, strict=True)), mode="LA")
    on_white = tuple(onto_white((one,), alpha)[0] for one, alpha in zip(GREYS, OPACITIES, strict=True))
    yield PictureFile("grey-clear.png", written(shade, "PNG"), quarters(on_white, mode="L"))


def moving() -> Iterator[PictureFile]:
    """Animations, and files of several pages."""
    half = quarters()
    half.paste("black", (64, 40, 128, 80))  # which a GIF keeps as a part of the canvas

    def black() -> PIL.Image.Image:  # a new one each time: a picture keeps how it was written last
        return PIL.Image.new("RGB", SIZE, "black")

    yield PictureFile(
        "moving.gif", written(quarters().quantize(4), "GIF", save_all=True, append_images=[half]), quarters()
    )
    data, seen = partial_gif()
    yield PictureFile("partial.gif", data, seen)
    yield PictureFile("moving.png", written(quarters(), "PNG", save_all=True, append_images=[black()]), quarters())
    hidden = {"save_all": True, "default_image": True, "append_images": [quarters(), half]}
    yield PictureFile("default.png", written(black(), "PNG", **hidden), quarters(), "other")
    yield PictureFile(
        "moving.webp",
        written(quarters(), "WEBP", lossless=True, save_all=True, append_images=[black()]),
        quarters(),
        most=3,
    )
    yield PictureFile(
        "pages.tiff", written(quarters(), "TIFF", save_all=True, append_images=[black()]), quarters(), "none"
    )


def others() -> Iterator[PictureFile]:
    """Other formats, and sizes at the limits."""
    yield PictureFile("plain.avif", written(quarters(), "AVIF", quality=95), quarters(), most=4)
    yield PictureFile("plain.jp2", written(quarters(), "JPEG2000"), quarters(), "none", 2)
    yield PictureFile(
        "one.png",
        written(PIL.Image.new("RGB", (1, 1), QUARTERS[0]), "PNG"),
        quarters(QUARTERS[:1] * 4, size=(2, 2)).resize((1, 1)),
    )
    long = quarters(size=(20_000, 50))
    yield PictureFile("long.png", written(long, "PNG"), long)


def forty_files() -> list[PictureFile]:
    """All of them."""
    return [*oriented(), *coloured(), *clear(), *moving(), *others()]
