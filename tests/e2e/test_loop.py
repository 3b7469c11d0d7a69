"""The whole loop with the demo's own processes, the starter model, a critic in a browser and one over REST."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from illume.scenes.faithfulness import is_faithful

# Bounds for a busy machine; on an idle one everything takes a tenth of them.
READY_SECONDS = 400
ROUND_SECONDS = 1200

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2 * (READY_SECONDS + ROUND_SECONDS))]

STEP_MS = 300_000
SMALL = {"epochs": 2, "guard_per_rationale": 1, "eval_prompts": 20}
"""Settings that shorten a round."""
T = TypeVar("T")


@dataclass(frozen=True)
class Demo:
    """A running demo."""

    address: str
    folder: Path
    accounts: dict[str, dict[str, str]]
    closing: contextlib.ExitStack

    def client(self, who: str) -> httpx.Client:
        """A REST client of one of the accounts. It is closed before the demo is stopped."""
        headers = {"Authorization": f"Bearer {self.accounts[who]['token']}"}
        client = httpx.Client(base_url=f"{self.address}/api/v1", headers=headers, timeout=30)
        return self.closing.enter_context(client)

    def page(self, browser: Browser) -> Page:
        """A page of a browser without cookies. It is closed before the demo is stopped."""
        context = browser.new_context()
        self.closing.callback(context.close)
        context.set_default_timeout(STEP_MS)
        return context.new_page()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """`illume demo` with an empty data directory, as a newcomer starts it. All its processes must end with it."""
    folder = Path(tempfile.mkdtemp(prefix="illume-loop-"))
    folder.chmod(0o711)  # as root PostgreSQL runs as another account and has to pass
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ILLUME_")}
    command = [sys.executable, "-m", "app.cli", "demo", "--port", "0", "--data-dir", str(folder), "--no-browser"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Its later output must not fill the pipe.
    drain = threading.Thread(target=process.stdout.read, daemon=True)
    try:
        address = _wait_until_ready(process)
        drain.start()
        accounts = json.loads((folder / "demo-accounts.json").read_text())
        with contextlib.ExitStack() as closing:
            yield Demo(address, folder, accounts, closing)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if drain.is_alive():
            drain.join(10)
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[str]) -> str:
    """The address of the line `ready: ...`."""
    killer = threading.Timer(READY_SECONDS, process.kill)
    killer.start()
    said = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("ready: "):
                return line.removeprefix("ready: ").strip()
    finally:
        killer.cancel()
    pytest.fail(f"the demo ended with {process.wait()} before it was ready:\n{''.join(said)}")


def sign_in(browser: Browser, demo: Demo, who: str, *, to: str) -> Page:
    """A page of a person who has just signed in with the form."""
    page = demo.page(browser)
    page.goto(f"{demo.address}/sign-in?next={to}")
    page.get_by_label("Email").fill(demo.accounts[who]["email"])
    page.get_by_label("Password").fill(demo.accounts[who]["password"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{demo.address}{to}")
    return page


class Knowledge:
    """A critic who knows the scenes, and so which candidates are true."""

    def __init__(self, demo: Demo) -> None:
        self.prompts: dict[tuple[str, str], dict[str, Any]] = {}
        client = demo.client("admin")
        cursor = None
        while True:
            query: dict[str, Any] = {"limit": 1000, "split": "train", **({"cursor": cursor} if cursor else {})}
            page = client.get("/projects/scenes/prompts", params=query).raise_for_status().json()
            for prompt in page["items"]:
                self.prompts[prompt["images"][0]["sha256"], prompt["question"]] = prompt
            cursor = page["next"]
            if not cursor:
                break

    def fitting(self, sha256: str, question: str, texts: list[str]) -> list[int]:
        """Indexes of the texts that are true."""
        prompt = self.prompts[sha256, question]
        scene = prompt["metadata"]["scene"]
        return [i for i, t in enumerate(texts) if is_faithful(t, scene, question=question, answer=prompt["answer"])]


def wait_for(what: str, seconds: float, look: Callable[[], T | None]) -> T:
    """The first result of `look`, which is called every half second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        time.sleep(0.5)
    pytest.fail(f"waited {seconds:g} s in vain for {what}")


def rounds(client: httpx.Client) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get("/projects/scenes/rounds").raise_for_status().json()["items"]
    return sorted(items, key=lambda one: int(one["number"]))


def round_number(client: httpx.Client, number: int) -> dict[str, Any] | None:
    return next((one for one in rounds(client) if one["number"] == number), None)


def ended(client: httpx.Client, number: int) -> dict[str, Any] | None:
    found = round_number(client, number)
    assert found is not None
    return found if found["state"] in ("succeeded", "failed", "cancelled") else None


