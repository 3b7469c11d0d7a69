"""Derivatives of images: their size in pixels and bytes, and that they are made once, or twice without harm."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import PIL.Image
import pytest

from app.errors import NotFound
from app.services.kernel.store import DerivativeWidth, get_store
from app.services.prompts import derivatives
from app.services.prompts.decoding import DERIVATIVE_BYTES, WEBP_MAX_SIDE, may_be_transparent, shrink
from tests import factories

Result = TypeVar("Result")


def encoded(mode: str, kind: str, size: tuple[int, int], colour: float | tuple[int, ...] | None = None) -> bytes:
    file = io.BytesIO()
    PIL.Image.new(mode, size, colour).save(file, kind)
    return file.getvalue()


def opened(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))


def in_a_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` in a thread of its own: another plugin's loop may run in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()


class TestShrink:
    @pytest.mark.parametrize(
        ("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("RGB", "WEBP")]
    )
    def test_colours_stay(self, mode: str, kind: str) -> None:
        grey = 90 if mode == "L" else (90, 90, 90)
        small = opened(shrink(encoded(mode, kind, (1000, 750), grey), 480))
        assert small.size == (480, 360)
        pixel = small.convert("RGB").getpixel((240, 180))
        assert isinstance(pixel, tuple)
        assert all(abs(value - 90) < 4 for value in pixel)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_transparency_is_laid_onto_white(self, kind: str) -> None:
        small = opened(shrink(encoded("RGBA", kind, (300, 300), (255, 0, 0, 0)), 96))
        assert small.convert("RGBA").getpixel((48, 48)) == (255, 255, 255, 255)

    @pytest.mark.parametrize(
        ("mode", "kind", "options", "expected"),
        [
            ("RGB", "PNG", {}, False),
            ("P", "PNG", {}, False),
            ("P", "PNG", {"transparency": 0}, True),
            ("RGBA", "PNG", {}, True),
            ("LA", "PNG", {}, True),
            ("RGB", "WEBP", {}, False),
            ("RGB", "WEBP", {"lossless": True}, False),
            ("RGBA", "WEBP", {}, True),
            ("RGBA", "WEBP", {"lossless": True}, True),
            ("RGB", "WEBP", {"icc_profile": b"a profile makes a longer header"}, False),
            ("RGB", "JPEG", {}, False),
        ],
    )
    def test_whether_it_is_transparent(self, mode: str, kind: str, options: dict[str, Any], *, expected: bool) -> None:
        file = io.BytesIO()
        PIL.Image.new(mode, (30, 20)).save(file, kind, **options)
        assert may_be_transparent(file.getvalue()) is expected

    @pytest.mark.parametrize("size", [(19_000, 80), (500, 19_000)])
    def test_extreme_shapes(self, size: tuple[int, int]) -> None:
        small = opened(shrink(encoded("L", "PNG", size), 480))
        assert 1 <= small.width <= 480
        assert 1 <= small.height <= WEBP_MAX_SIDE

    @pytest.mark.parametrize("size", [(1600, 1200), (1200, 1600)])
    def test_thumbnails_of_photographs_are_light(self, size: tuple[int, int]) -> None:
        photo = factories.photograph(size=size)
        assert set(DERIVATIVE_BYTES) == set(DerivativeWidth)
        for width in (DerivativeWidth.small, DerivativeWidth.medium):
            assert 500 < len(shrink(photo, width)) <= DERIVATIVE_BYTES[width]

    def test_a_large_one_is_as_good_as_fits_and_never_poor(self) -> None:
        plain = shrink(factories.image_bytes(size=(1700, 1300)), 1600)
        assert len(plain) < DERIVATIVE_BYTES[1600] / 4
        tall = shrink(factories.photograph(size=(3000, 4000)), 1600)
        assert DERIVATIVE_BYTES[1600] / 2 < len(tall) <= DERIVATIVE_BYTES[1600]
        long = shrink(factories.photograph(size=(1700, 4000)), 1600)  # a page of text has to be read
        assert len(long) > DERIVATIVE_BYTES[1600]


class TestMake:
    def test_many_first_requests(self) -> None:
        key = get_store().put_bytes(factories.image_bytes(size=(700, 400)))

        async def ask() -> list[bytes | None]:
            return await asyncio.gather(*(derivatives.make(key, DerivativeWidth.medium) for _ in range(6)))

        made = in_a_loop(ask())
        assert set(made) == {derivatives.find(key, DerivativeWidth.medium)}
        assert opened(made[0] or b"").size == (480, 274)

    def test_an_image_that_is_gone(self) -> None:
        with pytest.raises(NotFound):
            in_a_loop(derivatives.make("0" * 64, DerivativeWidth.small))
