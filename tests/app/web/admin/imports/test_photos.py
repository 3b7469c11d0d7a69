"""Photos that are dropped become prompts, and a draft is given its images later."""

from __future__ import annotations

import html
import io
import re
import zipfile

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import CandidateSet, Import, Project, Prompt, PromptImage, Role, Split
from app.services.imports import imports
from app.services.imports.imports import PreviewRow, preview_rows
from app.services.imports.layouts import ImportPlan
from app.services.prompts import images
from app.services.prompts.decoding import EncodedImage, decode
from app.services.prompts.prompts import parse_prompt
from app.services.prompts.val_split import place_by_image
from app.web.admin.imports.photos import MOST_PHOTOS
from tests import factories
from tests.app.web.conftest import Browser, person

HERE = "/admin/projects/scenes/imports"
PNG = "image/png"


def picture(width: int) -> bytes:
    return factories.image_bytes(size=(width, 8))


def hidden(text: str, name: str) -> list[str]:
    """The values of a hidden field of the rows."""
    return re.findall(rf'type="hidden" name="{name}" value="([^"]*)"', text)


def place_of(sha256: str) -> Split:
    """The split that is proposed for an image that is new."""
    return place_by_image(parse_prompt({"images": [sha256], "question": "q"}), {}).split


@pytest.mark.usefixtures("admin")
class TestPhotos:
    def upload(self, browser: Browser) -> tuple[str, list[str]]:
        """Three files, one of them broken: the page, and the photos' hashes."""
        browser.get(HERE)
        files = [
            ("photos", ("beach.png", picture(20), PNG)),
            ("photos", ("<b>.png", b"not an image", PNG)),
            ("photos", ("dog.png", picture(30), PNG)),
        ]
        text = browser.post(f"{HERE}/photos", files=files).text
        return text, hidden(text, "sha256")

    def test_a_row_for_each_and_the_broken_one_named(self, browser: Browser) -> None:
        text, hashes = self.upload(browser)
        assert len(hashes) == 2
        assert hidden(text, "name") == ["beach.png", "dog.png"]
        [unreadable] = re.findall(r'aria-label="Not read">(.*?)</section>', text, re.DOTALL)
        assert "&lt;b&gt;.png" in unreadable

    def test_those_that_were_sent_before_come_first(self, browser: Browser) -> None:
        _, (_, dog) = self.upload(browser)
        before: dict[str, object] = {"sha256": [dog, "no hash"], "name": ["dog.png", "x"]}
        files = [("photos", ("beach.png", picture(20), PNG))]
        text = browser.post(f"{HERE}/photos", before, files=files).text
        assert hidden(text, "sha256")[0] == dog
        assert hidden(text, "name") == ["dog.png", "beach.png"]
        many: dict[str, object] = {"sha256": [dog] * MOST_PHOTOS, "name": ["dog.png"] * MOST_PHOTOS}
        assert browser.post(f"{HERE}/photos", many, files=files).status_code == 422

    def test_what_is_filled_in_becomes_prompts_and_the_rest_stays(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        _, hashes = self.upload(browser)
        rows = {"sha256": hashes, "name": ["beach.png", "dog.png"], "split": "val"}
        first = {"question": ["What is it?", ""], "answer": ["a beach", "a dog"], "candidates": ["one\r\n\r\ntwo", ""]}
        text = browser.post(f"{HERE}/photos/prompts", {**rows, **first}).text
        assert "1 prompt added." in text
        assert hidden(text, "sha256") == hashes[1:]
        assert 'name="answer" value="a dog"' in text
        assert "Enter a question." in text
        prompt = session.scalars(select(Prompt)).one()
        assert (prompt.question, prompt.answer, prompt.split) == ("What is it?", "a beach", Split.val)
        assert prompt.extra == {"file": "beach.png"}
        made = session.scalars(select(CandidateSet)).one()
        assert [one.text for one in factories.candidates_of(session, made)] == ["one", "two"]
        rest = {"sha256": hashes[1:], "name": ["dog.png"], "question": "", "answer": "", "candidates": ""}
        answer = browser.post(f"{HERE}/photos/prompts", {**rest, "common": "What do you see?"})
        assert answer.headers["location"] == "/admin/projects/scenes/prompts?done=photos-added"
        assert session.scalars(select(Prompt.question).order_by(Prompt.id)).all() == ["What is it?", "What do you see?"]

    def test_a_tenth_goes_into_val_where_the_box_is_ticked(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        pictures = [factories.make_image(session).sha256 for _ in range(40)]
        places = {one: place_of(one) for one in pictures}
        n_val = list(places.values()).count(Split.val)
        browser.get(HERE)
        rows: dict[str, object] = {"sha256": pictures, "name": ["x.png"] * 40, "answer": [""] * 40}
        rows |= {"candidates": [""] * 40, "question": ["", *["q?"] * 39], "split": "train", "propose_val": "on"}
        text = browser.post(f"{HERE}/photos/prompts", {**rows, "question": [""] * 40}).text
        assert f"{n_val} of these 40" in text
        assert 'name="propose_val" aria-describedby="help-val" checked' in text
        assert "39 prompts added" in browser.post(f"{HERE}/photos/prompts", rows).text
        added = session.execute(select(PromptImage.sha256, Prompt.split).join(Prompt)).all()
        assert sorted(map(tuple, added)) == sorted((one, places[one]) for one in pictures[1:])

    @pytest.mark.parametrize(
        ("asked", "expected"), [({}, Split.train), ({"propose_val": "on", "split": "test"}, Split.test)]
    )
    def test_otherwise_the_split_is_the_one_chosen(
        self, browser: Browser, session: Session, project: Project, asked: dict[str, str], expected: Split
    ) -> None:
        browser.get(HERE)
        sha256 = factories.make_image(session).sha256
        while place_of(sha256) is not Split.val:
            sha256 = factories.make_image(session).sha256
        row = {"sha256": sha256, "name": "x", "question": "q?", "answer": "", "candidates": "", "split": "train"}
        assert browser.post(f"{HERE}/photos/prompts", {**row, **asked}).status_code == 303
        assert session.scalars(select(Prompt.split)).one() is expected

    @pytest.mark.parametrize(("path", "field"), [("imports/photos", "photos"), ("prompts/new", "images")])
    def test_no_transaction_is_open_while_one_is_decoded(
        self, browser: Browser, session: Session, monkeypatch: pytest.MonkeyPatch, path: str, field: str
    ) -> None:
        open_meanwhile: list[bool] = []

        def reencode(data: bytes) -> EncodedImage:
            open_meanwhile.append(session.in_transaction())
            return decode(data)

        monkeypatch.setattr(images, "reencode", reencode)
        browser.get(HERE)
        files = [(field, (f"{width}.png", picture(width), PNG)) for width in (20, 30)]
        answer = browser.post(
            f"/admin/projects/scenes/{path}", {"question": "q", "split": "train", "priority": "0"}, files=files
        )
        assert answer.status_code < 400
        assert open_meanwhile == [False, False]

    def test_too_many_none_or_only_broken_ones(self, browser: Browser) -> None:
        browser.get(HERE)
        many = [("photos", (f"{number}.png", b"x", PNG)) for number in range(51)]
        for files in (many, [("photos", ("x.png", b"", PNG))], [("photos", ("x.png", b"broken", PNG))]):
            answer = browser.post(f"{HERE}/photos", files=files)
            assert answer.status_code == 422
            assert 'role="alert"' in answer.text

    def test_images_of_others_and_other_people(self, browser: Browser, session: Session, project: Project) -> None:
        reviewer = factories.make_member(session, project, Role.reviewer, user=person(session, role=Role.reviewer))
        hidden_one = factories.make_image(session)
        browser.sign_in(reviewer)
        row = {"sha256": hidden_one.sha256, "name": "x", "question": "q?", "answer": "", "candidates": ""}
        assert "There is no image" in browser.post(f"{HERE}/photos/prompts", row).text
        assert browser.client.post(f"{HERE}/photos", files={"photos": ("x.png", picture(9))}).status_code == 403
        browser.sign_in(factories.make_member(session, project, Role.viewer, user=person(session, role=Role.viewer)))
        assert browser.post(f"{HERE}/photos", files={"photos": ("x.png", picture(9))}).status_code == 403


@pytest.mark.usefixtures("admin")
class TestImagesLater:
    def draft(self, browser: Browser) -> str:
        """A draft whose two rows lack their images: the address of its page."""
        browser.get(HERE)
        table = b"picture,question\nbeach.png,where?\ndog.png,who?\n"
        address = browser.post(HERE, files={"file": ("t.csv", table)}).headers["location"]
        assert "2 of the first 2 rows would be rejected" in browser.get(address).text
        return str(address)

    def plan(self) -> dict[str, object]:
        return {"column": ["picture", "question"], "target": ["image", "question"], "split": "test", "question": ""}

    @pytest.mark.parametrize("as_zip", [True, False])
    def test_a_zip_or_the_pictures(self, browser: Browser, session: Session, as_zip: bool) -> None:
        address = self.draft(browser)
        pictures = {"beach.png": picture(20), "dog.png": picture(30)}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, data in pictures.items():
                archive.writestr(f"folder/{name}", data)
        loose = [("images", (name, data, PNG)) for name, data in pictures.items()]
        files = [("images", ("all.ZIP", packed.getvalue(), "application/zip"))] if as_zip else loose
        answer = browser.post(f"{address}/images", self.plan(), files=files)
        assert answer.headers["location"] == address
        page = browser.get(address).text
        assert "All of the first 2 rows would be imported." in page
        assert "Replace the images" in page
        assert "<option selected>test" in page

    def test_no_transaction_is_open_while_the_first_rows_are_read(
        self, browser: Browser, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_meanwhile: list[bool] = []

        def preview(found: Import) -> tuple[ImportPlan, list[PreviewRow]]:
            open_meanwhile.append(session.in_transaction())
            return preview_rows(found)

        at = self.draft(browser)
        monkeypatch.setattr(imports, "preview_rows", preview)
        assert browser.get(at).status_code == 200
        assert open_meanwhile == [False]

    def test_what_cannot_be_read_is_said_and_changes_nothing(self, browser: Browser, session: Session) -> None:
        address = self.draft(browser)
        twice = [("images", ("a/x.png", picture(9), PNG)), ("images", ("b/x.png", picture(9), PNG))]
        cases = (
            ([("images", ("all.zip", b"no zip", "application/zip"))], "The images are not a readable zip."),
            ([("images", ("", b"", PNG))], "Choose a zip or pictures first."),
            (twice, "Two of the pictures are called x.png"),
        )
        for files, said in cases:
            answer = browser.post(f"{address}/images", self.plan(), files=files)
            assert answer.status_code == 422
            assert said in html.unescape(answer.text)
        assert session.scalars(select(Import.images_key)).all() == [None]

    def test_not_once_it_was_started(self, browser: Browser, session: Session) -> None:
        address = self.draft(browser)
        browser.post(f"{address}/plan", {**self.plan(), "act": "start"})
        files = [("images", ("beach.png", picture(20), PNG))]
        assert browser.post(f"{address}/images", self.plan(), files=files).headers["location"] == address
        assert session.scalars(select(Import.images_key)).all() == [None]
