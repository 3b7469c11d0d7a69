"""What a person sees of a picture is what the model reads: the same pixels, for forty kinds of files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from playwright.sync_api import Locator, Page, expect

from app.models import Image, Project, Prompt, Role
from app.models.content import PromptImage
from app.services.kernel.store import DerivativeWidth, get_store
from illume.model.vlm import Vlm, encode, load_vlm, open_image
from illume.pictures import enlarged
from tests import factories
from tests.app.services.imports import importing
from tests.conftest import CommittedDatabase
from tests.e2e import world
from tests.e2e.conftest import Site, Visitor, own_sizes
from tests.e2e.test_judging import ready
from tests.illume.families import make_llava
from tests.pictures import CLEAR, PictureFile, forty_files, quarters, written

pytestmark = pytest.mark.browser
# Steps of 255 by which two pictures may differ on the average: for decoders that round in ways of their own, and for
# derivatives, which are smaller and written with losses.
SAME, SMALLER = 1.0, 6.0
# The address of the whole picture, by its width.
WHOLE = {128: "/api/v1/images/{}?width=480", 2000: "/api/v1/images/{}"}
PAINT = """
async ([url, behind]) => {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = behind;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const part = (_, number) => String.fromCharCode(...data.subarray(number * 32768, (number + 1) * 32768));
    const parts = Array.from({ length: Math.ceil(data.length / 32768) }, part);
    return [canvas.width, canvas.height, btoa(parts.join(""))];
}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    """A tiny model with a real processor."""
    return load_vlm(str(make_llava(tmp_path_factory.mktemp("model"))), device="cpu")


def painted(page: Page, url: str, behind: str = "white") -> PIL.Image.Image:
    """What Chromium paints of a file, on a colour."""
    width, height, data = page.evaluate(PAINT, [url, behind])
    return PIL.Image.frombytes("RGBA", (width, height), base64.b64decode(data)).convert("RGB")


def apart(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    """By how many steps of 255 the pixels of two pictures differ on the average; infinity for other sizes."""
    if one.size != other.size:
        return float("inf")
    return float(np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int)).mean())


def tensors_apart(vlm: Vlm, one: Any, other: Any) -> float:
    """By how many steps of 255 the processor's tensors of two pictures differ on the average."""
    tensors = [encode(vlm, ["<image>?"], [[image]])["pixel_values"] for image in (one, other)]
    assert tensors[0].shape == tensors[1].shape
    return float(torch.abs(tensors[0] - tensors[1]).mean()) * 127.5  # they go from -1 to 1


def import_files(db: CommittedDatabase, project: Project, files: list[PictureFile]) -> dict[str, Image]:
    """Import a prompt for each file. Returns what is stored of each."""
    lines = [{"external_id": one.name, "question": "What is it?", "images": [f"images/{one.name}"]} for one in files]
    pictures = {f"images/{one.name}": one.data for one in files}
    made = importing.run(db, project, importing.archive({"prompts.jsonl": importing.table(*lines)} | pictures), "p.zip")
    assert [one.reason for one in importing.problems(db, made)] == []
    with db.sessions() as session:
        rows = (
            session.query(Prompt.external_id, Image)
            .join(PromptImage, PromptImage.prompt_id == Prompt.id)
            .join(Image, Image.sha256 == PromptImage.sha256)
            .where(Prompt.project_id == project.id)
        )
        return {str(name): image for name, image in rows}


@own_sizes
def test_forty_files(visitor: Visitor, site: Site, committed_db: CommittedDatabase, tiny: Vlm, tmp_path: Path) -> None:
    files = forty_files()
    assert len({one.name for one in files}) == 40
    with site.sessions.begin() as session:
        project = factories.make_project(session)
        factories.make_user(session, email="admin@example.org", role=Role.admin)
    stored = import_files(committed_db, project, files)
    page = visitor(bypass_csp=True).sign_in("admin@example.org", to="/admin")
    found = {}
    for one in files:
        image, url = stored[one.name], f"/api/v1/images/{stored[one.name].sha256}"
        path = tmp_path / one.name
        path.write_bytes(get_store().read_bytes(image.sha256))
        read = open_image(path)
        light, dark = painted(page, url), painted(page, url, "#101114")
        small = painted(page, f"{url}?width=96")
        assert light.size == one.seen.size == (image.width, image.height), one.name
        differences = {
            "what a person should see": (apart(light, one.seen), one.most),
            "the dark theme": (apart(light, dark), 0),
            "the model's picture": (apart(enlarged(light), read), SAME),
            "the model's tensor": (tensors_apart(tiny, path, light), SAME),
            "the derivative": (apart(small, read.resize(small.size, PIL.Image.Resampling.LANCZOS)), SMALLER),
        }
        if one.browser == "same":
            data = f"data:image/png;base64,{base64.b64encode(one.data).decode()}"
            differences["the upload"] = (apart(light, painted(page, data)), one.most + SAME)
        for what, (by, most) in differences.items():
            if by > most:
                found[one.name, what] = by
    assert found == {}


def shot(page: Page, image: Locator, size: tuple[int, int]) -> PIL.Image.Image:
    """What the screen shows of an image that is fitted into its element, without its edges, as large as `size`."""
    expect(image).to_have_js_property("complete", value=True)
    box = image.bounding_box()
    assert box is not None
    scale = min(box["width"] / size[0], box["height"] / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = box["x"] + (box["width"] - width) / 2, box["y"] + (box["height"] - height) / 2
    with PIL.Image.open(io.BytesIO(page.screenshot())) as screen:
        return (
            screen.convert("RGB").crop((round(left), round(top), round(left + width), round(top + height))).resize(size)
        )


@own_sizes
@pytest.mark.parametrize("width", [128, 2000])
def test_transparent_ones_stored_long_ago(visitor: Visitor, scenes: world.World, site: Site, width: int) -> None:
    """They keep their bytes: a small one is served on white, a larger one lies on white where its original is shown."""
    clear = quarters(CLEAR, mode="RGBA", size=(width, width // 2))
    with site.sessions.begin() as session:
        image = factories.make_image(session, written(clear, "PNG"))
        project = session.get_one(Project, scenes.project_id)
        prompt = factories.make_prompt(session, project, images=[image], question="which?", priority=9)
        factories.make_candidate_set(session, project, prompt=prompt, priority=9)
        sha256 = image.sha256
    read = open_image(clear).resize((128, 64))
    page = visitor().sign_in(scenes.critic, to="/annotate/scenes")
    ready(page)
    found = {}
    for one in DerivativeWidth:
        small = painted(page, f"/api/v1/images/{sha256}?width={one:d}", "#101114")
        found[f"{one:d} wide"] = apart(small.resize(read.size), read)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found[f"the page, {scheme}"] = apart(shot(page, page.locator(".picture img"), read.size), read)
        page.keyboard.press("z")
        dialog = page.locator(".zoom-dialog[open]")
        expect(dialog.locator("img")).to_be_visible()
        page.keyboard.press("+")  # loads the original
        page.keyboard.press("-")
        expect(dialog.locator("img")).to_have_js_property("currentSrc", site.url + WHOLE[width].format(sha256))
        found[f"zoomed, {scheme}"] = apart(shot(page, dialog.locator("img"), read.size), read)
        page.keyboard.press("Escape")
    assert {what: by for what, by in found.items() if by > SMALLER} == {}
