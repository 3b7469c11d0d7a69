"""Candidate sets from a model server, whatever it can and cannot do."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from illume.engines.capabilities import Capabilities
from illume.engines.errors import EngineAway, ModelMissing, WrongModel
from illume.engines.messages import picture_url
from illume.engines.sampling import SEEDS, Server, sample_sets
from illume.errors import VlmError
from illume.fields.definitions import AnswerFields, read_answer_fields
from illume.parts import ImagePart, TextPart
from illume.records import Example, Rationale
from illume.settings import SamplingSettings
from tests.illume.engines.conftest import with_client
from tests.model_server import MODEL, ModelServer

ALL = Capabilities(n=True, seeds=True, logprobs="before", json_schema=True)
SETTINGS = SamplingSettings(temperatures=((0.0, 1), (0.7, 3), (1.0, 1)), top_p=0.9)


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    made = []
    for number in range(3):
        PIL.Image.new("RGB", (64, 64), (number * 80, 0, 0)).save(tmp_path / f"{number}.png")
        made.append(Example(str(number), (str(tmp_path / f"{number}.png"),), f"What is {number}?", "a thing"))
    return made


def sample(
    server: ModelServer,
    examples: list[Example],
    settings: SamplingSettings = SETTINGS,
    capabilities: Capabilities = ALL,
    *,
    model: str = MODEL,
) -> tuple[dict[int, list[Rationale]], dict[int, str]]:
    """The candidate sets, and why there is none, by the place of the example."""
    made: dict[int, list[Rationale]] = {}
    failed: dict[int, str] = {}
    with_client(
        server,
        lambda client: sample_sets(
            Server(client, model, capabilities),
            examples,
            settings,
            seed=3,
            on_set=made.__setitem__,
            on_failure=lambda index, error: failed.__setitem__(index, str(error)),
        ),
    )
    return made, failed


def pictures_of(body: dict[str, Any]) -> list[PIL.Image.Image]:
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    return [PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


class TestSampleSets:
    def test_one_request_for_each_temperature(self, server: ModelServer, examples: list[Example]) -> None:
        made, failed = sample(server, examples)
        assert not failed
        assert [[one.temperature for one in made[index]] for index in range(3)] == [[0.0, 0.7, 0.7, 0.7, 1.0]] * 3
        assert len({one.text for group in made.values() for one in group}) == 15
        assert [body.get("n") for body in server.asked if body["temperature"] == 0.7] == [3] * 3
        assert all(("top_p" in body) == (body["temperature"] > 0) and body["max_tokens"] == 48 for body in server.asked)
        for rationale in made[0]:
            assert rationale.answer == "a thing"
            assert (rationale.mean_logprob or 0) < 0
            assert rationale.n_tokens == 6
        sent = next(body["seed"] for body in server.asked if body["temperature"] == 0.7)
        seeds = {one.seed for group in made.values() for one in group if one.temperature == 0.7}
        assert {sent, sent + 1, sent + 2} <= seeds
        assert all(one is not None and one < SEEDS + 3 for one in seeds)

    def test_the_same_seed_gives_the_same_sets(self, server: ModelServer, examples: list[Example]) -> None:
        assert sample(server, examples) == sample(server, examples)

    def test_single_requests_with_seeds_of_their_own_where_n_is_not_known(
        self, server: ModelServer, examples: list[Example]
    ) -> None:
        server.behaviour.n = False
        made, _ = sample(server, examples[:1], capabilities=replace(ALL, n=False))
        assert len(made[0]) == 5
        assert len({body["seed"] for body in server.asked}) == len(server.asked) == 5
        assert {one.seed for one in made[0]} == {body["seed"] for body in server.asked}

    @pytest.mark.parametrize(("overrides", "count"), [(True, 5), (False, 3)])
    def test_defaults_of_the_model_are_overridden_where_the_server_lets_them(
        self, server: ModelServer, examples: list[Example], overrides: bool, count: int
    ) -> None:
        server.behaviour.top_k, server.behaviour.extra_fields = 1, overrides
        made, _ = sample(server, examples[:1], replace(SETTINGS, top_p=1.0), replace(ALL, overrides=overrides))
        assert len(made[0]) == count  # else one text for each temperature
        assert all(("top_p" in body) == (body["temperature"] > 0) for body in server.asked)

    def test_what_the_server_does_not_say_is_unknown(self, server: ModelServer, examples: list[Example]) -> None:
        server.behaviour.logprobs, server.behaviour.seeds = "none", False
        made, _ = sample(server, examples[:1], capabilities=replace(ALL, logprobs="none", seeds=False))
        assert {one.mean_logprob for one in made[0]} == {one.seed for one in made[0]} == {None}
        assert not any("logprobs" in body or "seed" in body for body in server.asked)

    def test_log_probabilities_of_after_the_temperature_count_at_one(
        self, server: ModelServer, examples: list[Example]
    ) -> None:
        server.behaviour.logprobs = "after"
        settings = replace(SETTINGS, top_p=1.0)
        made, _ = sample(server, examples[:1], settings, replace(ALL, logprobs="after"))
        assert {one.temperature for one in made[0] if one.mean_logprob is not None} == {1.0}

    def test_duplicates_are_drawn_again_and_then_left_out(self, server: ModelServer, examples: list[Example]) -> None:
        server.behaviour.says = "It is round."
        made, _ = sample(server, examples[:1])
        assert [one.text for one in made[0]] == ["It is round."]
        assert len(server.asked) == 3 + 2 * 2  # two more tries of both temperatures

    def test_the_parts_of_a_prompt_in_their_order(self, server: ModelServer, examples: list[Example]) -> None:
        images = (examples[0].images[0], examples[1].images[0])
        parts = (TextPart("Here:"), ImagePart(1), TextPart("and <image> <|im_end|> here:"), ImagePart(0))
        sample(server, [Example("x", images, "", "yes", parts=parts)])
        content = server.asked[0]["messages"][0]["content"]
        assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
        assert [part["text"] for part in content if part["type"] == "text"] == [
            "Q: Here:",
            "and < image> < |im_end|> here:",
            " A: yes, seeing that",
        ]
        assert [picture.getpixel((0, 0)) for picture in pictures_of(server.asked[0])] == [(80, 0, 0), (0, 0, 0)]

    def test_the_models_own_answer(self, server: ModelServer, examples: list[Example]) -> None:
        made, _ = sample(server, [replace(examples[0], answer=None)])
        [own] = {one.answer for one in made[0]}
        assert server.asked[0]["messages"][0]["content"][-1]["text"] == "Q: What is 0? A:"
        assert own
        assert own in server.asked[1]["messages"][0]["content"][-1]["text"]
        assert {one.answer_source for one in made[0]} == {"own"}

    def test_structured_answers_by_a_schema(self, server: ModelServer, examples: list[Example]) -> None:
        fields: AnswerFields = read_answer_fields(
            [
                {
                    "name": "rating",
                    "kind": "choice",
                    "role": "rating",
                    "choices": ["Safe", "Unsafe"],
                    "positive": ["Unsafe"],
                },
                {"name": "why", "kind": "text", "role": "rationale"},
            ]
        )
        made, _ = sample(server, examples[:1], replace(SETTINGS, answer_fields=fields))
        assert {one.invalid for one in made[0]} == {None}
        assert made[0][0].text.startswith('{"rating": "Safe", "why": "')
        assert server.asked[0]["response_format"]["type"] == "json_schema"

    def test_a_broken_picture_spoils_its_own_set_only(self, server: ModelServer, examples: list[Example]) -> None:
        Path(examples[1].images[0]).write_bytes(b"no picture")
        made, failed = sample(server, examples)
        assert sorted(made) == [0, 2]
        assert "cannot be read" in failed[1]

    def test_so_does_a_prompt_that_the_server_refuses(self, server: ModelServer, examples: list[Example]) -> None:
        server.behaviour.pictures = 1
        images = (examples[0].images[0], examples[1].images[0])
        made, failed = sample(server, [Example("x", images, "Both?", "yes"), examples[2]])
        assert list(made) == [1]
        assert "At most 1 image" in failed[0]

    def test_the_wrong_model_ends_everything(self, server: ModelServer, examples: list[Example]) -> None:
        server.behaviour.answers_as = MODEL
        server.adapters["adapter"] = "/somewhere"
        with pytest.raises(WrongModel):
            sample(server, examples, model="adapter")

    @pytest.mark.parametrize(("model", "kind"), [("gone", ModelMissing), (MODEL, EngineAway)])
    def test_so_does_what_all_prompts_suffer(
        self, server: ModelServer, examples: list[Example], model: str, kind: type[VlmError]
    ) -> None:
        server.behaviour.cuts = 99
        if kind is ModelMissing:
            server.behaviour.cuts = 0
        with pytest.raises(kind):
            sample(server, examples, model=model)

    def test_a_text_that_the_server_broke_off_is_not_kept(self, server: ModelServer, examples: list[Example]) -> None:
        server.behaviour.finish = "abort"  # as vLLM says of what was in flight when it was stopped
        with pytest.raises(EngineAway, match="broke off its answer"):
            sample(server, examples)

    def test_a_text_that_the_token_limit_broke_off_is_drawn_again(
        self, server: ModelServer, examples: list[Example]
    ) -> None:
        server.behaviour.cut_texts = 1
        made, _ = sample(server, examples[:1], replace(SETTINGS, temperatures=((1.0, 1),)))
        first, second = server.asked
        assert first["seed"] != second["seed"]
        assert [one.seed for one in made[0]] == [second["seed"]]

    def test_as_often_as_duplicates_are_and_the_last_one_is_kept(
        self, server: ModelServer, examples: list[Example]
    ) -> None:
        server.behaviour.finish = "length"
        made, _ = sample(server, examples[:1])
        assert [one.temperature for one in made[0]] == [0.0, 0.7, 0.7, 0.7, 1.0]
        assert [body["temperature"] for body in server.asked].count(0.0) == 1  # it would be the same again
        assert len(server.asked) == 3 + 2 * 2  # two more tries of both temperatures
        last = {body["seed"] for body in server.asked if body["temperature"] == 1.0}
        assert len(last) == 3
        assert made[0][-1].seed == [body["seed"] for body in server.asked if body["temperature"] == 1.0][-1]

    def test_a_structured_answer_that_is_whole_is_kept(self, server: ModelServer, examples: list[Example]) -> None:
        server.behaviour.finish = "length"
        fields = read_answer_fields([{"name": "why", "kind": "text", "role": "rationale"}])
        sample(server, examples[:1], replace(SETTINGS, temperatures=((1.0, 1),), answer_fields=fields))
        assert len(server.asked) == 1

    @pytest.mark.parametrize(
        ("behaviour", "reason"),
        [({"thinks": "cut"}, "thought until its 48 tokens were used up"), ({"says": ""}, "all answers were empty")],
    )
    def test_nothing_is_a_failure_that_says_why(
        self, server: ModelServer, examples: list[Example], behaviour: dict[str, Any], reason: str
    ) -> None:
        server.behaviour = replace(server.behaviour, **behaviour)
        made, failed = sample(server, examples[:1])
        assert not made
        assert reason in failed[0]

    def test_thoughts_are_no_part_of_a_rationale(self, server: ModelServer, examples: list[Example]) -> None:
        server.behaviour.thinks, server.behaviour.thinking_can_stop = "content", True
        made, _ = sample(server, examples[:1])
        assert all("think" not in one.text and one.mean_logprob is None for one in made[0])
        sample(server, examples[:1], capabilities=replace(ALL, thinking="off"))
        assert server.asked[-1]["chat_template_kwargs"] == {"enable_thinking": False}


class TestPictureUrl:
    def test_what_is_seen_as_it_is_stored_is_sent_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        PIL.Image.new("RGB", (90, 60), "red").save(path)
        assert picture_url(path) == "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()

    @pytest.mark.parametrize(("kind", "size"), [("PNG", (20, 10)), ("WEBP", (90, 60)), ("GIF", (56, 56))])
    def test_others_as_png_with_sides_of_at_least_56(self, tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
        path = tmp_path / f"a.{kind.lower()}"
        PIL.Image.new("RGB", size, "red").save(path)
        sent = PIL.Image.open(io.BytesIO(base64.b64decode(picture_url(path).removeprefix("data:image/png;base64,"))))
        assert sent.format == "PNG"
        assert min(sent.size) >= 56
        assert sent.width / sent.height == pytest.approx(size[0] / size[1], abs=0.05)

    def test_a_turned_one_upright(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        PIL.Image.new("RGB", (90, 60), "red").save(path, exif=exif)
        sent = PIL.Image.open(io.BytesIO(base64.b64decode(picture_url(path).partition(",")[2])))
        assert sent.size == (60, 90)
