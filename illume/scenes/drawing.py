"""Draws a scene: a sky for weather and time of day, a background for the setting, and the objects in their cells."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFilter

from illume.scenes.graph import Scene
from illume.scenes.kinds import INDOORS, KINDS

SIZE = 192
HORIZON = 66
_COLUMN_X = {"left": 35, "middle": 96, "right": 157}
_ROW_Y = {"back": 118, "front": 184}  # the bottom of the objects
_WINDOW = (10, 6, 182, 56)

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive

_SKIES: dict[str, tuple[Color, Color]] = {
    "morning": ((176, 214, 250), (255, 226, 150)),
    "noon": ((52, 140, 245), (168, 218, 255)),
    "evening": ((112, 60, 140), (255, 128, 66)),
    "night": ((8, 10, 44), (38, 46, 98)),
}
_LIGHT = {"morning": (255, 246, 222), "noon": (255, 255, 255), "evening": (255, 204, 178), "night": (112, 122, 178)}
_GROUNDS: dict[str, tuple[Color, Color]] = {
    "beach": ((244, 222, 160), (252, 236, 190)),
    "park": ((116, 190, 82), (150, 214, 106)),
    "street": ((128, 130, 138), (96, 98, 106)),
    "mountain": ((126, 150, 112), (160, 172, 136)),
    "desert": ((236, 176, 96), (246, 200, 128)),
    "farm": ((186, 152, 88), (206, 178, 104)),
    "kitchen": ((226, 232, 236), (202, 212, 220)),
    "library": ((152, 66, 62), (176, 84, 74)),
}


def _blend(one: Color, other: Color, share: float) -> Color:
    mixed = [round(a + (b - a) * share) for a, b in zip(one, other, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _make_gradient(top: Color, bottom: Color, width: int, height: int) -> Image.Image:
    strip = Image.new("RGB", (1, max(1, height)))
    strip.putdata([_blend(top, bottom, y / max(1, height - 1)) for y in range(max(1, height))])
    return strip.resize((width, max(1, height)))


def _light_color(color: Color, time: str) -> Color:
    """The colour in the light of this time of day."""
    light = _LIGHT[time]
    return color[0] * light[0] // 255, color[1] * light[1] // 255, color[2] * light[2] // 255


def _draw_sky(scene: Scene, rng: random.Random) -> Image.Image:
    """The sky strip, the image's width by HORIZON + 10."""
    height = HORIZON + 10
    top, bottom = _SKIES[scene.time]
    if scene.weather != "clear":
        grey = {"morning": (206, 206, 202), "noon": (176, 186, 198), "evening": (170, 124, 122), "night": (34, 36, 58)}
        share = {"cloudy": 0.45, "rainy": 0.7, "snowy": 0.6}[scene.weather]
        top, bottom = _blend(top, grey[scene.time], share), _blend(bottom, grey[scene.time], share)
    sky = _make_gradient(top, bottom, SIZE, height)
    draw = ImageDraw.Draw(sky, "RGBA")
    if scene.time == "night" and scene.weather == "clear":
        for _ in range(40):
            x, y, r = rng.randrange(SIZE), rng.randrange(height), rng.choice((0.6, 0.9, 1.4))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 230, 235))
    _draw_sun_or_moon(draw, scene, rng)
    if scene.weather != "clear":
        _draw_clouds(draw, scene, rng)
    return sky


