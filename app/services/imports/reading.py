"""Reading the rows of an imported file: find repeated ids, parse each row, and report what is wrong with it."""

from __future__ import annotations

import contextlib
import hashlib
import time
from array import array
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from app.errors import DomainError, Invalid
from app.models import Project, Split
from app.services.imports import record_schema
from app.services.imports.cells import to_text
from app.services.imports.conversations import drop_short_form, images_of, name_images
from app.services.imports.files import BrokenOff, Fetch, ImportFile, is_web_address, unforeseen
from app.services.imports.layouts import ImportPlan, Target, row_to_prompt
from app.services.imports.opened import Source
from app.services.imports.tables.rows import TableRow
from app.services.kernel import isolated
from app.services.kernel.store import get_store
from app.services.prompts.prompts import PromptIn, parse_prompt
from app.services.prompts.val_split import ImageSplits, load_splits, note_split, place_by_image
from app.settings import get_settings
from illume.phrases import _

BATCH_ROWS = 200
BATCH_IMAGE_BYTES = 64 * 1024 * 1024
BATCH_SECONDS = 20.0
PARSE_THREADS = 8
PLACEHOLDER = "0" * 64
MAX_KNOWN_SPLITS = 50_000


def open_file(
    key: str,
    name: str,
    images_key: str | None,
    encoding: str = "",
    *,
    scale_down: bool = False,
    fetch: Fetch | None = None,
    waiting: Callable[[], None] = isolated.nothing,
) -> ImportFile:
    """Open an imported file on this machine, as `ImportFile` does. Raises `Invalid` if it cannot be read."""
    return ImportFile(source_of(key, name, images_key, encoding), scale_down=scale_down, fetch=fetch, waiting=waiting)


def source_of(key: str, name: str, images_key: str | None, encoding: str = "") -> Source:
    """The stored files of an import, on this machine."""
    cache = get_settings().data_dir / "cache"
    path = get_store().local_path(key, cache)
    images_path = None if images_key is None else get_store().local_path(images_key, cache)
    return Source(path, name, images_path, encoding)


# Scanning the whole file


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The number of rows, and for the hash of each repeated id the row where it occurs first."""

    total: int
    first: Mapping[int, int]


def scan(plan: ImportPlan, file: ImportFile, keep_alive: Callable[[], None]) -> ScanResult:
    """Scan the whole file once, calling `keep_alive` now and then. Takes 16 bytes of memory per row.

    A file that breaks off is scanned up to there: what is wrong with it is raised when its rows are read.
    """
    columns = [name for name, target in plan.columns.items() if target is Target.external_id]
    hashes, numbers = array("q"), array("q")
    total = 0
    wanted = () if plan.layout.is_of_records else columns[:1]
    with closing(file.rows(columns=wanted)) as rows, contextlib.suppress(BrokenOff):
        for row in rows:
            total += 1
            external_id = row.values.get(wanted[0]) if wanted and isinstance(row.values, dict) else None
            if external_id is not None:
                hashes.append(hash_id(to_text(external_id, flat=plan.flat)))
                numbers.append(row.number)
            if total % 5000 == 0:
                keep_alive()
    return ScanResult(total, find_repeated(np.asarray(hashes), np.asarray(numbers)))


def hash_id(external_id: object) -> int:
    """A 64-bit hash of an id."""
    return int.from_bytes(
        hashlib.blake2b(str(external_id).strip().encode(errors="replace"), digest_size=8).digest()
    ) - (1 << 63)


def find_repeated(hashes: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> dict[int, int]:
    """For each hash that occurs several times, the smallest of its numbers."""
    if not len(hashes):
        return {}
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    is_repeated = np.isin(ordered, repeated)
    first: dict[int, int] = {}
    for value, number in zip(ordered[is_repeated].tolist(), numbers[order][is_repeated].tolist(), strict=True):
        first.setdefault(value, number)
    return first


# Rows

ParsedRow = tuple[int, Any]
"""The number of a row, and the prompt or record in it, or what is wrong with it."""


def read_batches(
    plan: ImportPlan,
    file: ImportFile,
    pool: ThreadPoolExecutor,
    *,
    after: int,
    first: Mapping[int, int],
    keep_alive: Callable[[], None],
) -> Generator[list[ParsedRow], None, None]:
    """Parse the rows after the first `after`, in batches limited by rows, by bytes of new images and by time.

    `keep_alive` is called before every few rows. Raises `BrokenOff` behind the rows before that place.
    """

    def parse(row: TableRow) -> ParsedRow:
        if is_record(plan, row):
            return row.number, parse_record(file, plan, row)
        return row.number, reject_repeated(parse_row(file, plan, row), row.number, first)

    batch: list[ParsedRow] = []
    began = time.monotonic()
    broken: BrokenOff | None = None
    with closing(file.rows(after)) as rows:
        while broken is None:
            few: list[TableRow] = []
            try:
                few.extend(islice(rows, PARSE_THREADS))
            except BrokenOff as error:
                broken = error
            if not few:
                break
            keep_alive()
            batch += pool.map(parse, few) if any(names_web_address(row) for row in few) else map(parse, few)
            new_bytes = sum(len(one.data) for one in file.pending.values())
            slow = time.monotonic() > began + BATCH_SECONDS
            if len(batch) >= BATCH_ROWS or new_bytes > BATCH_IMAGE_BYTES or slow:
                yield batch
                batch = []
                began = time.monotonic()
    if batch:
        yield batch
    if broken is not None:
        raise broken


def names_web_address(row: TableRow) -> bool:
    """Whether some value of a row looks like a web address, so that parsing the row may take a while."""
    rest: list[Any] = [row.values] if isinstance(row.values, dict) else []
    while rest:
        value = rest.pop()
        if isinstance(value, dict | list):
            rest += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and is_web_address(value):
            return True
    return False


def reject_repeated(parsed: PromptIn | DomainError, number: int, first: Mapping[int, int]) -> PromptIn | DomainError:
    """Return the prompt, or an error if its id occurred earlier in the file."""
    if isinstance(parsed, DomainError) or parsed.external_id is None or not first:
        return parsed
    earlier = first.get(hash_id(parsed.external_id))
    if earlier is None or earlier == number:
        return parsed
    return Invalid(
        _(
            "external_id '%(external_id)s' occurs twice: first in line %(earlier)s.",
            external_id=parsed.external_id,
            earlier=earlier,
        ),
        field="external_id",
    )


def is_record(plan: ImportPlan, row: TableRow) -> bool:
    """Whether a row is a record. Of another tool, a row that nobody has judged is a prompt."""
    if not plan.layout.is_of_another_tool:
        return plan.layout.is_of_records
    return isinstance(row.values, dict) and "candidate_set" in row.values


def parse_record(file: ImportFile, plan: ImportPlan, row: TableRow) -> record_schema.RecordIn | DomainError:
    """Parse a row into a record, or into what is wrong with it. Other tools know no splits: the plan's is taken."""
    if plan.layout.is_of_another_tool and isinstance(row.values, dict):
        row = TableRow(row.number, {**row.values, "split": plan.split.value})
    return record_schema.parse_record(row, file)


