"""Images and prompts over REST."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import Project, PromptState, Role, Split
from app.processes.connect import forget_settings
from app.processes.embedded import free_port
from app.services.kernel import isolated
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import AWAY, get_store
from app.services.kernel.text_rules import MAX_JSON_BYTES
from app.services.prompts import images, prompts
from app.services.prompts.decoding import EncodedImage, decode
from app.services.prompts.val_split import place_by_image
from tests import factories
from tests.app.api.conftest import As


def upload(client: TestClient, data: bytes | None = None) -> dict[str, Any]:
    answer = client.post("/api/v1/images", files={"file": ("x.png", data or factories.image_bytes())})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


class TestImages:
    def test_stored_and_served(self, admin: TestClient) -> None:
        image = upload(admin, factories.image_bytes(size=(30, 20)))
        assert (image["width"], image["height"]) == (30, 20)
        answer = admin.get(image["url"])
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        with PIL.Image.open(io.BytesIO(answer.content)) as picture:
            assert picture.size == (30, 20)
        again = admin.get(image["url"], headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304

    def test_the_same_image_is_stored_once(self, admin: TestClient) -> None:
        data = factories.image_bytes()
        assert upload(admin, data) == upload(admin, data)

    @pytest.mark.parametrize("data", [b"", b"no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
    def test_not_an_image(self, admin: TestClient, data: bytes) -> None:
        answer = admin.post("/api/v1/images", files={"file": ("x.png", data)})
        assert answer.status_code == 422
        assert answer.json()["field"] == "image"

    def test_no_transaction_is_open_while_it_is_decoded(
        self, admin: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_meanwhile: list[bool] = []

        def reencode(data: bytes) -> EncodedImage:
            open_meanwhile.append(session.in_transaction())
            return decode(data)

        monkeypatch.setattr(images, "reencode", reencode)
        upload(admin)
        assert open_meanwhile == [False]

    def test_a_broken_image(self, admin: TestClient) -> None:
        data = factories.image_bytes(size=(200, 200))
        answer = admin.post("/api/v1/images", files={"file": ("x.png", data[: len(data) // 2])})
        assert answer.status_code == 422
        assert "broken" in answer.json()["detail"]

    def test_a_picture_of_several_as_cameras_write_it(self, admin: TestClient) -> None:
        file = io.BytesIO()
        first, second = (PIL.Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
        first.save(file, "MPO", save_all=True, append_images=[second])
        assert upload(admin, file.getvalue())["media_type"] == "image/jpeg"

    def test_without_a_file(self, admin: TestClient) -> None:
        answer = admin.post("/api/v1/images")
        assert answer.status_code == 422
        assert answer.json()["field"] == "file"

    def test_seen_by_members_of_a_project_that_shows_it(
        self, session: Session, admin: TestClient, project: Project, critic: TestClient, as_user: As
    ) -> None:
        image = upload(admin)
        assert critic.get(image["url"]).status_code == 404
        admin.post(f"/api/v1/projects/{project.slug}/prompts", json={"images": [image["sha256"]], "question": "q"})
        assert critic.get(image["url"]).status_code == 200
        stranger = as_user(factories.make_user(session))
        assert stranger.get(image["url"]).status_code == 404

    def test_a_part_of_it(self, admin: TestClient) -> None:
        url = upload(admin)["url"]
        whole = admin.get(url)
        part = admin.get(url, headers={"Range": "bytes=5-9", "If-Range": whole.headers["etag"]})
        assert (part.status_code, part.content) == (206, whole.content[5:10])
        assert part.headers["content-range"] == f"bytes 5-9/{len(whole.content)}"
        assert admin.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416
        assert admin.head(url, headers={"Range": "bytes=5-9"}).status_code == 200

    def test_smaller(self, admin: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        image = upload(admin, factories.image_bytes(size=(600, 300)))
        original = admin.get(image["url"])
        answers = {width: admin.get(image["url"], params={"width": width}) for width in (96, 480)}
        for width, answer in answers.items():
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
            with PIL.Image.open(io.BytesIO(answer.content)) as picture:
                assert (picture.format, picture.size) == ("WEBP", (width, width // 2))
            assert answer.headers["cache-control"] == original.headers["cache-control"]
        assert len({answer.headers["etag"] for answer in (original, *answers.values())}) == 3

        monkeypatch.setattr(isolated, "call", None)  # they are kept: no file is opened for them again
        for width, answer in answers.items():
            assert admin.get(image["url"], params={"width": width}).content == answer.content
            part = admin.get(image["url"], params={"width": width}, headers={"Range": "bytes=5-9"})
            assert (part.status_code, part.content) == (206, answer.content[5:10])
            etag = {"If-None-Match": answer.headers["etag"]}
            assert admin.get(image["url"], params={"width": width}, headers=etag).status_code == 304
            assert admin.get(image["url"], headers=etag).content == original.content

    def test_never_larger(self, admin: TestClient) -> None:
        url = upload(admin, factories.image_bytes(size=(480, 300)))["url"]
        original = admin.get(url)
        for width in (480, 1600):
            answer = admin.get(url, params={"width": width})
            assert (answer.content, answer.headers["etag"]) == (original.content, original.headers["etag"])
        assert admin.get(url, params={"width": 96}).headers["etag"] != original.headers["etag"]

    @pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")])
    def test_a_transparent_one_stored_long_ago_is_served_on_white(
        self, session: Session, admin: TestClient, mode: str, kind: str
    ) -> None:
        file = io.BytesIO()
        PIL.Image.new(mode, (120, 60)).save(file, kind)
        image = factories.make_image(session, file.getvalue())
        url = f"/api/v1/images/{image.sha256}"
        tags = {admin.get(url).headers["etag"]}
        assert admin.get(url).content == file.getvalue()  # its hash is that of these bytes
        for width in (96, 480, 1600):
            answer = admin.get(url, params={"width": width})
            with PIL.Image.open(io.BytesIO(answer.content)) as picture:
                assert (picture.mode, picture.size[0], picture.getpixel((3, 3))) == (
                    "RGB", min(width, 120), (255, 255, 255),
                )  # fmt: skip
            tags.add(answer.headers["etag"])
            again = admin.get(url, params={"width": width}, headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304
        assert len(tags) == 4

    @pytest.mark.parametrize("width", ["97", "0", "-96", "x", ""])
    def test_other_widths(self, admin: TestClient, width: str) -> None:
        assert admin.get(upload(admin)["url"], params={"width": width}).status_code == 422

    def test_smaller_only_for_those_who_may_see_it(self, admin: TestClient, critic: TestClient) -> None:
        url = upload(admin, factories.image_bytes(size=(200, 100)))["url"]
        made = admin.get(url, params={"width": 96})
        seen = critic.get(url, params={"width": 96}, headers={"If-None-Match": made.headers["etag"]})
        assert (made.status_code, seen.status_code) == (200, 404)

    def test_one_that_cannot_be_made_smaller(self, session: Session, admin: TestClient) -> None:
        image = factories.make_image(session, factories.image_bytes(size=(200, 100)))
        whole = get_store().read_bytes(image.sha256)
        Path(get_store().local_path(image.sha256, Path())).write_bytes(whole[:40])
        answer = admin.get(f"/api/v1/images/{image.sha256}", params={"width": 96})
        assert (answer.status_code, answer.content) == (200, whole[:40])
        assert answer.headers["etag"] == f'"{image.sha256}"'

    def test_while_the_store_is_away(self, admin: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        data = factories.image_bytes(size=(200, 100))
        url = upload(admin, data)["url"]
        with monkeypatch.context() as away:
            away.setenv("ILLUME_STORE_URL", f"ftp://127.0.0.1:{free_port()}/store")
            forget_settings()
            answers = [
                admin.post("/api/v1/images", files={"file": ("x.png", data)}),
                admin.get(url),
                admin.get(url, params={"width": 96}),
            ]
        forget_settings()
        assert {(one.status_code, one.headers["retry-after"], one.json()["detail"]) for one in answers} == {
            (503, "5", str(AWAY))
        }
        assert admin.get(url).status_code == 200

    def test_an_unknown_one(self, admin: TestClient) -> None:
        assert admin.get("/api/v1/images/" + "0" * 64).status_code == 404
        assert admin.get("/api/v1/images/x").status_code == 404


class TestAddPrompts:
    def test_one(self, admin: TestClient, project: Project) -> None:
        image = upload(admin)
        body = {
            "external_id": "a1",
            "images": [image["sha256"]],
            "question": "What is it?",
            "answer": "a duck",
            "references": ["it quacks"],
            "metadata": {"k": [1, 2.5, None]},
            "split": "val",
        }
        answer = admin.post(f"/api/v1/projects/{project.slug}/prompts", json=body)
        assert answer.status_code == 201
        made = answer.json()
        assert {key: made[key] for key in body if key != "images"} == {k: v for k, v in body.items() if k != "images"}
        assert made["images"] == [{key: image[key] for key in ("sha256", "url", "width", "height")}]
        assert made["state"] == "waiting"
        assert admin.get(f"/api/v1/prompts/{made['id']}").json()["question"] == "What is it?"

    def test_an_external_id_again(self, admin: TestClient, project: Project) -> None:
        body: dict[str, Any] = {"external_id": "a1", "images": [upload(admin)["sha256"]], "question": "q"}
        first = admin.post(f"/api/v1/projects/{project.slug}/prompts", json=body)
        again = admin.post(f"/api/v1/projects/{project.slug}/prompts", json=body)
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json()["id"] == first.json()["id"]
        other = admin.post(f"/api/v1/projects/{project.slug}/prompts", json={**body, "question": "another"})
        assert other.status_code == 409
        assert other.json()["field"] == "external_id"

    def test_good_items_of_several_are_kept(self, admin: TestClient, project: Project) -> None:
        sha256 = upload(admin)["sha256"]
        good = {"external_id": "g", "images": [sha256], "question": "q"}
        items = [
            good,
            {"images": [], "question": "no image"},
            {"images": [sha256]},
            {"images": ["0" * 64], "question": "unknown image"},
            {"images": [{"sha256": sha256}], "question": "as lists show it"},
            "no object",
            {**good, "question": "the same id"},
        ]
        answer = admin.post(f"/api/v1/projects/{project.slug}/prompts", json={"items": items})
        assert answer.status_code == 201
        body = answer.json()
        assert (len(body["items"]), body["created"], body["unchanged"]) == (2, 2, 0)
        found = [(one["index"], one["field"]) for one in body["errors"]]
        assert found == [(1, "images"), (2, "question"), (3, "images"), (5, None), (6, "external_id")]
        again = admin.post(f"/api/v1/projects/{project.slug}/prompts", json={"items": [good]})
        assert (again.status_code, again.json()["unchanged"]) == (200, 1)

    def test_a_val_split_only_where_it_is_asked_for(
        self, session: Session, admin: TestClient, project: Project
    ) -> None:
        path = f"/api/v1/projects/{project.slug}/prompts"
        placed: dict[Split, list[str]] = {Split.train: [], Split.val: []}
        while not placed[Split.train] or len(placed[Split.val]) < 2:
            sha256 = factories.make_image(session).sha256
            item = prompts.parse_prompt({"images": [sha256], "question": "q"})
            placed[place_by_image(item, {}).split].append(sha256)
        train, (val, other) = placed[Split.train][0], placed[Split.val][:2]

        def add(*items: dict[str, Any], asked: bool = True) -> list[str]:
            body = {"items": list(items)} if len(items) > 1 else items[0]
            answer = admin.post(path, json=body, params={"propose_val": asked})
            assert answer.status_code in (200, 201), answer.text
            added = answer.json()
            return [one["split"] for one in added.get("items", [added])]

        plain = {"images": [other], "question": "not asked", "external_id": "x"}
        assert add(plain, asked=False) == ["train"]
        assert add(plain) == ["train"]  # the same prompt again
        assert add({"images": [other], "question": "an image that the project has"}) == ["train"]
        assert add({"images": [val], "question": "one"}) == ["val"]
        rows = ({"images": [val], "question": "two"}, {"images": [train], "question": "three"})
        assert add(*rows, {"images": [train], "question": "four", "split": "test"}) == ["val", "train", "test"]

    def test_none_of_several_is_good(self, admin: TestClient, project: Project) -> None:
        answer = admin.post(f"/api/v1/projects/{project.slug}/prompts", json={"items": [{"question": "q"}]})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "images"

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"images": []}, "images"),
            ({"images": "x"}, "images"),
            ({"images": ["nonsense"]}, "images.0"),
            ({"images": ["0" * 64]}, "images"),
            ({"question": " "}, "question"),
            ({"question": "a\x00b"}, "question"),
            ({"split": "training"}, "split"),
            ({"metadata": {"bad": "\x00"}}, "metadata.bad"),
            ({"metadata": {"a": "x" * (MAX_JSON_BYTES - len('{"a":""}') + 1)}}, "metadata"),
            ({"candidates": []}, "candidates"),
            ({"surprise": 1}, "surprise"),
        ],
    )
    def test_bad_input_names_the_field(
        self, admin: TestClient, project: Project, change: dict[str, Any], field: str
    ) -> None:
        body = {"images": [upload(admin)["sha256"]], "question": "q", **change}
        answer = admin.post(f"/api/v1/projects/{project.slug}/prompts", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"] == field

    def test_metadata_may_be_so_large(self, admin: TestClient, project: Project) -> None:
        metadata = {"a": "x" * (MAX_JSON_BYTES - len('{"a":""}'))}
        body = {"images": [upload(admin)["sha256"]], "question": "q", "metadata": metadata}
        made = admin.post(f"/api/v1/projects/{project.slug}/prompts", json=body)
        assert made.json()["metadata"] == metadata
        larger = {"metadata": {"a": metadata["a"], "b": 1}}
        answer = admin.patch(f"/api/v1/prompts/{made.json()['id']}", json=larger)
        assert (answer.status_code, answer.json()["field"]) == (422, "metadata")

    def test_candidates_made_elsewhere_are_ready(self, admin: TestClient, project: Project, critic: TestClient) -> None:
        body = {
            "images": [upload(admin)["sha256"]],
            "question": "q",
            "candidates": ["because", "since <b>it</b> is", "because"],
        }
        made = admin.post(f"/api/v1/projects/{project.slug}/prompts", json=body).json()
        assert made["state"] == "ready"
        claimed = critic.post(f"/api/v1/projects/{project.slug}/assignments")
        assert claimed.status_code == 201
        assert {one["text"] for one in claimed.json()["candidates"]} == {"because", "since <b>it</b> is"}
        sets = admin.get(f"/api/v1/prompts/{made['id']}").json()["candidate_sets"]
        assert [(one["source"], one["version"], len(one["candidates"])) for one in sets] == [("imported", None, 2)]

    def test_critics_may_not(self, project: Project, critic: TestClient) -> None:
        answer = critic.post(f"/api/v1/projects/{project.slug}/prompts", json={"images": [], "question": "q"})
        assert answer.status_code == 403


class TestListPrompts:
    def test_pages(self, session: Session, project: Project, admin: TestClient) -> None:
        made = [str(factories.make_prompt(session, project).id) for _ in range(5)]
        seen: list[str] = []
        cursor = None
        while True:
            params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = admin.get(f"/api/v1/projects/{project.slug}/prompts", params=params).json()
            seen += [one["id"] for one in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert seen == made

    def test_filters(self, session: Session, project: Project, admin: TestClient) -> None:
        factories.make_prompt(session, project, question="100% sure?")
        factories.make_prompt(session, project, question="1000 ducks", state=PromptState.held)
        path = f"/api/v1/projects/{project.slug}/prompts"
        assert len(admin.get(path, params={"q": "100%"}).json()["items"]) == 1
        assert len(admin.get(path, params={"state": "held"}).json()["items"]) == 1
        assert admin.get(path, params={"split": "test"}).json()["items"] == []

    def test_text_search(self, session: Session, project: Project, admin: TestClient) -> None:
        """In any case, in question, answer or external id, in their current text, and only in this project."""
        first = factories.make_prompt(
            session, project, question="Wo ist die ENTE?", answer="am Ärmel", external_id="X_7"
        )
        factories.make_prompt(session, project, question="What floats?", answer="a boat", external_id="Xy7")
        factories.make_prompt(session, factories.make_project(session), question="Wo ist die Ente?")
        path = f"/api/v1/projects/{project.slug}/prompts"

        def found(words: str, **others: str) -> list[str]:
            return [one["id"] for one in admin.get(path, params={"q": words, **others}).json()["items"]]

        for words in ("ente", "ist DIE", "ärmel", "X_7", "?", "Ä"):
            assert found(words)[:1] == [str(first.id)], words
        assert found("x_7") == [str(first.id)]
        assert found("ente", state="held") == []
        assert found("am Ärmel X_7") == []
        prompts.update_prompt(session, SYSTEM, first.id, {"answer": "on the pond"})
        assert found("ärmel") == []
        assert found("the pond") == [str(first.id)]

    @pytest.mark.parametrize(
        "params", [{"limit": 0}, {"limit": 1001}, {"cursor": "x"}, {"cursor": "WyJhIl0"}, {"split": "x"}]
    )
    def test_bad_parameters(self, project: Project, admin: TestClient, params: dict[str, Any]) -> None:
        answer = admin.get(f"/api/v1/projects/{project.slug}/prompts", params=params)
        assert answer.status_code == 422
        assert answer.json()["field"] == next(iter(params))

    def test_critics_never_see_references(self, session: Session, project: Project, critic: TestClient) -> None:
        prompt = factories.make_prompt(session, project, references=["secret"], extra={"scene": "secret"})
        factories.make_candidate_set(session, project, prompt=prompt)
        for path in (f"/api/v1/projects/{project.slug}/prompts", f"/api/v1/prompts/{prompt.id}"):
            answer = critic.get(path)
            assert answer.status_code == 200
            assert "secret" not in answer.text
            assert "references" not in answer.text


class TestChangePrompt:
    def test_retire_and_bring_back(self, session: Session, project: Project, admin: TestClient) -> None:
        prompt = factories.make_prompt(session, project)
        path = f"/api/v1/prompts/{prompt.id}"
        assert admin.patch(path, json={"state": "retired"}).json()["state"] == "retired"
        assert admin.patch(path, json={"state": "waiting"}).json()["state"] == "waiting"
        assert admin.patch(path, json={"state": "judged"}).status_code == 422

    def test_content_is_fixed_once_there_are_candidates(
        self, session: Session, project: Project, admin: TestClient
    ) -> None:
        prompt = factories.make_prompt(session, project)
        path = f"/api/v1/prompts/{prompt.id}"
        assert admin.patch(path, json={"question": "other?"}).json()["question"] == "other?"
        factories.make_candidate_set(session, project, prompt=prompt)
        answer = admin.patch(path, json={"question": "yet another?"})
        assert (answer.status_code, answer.json()["field"]) == (409, "question")
        assert admin.patch(path, json={"references": ["new"]}).json()["references"] == ["new"]
        assert admin.patch(path, json={"images": []}).status_code == 422

    def test_needs_a_reviewer(self, session: Session, project: Project, critic: TestClient, as_user: As) -> None:
        prompt = factories.make_prompt(session, project)
        assert critic.patch(f"/api/v1/prompts/{prompt.id}", json={"priority": 1}).status_code == 403
        reviewer = as_user(factories.make_member(session, project, Role.reviewer))
        assert reviewer.patch(f"/api/v1/prompts/{prompt.id}", json={"priority": 1}).status_code == 200