def _draw_sun_or_moon(draw: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    """Draws the sun or the moon."""
    jitter = rng.randint(-8, 8)
    if scene.time == "night":
        x, y, r = 160 + jitter, 20, 12
        draw.ellipse((x - r - 5, y - r - 5, x + r + 5, y + r + 5), fill=(230, 230, 255, 50))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 244, 214))
        draw.ellipse((x - r + 8, y - r - 3, x + r + 6, y + r - 5), fill=_SKIES["night"][0])
        return
    x, y = {"morning": (36, 42), "noon": (96, 20), "evening": (156, 44)}[scene.time]
    color = {"morning": (255, 214, 92), "noon": (255, 244, 130), "evening": (255, 84, 48)}[scene.time]
    x, r = x + jitter, 13
    for halo, alpha in ((10, 50), (5, 90)):
        draw.ellipse((x - r - halo, y - r - halo, x + r + halo, y + r + halo), fill=(*color, alpha))
    if scene.time == "noon" and scene.weather == "clear":
        for step in range(12):
            angle = step * math.pi / 6
            a, b = (
                (x + 17 * math.cos(angle), y + 17 * math.sin(angle)),
                (x + 24 * math.cos(angle), y + 24 * math.sin(angle)),
            )
            draw.line((*a, *b), fill=(*color, 230), width=2)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _draw_clouds(draw: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    """Draws clouds at two heights, which leave the position of the sun or moon visible."""
    tone = {"cloudy": (244, 246, 250), "rainy": (118, 126, 142), "snowy": (214, 222, 234)}[scene.weather]
    tone = _light_color(tone, scene.time) if scene.time in ("evening", "night") else tone
    for center in (22, 62, 104, 142, 178):
        x, y = center + rng.randint(-10, 10), rng.choice((10, 16, 34, 40))
        for dx, dy, r in ((-13, 3, 8), (-4, -2, 10), (8, 0, 9), (16, 4, 6)):
            draw.ellipse((x + dx - r, y + dy - r * 0.8, x + dx + r, y + dy + r * 0.8), fill=(*tone, 235))


def _draw_outdoors(image: Image.Image, scene: Scene, rng: random.Random) -> None:
    draw = ImageDraw.Draw(image, "RGBA")
    match scene.setting:
        case "beach":
            _draw_sea(draw, scene.time)
        case "park":
            for x in (8, 40, 84, 128, 164, 190):
                _draw_tree(draw, x + rng.randint(-8, 8), HORIZON + 8, scene.time, rng)
        case "street":
            for x in range(0, SIZE, 32):
                _draw_house(draw, x, scene.time, rng)
            for x in range(6, SIZE, 44):
                draw.rectangle((x, 148, x + 22, 152), fill=_light_color((250, 240, 200), scene.time))
        case "mountain":
            for x, h in ((20, 46), (78, 56), (140, 42), (186, 52)):
                _draw_peak(draw, x + rng.randint(-8, 8), h, scene.time)
        case "desert":
            _draw_dunes(draw, scene.time, rng)
        case _:
            _draw_farmyard(draw, scene.time, rng)


def _draw_sea(draw: ImageDraw.ImageDraw, time: str) -> None:
    draw.rectangle((0, HORIZON - 14, SIZE, HORIZON + 8), fill=_light_color((30, 136, 200), time))
    for row, y in enumerate((HORIZON - 8, HORIZON - 1, HORIZON + 6)):
        for x in range(-10 + 7 * row, SIZE, 22):
            draw.arc((x, y - 3, x + 14, y + 5), 200, 340, fill=_light_color((236, 250, 255), time), width=2)


def _draw_dunes(draw: ImageDraw.ImageDraw, time: str, rng: random.Random) -> None:
    for center, height in ((30, 22), (110, 28), (176, 20)):
        x = center + rng.randint(-10, 10)
        box = (x - 64, HORIZON - height, x + 64, HORIZON + 44)
        draw.ellipse(box, fill=_light_color((226, 158, 78), time))
        draw.arc(box, 200, 300, fill=_light_color((250, 206, 130), time), width=2)


def _draw_tree(draw: ImageDraw.ImageDraw, x: int, y: int, time: str, rng: random.Random) -> None:
    draw.rectangle((x - 3, y - 22, x + 3, y), fill=_light_color((120, 78, 44), time))
    green = _light_color(rng.choice(((44, 138, 62), (62, 158, 70), (34, 118, 70))), time)
    for dx, dy, r in ((-8, -24, 11), (8, -24, 11), (0, -34, 13)):
        draw.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=green)


def _draw_house(draw: ImageDraw.ImageDraw, x: int, time: str, rng: random.Random) -> None:
    height = rng.randint(32, 52)
    wall = _light_color(
        rng.choice(((226, 120, 96), (240, 200, 120), (150, 176, 214), (206, 160, 196), (160, 200, 160))), time
    )
    draw.rectangle((x + 1, HORIZON - height + 10, x + 30, HORIZON + 10), fill=wall)
    glass = (255, 226, 120) if time in ("night", "evening") else (232, 246, 255)
    for wx in (x + 6, x + 18):
        for wy in range(HORIZON - height + 16, HORIZON, 13):
            draw.rectangle((wx, wy, wx + 6, wy + 7), fill=glass)


def _draw_peak(draw: ImageDraw.ImageDraw, x: int, height: int, time: str) -> None:
    top = HORIZON + 10 - height
    draw.polygon(((x, top), (x - 44, HORIZON + 12), (x + 44, HORIZON + 12)), fill=_light_color((112, 110, 130), time))
    draw.polygon(((x, top), (x + 44, HORIZON + 12), (x + 12, HORIZON + 12)), fill=_light_color((84, 82, 104), time))
    draw.polygon(
        ((x, top), (x - 11, top + 14), (x - 2, top + 11), (x + 11, top + 14)), fill=_light_color((238, 240, 250), time)
    )


