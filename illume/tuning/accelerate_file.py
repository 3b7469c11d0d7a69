"""A configuration file of accelerate, by which a round runs on several graphics cards of its machine. No torch.

What is read of it here: `num_processes`, `distributed_type` (`MULTI_GPU`: every card holds the whole base model;
`FSDP`: the language model's layers are shared out over the cards) and, for FSDP, `fsdp_version`,
`fsdp_reshard_after_forward` and `fsdp_offload_params`. accelerate itself starts the processes, on the cards that
`gpu_ids` names; it is only checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from illume.phrases import _
from illume.tuning.job import JobError


@dataclass(frozen=True, slots=True)
class AccelerateFile:
    """How the processes of a round share the base model."""

    processes: int
    shards: bool
    reshard_after_forward: bool = True
    offload: bool = False
    any_cards: bool = True  # without names in `gpu_ids`


def read_accelerate_file(path: Path) -> AccelerateFile:
    """Reads a configuration file as `accelerate config` writes it.

    Raises JobError for one that cannot be read, and for what rounds do not do: DeepSpeed, FSDP 1, several machines.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(_("%(path)s cannot be read: %(reason)s", path=path, reason=str(error.strerror))) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(_("%(path)s is not valid YAML", path=path)) from error
    if not isinstance(data, dict):
        raise JobError(_("%(path)s is not a configuration of accelerate", path=path))
    _check_supported(path, data)
    processes = data.get("num_processes")
    if type(processes) is not int or processes < 1:  # a boolean is an int too
        raise JobError(_("%(path)s: num_processes must be the number of graphics cards to use", path=path))
    shards = data["distributed_type"] == "FSDP"
    any_cards = _check_cards(path, data.get("gpu_ids"), least=processes if shards else max(2, processes))
    if not shards:
        return AccelerateFile(processes, shards=False, any_cards=any_cards)
    sharding = data.get("fsdp_config")
    if not isinstance(sharding, dict) or sharding.get("fsdp_version") != 2:
        raise JobError(_("%(path)s: fsdp_config needs fsdp_version: 2", path=path))
    return AccelerateFile(
        processes,
        shards=True,
        reshard_after_forward=_read_switch(path, sharding, "fsdp_reshard_after_forward", default=True),
        offload=_read_switch(path, sharding, "fsdp_offload_params", default=False),
        any_cards=any_cards,
    )


def _check_cards(path: Path, ids: object, *, least: int) -> bool:
    """Whether `gpu_ids` leaves open which cards are used. Raises JobError unless it does, or names `least` of them."""
    if ids in (None, "all"):
        return True
    names = [one.strip() for one in ids.split(",")] if isinstance(ids, str) else []
    if "" in names or len(set(names)) != len(names) or len(names) < least:
        raise JobError(
            _("%(path)s: gpu_ids must be all, or name at least %(number)s cards, as in 0,1", path=path, number=least)
        )
    return False


def _read_switch(path: Path, sharding: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = sharding.get(name)
    if value is not None and not isinstance(value, bool):
        raise JobError(_("%(path)s: %(name)s must be true or false, without quotation marks", path=path, name=name))
    return default if value is None else value


def _check_supported(path: Path, data: Mapping[str, Any]) -> None:
    kind = data.get("distributed_type")
    if kind == "DEEPSPEED":
        raise JobError(
            _(
                "%(path)s: rounds do not run with DeepSpeed: use distributed_type FSDP, which shares out the base model"
                " as ZeRO's third stage does",
                path=path,
            )
        )
    if kind not in ("MULTI_GPU", "FSDP"):
        raise JobError(
            _("%(path)s: distributed_type must be MULTI_GPU or FSDP, not %(kind)s", path=path, kind=str(kind))
        )
    if data.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE" or data.get("num_machines", 1) != 1:
        raise JobError(_("%(path)s: a round runs on one machine: set num_machines to 1", path=path))


def check_accelerate_file(path: Path, *, quantization: str, cards: int = 0) -> None:
    """Raises JobError unless rounds on a base model with this quantization can run by the file.

    `cards` are those that this machine has; with 0 it is not known, or the processes run on the CPU.
    """
    file = read_accelerate_file(path)
    if cards and file.any_cards and file.processes > cards:
        raise JobError(
            _(
                "%(path)s: num_processes is %(number)s, and this machine has only %(cards)s graphics cards",
                path=path,
                number=file.processes,
                cards=cards,
            )
        )
    if file.shards and quantization != "none":
        raise JobError(
            _(
                "%(path)s: a base model in %(bits)s cannot be shared out over graphics cards: use distributed_type"
                " MULTI_GPU, or no quantization",
                path=path,
                bits=quantization,
            )
        )
