"""Checks of a model folder by the names and headers of its files. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from illume.errors import VlmError
from illume.phrases import Phrase, _, ngettext

COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Names of weights in the format of pickle, which can run code as it is opened."""

_LONGEST_HEADER = 100 * 2**20
"""Safetensors files with a longer header are refused by the format's own reader too, in bytes."""


def split_revision(base: str) -> tuple[str, str | None]:
    """The name of a model of the hub and the commit that it is kept to, of `NAME@COMMIT`.

    The commit is None where there is none, as for folders.
    """
    name, at, commit = base.rpartition("@")
    if at and COMMIT.fullmatch(commit) and not Path(base).is_dir():
        return name, commit
    return base, None


def place_of(base: str) -> tuple[str, dict[str, Any]]:
    """The name or folder of a model, and how `from_pretrained` finds it."""
    name, commit = split_revision(base)
    revision = {} if commit is None else {"revision": commit}
    return name, {"local_files_only": Path(base).is_dir(), **revision}


def check_folder(base: str) -> None:
    """Raises VlmError if `base` is a path, not a name of the hub, and there is no model."""
    folder = Path(base)
    in_folder = folder.parent != Path() and folder.parent.is_dir()
    looks_local = folder.is_absolute() or base.startswith(".") or base.count("/") > 1 or in_folder
    if folder.exists() or looks_local:
        if not folder.is_dir():
            raise VlmError(_("there is no model folder %(base)s", base=base))
        if not (folder / "config.json").is_file():
            raise VlmError(_("the folder %(base)s contains no model: config.json is missing", base=base))


def check_weights(base: str, *, allow_pickle: bool = False) -> None:
    """Raises VlmError unless the weight files of a model folder are complete, by names and headers.

    Without `allow_pickle` they must be safetensors, those that an index names and those of an adapter within too.
    """
    folder = Path(base)
    if not folder.is_dir():
        return
    if not allow_pickle:
        _refuse_pickles(folder)
    for index in sorted(folder.glob("*.index.json")):
        if index.name.endswith(".bin.index.json") and not allow_pickle:
            continue  # never read
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise VlmError(_("%(index)s is not a readable index of weights", index=index)) from error
        if not allow_pickle and (foreign := [name for name in names if not str(name).endswith(".safetensors")]):
            raise VlmError(pickles_refused(_("the model %(name)s", name=base), [str(foreign[0])]))
        if missing := [str(name) for name in names if not (folder / str(name)).is_file()]:
            raise VlmError(
                ngettext(
                    "the folder %(base)s lacks the weights %(first)s, which %(index)s names",
                    "the folder %(base)s lacks %(num)s files of weights, such as %(first)s, which %(index)s names",
                    len(missing),
                    base=base,
                    first=missing[0],
                    index=index.name,
                )
            )
    files = weight_files(folder)
    if not files:
        raise VlmError(_("the folder %(base)s contains no weights (*.safetensors or *.bin)", base=base))
    for path in files:
        if path.suffix == ".safetensors":
            tensor_shapes(path)


def pickles_refused(owner: str, names: Sequence[str] = ()) -> Phrase:
    """Why weights that are no safetensors are not loaded; `names` are some of their files."""
    if not names:
        return _(
            "%(owner)s has no weights as safetensors, only pickle files, which can run code as they are opened: convert"
            " them to safetensors, or allow pickles for the whole installation (ILLUME_ALLOW_PICKLE_WEIGHTS=true)",
            owner=owner,
        )
    return _(
        "%(owner)s has no weights as safetensors, only pickle files (%(names)s), which can run code as they are opened:"
        " convert them to safetensors, or allow pickles for the whole installation (ILLUME_ALLOW_PICKLE_WEIGHTS=true)",
        owner=owner,
        names=", ".join(names),
    )


def _refuse_pickles(folder: Path) -> None:
    """Raises VlmError if the model in `folder`, or an adapter beside it, has pickle files in place of safetensors."""
    adapters = {path.name for path in folder.glob("adapter_model.*")}
    if "adapter_model.bin" in adapters and "adapter_model.safetensors" not in adapters:
        raise VlmError(pickles_refused(_("the adapter in %(folder)s", folder=folder), ["adapter_model.bin"]))
    if any(path.name not in adapters for path in folder.glob("*.safetensors")):
        return
    if pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
        raise VlmError(pickles_refused(_("the model %(name)s", name=folder), pickles[:2]))


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, by name."""
    return sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads tensor names and shapes from the header of a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise VlmError(_("%(path)s is not a readable safetensors file", path=path)) from error
    if path.stat().st_size < 8 + length + max(ends, default=0):
        raise VlmError(_("%(path)s is shorter than its header says: it was not copied completely", path=path))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
