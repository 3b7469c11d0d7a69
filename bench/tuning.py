"""Training texts a second and peak memory: Illume's trainer and transformers' Trainer with the same model and data.

    python bench/tuning.py [--base starter/model] [--n 10] [--epochs 3] [--threads 2] [--repeat 3]

Both train the same LoRA on the same texts with AdamW, the same batch size, epochs, threads, schedule and dtype, and
store a checkpoint after each epoch. The Trainer uses peft's layers and encodes texts and images in its collator, as
is usual. Each run is a separate process, the two alternate, and the medians are printed; preparing inputs is
included, loading is not. `base` is the same process without training: the memory of the libraries and the model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from illume.evaluation.critics import guard_rows, rationale_rows
from illume.records import Example, TrainingRow
from illume.settings import TuningSettings, machine_settings


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


def load(base: str, rows: list[TrainingRow], settings: TuningSettings) -> tuple[Any, list[Any]]:
    """The model with a new adapter, and the texts of `rows`."""
    from illume.model.vlm import load_vlm
    from illume.tuning.batches import training_texts
    from illume.tuning.lora import begin_adapter

    vlm = load_vlm(base, **machine_settings(settings))
    begin_adapter(vlm, init="from_base", parent=None, settings=settings)
    return vlm, training_texts(vlm, rows, template=settings.template)


def prepare_base(*_: Any) -> Callable[[], None]:
    """Nothing to do: the process as it is before training."""
    return lambda: None


def prepare_illume(vlm: Any, texts: list[Any], settings: TuningSettings, folder: Path) -> Callable[[], None]:
    """All epochs with illume's tuner, as a function."""
    from illume.tuning.distributed import SingleProcess
    from illume.tuning.trainer import Training

    def train() -> None:
        training = Training(
            vlm,
            texts,
            settings=settings,
            weight=1.0,
            folder=folder,
            ranks=SingleProcess(),
            stop_requested=lambda: False,
            on_step=lambda _: None,
        )
        for _ in range(settings.epochs):
            training.run_epoch()

    return train


def prepare_trainer(vlm: Any, texts: list[Any], settings: TuningSettings, folder: Path) -> Callable[[], None]:
    """All epochs with transformers' Trainer, as a function."""
    import torch
    from transformers import Trainer, TrainingArguments

    from illume.model.vlm import append_continuations, encode

    for layer in vlm.model.modules():
        layer.__dict__.pop("forward", None)  # illume's quicker pass through a LoRA layer

    def collate(batch: list[Any]) -> dict[str, Any]:
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
    return lambda: trainer.train() and None


WAYS = {"base": prepare_base, "illume": prepare_illume, "trainer": prepare_trainer}


def run_one(options: argparse.Namespace) -> None:
    """One way in this process; its figures as JSON on the last line."""
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    settings = TuningSettings(
        epochs=options.epochs, spread_guard=False, device=options.device, dtype=options.dtype, threads=options.threads
    )
    vlm, texts = load(options.base, read_rows(Path(options.prompts), options.n), settings)
    with tempfile.TemporaryDirectory() as folder:
        train = WAYS[options.way](vlm, texts, settings, Path(folder))
        start, busy = time.perf_counter(), time.process_time()
        train()
        if vlm.device.type == "cuda":
            torch.cuda.synchronize()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    if vlm.device.type == "cuda":
        peak, device = torch.cuda.max_memory_allocated() / 2**20, torch.cuda.get_device_name()
    else:
        peak, device = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, platform.machine()
    machine = (
        f"{device}, {os.cpu_count()} cores, {options.threads} threads, {vlm.dtype}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    print(json.dumps({"texts": len(texts), "seconds": seconds, "busy": busy, "peak_mb": peak, "machine": machine}))


def run_ways(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The figures of every run, by way; the ways take turns."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(options.repeat):
        for way in WAYS:
            if way == "base" and number:
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{way}: {runs[way][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    return runs


def main() -> None:
    """Runs both ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="starter/model")
    parser.add_argument("--prompts", default="starter/scenes/prompts.jsonl")
    parser.add_argument("--n", type=int, default=10, help="train prompts with accepted rationales")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_one(options)
        return
    runs = run_ways(options)
    one = runs["illume"][0]
    print(f"{one['machine']}; {one['texts']} texts, {options.epochs} epochs, median of {options.repeat}\n")
    print("| way | texts/s | seconds | processor seconds | peak MB |\n|---|---|---|---|---|")
    speed, busy = {}, {}
    for way in ("illume", "trainer"):
        seconds, busy[way], peak = (median(run[key] for run in runs[way]) for key in ("seconds", "busy", "peak_mb"))
        speed[way] = one["texts"] * options.epochs / seconds
        print(f"| {way} | {speed[way]:.1f} | {seconds:.1f} | {busy[way]:.1f} | {peak:.0f} |")
    print(f"\nbefore training: {runs['base'][0]['peak_mb']:.0f} MB")
    print(
        f"illume / trainer: {speed['illume'] / speed['trainer']:.1f} x texts per second, "
        f"{busy['trainer'] / busy['illume']:.1f} x per second of processor time"
    )


if __name__ == "__main__":
    main()
