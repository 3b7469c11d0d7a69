"""What the probe finds out of servers that can do more and less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from illume.engines.capabilities import Capabilities
from illume.engines.errors import EngineError, KeyRefused, ModelMissing, ServerChanged
from illume.engines.probe import check_unchanged, probe
from tests.illume.engines.conftest import with_client
from tests.model_server import MODEL, ModelServer

ALL = Capabilities(
    n=True,
    seeds=True,
    logprobs="before",
    pictures=2,
    order="kept",
    json_schema=True,
    adapters=True,
    overrides=True,
    root=MODEL,
    max_tokens=4096,
)


def found_of(server: ModelServer, model: str = MODEL) -> Capabilities:
    return with_client(server, lambda client: probe(client, model))


def test_all_that_vllm_can_do(server: ModelServer) -> None:
    assert found_of(server) == ALL


@pytest.mark.parametrize(
    ("behaviour", "capabilities"),
    [
        ({"n": False}, {"n": False}),
        ({"seeds": False}, {"seeds": False}),
        ({"logprobs": "none"}, {"logprobs": "none"}),
        ({"logprobs": "after"}, {"logprobs": "after"}),
        ({"pictures": 1}, {"pictures": 1, "order": "unknown"}),
        ({"pictures_first": True}, {"order": "pictures_first"}),
        ({"pictures_first": True, "logprobs": "none"}, {"order": "unknown", "logprobs": "none"}),
        ({"json_schema": False}, {"json_schema": False}),
        ({"extra_fields": False}, {"overrides": False, "varies": True}),
        ({"top_k": 1}, {"overrides": True, "varies": True, "seeds": True}),
        ({"top_k": 1, "extra_fields": False}, {"overrides": False, "varies": False}),
        ({"swaps": False}, {"adapters": False}),
        ({"says": "It is red."}, {"varies": False, "seeds": False}),
        ({"cannot_list": True}, {"n": True, "root": None}),
        ({"any_name": True}, {"any_name": True, "adapters": False}),
        ({"any_name": True, "answers_as": MODEL}, {"any_name": False, "adapters": True}),
        ({"thinks": "content"}, {"thinking": "always"}),
        ({"thinks": "field", "thinking_can_stop": True}, {"thinking": "off"}),
    ],
)
def test_what_a_server_lacks(server: ModelServer, behaviour: dict[str, Any], capabilities: dict[str, Any]) -> None:
    server.behaviour = replace(server.behaviour, **behaviour)
    found = found_of(server)
    assert {name: getattr(found, name) for name in capabilities} == capabilities


def test_a_model_that_the_server_does_not_have(server: ModelServer) -> None:
    with pytest.raises(ModelMissing, match=f"no model 'other'; it lists '{MODEL}'"):
        found_of(server, "other")


@pytest.mark.parametrize("model", ["other", "adapter"])
def test_a_name_that_a_server_answers_under_but_does_not_serve(server: ModelServer, model: str) -> None:
    server.behaviour.any_name, server.adapters["adapter"] = True, "/adapters/adapter"
    with pytest.raises(EngineError, match=f"^model: .*to '{model}'. Enter a name that it lists: '{MODEL}'$"):
        found_of(server, model)


def test_a_server_that_seems_away_under_a_name_that_it_does_not_have(server: ModelServer) -> None:
    server.behaviour.unknown_status = 503
    assert found_of(server) == ALL


def test_a_server_of_something_else(server: ModelServer) -> None:
    server.url += "/elsewhere"
    with pytest.raises(EngineError, match="404"):
        found_of(server)


def test_a_wrong_key(server: ModelServer) -> None:
    server.behaviour.key = "other"
    with pytest.raises(KeyRefused):
        found_of(server)


class TestCheckUnchanged:
    def check(self, server: ModelServer, known: Capabilities = ALL) -> None:
        with_client(server, lambda client: check_unchanged(client, MODEL, known))

    def test_the_same_server(self, server: ModelServer) -> None:
        self.check(server)

    def test_one_that_lists_nothing_any_more(self, server: ModelServer) -> None:
        server.behaviour.cannot_list = True
        self.check(server)

    @pytest.mark.parametrize("behaviour", [{"root": "another/model"}, {"alias": "another-name"}])
    def test_another_model(self, server: ModelServer, behaviour: dict[str, Any]) -> None:
        server.behaviour = replace(server.behaviour, **behaviour)
        with pytest.raises(ServerChanged):
            self.check(server)

    def test_another_context(self, server: ModelServer) -> None:
        with pytest.raises(ServerChanged):
            self.check(server, replace(ALL, max_tokens=512))

    def test_an_adapter_in_the_place_of_the_model_where_any_name_is_answered(self, server: ModelServer) -> None:
        server.behaviour.alias = "illume-scenes-1"
        self.check(server, replace(ALL, any_name=True))


def test_is_kept_as_json() -> None:
    assert Capabilities.from_json({**ALL.as_json(), "of a later release": 1}) == ALL


@pytest.mark.parametrize(
    ("written", "follows"),
    [
        ('{\r\t"colour": \n\n\r\r', True),
        ('{"colour": "vermilion-7"}', True),
        ("{", False),
        ('{"colour": "red"}', False),
    ],
)
def test_a_schema_is_followed_though_spaces_use_up_the_tokens(server: ModelServer, written: str, follows: bool) -> None:
    server.behaviour.structured = written
    assert found_of(server).json_schema is follows
