"""Samples rationales for a prompts file: `python -m illume.sampling`, the same as `illume sample`.

Each candidate set is written as soon as it is complete, to a file with the suffix `.part` beside the output file. An
interrupted run continues from there, with the same result as an uninterrupted one. The finished file has one line for
each prompt, in the order of the prompts, with `example_id` and `rationales`. A prompt that the model cannot read has no
rationales, and the reason under `left_out`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from illume.fields.definitions import AnswerFields, read_answer_fields
from illume.files import replace_file
from illume.model.encodable import list_unreadable
from illume.model.loading import base_fingerprint
from illume.model.vlm import Vlm, load_vlm
from illume.options import add_machine_options, machine_options
from illume.parts import parts_data
from illume.prompts_file import SPLITS, load_prompts
from illume.records import AnswerSource, Example, Rationale
from illume.root import STARTER
from illume.sampling.generation import Progress, sample_rationales
from illume.settings import SamplingSettings

SHOWN_LEFT_OUT = 20
"""How many of the prompts left out the command lists; the file has all of them."""


class SamplingFileError(ValueError):
    """The output file cannot be written; the message says why and what to do."""


def sample_to_file(
    vlm: Vlm,
    examples: Sequence[Example],
    settings: SamplingSettings,
    out: Path,
    *,
    seed: int,
    progress: Progress | None = None,
    answers: AnswerSource | None = None,
) -> list[list[Rationale]]:
    """Writes the result of `sample_rationales` to `out`, without repeating what an earlier run has written.

    Examples that the model cannot read are left out: they get no rationales, and `read_left_out` says why. The runs
    must have the same arguments, except for the token budget, which does not affect the result. Raises
    SamplingFileError if `out` or its partial file was made with other arguments or is in use by another process, if two
    examples have the same id, and if the model cannot read any of them.
    """
    if len({example.id for example in examples}) < len(examples):
        raise SamplingFileError("two of the prompts have the same id")
    request = _request(vlm, examples, settings, seed, answers)
    part = out.with_name(f"{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part):
        if out.exists():
            done = _read(out, request)
        else:
            done = _read(part, request)
            new = [example for example in examples if example.id not in done]
            unreadable = list_unreadable(vlm, new, template=settings.template, explained=settings.answer_fields is None)
            left_out = {one.id: reason for one, reason in unreadable}
            if examples and len(left_out) == len(examples):
                raise SamplingFileError(f"the model can read none of the prompts ({left_out[examples[0].id]})")
            left = [example for example in new if example.id not in left_out]
            n_all = len(examples) - len(left_out)
            _sample(vlm, left, settings, part, done, n_all=n_all, seed=seed, progress=progress, answers=answers)
            with replace_file(out) as file:
                file.writelines(_lines(request, [(one.id, done.get(one.id, [])) for one in examples], left_out))
        part.unlink(missing_ok=True)
    return [done.get(example.id, []) for example in examples]


def read_rationales(path: Path) -> dict[str, list[Rationale]]:
    """Reads the candidate sets of a file written by `sample_to_file`, by example id."""
    return {row["example_id"]: [Rationale(**one) for one in row["rationales"]] for row in _read_rows(path)}


def read_left_out(path: Path) -> dict[str, str]:
    """Reads why prompts were left out of a file written by `sample_to_file`, by example id."""
    return {row["example_id"]: row["left_out"] for row in _read_rows(path) if "left_out" in row}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    _, *rows = (json.loads(line) for line in path.read_bytes().splitlines())
    return rows


def _sample(
    vlm: Vlm,
    left: Sequence[Example],
    settings: SamplingSettings,
    part: Path,
    done: dict[str, list[Rationale]],
    *,
    n_all: int,
    seed: int,
    progress: Progress | None,
    answers: AnswerSource | None,
) -> None:
    """Samples the examples that are `left`, and adds each candidate set to `part` and to `done`."""
    with part.open("ab") as file:

        def keep(index: int, rationales: list[Rationale]) -> None:
            done[left[index].id] = rationales
            file.write(_line(left[index].id, rationales))
            file.flush()

        def report(_done: int, _total: int) -> None:
            if progress is not None:
                progress(len(done), n_all)

        sample_rationales(vlm, left, settings, seed=seed, progress=report, answers=answers, on_set=keep)


def _parts(example: Example) -> list[dict[str, Any]]:
    return parts_data(example.parts, example.images, key="image")


def _request(
    vlm: Vlm, examples: Sequence[Example], settings: SamplingSettings, seed: int, answers: AnswerSource | None
) -> dict[str, Any]:
    """Everything that determines the candidates, for the first line of the file."""
    prompts = [
        (
            *(one.id, one.images, one.question, one.answer),
            *([parts] if (parts := _parts(one)) else []),
            *([one.policy.text] if one.policy else []),
        )
        for one in examples
    ]
    weights = Path(vlm.adapter or "") / "adapter_model.safetensors"
    request = {
        "settings": {
            name: value for name, value in asdict(settings).items() if name != "token_budget" and value is not None
        },
        "seed": seed,
        "answers": answers,
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "base": base_fingerprint(vlm.base) if Path(vlm.base).is_dir() else vlm.base,
        "adapter": hashlib.sha256(weights.read_bytes()).hexdigest() if vlm.adapter else None,
        "dtype": str(vlm.dtype),
        **({} if vlm.quantization == "none" else {"quantization": vlm.quantization}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(request))
    return plain


def _read(path: Path, request: dict[str, Any]) -> dict[str, list[Rationale]]:
    """Reads the complete lines of `path`, whose first line must be `request`.

    Cuts off an incomplete last line, and creates the file if it does not exist.
    """
    stored = path.read_bytes() if path.exists() else b""
    whole = stored[: stored.rfind(b"\n") + 1]
    if not whole:
        path.write_bytes(b"".join(_lines(request, ())))
        return {}
    found = json.loads(whole.splitlines()[0])["request"]
    if different := sorted(name for name in {*found, *request} if found.get(name) != request.get(name)):
        raise SamplingFileError(
            f"{path} was started with other {', '.join(different)}: choose another file or remove it"
        )
    if whole != stored:
        path.write_bytes(whole)
    return read_rationales(path)


def _lines(
    request: dict[str, Any], sets: Sequence[tuple[str, list[Rationale]]], left_out: Mapping[str, str] | None = None
) -> Iterator[bytes]:
    yield json.dumps({"request": request}, ensure_ascii=False).encode() + b"\n"
    for name, rationales in sets:
        yield _line(name, rationales, left_out=(left_out or {}).get(name))


def _line(name: str, rationales: Sequence[Rationale], *, left_out: str | None = None) -> bytes:
    row: dict[str, Any] = {"example_id": name, "rationales": [asdict(one) for one in rationales]}
    if left_out is not None:
        row["left_out"] = left_out
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """A context in which no other process writes the file."""
    path = part.with_name(f".{part.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise SamplingFileError(f"another process is writing {part}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


# The command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = SamplingSettings()
    parser = argparse.ArgumentParser(
        prog="illume sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="file to write; after an interruption the same command continues it")
    add("--prompts", required=True, help="prompts file (.jsonl)")
    add("--model", default=str(STARTER / "model"), help="folder, or name on the hub; default: the starter model")
    add("--adapter", help="folder of an adapter")
    add("--split", choices=SPLITS, help="use only this split")
    add("--seed", type=int, default=0, help="the same seed gives the same rationales; default: %(default)s")
    temperatures = ",".join(f"{temperature:g}:{count}" for temperature, count in defaults.temperatures)
    add(
        "--temperatures",
        default=temperatures,
        help="TEMPERATURE:SAMPLES pairs, separated by commas; default: %(default)s",
    )
    add(
        "--answers",
        choices=("gold", "own"),
        help="whether the model explains the gold answer or its own; default: gold if there is one",
    )
    most, budget = defaults.max_new_tokens, defaults.token_budget
    add(
        "--max-new-tokens", type=int, default=most, help="maximum length of a rationale in tokens; default: %(default)s"
    )
    add(
        "--token-budget",
        type=int,
        default=budget,
        help="maximum number of tokens in the KV cache; default: %(default)s",
    )
    add("--template", default=defaults.template, help="template of the prompt text; default: %(default)s")
    add(
        "--answer-fields",
        type=Path,
        help="JSON file with the fields of structured answers, which are sampled in place of rationales",
    )
    add_machine_options(parser)
    return parser


def read_settings(options: argparse.Namespace) -> SamplingSettings:
    """The sampling settings of the command line. Raises ValueError for invalid ones."""
    pairs = [pair.partition(":") for pair in options.temperatures.split(",")]
    try:
        temperatures = tuple((float(temperature), int(count or 1)) for temperature, _, count in pairs)
    except ValueError:
        raise ValueError(f"--temperatures must look like 0:1,0.7:2, not {options.temperatures}") from None
    return replace(
        SamplingSettings(),
        temperatures=temperatures,
        max_new_tokens=options.max_new_tokens,
        token_budget=options.token_budget,
        template=options.template,
        answer_fields=None if options.answer_fields is None else _load_fields(options.answer_fields),
    )


def _load_fields(path: Path) -> AnswerFields:
    try:
        return read_answer_fields(json.loads(path.read_text(encoding="utf-8")), name=path.name)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    from transformers.utils.logging import disable_progress_bar

    options = parser().parse_args(arguments)
    disable_progress_bar()

    def report(done: int, total: int) -> None:
        sys.stderr.write(f"\r{done} of {total} prompts" if sys.stderr.isatty() else f"{done} of {total} prompts\n")
        sys.stderr.flush()

    try:
        settings = read_settings(options)
        examples = [one for one in load_prompts(options.prompts) if options.split in (None, one.split)]
        if not examples:
            which = f" of the split {options.split}" if options.split else ""
            raise SamplingFileError(f"{options.prompts} contains no prompts{which}")
        vlm = load_vlm(options.model, adapter=options.adapter, **machine_options(options))
        arguments_left = {"seed": options.seed, "progress": report, "answers": options.answers}
        sets = sample_to_file(vlm, examples, settings, options.out, **arguments_left)
    except (OSError, ValueError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        sys.stderr.write(f"illume sample: {reason}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command continues from here\n")
        return 130
    left_out = read_left_out(options.out)
    if left_out and sys.stderr.isatty():
        sys.stderr.write("\n")
    for name, reason in list(left_out.items())[:SHOWN_LEFT_OUT]:
        sys.stderr.write(f"prompt {name} left out: {reason}\n")
    them = "it" if len(left_out) == 1 else "them"
    more = f", {len(left_out)} left out because the model cannot read {them}" if left_out else ""
    n_read = len(sets) - len(left_out)
    what = "rationales" if settings.answer_fields is None else "answers"
    n_invalid = sum(one.invalid is not None for group in sets for one in group)
    invalid = "" if settings.answer_fields is None else f", {n_invalid} of them invalid"
    sys.stdout.write(f"{sum(map(len, sets))} {what} of {n_read} prompts in {options.out}{invalid}{more}\n")
    return 0
