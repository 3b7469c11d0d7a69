"""Loading, adapters and inputs, for every model family that can be built without a network.

Built here: LLaVA, Idefics3, SmolVLM, Qwen2.5-VL, PaliGemma, Gemma 3, each tiny, randomly initialised, with a tokenizer
made in code. Qwen2.5-VL and SmolVLM are built without their video processors, which need torchvision; Illume loads
such processors the same way if torchvision is not installed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from illume.errors import VlmError
from illume.model.loading import ADAPTER_RECORD
from illume.model.vlm import (
    IGNORED,
    Vlm,
    append_continuations,
    bare_model,
    decode,
    encode,
    encode_continuation,
    end_token_id,
    last_prompt_character,
    load_vlm,
    save_adapter,
    set_adapter,
    stop_token_ids,
    without_peft_warning,
)
from tests.illume.families import FAMILIES, make_images, make_llava, make_text_only

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("models") / "llava")


def make_adapter(base: Path, folder: Path, *, seed: int = 0) -> Path:
    """Saves an adapter of `base` that changes its logits."""
    vlm = load_vlm(str(base))
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_alpha=32)
    with without_peft_warning():
        vlm.model = get_peft_model(vlm.model, config)
    save_adapter(vlm, str(folder))
    return folder


def logits(vlm: Vlm, image: str) -> torch.Tensor:
    inputs = encode(vlm, ["Q: what is it? A:"], [[image]])
    ready, _ = append_continuations(vlm, inputs, [encode_continuation(vlm, " red")])
    with torch.inference_mode():
        result: torch.Tensor = bare_model(vlm)(**ready).logits
    return result


class TestFamilies:
    def test_prompts_are_encoded_with_one_and_more_images(self, family: Path, images: list[str]) -> None:
        vlm = load_vlm(str(family), device="cpu")
        one = encode(vlm, ["Q: what is it? A:"], [images[:1]])
        both = encode(vlm, ["Q: what is it? A:"] * 2, [images[:1], images[1:3]])
        mask = both["attention_mask"]
        assert mask[0, 0] == 0
        assert mask[1].all()
        assert torch.equal(both["input_ids"][0][mask[0].bool()], one["input_ids"][0])
        assert mask.sum(dim=1)[1] > mask.sum(dim=1)[0] + 2

    def test_right_padding(self, family: Path, images: list[str]) -> None:
        vlm = load_vlm(str(family), device="cpu")
        both = encode(vlm, ["Q: A:", "Q: the dog is red A:"], [images[:1], images[:1]], padding_side="right")
        assert both["attention_mask"][0, 0] == 1
        assert both["attention_mask"][0, -1] == 0

    def test_the_image_matters(self, family: Path, images: list[str]) -> None:
        vlm = load_vlm(str(family), device="cpu")
        assert not torch.allclose(logits(vlm, images[0])[:, -1], logits(vlm, images[1])[:, -1], atol=1e-6)

    def test_padding_changes_nothing(self, family: Path, images: list[str]) -> None:
        vlm = load_vlm(str(family), device="cpu")
        inputs = encode(vlm, ["Q: A:", "Q: is the dog red? A:"], [images[:1], images[1:3]])
        rows = [encode_continuation(vlm, " the dog"), encode_continuation(vlm, " because it can be seen")]
        ready, labels = append_continuations(vlm, inputs, rows)
        alone, alone_labels = append_continuations(vlm, encode(vlm, ["Q: A:"], [images[:1]]), rows[:1])
        with torch.inference_mode():
            together = bare_model(vlm)(**ready).logits[0]
            single = bare_model(vlm)(**alone).logits[0]
        width = len(rows[0])
        assert torch.allclose(together[labels[0] != IGNORED], single[alone_labels[0] != IGNORED], atol=1e-5)
        assert labels[0][labels[0] != IGNORED].tolist() == rows[0]
        assert len(alone_labels[0][alone_labels[0] != IGNORED]) == width

    def test_forward_equals_generation(self, family: Path, images: list[str]) -> None:
        vlm = load_vlm(str(family), device="cpu")
        inputs = encode(vlm, ["Q: A:", "Q: is the dog red? A:"], [images[:1], images[1:3]])
        output = vlm.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=5,
            min_new_tokens=5,
            return_dict_in_generate=True,
            output_logits=True,
        )
        written = output.sequences[:, inputs["input_ids"].shape[1] :]
        ready, _ = append_continuations(vlm, inputs, written.tolist())
        with torch.inference_mode():
            forward = bare_model(vlm)(**ready).logits[:, -6:-1]
        assert torch.allclose(forward, torch.stack(output.logits, dim=1), atol=1e-5)

    def test_learns_answers_that_depend_on_the_image(self, family: Path, images: list[str]) -> None:
        vlm = load_vlm(str(family), device="cpu")
        torch.manual_seed(0)
        words = ["dog", "cat", "boat", "sand", "water", "park", "sun", "night"]
        inputs = encode(vlm, ["Q: what is it? A:"] * 8, [[image] for image in images])
        ready, labels = append_continuations(vlm, inputs, [encode_continuation(vlm, f" {word}") for word in words])
        optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=5e-3)
        for _ in range(150):
            output = vlm.model(**ready).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                output.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss < 0.01:
                break
        assert answers(vlm, images) == words
        assert answers(vlm, images[::-1]) == words[::-1]

    def test_adapter_is_saved_and_reloaded(self, family: Path, images: list[str], tmp_path: Path) -> None:
        adapter = make_adapter(family, tmp_path / "adapter")
        vlm = load_vlm(str(family), device="cpu")
        plain = logits(vlm, images[0])
        set_adapter(vlm, str(adapter))
        adapted = logits(vlm, images[0])
        assert not torch.allclose(plain, adapted, atol=1e-4)
        again = load_vlm(str(family), adapter=str(adapter), device="cpu")
        assert torch.equal(logits(again, images[0]), adapted)


def answers(vlm: Vlm, images: list[str]) -> list[str]:
    inputs = encode(vlm, ["Q: what is it? A:"] * len(images), [[image] for image in images])
    written = vlm.model.eval().generate(**inputs, do_sample=False, max_new_tokens=4)
    return [decode(vlm, row) for row in written[:, inputs["input_ids"].shape[1] :].tolist()]


class TestAdapters:
    def test_swapping_adapters_restores_the_same_logits(self, llava: Path, images: list[str], tmp_path: Path) -> None:
        first = make_adapter(llava, tmp_path / "first", seed=1)
        second = make_adapter(llava, tmp_path / "second", seed=2)
        vlm = load_vlm(str(llava))
        plain = logits(vlm, images[0])
        set_adapter(vlm, str(first))
        one = logits(vlm, images[0])
        set_adapter(vlm, str(second))
        two = logits(vlm, images[0])
        assert vlm.adapter == str(second)
        assert not torch.equal(one, two)
        set_adapter(vlm, str(first))
        assert torch.equal(logits(vlm, images[0]), one)
        assert list(vlm.model.peft_config) == ["default"]
        set_adapter(vlm, None)
        assert torch.equal(logits(vlm, images[0]), plain)
        assert vlm.adapter is None

    def test_wrong_shape_is_refused_before_loading(
        self, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = make_llava(tmp_path / "wider", hidden_size=48)
        adapter = make_adapter(other, tmp_path / "adapter")
        (adapter / ADAPTER_RECORD).unlink()
        monkeypatch.setattr("illume.model.vlm.AutoModelForImageTextToText.from_pretrained", None)
        with pytest.raises(VlmError, match="another base"):
            load_vlm(str(llava), adapter=str(adapter))

    def test_same_shape_other_weights_is_refused(self, llava: Path, tmp_path: Path) -> None:
        other = make_llava(tmp_path / "other", seed=5)
        adapter = make_adapter(other, tmp_path / "adapter")
        vlm = load_vlm(str(llava))
        with pytest.raises(VlmError, match="another base"):
            set_adapter(vlm, str(adapter))
        assert vlm.adapter is None

    def test_adapters_still_fit_a_base_that_was_moved(self, llava: Path, tmp_path: Path) -> None:
        adapter = make_adapter(llava, tmp_path / "adapter")
        moved = shutil.copytree(llava, tmp_path / "moved")
        assert load_vlm(str(moved), adapter=str(adapter)).adapter == str(adapter)

    def test_other_family_is_refused(self, llava: Path, tmp_path: Path) -> None:
        adapter = make_adapter(FAMILIES["qwen2_5_vl"](tmp_path / "qwen"), tmp_path / "adapter")
        (adapter / ADAPTER_RECORD).unlink()
        with pytest.raises(VlmError, match="another base"):
            load_vlm(str(llava), adapter=str(adapter))

    def test_no_adapter_in_folder(self, llava: Path, tmp_path: Path) -> None:
        with pytest.raises(VlmError, match="adapter_config"):
            load_vlm(str(llava), adapter=str(tmp_path))

    def test_nothing_to_save(self, llava: Path, tmp_path: Path) -> None:
        with pytest.raises(VlmError, match="no adapter"):
            save_adapter(load_vlm(str(llava)), str(tmp_path))


class TestErrors:
    @pytest.fixture(autouse=True)
    def no_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of these errors are raised before any weights are read."""
        monkeypatch.setattr("illume.model.vlm.AutoModelForImageTextToText.from_pretrained", None)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(VlmError, match="no model folder"):
            load_vlm(str(tmp_path / "nowhere"))

    def test_missing_folder_beside_an_existing_one_is_not_a_hub_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models").mkdir()
        with pytest.raises(VlmError, match="no model folder"):
            load_vlm("models/nowhere")

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(VlmError, match=r"config\.json"):
            load_vlm(str(tmp_path))

    def test_text_only_model(self, tmp_path: Path) -> None:
        with pytest.raises(VlmError, match="llama"):
            load_vlm(str(make_text_only(tmp_path / "text")))

    def test_unknown_model_type(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
        with pytest.raises(VlmError, match="no-such-model"):
            load_vlm(str(tmp_path))

    def test_missing_processor(self, llava: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(llava, tmp_path / "bare")
        (folder / "processor_config.json").unlink()
        with pytest.raises(VlmError, match="processor"):
            load_vlm(str(folder))

    def test_missing_tokenizer(self, llava: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(llava, tmp_path / "bare")
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
        with pytest.raises(VlmError, match="processor"):
            load_vlm(str(folder))

    def test_unknown_dtype_and_device(self, llava: Path) -> None:
        with pytest.raises(VlmError, match="float7"):
            load_vlm(str(llava), dtype="float7")
        with pytest.raises(VlmError, match="toaster"):
            load_vlm(str(llava), device="toaster")


class TestIncompleteWeights:
    def test_a_tensor_that_is_not_in_the_files_is_not_made_up(self, llava: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(llava, tmp_path / "base")
        tensors = load_file(folder / "model.safetensors")
        lost = next(name for name in tensors if name.endswith("mlp.up_proj.weight"))
        del tensors[lost]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(VlmError, match=r"are incomplete: they lack .*mlp\.up_proj\.weight"):
            load_vlm(str(folder), device="cpu")


class TestInputs:
    def test_images_by_path_and_in_memory_give_equal_inputs(self, llava: Path, images: list[str]) -> None:
        vlm = load_vlm(str(llava))
        by_path = encode(vlm, ["Q:"], [[images[0]]])
        with Image.open(images[0]) as opened:
            in_memory = encode(vlm, ["Q:"], [[opened]])
        assert torch.equal(by_path["pixel_values"], in_memory["pixel_values"])

    def test_broken_image_is_named(self, llava: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"not a picture")
        vlm = load_vlm(str(llava))
        for path in (broken, tmp_path / "missing.png"):
            with pytest.raises(VlmError, match=path.name):
                encode(vlm, ["Q:"], [[path]])

    def test_a_prompt_needs_an_image(self, llava: Path) -> None:
        with pytest.raises(VlmError, match="image"):
            encode(load_vlm(str(llava)), ["Q:"], [[]])

    def test_control_tokens_in_texts_are_read_as_text(self, llava: Path, images: list[str]) -> None:
        vlm = load_vlm(str(llava))
        ids = encode(vlm, ["Q: <image></s><pad> A:"], [[images[0]]])["input_ids"][0].tolist()
        assert ids.count(vlm.tokenizer.convert_tokens_to_ids("<image>")) == 16
        assert vlm.tokenizer.eos_token_id not in ids
        assert encode_continuation(vlm, " a </s> b").count(vlm.tokenizer.eos_token_id) == 1

    def test_tokens_of_places_in_texts_are_read_as_text(self, tmp_path: Path, images: list[str]) -> None:
        vlm = load_vlm(str(FAMILIES["paligemma"](tmp_path / "paligemma")))
        place, shape = vlm.tokenizer.convert_tokens_to_ids(["<loc0001>", "<seg001>"])
        assert vlm.tokenizer("<loc0001><seg001>", add_special_tokens=False)["input_ids"] == [place, shape]
        read = encode(vlm, ["Q: What is at <loc0001>, <seg001> or <loc1>? A:"], [[images[0]]])["input_ids"][0].tolist()
        written = encode_continuation(vlm, " a <loc0001> b")
        assert not {place, shape} & {*read, *written}
        assert "<loc1>" in vlm.tokenizer.decode(read)

    def test_continuation_depends_on_the_end_of_the_prompt(self, llava: Path, tmp_path: Path) -> None:
        spaced, broken = load_vlm(str(llava)), load_vlm(str(FAMILIES["paligemma"](tmp_path / "paligemma")))
        assert (last_prompt_character(spaced), last_prompt_character(broken)) == (":", "\n")
        name = spaced.tokenizer.convert_ids_to_tokens
        assert name(encode_continuation(spaced, " the dog")) == ["Ġthe", "Ġdog", "</s>"]
        assert name(encode_continuation(broken, " the dog")) == ["the", "Ġdog", "</s>"]

    def test_without_chat_template_images_come_first(self, tmp_path: Path, images: list[str]) -> None:
        vlm = load_vlm(str(make_llava(tmp_path / "plain", chat=False)))
        text = vlm.tokenizer.decode(encode(vlm, ["Q: A:"], [images[:2]])["input_ids"][0])
        assert text == "<image>" * 32 + "Q: A:"

    def test_stop_tokens(self, llava: Path) -> None:
        vlm = load_vlm(str(llava))
        bare_model(vlm).generation_config.eos_token_id = [5, vlm.tokenizer.eos_token_id]
        assert stop_token_ids(vlm) == (5, vlm.tokenizer.eos_token_id)
        assert end_token_id(vlm) == vlm.tokenizer.eos_token_id

    def test_control_characters_are_dropped(self, llava: Path) -> None:
        vlm = load_vlm(str(llava))
        ids = vlm.tokenizer("a\x00b\n", add_special_tokens=False)["input_ids"]
        assert decode(vlm, ids) == "ab"
