"""A model server in this process that answers in vLLM's shapes (0.32), and errs when told to.

Its texts depend on all that a model would read: the name, the messages, the temperature and the seed.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = ["red", "blue", "boat", "tree", "cloud", "house", "sun", "river", "bird", "stone", "light", "path", "near"]
MODEL = "tiny/model"


@dataclass
class Behaviour:
    """What the server can do, and what goes wrong."""

    n: bool = True
    seeds: bool = True
    logprobs: str = "before"  # or "after", "none"
    pictures: int = 2
    pictures_first: bool = False
    json_schema: bool = True
    extra_fields: bool = True  # such as top_k
    top_k: int = 0  # of the model's generation_config.json: 1 takes the likeliest token unless a request says otherwise
    swaps: bool = True
    resolves: Path | None = None  # vLLM's file-system resolver looks for adapters in this folder
    any_name: bool = False  # it takes every model name and repeats it in its answers, as SGLang does
    unknown_status: int = 404  # of a model that it does not have
    alias: str = MODEL  # the name by which it lists what it serves
    key: str = ""
    root: str = MODEL
    revision: str = ""  # as some servers add it to the name in their answers
    answers_as: str | None = None
    thinks: str = ""  # "content": in tags; "field": in a field of its own; "cut": and never ends
    thinking_can_stop: bool = False
    says: str | None = None  # every text
    structured: str | None = None  # every text by a schema
    seconds: float = 0.0  # before it answers
    refusals: list[tuple[int, dict[str, str], str]] = field(default_factory=list)  # of the next requests for texts
    cuts: int = 0  # connections that it closes without an answer
    lists_late: int = 0  # how often a loaded adapter is not in the list yet
    folder: Path | None = None  # where the server looks for adapters, by the path in the request
    load_error: tuple[int, str] | None = None
    finish: str = "stop"
    cut_texts: int = 0  # of the next texts, how many max_tokens break off
    cannot_list: bool = False


@dataclass
class ModelServer:
    """The running server: its address, what it was asked, and what it has loaded."""

    url: str
    behaviour: Behaviour
    asked: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0
    closed_early: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


def error(message: str, status: int, kind: str = "BadRequestError") -> dict[str, Any]:
    """An error in vLLM's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def texts_of(messages: list[dict[str, Any]], *, pictures_first: bool) -> str:
    """All that a model reads, in the order in which it does."""
    content = messages[0]["content"]
    if pictures_first:
        pictures = [part for part in content if part["type"] != "text"]
        content = [*pictures, "\n".join(part["text"] for part in content if part["type"] == "text")]
    return json.dumps(content)


