"""The training recipe: packed texts have the same loss as separate ones; a killed run can be resumed exactly."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from illume.scenes.emoji import load_sprites
from illume.scenes.faithfulness import is_faithful_to_scene
from illume.scenes.graph import Item, make_scene
from illume.scenes.questions import sample_question, sample_scene_for
from illume.scenes.starter.architecture import IMAGE, IMAGE_TOKENS, build_model, build_processor, build_tokenizer
from illume.scenes.starter.curriculum import (
    IGNORED,
    MIXING,
    OBJECT_LABELS,
    PATCH_LABELS,
    PATCHES_PER_SIDE,
    READING,
    SEEING,
    Recipe,
    Stage,
    encode_text,
    label_patches,
    make_batch,
    make_listing,
    sample_rationale,
    scene_texts,
)
from illume.scenes.starter.training import compute_losses, label_token_ids, patch_loss, train, write_curve

ROOT = Path(__file__).resolve().parents[4]

TINY = Recipe(
    stages=(
        Stage(1, (1.0, 1.0), seeing=1.0, batch=2),
        Stage(2, (1.0, 0.5), describe=1.0, questions=2, batch=2),
        Stage(3, (0.5, 0.1), describe=0.5, cells=1.0, counts=1.0, questions=2, rationales=1, right=0.3, batch=3),
    ),
    warmup=2,
)


class TestPacking:
    def test_loss_equals_that_of_separate_texts(self, emoji: Path) -> None:
        """The model's ordinary forward pass on each text after its image gives the loss of the packed batch."""
        tokenizer = build_tokenizer(n=300)
        model = build_model(tokenizer).eval()
        batch = make_batch(5, TINY, tokenizer, load_sprites(emoji))
        with torch.no_grad():
            packed, _ = compute_losses(model, batch, label_token_ids(tokenizer), 1.0)
        losses = []
        for row in range(len(batch.ids)):
            starts = [i for i, position in enumerate(batch.positions[row].tolist()) if position == IMAGE_TOKENS]
            used = [start for start in starts if batch.labels.shape[1] > start - IMAGE_TOKENS]
            bounds = [start - IMAGE_TOKENS for start in used] + [batch.ids.shape[1]]
            for begin, end in pairwise(bounds):
                labels = batch.labels[row, begin:end]
                if not (labels != IGNORED).any():
                    continue
                last = int((labels != IGNORED).nonzero().max()) + 1
                ids = torch.cat(
                    [torch.full((IMAGE_TOKENS,), model.config.image_token_id), batch.ids[row, begin : begin + last]]
                )
                with torch.no_grad():
                    logits = model(input_ids=ids[None], pixel_values=batch.pixels[row : row + 1]).logits[0]
                is_target = labels[:last] != IGNORED
                losses.append(
                    F.cross_entropy(
                        logits[IMAGE_TOKENS - 1 : -1][is_target].float(), labels[:last][is_target], reduction="none"
                    )
                )
        assert len(losses) > len(batch.ids)
        assert torch.allclose(torch.cat(losses).mean(), packed, atol=1e-4)


class TestPatches:
    def test_labels_of_a_scene(self) -> None:
        """A box over two whole patches and a sliver of a third, and one that covers the second."""
        edge = 192 // PATCHES_PER_SIDE
        items = [Item("dog", "left", "back"), Item("cat", "middle", "back")]
        scene = make_scene("park", "sunny", "noon", items)
        classes = label_patches(scene, [(0, 0, 2 * edge + 4, edge), (edge, 0, 2 * edge, edge)])
        dog, cat, bare = OBJECT_LABELS.index("dog"), OBJECT_LABELS.index("cat"), OBJECT_LABELS.index("none")
        assert classes[:4, 0].tolist() == [dog, cat, IGNORED, bare]
        assert classes[:4, 1].tolist() == [0, 1, IGNORED, IGNORED]
        assert classes[:2, 2].tolist() == [0, 0]
        assert set(classes[4:, 0].tolist()) == {bare}
        assert set(classes[4:, 1:].flatten().tolist()) == {IGNORED}

    def test_loss_falls_with_similarity(self) -> None:
        """A feature in the direction of its words' embeddings has nearly no loss, another one a large loss."""
        space = torch.eye(sum(len(group) for group in PATCH_LABELS))
        words = list(space.split([len(group) for group in PATCH_LABELS]))
        patches = torch.tensor([[[3, 1, 0], [IGNORED] * 3]])
        right, wrong = (
            patch_loss((words[0][kind] + words[1][1] + words[2][0]).expand(1, 2, -1), words, patches).item()
            for kind in (3, 4)
        )
        assert right < 0.01 < 5 < wrong

    def test_words_are_single_tokens(self) -> None:
        ids = torch.cat(label_token_ids(build_tokenizer(n=3000)))
        assert len(set(ids.tolist())) == sum(len(group) for group in PATCH_LABELS)


class TestListing:
    def test_only_the_second_elements_are_targets(self) -> None:
        tokenizer = build_tokenizer(n=300)
        ids, labels = encode_text(make_listing("Q: how many of each? A:", [("dog", "no"), ("cat", "two")]), tokenizer)
        assert tokenizer.decode(ids) == "Q: how many of each? A: dog no cat two<eos>"
        assert tokenizer.decode([label for label in labels if label != IGNORED]) == " no two"


