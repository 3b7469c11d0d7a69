"""Rationales of a prompts file, written to a file: `python -m illume.sampling`, the same as `illume sample`.

Each candidate set is written as soon as it is whole, beside the file asked for and under its name with `.part` behind
it; a run that was killed goes on from there, and ends with the candidates of one that was not. The finished file has a
line a prompt, in the order of the prompts: `example_id` and `rationales`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from illume.files import replace_file
from illume.model.loading import base_fingerprint
from illume.model.vlm import Vlm, load_vlm
from illume.options import DTYPES, STARTER
from illume.prompts_file import SPLITS, load_prompts
from illume.records import AnswerSource, Example, Rationale
from illume.sampling.generation import Progress, sample_rationales
from illume.settings import SamplingSettings


class SamplingFileError(ValueError):
    """The file cannot be written as asked: its message says why and what to do."""


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
    """`sample_rationales`, kept in `out`; what an earlier start with the same arguments wrote is not sampled again.

    The token budget may differ between starts, as it changes nothing. Raises SamplingFileError where `out` or its part
    was made with other arguments, or is being written, and where two examples have one id.
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
            left = [example for example in examples if example.id not in done]
            _sample(vlm, left, settings, part, done, n_all=len(examples), seed=seed, progress=progress, answers=answers)
            with replace_file(out) as file:
                file.writelines(_lines(request, [(one.id, done[one.id]) for one in examples]))
        part.unlink(missing_ok=True)
    return [done[example.id] for example in examples]


def read_rationales(path: Path) -> dict[str, list[Rationale]]:
    """The candidate sets of a file that `sample_to_file` wrote, by the ids of their examples."""
    _, *rows = (json.loads(line) for line in path.read_bytes().splitlines())
    return {row["example_id"]: [Rationale(**one) for one in row["rationales"]] for row in rows}


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
    """Samples the examples that are `left`, adding each set to `part` and to `done`."""
    with part.open("ab") as file:

        def keep(index: int, rationales: list[Rationale]) -> None:
            done[left[index].id] = rationales
            file.write(_line(left[index].id, rationales))
            file.flush()

        def report(_done: int, _total: int) -> None:
            if progress is not None:
                progress(len(done), n_all)

        sample_rationales(vlm, left, settings, seed=seed, progress=report, answers=answers, on_set=keep)


def _request(
    vlm: Vlm, examples: Sequence[Example], settings: SamplingSettings, seed: int, answers: AnswerSource | None
) -> dict[str, Any]:
    """What decides over the candidates, as the first line of the file tells it."""
    asked = [(one.id, one.images, one.question, one.answer) for one in examples]
    weights = Path(vlm.adapter or "") / "adapter_model.safetensors"
    request = {
        "settings": {name: value for name, value in asdict(settings).items() if name != "token_budget"},
        "seed": seed,
        "answers": answers,
        "prompts": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "base": base_fingerprint(vlm.base) if Path(vlm.base).is_dir() else vlm.base,
        "adapter": hashlib.sha256(weights.read_bytes()).hexdigest() if vlm.adapter else None,
        "dtype": str(vlm.dtype),
    }
    plain: dict[str, Any] = json.loads(json.dumps(request))
    return plain


def _read(path: Path, request: dict[str, Any]) -> dict[str, list[Rationale]]:
    """The whole lines of `path`, which begins with `request`; a torn last line is cut off, a new file begun."""
    stored = path.read_bytes() if path.exists() else b""
    whole = stored[: stored.rfind(b"\n") + 1]
    if not whole:
        path.write_bytes(b"".join(_lines(request, ())))
        return {}
    found = json.loads(whole.splitlines()[0])["request"]
    if different := sorted(name for name in {*found, *request} if found.get(name) != request.get(name)):
        raise SamplingFileError(f"{path} was begun with other {', '.join(different)}: choose another file or remove it")
    if whole != stored:
        path.write_bytes(whole)
    return read_rationales(path)


def _lines(request: dict[str, Any], sets: Sequence[tuple[str, list[Rationale]]]) -> Iterator[bytes]:
    yield json.dumps({"request": request}, ensure_ascii=False).encode() + b"\n"
    for name, rationales in sets:
        yield _line(name, rationales)


def _line(name: str, rationales: Sequence[Rationale]) -> bytes:
    row = {"example_id": name, "rationales": [asdict(one) for one in rationales]}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Within it no other process writes the file."""
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
    usual = SamplingSettings()
    parser = argparse.ArgumentParser(
        prog="illume sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="file of the rationales; an interrupted run goes on")
    add("--prompts", required=True, help="prompts file (.jsonl)")
    add("--model", default=str(STARTER / "model"), help="folder or hub name; default: the starter")
    add("--adapter", help="folder of an adapter")
    add("--split", choices=SPLITS, help="only these prompts")
    add("--seed", type=int, default=0)
    temperatures = ",".join(f"{temperature:g}:{count}" for temperature, count in usual.temperatures)
    add("--temperatures", default=temperatures, help="TEMPERATURE:SAMPLES, with commas; default: %(default)s")
    add("--answers", choices=("gold", "own"), help="whose answer is explained; default: gold where there is one")
    most, budget = usual.max_new_tokens, usual.token_budget
    add("--max-new-tokens", type=int, default=most, help="of a rationale; default: %(default)s")
    add("--token-budget", type=int, default=budget, help="tokens of keys and values held; default: %(default)s")
    add("--template", default=usual.template, help="of the prompt's text; default: %(default)s")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...; default: a GPU where there is one")
    add("--dtype", choices=DTYPES, default="auto", help="default: bfloat16 on a GPU that has it, else float32")
    return parser


def settings_of(options: argparse.Namespace) -> SamplingSettings:
    """The settings a command line means; raises ValueError where they are none."""
    pairs = [pair.partition(":") for pair in options.temperatures.split(",")]
    try:
        temperatures = tuple((float(temperature), int(count or 1)) for temperature, _, count in pairs)
    except ValueError:
        raise ValueError(f"--temperatures must be such as 0:1,0.7:2, not {options.temperatures}") from None
    return replace(
        SamplingSettings(),
        temperatures=temperatures,
        max_new_tokens=options.max_new_tokens,
        token_budget=options.token_budget,
        template=options.template,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    from transformers.utils.logging import disable_progress_bar

    options = parser().parse_args(arguments)
    disable_progress_bar()

    def report(done: int, total: int) -> None:
        sys.stderr.write(f"\r{done} of {total} prompts" if sys.stderr.isatty() else f"{done} of {total} prompts\n")
        sys.stderr.flush()

    try:
        settings = settings_of(options)
        examples = [one for one in load_prompts(options.prompts) if options.split in (None, one.split)]
        if not examples:
            which = f" of the split {options.split}" if options.split else ""
            raise SamplingFileError(f"{options.prompts} holds no prompts{which}")
        vlm = load_vlm(options.model, adapter=options.adapter, device=options.device, dtype=options.dtype)
        how = {"seed": options.seed, "progress": report, "answers": options.answers}
        sets = sample_to_file(vlm, examples, settings, options.out, **how)
    except (OSError, ValueError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        sys.stderr.write(f"illume sample: {reason}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on from here\n")
        return 130
    sys.stdout.write(f"{sum(map(len, sets))} rationales of {len(sets)} prompts in {options.out}\n")
    return 0
