"""New prompts with their pictures, uploaded and added many at a time."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from illume.client.connection import Connection
from illume.client.errors import Refused
from illume.client.shapes import Added, Image, ItemError, Prompt, read

if TYPE_CHECKING:
    import PIL.Image

File: TypeAlias = "str | os.PathLike[str] | bytes | PIL.Image.Image"
"""A picture on this side: a path, the bytes of a file, or a PIL image."""
Picture: TypeAlias = "File | Image"
"""A picture on this side, or one that was uploaded before."""
BATCH = 200  # prompts in one request
UPLOADS_AT_ONCE = 4
LARGEST = 20_000_000  # bytes that the server takes for one picture
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class NewPrompt:
    """A prompt to add. A picture is a path, the bytes of a file, a PIL image, or an `Image` that was uploaded before.

    `parts`, in place of `images` and `question`, are texts and pictures in the order in which they are read. There a
    `str` is a text, and a path is a `pathlib.Path`.

    `candidates` are rationales that were made elsewhere: the prompt can be judged at once then.

    Where answers have fields, `policy` is the id or the name of a policy, and `fields` are gold values.
    """

    images: Picture | Sequence[Picture] = ()
    question: str = ""
    answer: str | None = None
    external_id: str | None = None
    split: Literal["train", "val", "test"] = "train"
    references: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    candidates: Sequence[str] | None = None
    parts: Sequence[str | Picture] = ()
    policy: str | None = None
    fields: Mapping[str, str | None] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for parts beside images or a question."""
        has_images = not isinstance(self.images, Sequence) or len(self.images) > 0
        if self.parts and (has_images or self.question):
            raise ValueError("Parts stand in place of images and question: give either.")

    @property
    def pictures(self) -> list[Picture]:
        """Its pictures in order, also where there is only one."""
        if self.parts:
            return [one for one in self.parts if not isinstance(one, str)]
        one_alone = isinstance(self.images, (str, os.PathLike, bytes)) or not isinstance(self.images, Sequence)
        return [self.images] if one_alone else list(self.images)  # type: ignore[list-item, arg-type]

    def body(self) -> dict[str, Any]:
        """What is sent of it besides its pictures; a part that is one is None here."""
        return {
            **(
                {"parts": [one if isinstance(one, str) else None for one in self.parts]}
                if self.parts
                else {"question": self.question}
            ),
            "answer": self.answer,
            "split": self.split,
            "references": list(self.references),
            "metadata": dict(self.metadata),
            "priority": self.priority,
            **({} if self.candidates is None else {"candidates": list(self.candidates)}),
            **({} if self.policy is None else {"policy": self.policy}),
            **({} if self.fields is None else {"fields": dict(self.fields)}),
        }


def add_all(connection: Connection, slug: str, prompts: Iterable[NewPrompt], *, progress: bool | None) -> Added:
    """Add prompts in batches, and say what became of all of them. `progress` None: a bar in a terminal only."""
    from tqdm import tqdm

    found: list[Prompt] = []
    errors: list[ItemError] = []
    created = unchanged = 0
    names = Names()
    total = len(prompts) if isinstance(prompts, Sequence) else None
    with (
        ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool,
        tqdm(total=total, unit=" prompts", disable=None if progress is None else not progress) as bar,
    ):
        uploads = Uploads(connection)
        for offset, batch in batches(prompts):
            bodies: dict[int, dict[str, Any]] = {}
            for index, outcome in enumerate(pool.map(uploads.body_or_error, batch), start=offset):
                if isinstance(outcome, dict):
                    bodies[index] = names.complete(outcome, batch[index - offset])
                else:
                    errors.append(ItemError(index=index, field="images", detail=outcome))
            if bodies:
                answer = send_batch(connection, slug, list(bodies.values()))
                places = list(bodies)
                found += [read(Prompt, item) for item in answer["items"]]
                created += answer["created"]
                unchanged += answer["unchanged"]
                errors += [read(ItemError, {**one, "index": places[one["index"]]}) for one in answer["errors"]]
            bar.update(len(batch))
    return Added(prompts=found, created=created, unchanged=unchanged, errors=sorted(errors, key=lambda one: one.index))


def send_batch(connection: Connection, slug: str, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a request that adds several prompts. That none of them was good is an answer too."""
    try:
        return dict(connection.ask("POST", f"projects/{slug}/prompts", json={"items": bodies}))
    except Refused as error:
        errors = error.problem.get("errors")
        if error.status != 422 or not errors or "index" not in errors[0]:
            raise
        return {"items": [], "created": 0, "unchanged": 0, "errors": errors}


def batches(prompts: Iterable[NewPrompt]) -> Iterator[tuple[int, list[NewPrompt]]]:
    """Some prompts at a time, and the index of the first of them."""
    left, offset = iter(prompts), 0
    while batch := list(islice(left, BATCH)):
        yield offset, batch
        offset += len(batch)


class Uploads:
    """Uploads pictures, each one once. Threads share it; two that have the same picture at once send it twice."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, str] = {}

    def body_or_error(self, prompt: NewPrompt) -> dict[str, Any] | str:
        """A prompt as it is sent, once its pictures are stored, or what is wrong with one of them.

        `pictures` are the hashes of the files, from which an external id may be made.
        """
        try:
            stored = [self.store(picture) for picture in prompt.pictures]
        except OSError as error:
            return f"A picture cannot be read: {error}."
        except Refused as error:
            if error.status not in (413, 422):
                raise
            return error.detail
        body, names = prompt.body(), [sha for _, sha in stored]
        if prompt.parts:
            left = iter(names)
            body["parts"] = [
                {"type": "image", "sha256": next(left)} if text is None else {"type": "text", "text": text}
                for text in body["parts"]
            ]
        else:
            body["images"] = names
        return body | {"pictures": [own for own, _ in stored]}

    def store(self, picture: Picture) -> tuple[str, str]:
        """The hash of a picture's file, and the name under which the server has it."""
        if isinstance(picture, Image):
            return picture.sha256, picture.sha256
        content = picture_bytes(picture)
        own = hashlib.sha256(content).hexdigest()
        if own not in self._known:
            self._known[own] = self._connection.upload(content).sha256
        return own, self._known[own]


class Names:
    """Gives external ids to prompts without one: of their contents, so that adding them again adds nothing."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def complete(self, body: dict[str, Any], prompt: NewPrompt) -> dict[str, Any]:
        """`body` with an external id. The second of two prompts that are the same gets one of its own."""
        pictures = body.pop("pictures")
        if prompt.external_id is not None:
            return body | {"external_id": prompt.external_id}
        content = json.dumps([pictures, prompt.body()], sort_keys=True, default=str)
        name = f"sha256-{hashlib.sha256(content.encode()).hexdigest()[:32]}"
        self._given[name] += 1
        number = self._given[name]
        return body | {"external_id": name if number == 1 else f"{name}-{number}"}


def picture_bytes(picture: File) -> bytes:
    """The file of a picture. A PIL image becomes a PNG, or a JPEG where that is over the server's limit of 20 MB.

    Raises OSError for a file that cannot be read, TypeError for what is no picture.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if not hasattr(picture, "save") or not hasattr(picture, "mode"):
        raise TypeError(f"A picture is a path, bytes or a PIL image, not {type(picture).__name__}.")
    out = io.BytesIO()
    shown = picture if picture.mode in PNG_MODES else picture.convert("RGB")
    shown.save(out, "PNG")
    if out.tell() > LARGEST:
        out = io.BytesIO()
        shown.convert("RGB").save(out, "JPEG", quality=95)
    return out.getvalue()