def _draw_farmyard(draw: ImageDraw.ImageDraw, time: str, rng: random.Random) -> None:
    draw.rectangle((0, HORIZON - 8, SIZE, HORIZON + 10), fill=_light_color((126, 186, 88), time))
    x = rng.choice((20, 72, 124))
    red, white = _light_color((190, 48, 42), time), _light_color((250, 244, 236), time)
    draw.rectangle((x, HORIZON - 30, x + 48, HORIZON + 6), fill=red)
    draw.polygon(
        ((x - 5, HORIZON - 30), (x + 10, HORIZON - 48), (x + 38, HORIZON - 48), (x + 53, HORIZON - 30)),
        fill=_light_color((112, 60, 52), time),
    )
    draw.rectangle((x + 16, HORIZON - 14, x + 32, HORIZON + 6), fill=white)
    draw.line((x + 16, HORIZON - 14, x + 32, HORIZON + 6), fill=red, width=2)
    draw.line((x + 32, HORIZON - 14, x + 16, HORIZON + 6), fill=red, width=2)
    wood = _light_color((246, 238, 220), time)
    for post in range(4, SIZE, 18):
        if not x - 6 < post < x + 52:
            draw.rectangle((post, HORIZON - 6, post + 4, HORIZON + 12), fill=wood)
            draw.rectangle((post, HORIZON - 2, post + 17, HORIZON + 1), fill=wood)


