"""Pictures judged under house rules in a fresh demo, until a round of them has run by itself."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from illume.fields.policies import Policy
from illume.guard.policies import CATEGORIES, NONE, make_policy
from illume.guard.truth import is_faithful
from tests.e2e.test_loop import READY_SECONDS, ROUND_SECONDS, SMALL, STEP_MS, Demo, demo, sign_in, wait_for

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,  # the loop of `scenes` is in the quick suite
    pytest.mark.timeout(2 * (READY_SECONDS + ROUND_SECONDS)),
]

JUDGED = 25
ROUND_EVERY = 20
VALUES = ("rating", "category")
ENDED = ("succeeded", "failed", "cancelled")
__all__ = ["demo"]  # a fixture


class Judge:
    """A critic who knows the scenes: rates blind by the rules that the page shows, then picks what is true."""

    def __init__(self, demo: Demo, page: Page) -> None:
        self.page = page
        self.critic = demo.client("critic")
        found = demo.client("admin").get("/projects/guard/prompts", params={"limit": 1000, "split": "train"})
        self.prompts: dict[str, dict[str, Any]] = {one["id"]: one for one in found.raise_for_status().json()["items"]}

    def claimed(self) -> tuple[dict[str, Any], Policy]:
        """The prompt on the page with what is known of it, and the policy that the critic is shown."""
        assignment = self.page.locator("#work").get_attribute("data-assignment")
        claim = self.critic.get(f"/assignments/{assignment}").raise_for_status().json()
        assert claim["candidates"] is None, "nothing is shown before the rating"
        assert "fields" not in claim["prompt"]
        assert claim["prompt"]["answer"] is None
        statuses = {one["name"]: one["status"] for one in claim["policy"]["categories"]}
        assert sorted(statuses) == sorted(CATEGORIES)
        return self.prompts[claim["prompt"]["id"]], make_policy(statuses)

    def judge_one(self) -> tuple[str, int]:
        """Judge the prompt on the page and wait for the next one. Returns its image, and the number of picks."""
        page, work = self.page, self.page.locator("#work[data-assignment]")
        work.wait_for(timeout=STEP_MS)
        before = work.get_attribute("data-assignment")
        prompt, policy = self.claimed()
        expect(page.locator(".candidate")).to_have_count(0)
        expect(page.locator(".asked li.differs")).to_have_count(
            sum(policy.status(name) != "default" for name in policy.names)
        )
        page.locator(".judge[data-state=judging][data-seen=yes]").wait_for(timeout=STEP_MS)  # keys work now
        gold = prompt["fields"]
        for field in VALUES:
            self.choose(field, gold[field])
        page.locator(".candidate").first.wait_for(timeout=STEP_MS)
        texts = page.locator(".candidate .text").all_inner_texts()
        scene, said = prompt["metadata"]["scene"], policy.to_json()
        fitting = [i for i, text in enumerate(texts, start=1) if is_faithful(text, scene, said, **gold)]
        page.locator(".judge[data-state=judging][data-seen=yes]").wait_for(timeout=STEP_MS)
        for number in fitting:
            page.keyboard.press(str(number))
        expect(page.locator(".candidate input:checked")).to_have_count(len(fitting))
        page.keyboard.press("Enter" if fitting else "0")
        page.wait_for_function(
            "before => document.querySelector('#work')?.dataset.assignment !== before", arg=before, timeout=STEP_MS
        )
        return str(prompt["images"][0]["sha256"]), len(fitting)

    def choose(self, field: str, value: str) -> None:
        """Give a value by the one key that stands beside it."""
        asked = self.page.locator(f'fieldset.is-asked[data-field="{field}"]')
        asked.wait_for(timeout=STEP_MS)
        choice = asked.locator("label", has=self.page.locator(f'input[value="{value}"]'))
        key = choice.locator("kbd").inner_text()
        assert re.fullmatch("0" if value == NONE else "[1-9]", key)
        self.page.keyboard.press(key)


def test_a_round_of_house_rules_runs_by_itself(demo: Demo, browser: Browser) -> None:
    admin = demo.client("admin")

    def rounds() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = admin.get("/projects/guard/rounds").raise_for_status().json()["items"]
        return found

    def prompts() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = admin.get("/projects/guard/prompts", params={"state": "ready"}).json()["items"]
        return found

    wait_for("explanations under house rules", ROUND_SECONDS, lambda: prompts() or None)
    settings = admin.patch("/projects/guard", json=SMALL).raise_for_status().json()
    assert settings["round_every"] == ROUND_EVERY
    judge = Judge(demo, sign_in(browser, demo, "critic", to="/annotate/guard"))
    seen: list[str] = []
    picked = 0
    while len(seen) < JUDGED or picked < ROUND_EVERY:
        image, picks = judge.judge_one()
        assert not seen or image != seen[-1], "two policies of one picture follow each other"
        seen.append(image)
        picked += picks > 0
        assert len(seen) <= 4 * JUDGED, f"{picked} of {len(seen)} prompts have a true explanation"
    [done] = wait_for(
        "the end of a round", ROUND_SECONDS, lambda: [one for one in rounds() if one["state"] in ENDED] or None
    )
    assert (done["state"], done["error"]) == ("succeeded", None)
    assert done["trigger"] == "auto"
    assert done["metrics"]["metric"] == "balanced_accuracy"
    versions = {one["number"]: one for one in admin.get("/projects/guard/versions").json()["items"]}
    assert versions[1]["parent"] == versions[0]["id"]

    # What is accepted are the values of a critic who is right, with each explanation that was picked.
    table = admin.get("/projects/guard/dataset", params={"format": "answers"}).raise_for_status().text
    rows = [json.loads(line) for line in table.splitlines()]
    assert len({row["prompt"] for row in rows}) >= ROUND_EVERY
    assert all({name: row[name] for name in VALUES} == judge.prompts[row["prompt"]]["fields"] for row in rows)

    overseer = sign_in(browser, demo, "admin", to=f"/admin/projects/guard/rounds/{done['number']}")
    expect(overseer.get_by_text("Balanced accuracy").first).to_be_visible(timeout=STEP_MS)