def parse_row(file: ImportFile, plan: ImportPlan, row: TableRow) -> PromptIn | DomainError:
    """Parse a row into a prompt with its images found and decoded, or into what is wrong with it."""
    if isinstance(row.values, DomainError):
        return row.values
    try:
        item = row_to_prompt(plan, row.values)
        if "parts" in item:
            return parse_in_parts(file, drop_short_form(item))
        named = item.get("images")
        if not isinstance(named, list) or not named:
            return parse_prompt(item)
        parse_prompt({**item, "images": [PLACEHOLDER] * len(named)})  # fail before an image is read in vain
        return parse_prompt({**item, "images": file.image_keys(named)})
    except DomainError as error:
        return error
    except RecursionError:
        return Invalid(_("The line is nested too deeply."))
    except Exception as error:  # noqa: BLE001 - of whatever class, it ends this row and not the import
        return unforeseen(row, error)


def parse_in_parts(file: ImportFile, item: dict[str, Any]) -> PromptIn:
    """Parse an item in parts with its images found and decoded. Raises `DomainError`."""
    named = images_of(item)
    parse_prompt({**item, "parts": name_images(item["parts"], [PLACEHOLDER] * len(named))})
    return parse_prompt({**item, "parts": name_images(item["parts"], file.image_keys(named))})


def reject_leaks(
    session: Session,
    project: Project,
    items: Sequence[PromptIn | DomainError],
    splits: ImageSplits,
    *,
    val_share: float = 0.0,
) -> list[PromptIn | DomainError]:
    """Replace items whose image occurs in another split by an error: test images must never be trained on.

    `splits` is kept between batches, so that an image of thousands of prompts is looked up once. With `val_share`,
    items that name no split get one by their images first.
    """
    if len(splits) > MAX_KNOWN_SPLITS:
        splits.clear()
    load_splits(session, project, items, splits)
    kept: list[PromptIn | DomainError] = []
    for given in items:
        item = place_by_image(given, splits, val_share) if val_share and isinstance(given, PromptIn) else given
        other = find_leak(item, splits) if isinstance(item, PromptIn) else None
        if other is not None:
            kept.append(
                Invalid(
                    _(
                        "split: its image is already in the split '%(other)s', and an image may be in only one.",
                        other=other,
                    ),
                    field="split",
                )
            )
            continue
        kept.append(item)
        if isinstance(item, PromptIn):
            note_split(item, splits)
    return kept


def find_leak(item: PromptIn, splits: Mapping[str, set[Split]]) -> Split | None:
    """Find another split that has one of the item's images, unless its own split has the image too."""
    for sha256 in item.images:
        known = splits.get(sha256, set())
        if known and item.split not in known:
            return min(known)
    return None