def _draw_indoors(image: Image.Image, scene: Scene, sky: Image.Image) -> None:
    """Draws a wall with a wide window that shows the sky, and the furniture of the room."""
    draw = ImageDraw.Draw(image, "RGBA")
    dim = {"night": "night", "evening": "evening"}.get(scene.time, "noon")
    share = _LIGHT[dim] if dim != "night" else (186, 182, 200)
    wall = {"kitchen": (238, 232, 190), "library": (196, 158, 112)}[scene.setting]
    wall = (wall[0] * share[0] // 255, wall[1] * share[1] // 255, wall[2] * share[2] // 255)
    draw.rectangle((0, 0, SIZE, HORIZON + 12), fill=wall)
    if scene.setting == "kitchen":
        for x in range(0, SIZE, 12):
            for y in (54, 66):
                draw.rectangle(
                    (x, y, x + 10, y + 10), fill=(120, 190, 214) if (x // 12 + y // 12) % 2 else (250, 252, 252)
                )
        draw.rectangle((130, 52, 176, 80), fill=(232, 90, 70))
        draw.rectangle((137, 60, 169, 74), fill=(60, 60, 70))
        for x in (134, 146, 158, 170):
            draw.ellipse((x - 3, 53, x + 3, 58), fill=(40, 40, 46))
    else:
        colors = ((190, 50, 60), (40, 110, 170), (230, 180, 60), (60, 140, 90), (130, 70, 150))
        for index, x in enumerate(range(2, SIZE, 7)):
            top = 58 + (index * 5) % 6
            draw.rectangle((x, top, x + 5, 77), fill=colors[(index * 3) % 5])
        draw.rectangle((0, 77, SIZE, 81), fill=(110, 70, 40))
    left, top, right, bottom = _WINDOW
    image.paste(sky.resize((right - left, bottom - top)), (left, top))
    for box in ((left, top, right, bottom), (left, top, (left + right) // 2, bottom)):
        draw.rectangle(box, outline=(252, 250, 244), width=3)


def _draw_ground(image: Image.Image, scene: Scene, rng: random.Random) -> None:
    """Draws the ground below the horizon, with some texture."""
    indoors = scene.setting in INDOORS
    time = {"night": "night", "evening": "evening"}.get(scene.time, "noon") if indoors else scene.time
    top, bottom = (_light_color(color, time) for color in _GROUNDS[scene.setting])
    if indoors and time == "night":
        top, bottom = (_blend(a, b, 0.45) for a, b in zip((top, bottom), _GROUNDS[scene.setting], strict=True))
    start = HORIZON + (12 if indoors else 6)
    image.paste(_make_gradient(top, bottom, SIZE, SIZE - start), (0, start))
    draw = ImageDraw.Draw(image, "RGBA")
    darker = (*_blend(bottom, (0, 0, 0), 0.22), 120)
    lighter = (*_blend(top, (255, 255, 255), 0.35), 130)
    if scene.setting == "kitchen":
        for x in range(-60, SIZE + 61, 30):
            draw.line((96 + (x - 96) * 0.6, start, x, SIZE), fill=darker)
        for y in (start + 14, start + 36, start + 70):
            draw.line((0, y, SIZE, y), fill=darker)
    elif scene.setting == "library":
        draw.ellipse((14, start + 14, SIZE - 14, SIZE + 12), outline=(*_blend(top, (255, 210, 120), 0.7), 200), width=4)
    else:
        for _ in range(60):
            x, y = rng.randrange(SIZE), rng.randrange(start + 3, SIZE)
            if scene.setting == "park":
                draw.line((x, y, x + 1, y - 4), fill=darker)
            else:
                draw.ellipse((x, y, x + 2, y + 1), fill=rng.choice((darker, lighter)))


def _draw_precipitation(image: Image.Image, scene: Scene, rng: random.Random) -> None:
    """Draws rain or snow over the whole picture; indoors only in the window."""
    if scene.weather not in ("rainy", "snowy"):
        return
    left, top, right, bottom = _WINDOW if scene.setting in INDOORS else (0, 0, SIZE, SIZE)
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(max(24, (right - left) * (bottom - top) // 330)):
        x, y = rng.randrange(left + 2, right - 4), rng.randrange(top + 2, bottom - 8)
        if scene.weather == "rainy":
            draw.line((x, y, x - 3, y + 8), fill=(150, 200, 255, 215), width=1)
        else:
            r = rng.choice((1.4, 1.8, 2.4))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255, 240))


def _paste_sprite(image: Image.Image, sprite: Image.Image, x: int, y: int, longest: int, rng: random.Random) -> Box:
    """Pastes a sprite and its shadow, with the bottom centre near (x, y); returns the box of the sprite."""
    scale = longest / max(sprite.size)
    small = sprite.resize(
        (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale))), Image.Resampling.LANCZOS
    )
    x, y = x + rng.randint(-4, 4), y + rng.randint(-3, 2)
    shadow = Image.new("RGBA", (small.width + 8, 14), (0, 0, 0, 0))
    ImageDraw.Draw(shadow).ellipse((3, 3, small.width + 4, 11), fill=(0, 0, 0, 95))
    shadow = shadow.filter(ImageFilter.GaussianBlur(1.5))
    image.paste(shadow, (x - shadow.width // 2, y - 8), shadow)
    left, top = x - small.width // 2, y - small.height
    image.paste(small, (left, top), small)
    return left, top, left + small.width, top + small.height


def draw_scene(scene: Scene, sprites: Mapping[str, Image.Image], rng: random.Random) -> Image.Image:
    """Draws a scene, SIZE x SIZE, RGB. What the scene leaves open (clouds, trees, small offsets) comes from `rng`."""
    return draw_scene_with_boxes(scene, sprites, rng)[0]


def draw_scene_with_boxes(
    scene: Scene, sprites: Mapping[str, Image.Image], rng: random.Random
) -> tuple[Image.Image, list[Box]]:
    """Draws a scene; also returns the box of each item. Later items may cover earlier ones."""
    image = Image.new("RGB", (SIZE, SIZE))
    sky = _draw_sky(scene, rng)
    image.paste(sky, (0, 0))
    if scene.setting in INDOORS:
        _draw_ground(image, scene, rng)
        _draw_indoors(image, scene, sky)
    else:
        _draw_outdoors(image, scene, rng)
        _draw_ground_below_horizon(image, scene, rng)
    boxes: list[Box] = []
    for item in scene.items:
        size = KINDS[item.kind].size
        longest = 48 if size < 15 else 54 if size < 100 else 60
        dimmed = _dim_sprite(sprites[item.kind], scene)
        x, y = _COLUMN_X[item.column], _ROW_Y[item.row]
        boxes.append(_paste_sprite(image, dimmed, x, y, longest + rng.randint(-3, 3), rng))
    _draw_precipitation(image, scene, rng)
    return image, boxes


def _draw_ground_below_horizon(image: Image.Image, scene: Scene, rng: random.Random) -> None:
    """Draws the ground without covering the objects at the horizon."""
    backdrop = image.crop((0, 0, SIZE, HORIZON + 8))
    _draw_ground(image, scene, rng)
    image.paste(backdrop, (0, 0))


def _dim_sprite(sprite: Image.Image, scene: Scene) -> Image.Image:
    """Tints the sprite with the light of the evening or the night; it stays easy to recognise."""
    if scene.time not in ("evening", "night") or scene.setting in INDOORS:
        return sprite
    light = Image.new("RGB", sprite.size, _LIGHT[scene.time])
    tinted = Image.blend(sprite.convert("RGB"), light, 0.16).convert("RGBA")
    tinted.putalpha(sprite.getchannel("A"))
    return tinted
