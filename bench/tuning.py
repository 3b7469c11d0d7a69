"""Training texts a second and peak memory: illume's tuner beside transformers' Trainer, same model, data, schedule.

    python bench/tuning.py --base starter/model --prompts starter/scenes/prompts.jsonl

Both train the same LoRA on the same texts with AdamW, the same batch size, epochs, threads and dtype, each in a process
of its own; loading is not counted, preparing inputs is. The Trainer encodes texts and images in its collator, as is
usual.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from illume.critics import guard_rows, rationale_rows
from illume.records import Example, TrainingRow
from illume.tuning_job import TuningSettings


def read_rows(prompts: Path, n_prompts: int) -> list[TrainingRow]:
    """Rationale rows for the first `n_prompts` train prompts with references, and the guard."""
    examples = []
    for line in prompts.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["split"] == "train":
            images = tuple(str(prompts.parent / image) for image in row["images"])
            references = tuple(row["references"])
            examples.append(Example(row["external_id"], images, row["question"], row["answer"], references))
    accepted = {one.id: one.references[:2] for one in [one for one in examples if one.references][:n_prompts]}
    return rationale_rows(examples, accepted) + guard_rows(examples, accepted, seed=0)


def run_illume(base: str, rows: list[TrainingRow], settings: TuningSettings, folder: Path) -> dict[str, float]:
    """Texts a second of illume's tuner."""
    from illume.tuning_adapter import begin_adapter
    from illume.tuning_batches import training_texts
    from illume.tuning_loop import Training
    from illume.tuning_ranks import Alone
    from illume.vlm import load_vlm

    vlm = load_vlm(base, device=settings.device, dtype=settings.dtype)
    begin_adapter(vlm, init="from_base", parent=None, settings=settings)
    texts = training_texts(vlm, rows, template=settings.template)
    start = time.perf_counter()
    training = Training(
        vlm,
        texts,
        settings=settings,
        weight=1.0,
        folder=folder,
        ranks=Alone(),
        asked=lambda: False,
        on_step=lambda _: None,
    )
    losses = [training.run_epoch() for _ in range(settings.epochs)]
    return {"texts": len(texts), "seconds": time.perf_counter() - start, "loss": losses[-1]["answer_loss"] or 0.0}


def run_trainer(base: str, rows: list[TrainingRow], settings: TuningSettings, folder: Path) -> dict[str, float]:
    """Texts a second of transformers' Trainer."""
    import torch
    from transformers import Trainer, TrainingArguments

    from illume.tuning_adapter import begin_adapter
    from illume.tuning_batches import TrainingText, training_texts
    from illume.vlm import append_continuations, encode, load_vlm

    vlm = load_vlm(base, device=settings.device, dtype=settings.dtype)
    begin_adapter(vlm, init="from_base", parent=None, settings=settings)
    texts = training_texts(vlm, rows, template=settings.template)

    def collate(batch: list[TrainingText]) -> dict[str, Any]:
        encoded = encode(vlm, [text.prompt for text in batch], [text.images for text in batch])
        inputs, labels = append_continuations(vlm, encoded, [text.continuation for text in batch])
        return {**inputs, "labels": labels}

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        use_cpu=vlm.device.type == "cpu",
        bf16=vlm.dtype == torch.bfloat16,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        logging_steps=10**9,
    )
    trainer = Trainer(model=vlm.model, args=arguments, train_dataset=texts, data_collator=collate)
    start = time.perf_counter()
    result = trainer.train()
    return {"texts": len(texts), "seconds": time.perf_counter() - start, "loss": result.training_loss}


def run_one(options: argparse.Namespace) -> None:
    """One way in this process; its figures as JSON on the last line."""
    import torch

    torch.set_num_threads(options.threads)
    settings = TuningSettings(
        epochs=options.epochs, device=options.device, dtype=options.dtype, threads=options.threads
    )
    rows = read_rows(Path(options.prompts), options.n)
    way = {"illume": run_illume, "trainer": run_trainer}[options.way]
    with tempfile.TemporaryDirectory() as folder:
        figures = way(options.base, rows, settings, Path(folder))
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, "peak_mb": peak}))


def main() -> None:
    """Runs both ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="starter/model")
    parser.add_argument("--prompts", default="starter/scenes/prompts.jsonl")
    parser.add_argument("--n", type=int, default=40, help="train prompts with accepted rationales")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--way", choices=["illume", "trainer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_one(options)
        return
    print("| way | texts/s | seconds | peak MB |\n|---|---|---|---|")
    for way in ("illume", "trainer"):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        speed = figures["texts"] * options.epochs / figures["seconds"]
        print(f"| {way} | {speed:.1f} | {figures['seconds']:.1f} | {figures['peak_mb']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