def judge_one_by_keyboard(page: Page, knowledge: Knowledge) -> int:
    """Judge the prompt on the page and wait for the next one. Returns the number of picks."""
    work = page.locator("#work[data-assignment]")
    work.wait_for(timeout=STEP_MS)
    assignment = work.get_attribute("data-assignment")
    question = page.get_by_role("heading", level=1).inner_text()
    source = work.locator("img").first.get_attribute("src") or ""
    texts = work.locator(".candidate .text").all_inner_texts()
    fitting = knowledge.fitting(source.rsplit("/", 1)[1].split("?")[0], question, texts)
    page.locator(".judge[data-state=judging][data-seen=yes]").wait_for(timeout=STEP_MS)  # keys work now
    for index in fitting[:9]:
        page.keyboard.press(str(index + 1))
    page.keyboard.press("Enter" if fitting else "0")
    page.wait_for_function(
        "before => document.querySelector('#work')?.dataset.assignment !== before", arg=assignment, timeout=STEP_MS
    )
    return len(fitting)


class TestTheLoop:
    """The picks of a critic in a browser start a round, and so do those of one over REST."""

    def test_a_critic_in_a_browser_brings_about_a_better_version(self, demo: Demo, browser: Browser) -> None:
        knowledge = Knowledge(demo)
        admin = demo.client("admin")
        admin.patch("/projects/scenes", json=SMALL).raise_for_status()
        critic = sign_in(browser, demo, "critic", to="/annotate/scenes")
        judged = picked = 0
        while not rounds(admin):
            picked += judge_one_by_keyboard(critic, knowledge) > 0
            judged += 1
            assert judged <= 200, f"no round after {judged} verdicts, {picked} with picks"
        stats = admin.get("/projects/scenes/stats").json()
        settings = admin.get("/projects/scenes").json()
        assert picked >= settings["round_every"], stats

        overseer = sign_in(browser, demo, "admin", to="/admin/projects/scenes/rounds/1")
        expect(overseer.get_by_role("progressbar").first).to_be_visible(timeout=STEP_MS)
        done = wait_for("the end of round 1", ROUND_SECONDS, lambda: ended(admin, 1))
        assert done["state"] == "succeeded", done["error"]
        assert done["trigger"] == "auto"

        versions = {v["number"]: v for v in admin.get("/projects/scenes/versions").json()["items"]}
        first = versions[1]
        assert first["parent"] == versions[0]["id"]
        overseer.goto(f"{demo.address}/admin/projects/scenes/versions")
        expect(overseer.get_by_text("Version 1").first).to_be_visible()
        if not first["active"]:
            assert done["decision"]["reason"]
            admin.post(f"/versions/{first['id']}/activate").raise_for_status()

        def judged_of_version_one() -> bool | None:
            judge_one_by_keyboard(critic, knowledge)
            records = admin.get("/projects/scenes/dataset", params={"format": "records"}).raise_for_status().text
            return any(json.loads(line)["version_number"] == 1 for line in records.splitlines()) or None

        wait_for("a verdict on candidates of version 1", ROUND_SECONDS, judged_of_version_one)

    @pytest.mark.slow  # quick in tests/chaos/test_storm.py, where critics judge over REST
    def test_a_client_over_rest_brings_about_the_next(self, demo: Demo) -> None:
        knowledge = Knowledge(demo)
        admin, critic = demo.client("admin"), demo.client("critic")
        admin.patch("/projects/scenes", json=SMALL).raise_for_status()
        before = len(rounds(admin))
        given = []
        while len(rounds(admin)) == before:
            claimed = critic.post("/projects/scenes/assignments")
            if claimed.status_code == 204:
                time.sleep(1)
                continue
            assert claimed.status_code in (200, 201), claimed.text
            body = claimed.json()
            assert "references" not in body["prompt"]
            texts = [one["text"] for one in body["candidates"]]
            fitting = knowledge.fitting(body["prompt"]["images"][0]["sha256"], body["prompt"]["question"], texts)
            verdict: dict[str, Any] = {"kind": "none_fit", "seconds": 1.5}
            if fitting:
                verdict = {"kind": "picked", "picks": [body["candidates"][i]["id"] for i in fitting], "seconds": 1.5}
            answer = critic.post(f"/assignments/{body['id']}/verdict", json=verdict)
            assert answer.status_code == 201, answer.text
            given.append(answer.json()["id"])
            assert len(given) <= 200
        done = wait_for(f"the end of round {before + 1}", ROUND_SECONDS, lambda: ended(admin, before + 1))
        assert done["state"] == "succeeded", done["error"]
        feed: set[str] = set()
        cursor = None
        while True:
            query: dict[str, Any] = {"limit": 1000, "critic": "me", **({"cursor": cursor} if cursor else {})}
            page = critic.get("/projects/scenes/verdicts", params=query).raise_for_status().json()
            feed |= {one["id"] for one in page["items"]}
            if not page["items"]:
                break
            cursor = page["next"]
        assert set(given) <= feed
