"""Requests to a model server: what is tried again, what is refused, how many at a time."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from illume.engines.client import TRIES, Client, Reply, message_of
from illume.engines.completions import (
    SECONDS,
    SECONDS_PER_TOKEN,
    Answer,
    complete,
    read_answer,
    request_body,
    strip_thoughts,
)
from illume.engines.errors import (
    EngineAway,
    EngineError,
    EngineRefused,
    EngineSlow,
    KeyRefused,
    ModelMissing,
    WrongModel,
)
from tests.illume.engines.conftest import with_client
from tests.model_server import MODEL, ModelServer

BUSY: tuple[int, dict[str, str], str] = (503, {}, "The server is overloaded.")


def body(model: str = MODEL, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": [{"type": "text", "text": "What is there?"}]}
    return request_body(model, [message], temperature=1.0, max_tokens=8, **more)


def ask(server: ModelServer, model: str = MODEL, **options: Any) -> Answer:
    return with_client(server, lambda client: complete(client, body(model)), **options)


def test_a_text_and_its_mean_log_probability(server: ModelServer) -> None:
    found = with_client(server, lambda client: complete(client, body(logprobs=True, n=2)))
    assert [len(choice.text.split()) for choice in found.choices] == [6, 6]
    assert all((choice.mean_logprob or 0) < 0 and choice.n_tokens == 6 for choice in found.choices)


def test_what_is_busy_or_hangs_up_is_asked_again(server: ModelServer) -> None:
    server.behaviour.refusals, server.behaviour.cuts = [BUSY, (429, {}, "Slow down.")], 1
    assert ask(server).choices[0].text
    assert len(server.asked) == 4


@pytest.mark.parametrize("max_tokens", [8, 2000])
def test_an_answer_may_take_longer_the_more_tokens_are_asked_for(max_tokens: int) -> None:
    given: list[float] = []

    async def send(method: str, path: str, body: bytes | None, *, seconds: float) -> Reply:
        given.append(seconds)
        answer = {"model": MODEL, "choices": [{"message": {"content": "It is red."}, "finish_reason": "stop"}]}
        return Reply(200, json.dumps(answer).encode())

    asyncio.run(complete(Client(send), body() | {"max_tokens": max_tokens}))
    assert given == [SECONDS + SECONDS_PER_TOKEN * max_tokens]


def test_waits_as_long_as_the_server_asks(server: ModelServer) -> None:
    server.behaviour.refusals = [(429, {"Retry-After": "1"}, "Slow down.")]
    began = time.monotonic()
    ask(server)
    assert time.monotonic() - began >= 1


def test_a_server_that_asks_for_an_hour_is_away(server: ModelServer) -> None:
    server.behaviour.refusals = [(503, {"Retry-After": "3600"}, "Maintenance.")]
    with pytest.raises(EngineAway, match="answered 503: Maintenance"):
        ask(server)
    assert len(server.asked) == 1


def test_gives_up_after_some_tries(server: ModelServer) -> None:
    server.behaviour.refusals = [BUSY] * 9
    with pytest.raises(EngineAway, match="overloaded"):
        ask(server)
    assert len(server.asked) == TRIES


def test_a_server_whose_engine_died_is_away(server: ModelServer) -> None:
    died = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    server.behaviour.refusals = [(500, {}, died)] * 9
    with pytest.raises(EngineAway, match="answered 500: EngineCore encountered an issue"):
        ask(server)
    server.behaviour.refusals = [(500, {}, "list index out of range")]
    with pytest.raises(EngineRefused, match="the server failed"):
        ask(server)


def test_a_server_that_is_not_there(server: ModelServer) -> None:
    server.url = "http://127.0.0.1:9"
    with pytest.raises(EngineAway, match="cannot be reached"):
        ask(server)


def test_one_that_does_not_answer_in_time_is_not_asked_again(server: ModelServer) -> None:
    server.behaviour.seconds = 5
    with pytest.raises(EngineSlow, match=r"did not answer within 0.2 s"):
        with_client(server, lambda client: client.post("/v1/chat/completions", body(), seconds=0.2))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("refusal", "kind", "said"),
    [
        ((400, {}, "The prompt is too long."), EngineRefused, "refuses the request .400.: The prompt is too long"),
        ((500, {}, "CUDA error"), EngineRefused, "the server failed .500.: CUDA error"),
        ((403, {}, "Forbidden"), KeyRefused, "refuses the key"),
        ((404, {}, "The model `x` does not exist."), ModelMissing, "does not exist"),
    ],
)
def test_what_no_second_try_mends(
    server: ModelServer, refusal: tuple[int, dict[str, str], str], kind: type[EngineError], said: str
) -> None:
    server.behaviour.refusals = [refusal]
    with pytest.raises(kind, match=said):
        ask(server)
    assert len(server.asked) == 1


def test_the_key_is_sent_and_never_repeated(server: ModelServer) -> None:
    server.behaviour.key = "the right one"
    assert ask(server, key="the right one").choices[0].text
    with pytest.raises(KeyRefused) as error:
        ask(server, key="secret-7")
    assert "secret-7" not in str(error.value)
    assert "***" in str(error.value)


def test_another_model_than_was_asked(server: ModelServer) -> None:
    server.behaviour.answers_as = "base"
    with pytest.raises(WrongModel, match=f"answered as 'base', and '{MODEL}' was asked"):
        ask(server)
    server.behaviour.answers_as = f"{MODEL}@main"  # as `transformers serve` names it
    assert ask(server).model == f"{MODEL}@main"


def test_fewer_at_a_time_while_the_server_pushes_back(server: ModelServer) -> None:
    server.behaviour.seconds, server.behaviour.refusals = 0.05, [BUSY] * 4

    async def ask_many(client: Client) -> None:
        await asyncio.gather(*[complete(client, body()) for _ in range(12)])

    with_client(server, ask_many, in_flight=4)
    assert server.most_in_flight <= 4


def test_pushed_back_it_holds_fewer_places_and_gets_them_again() -> None:
    refusals, now, most = [429] * 3, 0, []

    async def send(method: str, path: str, body: bytes | None, *, seconds: float) -> Reply:
        nonlocal now
        now += 1
        most.append(now)
        await asyncio.sleep(0)
        now -= 1
        return Reply(refusals.pop(), b"", 0.0) if refusals else Reply(200, b"{}")

    async def run() -> None:
        client = Client(send, in_flight=8)
        await asyncio.gather(*[client.get("/") for _ in range(8)])
        most.clear()
        await asyncio.gather(*[client.get("/") for _ in range(8)])
        assert max(most) < 8
        for _ in range(40):
            await client.get("/")
        most.clear()
        await asyncio.gather(*[client.get("/") for _ in range(8)])
        assert max(most) == 8

    asyncio.run(run())


def test_told_to_stop_it_hangs_up(server: ModelServer) -> None:
    server.behaviour.seconds = 30

    def stop() -> None:
        if server.in_flight:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        ask(server, watch=stop)
    assert server.closed_early.wait(5)


@pytest.mark.parametrize(
    ("written", "text", "thought"),
    [
        ("plain", "plain", False),
        ("<think>a\nb</think>\n\nplain", "plain", True),
        ("opened by the template</think>plain", "plain", True),
        ("<think>never ends", "", True),
        ("<thinking>a</thinking>plain <think>b</think>", "plain", True),
        ("5 < 6, and <thinks> is no tag", "5 < 6, and <thinks> is no tag", False),
    ],
)
def test_thoughts_are_left_out(written: str, text: str, thought: bool) -> None:
    found, has_thought = strip_thoughts(written)
    assert (found.strip(), has_thought) == (text, thought)


@pytest.mark.parametrize(
    "data", [None, [], {}, {"choices": []}, {"choices": "x"}, {"model": "m", "choices": [{"text": "completion"}]}]
)
def test_an_answer_of_another_shape(data: object) -> None:
    with pytest.raises(EngineError, match="no chat completion"):
        read_answer(data, "m")


def test_unlikely_beyond_numbers_is_unknown() -> None:
    tokens = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -9999.0}]
    choice = {"message": {"content": "a b"}, "logprobs": {"content": tokens}}
    assert read_answer({"model": "m", "choices": [choice]}, "m").choices[0].mean_logprob is None


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b'{"error": {"message": "a\\nb"}}', "a b"),
        (b'{"object": "error", "message": "old"}', "old"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        (b"<html><b>502</b> Bad Gateway</html>", "502 Bad Gateway"),
        (b"\xff", "\ufffd"),
        (b"", "it says nothing more"),
    ],
)
def test_what_a_server_says_in_one_line(sent: bytes, shown: str) -> None:
    assert message_of(Reply(500, sent)) in (shown, f'{{"detail": {shown}}}')
