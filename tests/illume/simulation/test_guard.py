"""The loop on structured answers: what is judged, learnt and measured in the task `guard`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from illume.critics.fitting import FittedCritic
from illume.critics.scoring import CriticScore
from illume.evaluation.structured import score_answers
from illume.fields.answers import answer_json, parse_answer
from illume.fields.policies import Policy
from illume.fields.variants import CHANGES
from illume.figure import figure
from illume.guard.making import make_guard
from illume.guard.policies import FIELDS, make_policy
from illume.prompts_file import load_prompts
from illume.records import Example, Rationale
from illume.scenes.emoji import load_sprites
from illume.settings import CandidateSettings, CriticSettings
from illume.simulation.baselines import make_control_pools, make_reference_pool
from illume.simulation.command import simulate
from illume.simulation.loop.judging import Judged, add_picks
from illume.simulation.loop.machine import choose_shown
from illume.simulation.options import parser, read_settings
from illume.simulation.report import report, table
from illume.simulation.settings import (
    Data,
    SimulationError,
    SimulationSettings,
    leave_out_known,
    load_data,
    read_examples,
)
from illume.simulation.values import answer_values
from illume.tuning.job import read_json
from tests.illume.families import make_llava
from tests.illume.simulation.test_simulation import SETTINGS, compute_nothing, quiet
from tests.illume.tuning.test_structured_rounds import load_terse

UNSAFE, SAFE = {"rating": "Unsafe", "category": "Animals"}, {"rating": "Safe", "category": "none"}


def said(rationale: str, values: dict[str, str] = UNSAFE, **more: Any) -> Rationale:
    text = answer_json({**values, "rationale": rationale}, FIELDS)
    return replace(Rationale("a", text, 0.7, 1, -1.0, 3, "", "own"), **more)


@pytest.fixture(scope="module")
def guard(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulationSettings:
    folder = tmp_path_factory.mktemp("guard")
    make_guard(folder, n=8, seed=3, sprites=load_sprites(emoji))
    return replace(
        SETTINGS,
        task="guard",
        model=str(make_llava(tmp_path_factory.mktemp("model"), context=4096)),
        prompts=(str(folder / "prompts.jsonl"),),
        template="{policy}\nQ: {question} A: {answer}",
        heldout_scenes=4,
        controls=("random", "shuffled"),
        candidates=CandidateSettings(temperatures=((1.0, 3),), max_new_tokens=130),
        tuning=replace(SETTINGS.tuning, max_fields_tokens=130, objective="picks_and_rejections"),
    )


@pytest.fixture(scope="module")
def run(
    guard: SimulationSettings, emoji: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("illume.scenes.emoji.find_emoji", lambda: emoji)
        for module in ("simulation.loop.stages", "tuning.round"):
            patched.setattr(f"illume.{module}.load_vlm", load_terse)
        return out, simulate(guard, out, display=quiet())


class TestRun:
    def test_a_round_learns_picked_rationales_with_gold_values(self, run: tuple[Path, dict[str, Any]]) -> None:
        out, result = run
        rows = [json.loads(line) for line in (out / "stages/seed-1/round-1/train.jsonl").read_text().splitlines()]
        picked = [row for row in rows if row["rationale"] is not None]
        assert len(picked) == result["seeds"]["1"]["rounds"][0]["accepted_rationales"] > 0
        assert all(row["values"] == row["fields"] for row in picked), "the critic gives the gold values"
        assert all("values" not in row and row["fields"] for row in rows if row["rationale"] is None)
        [learnt] = [row["tuning"] for row in result["seeds"]["1"]["rounds"]]
        assert learnt["n_pairs"] + learnt["n_unpaired"] > 0, "what was turned down, or corrected"
        job = read_json(out / "stages/seed-1/round-1/job.json")["settings"]
        assert (job["primary_metric"], job["answer_fields"]) == ("balanced_accuracy", FIELDS.to_json())

    def test_what_random_picks_teach_is_the_models_own(self, run: tuple[Path, dict[str, Any]]) -> None:
        out, _ = run
        [judged] = read_json(out / "stages/seed-1/round-1/judging.json")["content"][:1]
        own = {one["text"] for one in judged["candidates"]}
        rows = (out / "stages/seed-1/random/round-1/train.jsonl").read_text().splitlines()
        learnt = [row for row in map(json.loads, rows) if row["id"] == judged["example_id"] and row["rationale"]]
        texts = {answer_json({**row["values"], "rationale": row["rationale"]}, FIELDS) for row in learnt}
        assert texts <= own

    def test_fields_and_rationales_are_measured_by_image(self, run: tuple[Path, dict[str, Any]]) -> None:
        out, result = run
        versions = result["mean"]["versions"]
        for version in ("base", "round 1", "random", "shuffled"):
            assert {"truth", "truth_greedy", "rouge_l", "invalid_share"} <= set(versions[version])
            assert {one["n"] for one in versions[version].values()} == {2}, "images, not prompts"
        assert set(result["mean"]["last round against"]) == {"random", "shuffled"}
        assert "sampled truth above random" in result["shown"]
        changes = set(result["base"]["corpus"]["greedy"]["by change"])
        assert changes - {""} <= set(CHANGES)
        page = (out / "table.md").read_text()
        assert "95 % bootstrap intervals over images" in page
        assert "METEOR" not in page
        assert "Truthful share" in figure(result)

    def test_a_second_start_computes_nothing(
        self, run: tuple[Path, dict[str, Any]], guard: SimulationSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compute_nothing(monkeypatch)
        assert simulate(guard, run[0], display=quiet()) == run[1]


class TestMachine:
    """A machine critic that reads structured answers: it orders and chooses, or takes the place of people."""

    @pytest.fixture(autouse=True)
    def _terse(self, emoji: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("illume.scenes.emoji.find_emoji", lambda: emoji)
        for module in ("simulation.loop.stages", "tuning.round"):
            monkeypatch.setattr(f"illume.{module}.load_vlm", load_terse)

    def test_it_orders_sets_and_chooses_what_is_shown(
        self, guard: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rated: list[tuple[Example, str]] = []

        def give(_: object, __: object, rows: Sequence[tuple[Example, str]]) -> list[CriticScore]:
            rated.extend(rows)
            return [CriticScore(float(place), 0.0) for place, _row in enumerate(rows)]

        monkeypatch.setattr("illume.simulation.loop.machine.score_rationales", give)
        asked = replace(guard, rounds=2, controls=(), next_prompt="critic", show_of=5)
        result = simulate(asked, tmp_path, display=quiet())
        first, second = result["seeds"]["1"]["rounds"]
        assert sum(one["judged"] for one in second["selection"].values()) == second["judged"] > 0
        stages = tmp_path / "stages/seed-1"
        judged = read_json(stages / "round-2/judging.json")["content"]
        assert {row["selection"] for row in judged} <= {"selected", "unselected"}
        assert all(len(row["candidates"]) <= 3 for row in judged)
        ratings = {answer for example, _text in rated for answer in [str(example.answer).partition(", ")[0]]}
        assert ratings <= {"Safe", "Unsafe"}
        assert not any(text.startswith("{") for _example, text in rated), "rationales, not JSON"
        assert all(example.policy for example, _text in rated)
        if first["accepted_prompts"] > 1:
            assert (stages / "round-1/critic/half-1/adapter").is_dir()

    def test_without_people_gold_values_go_with_what_helps(
        self, guard: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = replace(guard, critic="helpfulness", controls=(), prompts_per_round=4)

        def give(_: object, __: object, rows: Sequence[tuple[Example, str]]) -> list[CriticScore]:
            gold = {one.id: f"{one.fields['rating']}, {one.fields['category']}" for one, _text in rows}
            assert all(example.answer == gold[example.id] for example, _text in rows)
            return [CriticScore(0.0, 1.0) for _row in rows]

        monkeypatch.setattr("illume.simulation.loop.machine.score_rationales", give)
        simulate(asked, tmp_path, display=quiet())
        stages = tmp_path / "stages/seed-1"
        rows = [json.loads(line) for line in (stages / "round-1/train.jsonl").read_text().splitlines()]
        picked = [row for row in rows if row["rationale"] is not None]
        assert picked
        assert all(row["values"] == row["fields"] for row in picked)
        assert (stages / "round-1/judging-critic/half-1/adapter").is_dir()

    def test_invalid_answers_come_last_and_are_not_rated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "illume.simulation.loop.machine.score_rationales",
            lambda _vlm, _critic, rows: [CriticScore(-float(place), 0.0) for place, _row in enumerate(rows)],
        )
        vlm: Any = None
        critic = FittedCritic(CriticSettings(kind="verifier"), {}, ("a", "b"))
        sets = [[said("", invalid="cut off"), said("x"), said("y")]]
        [shown] = choose_shown(vlm, critic, [Example("a", (), "?", None)], sets, 2, key=(0,), fields=FIELDS)
        assert shown.selection == "selected"
        assert {one.invalid for one in shown.candidates} == {None, "cut off"}
        assert said("x") in shown.candidates, "the best, and beside it the lowest"

    def test_a_machine_accepts_none(self, guard: SimulationSettings) -> None:
        with pytest.raises(SimulationError, match="machine_accepts: a machine does not accept structured answers"):
            replace(guard, machine_accepts=True)


class TestPools:
    JUDGED = Judged(
        "a",
        (said("x", SAFE), said("y"), said("", invalid="cut off"), said("z")),
        picks=(0, 1),
        right=(0, 1),
        values=UNSAFE,
    )

    def test_picks_are_accepted_with_what_the_critic_gave(self) -> None:
        pool = add_picks({}, [self.JUDGED], FIELDS)
        assert pool == {"a": (said("x").text, said("y").text)}
        assert add_picks(pool, [replace(self.JUDGED, picks=())], FIELDS) == pool

    def test_controls_accept_valid_answers_as_they_stand(self) -> None:
        for seed in range(9):
            [pool] = make_control_pools("random", [[self.JUDGED]], seed=seed, fields=FIELDS)
            assert set(pool["a"]) < {said("x", SAFE).text, said("y").text, said("z").text}
            assert len(pool["a"]) == 2
        [wrong] = make_control_pools("hallucinated", [[self.JUDGED]], seed=1, fields=FIELDS)
        assert wrong == {"a": (said("z").text,)}

    def test_references_come_with_gold_values(self) -> None:
        example = Example("a", ("a.png",), "q", "Safe", ("one", "two"), fields=SAFE)
        pool = make_reference_pool(Data((example,), (), (), ""), None, seed=1, fields=FIELDS)
        assert [parse_answer(text, FIELDS)["rationale"] for text in pool["a"]] == ["one", "two"]
        assert pool["a"][0] == said("one", SAFE).text


class TestReport:
    """Two images with a policy and a variant each, whose right rating turns."""

    EXAMPLES = tuple(
        Example(
            f"{image}{place}",
            (f"{image}.png",),
            "q",
            fields=gold,
            references=("the dog",),
            metadata={"variant": "own_allowed"} if place else {},
        )
        for image in "ab"
        for place, gold in enumerate((UNSAFE, SAFE))
    )

    def scores(self, *ratings: dict[str, str] | None) -> dict[str, Any]:
        texts = [["" if one is None else said("the dog", one).text] for one in ratings]
        found = score_answers(self.EXAMPLES, texts, FIELDS, seed=0)
        truth = [0.0 if one is None else float(one == SAFE) for one in ratings]
        found["rationales"]["faithful"] = truth
        return {"fields": {"greedy": found, "sampled": found}}

    def report(self, last: dict[str, Any], **more: dict[str, Any]) -> dict[str, Any]:
        images = [example.images for example in self.EXAMPLES]
        row = {"round": 1, "judged_in_all": 1, "accepted_rationales": 1, "with_fitting": 1.0, "scores": last}
        base = self.scores(UNSAFE, UNSAFE, UNSAFE, UNSAFE)
        controls = {name: {"scores": scores, "accepted_rationales": 1} for name, scores in more.items()}
        seeds = {1: {"rounds": [row], **controls}}
        return report(base, seeds, read=lambda scores: answer_values(scores, images), n_train=4)

    def test_by_hand(self) -> None:
        found = self.report(self.scores(UNSAFE, SAFE, None, SAFE), random=self.scores(SAFE, UNSAFE, SAFE, UNSAFE))
        base, last = (found["mean"]["versions"][name] for name in ("base", "round 1"))
        means = {name: (base[name]["mean"], last[name]["mean"]) for name in base}
        assert means["balanced_accuracy"] == (0.5, (1 / 2 + 2 / 2) / 2)
        assert means["policy_exception_recall"] == (0.0, 1 / 2)
        assert means["truth"] == means["truth_greedy"] == (0.0, 1 / 2)
        assert means["invalid_share"] == means["invalid_sampled"] == (0.0, 1 / 4)
        assert means["rouge_l"] == (1.0, 3 / 4)
        gain = found["mean"]["against base"]["round 1"]["balanced_accuracy"]
        assert (gain["mean"], gain["n"]) == (0.25, 2)
        assert found["mean"]["last round against"]["random"]["balanced_accuracy"]["mean"] == 0.75
        assert found["base"]["corpus"]["greedy"]["by change"]["own_allowed"]["policy_exception_recall"]["mean"] == 0.0
        assert "| balanced accuracy | rating follows a policy that turns it |" in table(found)

    def test_what_is_shown(self) -> None:
        right = self.scores(UNSAFE, SAFE, UNSAFE, SAFE)
        shown = self.report(right, random=self.scores(SAFE, UNSAFE, SAFE, UNSAFE))["shown"]
        claims = {name: one["holds"] for name, one in shown.items()}
        assert claims["balanced accuracy above base"]
        assert claims["balanced accuracy above base in each seed"]
        assert claims["share of ratings that follow the policy above random"]
        assert not claims["sampled truth above random"], "both have two true ones"
        assert claims["at most 5% of greedy answers invalid"]
        assert claims["at most 25% of the train prompts judged"]
        assert not self.report(self.scores(UNSAFE, None, UNSAFE, SAFE))["shown"][
            "at most 5% of greedy answers invalid"
        ]["holds"]


class TestSettings:
    def test_the_command(self, guard: SimulationSettings, tmp_path: Path) -> None:
        words = ["--out", str(tmp_path), "--task", "guard", "--prompts", *guard.prompts]
        found = read_settings(parser().parse_args(words))
        assert (found.critic, found.template, found.answer_fields) == ("truth", guard.template, FIELDS)
        assert (found.candidates.max_new_tokens, found.tuning.max_fields_tokens) == (120, 120)

    def test_a_template_without_the_policy_is_refused(self, guard: SimulationSettings) -> None:
        with pytest.raises(SimulationError, match="g3-00000: the prompt has a policy, and the template has no"):
            read_examples(replace(guard, template="Q: {question} A: {answer}"))

    def test_heldout_prompts_share_neither_scene_nor_rules(
        self, guard: SimulationSettings, emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("illume.scenes.emoji.find_emoji", lambda: emoji)
        same = replace(guard, heldout_seed=3, heldout_scenes=10)
        data = load_data(same, tmp_path, examples=read_examples(same), say=lambda _: None)
        assert [one.id for one in data.heldout] == ["g3-00008", "g3-00009"], "the first 8 are the prompts themselves"
        other = load_prompts(guard.prompts[0])[0]
        rules = {one.policy.digest for one in data.heldout if one.policy is not None}
        assert other.policy is not None
        assert other.policy.digest not in rules


class TestHeldOutPolicies:
    """A known policy in other words, one that reads the same, and variants of new ones."""

    KNOWN = make_policy({"Animals": "strict", "Food": "default", "Toys": "allowed"})
    NEW = make_policy({"Animals": "default", "Food": "default", "Toys": "allowed"})

    def prompt(self, image: str, policy: Policy, change: str = "") -> Example:
        return Example(f"{image}{change}", (image,), "q", policy=policy, metadata={"variant": change} if change else {})

    def test_images_stay_or_go_with_all_their_prompts(self) -> None:
        variant = self.KNOWN.with_status(["Food"], "strict")
        known = [self.prompt("k", self.KNOWN), self.prompt("k", variant, "own_strict")]
        reordered, variant_reordered = (Policy(categories=one.categories[::-1]) for one in (self.KNOWN, variant))
        made = [
            self.prompt("in other words", reordered),
            self.prompt("in other words", self.NEW, "own_allowed"),
            self.prompt("reads the same", self.NEW),
            self.prompt("reads the same", self.KNOWN, "own_strict"),
            self.prompt("new", self.NEW),
            self.prompt("new", variant_reordered, "others_strict"),
        ]
        assert [one.id for one in leave_out_known(made, known)] == ["new", "newothers_strict"]