def draw(*parts: object, count: int = 6) -> str:
    """Words that depend on `parts` only."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[:count])


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one `ModelServer`."""

    protocol_version = "HTTP/1.1"
    server_of: ModelServer

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    @property
    def behaviour(self) -> Behaviour:
        return self.server_of.behaviour

    def do_GET(self) -> None:
        if self._refuses_key():
            return
        if self.path == "/v1/models" and self.behaviour.cannot_list:
            self._send(500, "Internal Server Error")
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": self._models()})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server_of.calls.append((self.path, body))
        if self._refuses_key():
            return
        if self.path == "/v1/chat/completions":
            self._complete(body)
        elif self.path.endswith("load_lora_adapter") and self.behaviour.swaps:
            self._swap(body)
        else:
            self._send(404, {"detail": "Not Found"})

    def _refuses_key(self) -> bool:
        sent = self.headers.get("Authorization", "")
        if not self.behaviour.key or sent == f"Bearer {self.behaviour.key}":
            return False
        self._send(401, {"error": f"Unauthorized: {sent.removeprefix('Bearer ')}"})
        return True

    def _models(self) -> list[dict[str, Any]]:
        base = {
            "id": self.behaviour.alias,
            "object": "model",
            "owned_by": "vllm",
            "root": self.behaviour.root,
            "parent": None,
        }
        found: list[dict[str, Any]] = [{**base, "max_model_len": 4096}]
        if self.server_of.adapters and self.behaviour.lists_late > 0:
            self.behaviour.lists_late -= 1
            return found
        return found + [
            {**base, "id": name, "root": path, "parent": MODEL} for name, path in self.server_of.adapters.items()
        ]

    def _swap(self, body: Mapping[str, Any]) -> None:
        name, path = body.get("lora_name", ""), body.get("lora_path", "")
        if not name or (self.path.startswith("/v1/load") and not path):
            self._send(400, error("Both 'lora_name' and 'lora_path' must be provided.", 400, "InvalidUserInput"))
        elif self.path == "/v1/unload_lora_adapter":
            if self.server_of.adapters.pop(name, None) is None:
                self._send(404, error(f"The lora adapter '{name}' cannot be found.", 404, "NotFoundError"))
            else:
                self._send(200, f"Success: LoRA adapter '{name}' removed successfully.")
        elif self.behaviour.load_error:
            status, message = self.behaviour.load_error
            self._send(status, error(message, status))
        elif name in self.server_of.adapters:
            again = "If you want to load the adapter in place, set 'load_inplace' to True."
            loaded = f"The lora adapter '{name}' has already been loaded. {again}"
            self._send(400, error(loaded, 400, "InvalidUserInput"))
        elif not (Path(path) / "adapter_config.json").exists():
            message = f"Loading lora {name} failed: No adapter found for {path}"
            self._send(404, error(message, 404, "NotFoundError"))
        else:
            self.server_of.adapters[name] = path
            self._send(200, f"Success: LoRA adapter '{name}' added successfully.")

    def _complete(self, body: dict[str, Any]) -> None:
        here, now = self.server_of, self.behaviour
        with here.lock:
            here.asked.append(body)
            here.in_flight += 1
            here.most_in_flight = max(here.most_in_flight, here.in_flight)
            cut = now.cuts > 0
            refusal = now.refusals.pop(0) if now.refusals and not cut else None
            now.cuts -= cut
        try:
            if cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif refusal:
                status, headers, message = refusal
                self._send(status, error(message, status), headers)
            elif self._waits_in_vain():
                here.closed_early.set()
            else:
                self._answer(body)
        finally:
            with here.lock:
                here.in_flight -= 1

    def _waits_in_vain(self) -> bool:
        """Wait as a model would compute; whether the client has hung up meanwhile."""
        until = time.monotonic() + self.behaviour.seconds
        while time.monotonic() < until:
            self.connection.settimeout(0.02)
            try:
                if self.connection.recv(1, socket.MSG_PEEK) == b"":
                    return True
            except TimeoutError:
                pass
            finally:
                self.connection.settimeout(None)
        return False

    def _answer(self, body: dict[str, Any]) -> None:
        now, model = self.behaviour, body["model"]
        unsupported = {
            *({"n"} if not now.n else ()),
            *({"response_format"} if not now.json_schema else ()),
            *({"logprobs"} if now.logprobs == "none" else ()),
            *({"top_k", "min_p", "repetition_penalty"} if not now.extra_fields else ()),
        } & body.keys()
        pictures = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
        if now.resolves and (now.resolves / model / "adapter_config.json").exists():
            self.server_of.adapters.setdefault(model, str(now.resolves / model))
        if model != MODEL and model not in self.server_of.adapters and not now.any_name:
            unknown = f"The model `{model}` does not exist. Valid aliases: {MODEL}."
            self._send(now.unknown_status, error(unknown, now.unknown_status, "NotFoundError"))
        elif unsupported:
            self._send(422, {"detail": f"Unsupported fields in the request: {unsupported}"})
        elif len(pictures) > now.pictures:
            self._send(400, error(f"At most {now.pictures} image(s) may be provided in one prompt.", 400))
        elif body["temperature"] > 2:
            hot = f"temperature must be in [0, 2], got {body['temperature']}."
            self._send(400, error(f"{hot} (parameter=temperature, value={body['temperature']})", 400))
        elif body["temperature"] == 0 and body.get("n", 1) > 1:
            self._send(400, error("n must be 1 when using greedy sampling, got 2.", 400))
        else:
            choices = [self._choice(body, number) for number in range(body.get("n", 1))]
            tokens = sum(len(one["message"]["content"] or "") for one in choices)
            named = now.answers_as or model + now.revision
            usage = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
            self._send(200, {"id": "chatcmpl-1", "object": "chat.completion", "model": named, "choices": choices}
                       | {"usage": usage})  # fmt: skip

    def _choice(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        now, temperature = self.behaviour, body["temperature"]
        greedy = temperature == 0 or body.get("top_k", now.top_k) == 1
        read = texts_of(body["messages"], pictures_first=now.pictures_first)
        seed: object = body.get("seed", 0) + number
        if not now.seeds or "seed" not in body:
            seed = time.monotonic_ns()
        text = draw(body["model"], read, temperature, 0 if greedy else seed)
        if now.says is not None:
            text = now.says
        form = body.get("response_format")
        if form:
            properties = form["json_schema"]["schema"]["properties"]
            text = json.dumps({name: (one.get("enum") or [text])[0] for name, one in properties.items()})
            text = text if now.structured is None else now.structured
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish = now.finish
        with self.server_of.lock:
            if now.cut_texts > 0:
                now.cut_texts, finish = now.cut_texts - 1, "length"
        stopped = now.thinking_can_stop and not body.get("chat_template_kwargs", {}).get("enable_thinking", True)
        if now.thinks and not stopped:
            if now.thinks == "field":
                message["reasoning_content"] = "Let me see."
            elif now.thinks == "cut":
                message["content"], finish = "<think>Let me see", "length"
            else:
                message["content"] = f"<think>Let me\nsee.</think>\n\n{text}"
        choice = {"index": number, "message": message, "finish_reason": finish, "logprobs": None}
        if body.get("logprobs") and now.logprobs != "none":
            base = -1.0 - len(read) % 7 / 10 - (hash_of(read) % 100) / 50
            scale = temperature if now.logprobs == "after" and temperature else 1.0
            top = {"token": text[:3], "logprob": -0.5 / scale}
            tokens = [{"token": word, "logprob": base / scale, "top_logprobs": [top]} for word in text.split()]
            choice["logprobs"] = {"content": tokens}
        return choice

    def _send(self, status: int, data: object, headers: Mapping[str, str] | None = None) -> None:
        written = data.encode() if isinstance(data, str) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(data, str) else "application/json")
        self.send_header("Content-Length", str(len(written)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(written)


def hash_of(text: str) -> int:
    """A number that depends on a text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class QuietServer(ThreadingHTTPServer):
    """A server that says nothing of clients that hang up."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


@contextmanager
def running_server(behaviour: Behaviour | None = None) -> Iterator[ModelServer]:
    """A server on a free port of this machine."""
    found = ModelServer("", behaviour or Behaviour())
    http = QuietServer(("127.0.0.1", 0), type("OneHandler", (Handler,), {"server_of": found}))
    found.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        http.shutdown()
        http.server_close()