class TestTrain:
    @pytest.fixture(autouse=True)
    def small_tokenizer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("illume.scenes.starter.training.build_tokenizer", lambda seed: build_tokenizer(seed, n=300))

    @pytest.mark.slow  # quick in tests/illume/starter/test_training.py
    def test_resumed_equals_uninterrupted(self, emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("illume.scenes.starter.training.CHECKPOINT_EVERY", 3)
        lines: list[str] = []
        train(tmp_path / "whole", recipe=TINY, emoji=emoji, device="cpu", report=lines.append)

        def stop(line: str) -> None:
            if line.startswith("saved step 3"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", recipe=TINY, emoji=emoji, device="cpu", report=stop)
        train(tmp_path / "cut", recipe=TINY, emoji=emoji, device="cpu", resume=True)
        whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[name], cut[name]) for name in whole)
        assert "min left" in " ".join(lines)
        assert json.loads((tmp_path / "cut" / "curve.json").read_text())["curve"][-1]["scenes"] == 1 * 2 + 2 * 2 + 3 * 3

    @pytest.mark.slow
    def test_killed_at_a_random_moment_and_resumed(self, emoji: Path, tmp_path: Path) -> None:
        """By SIGKILL, anywhere: while a step is computed, or a checkpoint written."""
        code = (
            "import sys; from pathlib import Path; import illume.scenes.starter.training as training;"
            "from illume.scenes.starter.architecture import build_tokenizer;"
            "from tests.illume.scenes.starter.test_training import TINY;"
            "training.CHECKPOINT_EVERY = 1; training.build_tokenizer = lambda seed: build_tokenizer(seed, n=300);"
            "out = Path(sys.argv[1]); resume = (out / 'checkpoint.pt').exists();"
            "training.train(out, recipe=TINY, emoji=Path(sys.argv[2]), device='cpu', resume=resume)"
        )

        def start(name: str) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-c", code, str(tmp_path / name), str(emoji)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            return subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)

        assert start("whole").wait() == 0
        cut, checkpoint = start("cut"), tmp_path / "cut" / "checkpoint.pt"
        while not checkpoint.exists():
            assert cut.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        helpers = psutil.Process(cut.pid).children(recursive=True)
        cut.kill()
        cut.wait()
        psutil.wait_procs(helpers, timeout=10)
        assert helpers
        assert not any(helper.is_running() for helper in helpers)
        done = torch.load(checkpoint, weights_only=True)["run"]["step"]
        assert start("cut").wait() == 0
        whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), f"killed after step {done}"
        curves = [json.loads((tmp_path / name / "curve.json").read_text())["curve"] for name in ("whole", "cut")]
        assert [point["scenes"] for point in curves[0]] == [point["scenes"] for point in curves[1]] == [15]
        drawn = ET.fromstring((tmp_path / "cut" / "curve.svg").read_text())  # noqa: S314 (our own file)
        assert "cross-entropy of a patch" in "".join(drawn.itertext())

    def test_refuses_another_recipe(self, emoji: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            train(tmp_path, recipe=TINY, emoji=emoji, device="cpu", resume=True)
        train(tmp_path, recipe=Recipe(stages=(Stage(1, (1.0, 1.0), batch=2),)), emoji=emoji, device="cpu")
        with pytest.raises(ValueError) as caught:
            train(tmp_path, recipe=TINY, emoji=emoji, device="cpu", resume=True)
        assert "other settings (--share)" in str(caught.value)
        with pytest.raises(FileExistsError, match="continue from it with --resume"):
            train(tmp_path, recipe=TINY, emoji=emoji, device="cpu")


class TestWriteCurve:
    def test_numbers_and_a_figure(self, tmp_path: Path) -> None:
        write_curve(tmp_path, {"curve": []})
        assert [path.name for path in tmp_path.iterdir()] == ["curve.json"]
        write_curve(tmp_path, {"curve": [{"step": 50, "loss": 0.5, "patch_loss": 1.0}]})
        assert "cross-entropy of a token" in (tmp_path / "curve.svg").read_text()


class TestMixture:
    def test_shares(self) -> None:
        rng = random.Random(0)
        stage = MIXING
        assert scene_texts(rng, SEEING)[1] == []
        assert len(scene_texts(rng, READING)[1]) >= READING.questions
        n = right = circular = 0
        for _ in range(2000):
            question = sample_question(rng, "place")
            scene = sample_scene_for(question.query, question.answer, rng)
            text = sample_rationale(question, scene, rng, stage)
            n += 1
            right += is_faithful_to_scene(text, scene, question.query, question.answer)
            circular += text.startswith("it ")
        assert abs(right / n - stage.right) < 0.04
        assert abs(circular / n - stage.circular) < 0.04


class TestProcessor:
    def test_chat_template_equals_the_plain_prompt(self) -> None:
        processor = build_processor(build_tokenizer(n=300))
        text = "Q: is there a dog? A: yes, seeing that"
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        assert processor.apply_chat_template([turn], add_generation_prompt=True) == f"{IMAGE}{text}"
        reply = {"role": "assistant", "content": [{"type": "text", "text": "it is so"}]}
        assert processor.apply_chat_template([turn, reply]) == f"{IMAGE}{text} it is so<eos>"

    def test_any_text_encodes(self) -> None:
        tokenizer = build_tokenizer(n=300)
        for text in ("Zoë's 猫 sat.\n", "a dog is at the left", "<b>&amp;</b>", "  two  spaces "):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
