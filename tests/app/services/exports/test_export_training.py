"""The exported Parquet as TRL eats it: each trainer takes one optimiser step of the starter model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from app.services.exports import plan as export_plan
from app.services.exports.parquet import write_parquet
from app.services.exports.plan import ExportRequest
from app.services.exports.shapes import Format
from app.services.kernel.actors import SYSTEM
from app.settings import ROOT
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the trainers' own warnings are not ours
MODEL = ROOT / "starter" / "model"


@pytest.fixture
def files(committed_db: CommittedDatabase, tmp_path: Path) -> dict[Format, str]:
    """The project's rows as a Parquet file for each format of TRL's."""
    return write_files(committed_db, tmp_path)


def write_files(committed_db: CommittedDatabase, folder: Path, *, ordered: bool = False) -> dict[Format, str]:
    """The rows of a project, whose prompts may be in parts, as a Parquet file for each format of TRL's."""
    with committed_db.sessions() as session:
        project, _ = make_judged(session, prompts=8, ordered=ordered)
        session.commit()
        found = {}
        for form in (Format.sft, Format.preference, Format.kto):
            plan = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=form))
            session.commit()
            path = folder / f"{form}.parquet"
            path.write_bytes(b"".join(write_parquet(export_plan.row_pages(plan), plan.shape, embed=True)))
            found[form] = str(path)
    return found


def settings_of(kind: Any, folder: Path) -> Any:
    """A trainer's settings for one step on a processor."""
    return kind(
        output_dir=str(folder / "out"),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        max_length=None,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=1,
    )


def fits_starter(row: dict[str, Any]) -> bool:
    """Whether the starter can read a row: its context holds no 4,000 characters."""
    messages = [row[name][0] for name in ("prompt", "completion", "chosen", "rejected") if name in row]
    texts = [part["text"] or "" for message in messages for part in message["content"]]
    return all(len(text) < 200 for text in texts)


@pytest.mark.parametrize("form", [Format.sft, Format.preference, Format.kto])
def test_one_step(files: dict[Format, str], form: Format, tmp_path: Path) -> None:
    train_one_step(files[form], form, tmp_path)


def test_one_step_on_texts_and_pictures_in_order(committed_db: CommittedDatabase, tmp_path: Path) -> None:
    file = write_files(committed_db, tmp_path, ordered=True)[Format.sft]
    for row in train_one_step(file, Format.sft, tmp_path):
        [turn] = row["prompt"]
        assert [part["type"] for part in turn["content"]] == ["text", "image", "text", "image", "text"]
        assert len(row["images"]) == 2


def train_one_step(file: str, form: Format, tmp_path: Path) -> Any:
    """Let a trainer of TRL take one step on the rows of a file that the starter can read; returns the rows."""
    import datasets as hub
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl
    kinds: dict[Format, tuple[Any, Any]] = {
        Format.sft: (trl.SFTTrainer, trl.SFTConfig),
        Format.preference: (trl.DPOTrainer, trl.DPOConfig),
        Format.kto: (trl.KTOTrainer, trl.KTOConfig),
    }
    trainer_kind, config = kinds[form]
    rows = hub.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.filter(fits_starter, load_from_cache_file=False)
    assert len(rows) >= 2
    model = AutoModelForImageTextToText.from_pretrained(MODEL)
    before = [weight.detach().clone() for weight in model.parameters()]
    trainer = trainer_kind(
        model=model,
        args=settings_of(config, tmp_path),
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(MODEL),
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    return rows
