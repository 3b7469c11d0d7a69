"""A machine critic in a simulation: it orders sets, accepts with less weight, or takes the place of people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from illume.critics.fitting import FittedCritic, TooFewVerdictsError
from illume.critics.quality import Threshold
from illume.critics.rows import JudgedRationale
from illume.critics.scoring import CriticScore
from illume.evaluation.metrics import Interval
from illume.records import Example, Rationale, Verdict
from illume.settings import CandidateSettings, CriticSettings
from illume.simulation.command import simulate
from illume.simulation.loop import judging, machine, run
from illume.simulation.loop.machine import (
    Machine,
    MachineRows,
    Shown,
    accept_by_machine,
    choose_shown,
    order_by_critic,
    order_by_doubt,
)
from illume.simulation.options import parser, read_settings
from illume.simulation.settings import SimulationError, SimulationSettings
from illume.tuning.job import read_json
from tests.illume.simulation.test_simulation import SETTINGS, compute_nothing, quiet, settings

__all__ = ["settings"]

CRITIC = FittedCritic(CriticSettings(kind="verifier", least_verdicts=40), {}, ("a", "b"))


def candidates(*logprobs: float, texts: str = "p q r") -> list[Rationale]:
    return [
        Rationale("x", text, 0.7, 1, logprob, 3, "red", "gold")
        for text, logprob in zip(texts.split(), logprobs, strict=False)
    ]


def examples(n: int) -> list[Example]:
    return [Example(f"e{number}", (f"{number}.png",), "what?", "red") for number in range(n)]


def rate(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> None:
    """Lets the machine critic give these scores, one after the other."""
    left = iter(scores)
    monkeypatch.setattr(machine, "score_rationales", lambda _, __, rows: [CriticScore(next(left), 0.0) for _ in rows])


class TestOrder:
    def test_the_sets_whose_log_probabilities_spread_most_come_first(self) -> None:
        sets = [candidates(-1.0, -1.1), candidates(-1.0, -4.0), [], candidates(-1.0, -2.0)]
        assert order_by_doubt(sets) == [1, 3, 0, 2]

    def test_disagreement_comes_first_then_close_scores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sampler's favourite is the first one of each set; a set of one says nothing."""
        sets = [candidates(-1.0, -2.0, -3.0)] * 3 + [candidates(-1.0)]
        rate(monkeypatch, [3.0, 0.0, 1.0, 0.0, 2.0, 1.0, 1.1, 1.0, 0.0, 9.0])
        vlm: Any = None
        assert order_by_critic(vlm, CRITIC, examples(4), sets) == [1, 2, 0, 3]


class TestShown:
    def show(self, monkeypatch: pytest.MonkeyPatch, n: int) -> list[Shown]:
        """Of 3 candidates, rated 0, 2 and 1, two each."""
        rate(monkeypatch, [0.0, 2.0, 1.0] * n)
        vlm: Any = None
        return choose_shown(vlm, CRITIC, examples(n), [candidates(-1.0, -2.0, -3.0)] * n, 2, key=(1, 2))

    def test_the_best_and_the_lowest_in_any_order_and_one_in_ten_as_it_was_sampled(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = self.show(monkeypatch, 200)
        assert self.show(monkeypatch, 200) == shown
        found: dict[str | None, Counter[str]] = {"selected": Counter(), "unselected": Counter()}
        for one in shown:
            found[one.selection]["".join(candidate.text for candidate in one.candidates)] += 1
        assert set(found["selected"]) == {"qp", "pq"}
        assert min(found["selected"].values()) > 60
        assert set(found["unselected"]) == {"pq"}, "the first ones"
        assert 10 <= found["unselected"].total() <= 30


class TestAccepting:
    def judged(self, n: int) -> list[JudgedRationale]:
        """Every second one was picked; those have score 1, the others 0."""
        return [JudgedRationale(one, "t", picked=number % 2 == 0) for number, one in enumerate(examples(n))]

    def accept(self, monkeypatch: pytest.MonkeyPatch, n: int, scores: Sequence[float], sets: Any = ()) -> MachineRows:
        judged = self.judged(n)
        known = [CriticScore(float(one.picked), 0.0) for one in judged]
        monkeypatch.setattr(machine, "score_judged", lambda *_: known)
        rate(monkeypatch, scores)
        vlm: Any = None
        fresh = [replace(one, id=f"fresh-{one.id}") for one in examples(len(sets))]

        def sample() -> tuple[list[Example], Any]:
            assert sets, "nothing is sampled where nothing can be accepted"
            return fresh, sets

        return accept_by_machine(vlm, Machine(CRITIC), judged, sample, right=lambda *_: (1,), seed=1)

    def test_the_best_candidate_from_the_threshold_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sets = [candidates(-1.0, -2.0), candidates(-1.0, -2.0), candidates(-1.0, -2.0), []]
        found = self.accept(monkeypatch, 200, [0.0, 1.5, 1.2, 1.1, 0.9, 0.0], sets)
        assert found.accepted == {"fresh-e0": ("q",), "fresh-e1": ("p",)}
        report = found.report
        assert (report["score"], report["verdicts"], report["offered"], report["accepted"]) == (1.0, 200, 4, 2)
        assert report["right"] == 1, "a person would have picked the second one of each set"
        assert report["chosen"]["low"] >= 0.9
        assert report["shown"]["mean"] == report["quality"]["mean"] == 1.0
        assert MachineRows.from_json(json.loads(json.dumps(found.to_json()))) == found
        fresh = [replace(one, id=f"fresh-{one.id}") for one in examples(3)]
        rows = found.training_rows(fresh, 0.5)
        assert [(row.example.id, row.rationale, row.weight) for row in rows] == [
            ("fresh-e0", "q", 0.5),
            ("fresh-e1", "p", 0.5),
        ]

    @pytest.mark.parametrize(
        ("n", "reason"), [(78, "there are 78 verdicts on candidates; 80 are needed"), (80, "precision of 90% for sure")]
    )
    def test_few_verdicts_are_refused(self, monkeypatch: pytest.MonkeyPatch, n: int, reason: str) -> None:
        """Of 80 verdicts each part has 20 that were picked: their interval begins below 0.9."""
        found = self.accept(monkeypatch, n, [])
        assert found.accepted == {}
        assert reason in found.report["reason"]
        nothing = accept_by_machine(None, Machine(None, "why"), [], self.fail, right=lambda *_: (), seed=1)  # type: ignore[arg-type]
        assert (nothing.accepted, nothing.report["reason"]) == ({}, "why")

    @pytest.mark.parametrize("shown", [None, Interval(0.85, 0.8, 0.95, 40)])
    def test_a_score_that_does_worse_on_other_verdicts_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, shown: Interval | None
    ) -> None:
        found_out = Threshold(1.0, Interval(1.0, 0.95, 1.0, 90), shown)
        monkeypatch.setattr(machine, "choose_threshold", lambda *_, **__: found_out)
        found = self.accept(monkeypatch, 200, [])
        assert found.accepted == {}
        assert "among verdicts that the score was not chosen on" in found.report["reason"]

    def fail(self) -> tuple[list[Example], list[list[Rationale]]]:
        raise AssertionError


def pick_first(one: Example, _: Sequence[Rationale]) -> Verdict:
    return Verdict(one.id, "first", "picked", (0,))


@pytest.fixture(scope="module")
def accepting(
    settings: SimulationSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SimulationSettings, Path, dict[str, Any]]:
    """A run in which the machine critic orders the sets, and accepts whatever its score."""
    asked = replace(
        settings,
        rounds=2,
        controls=(),
        candidates=CandidateSettings(temperatures=((1.0, 3),), max_new_tokens=5),
        next_prompt="critic",
        show_of=5,
        machine_accepts=True,
    )
    out = tmp_path_factory.mktemp("accepting")
    with pytest.MonkeyPatch.context() as patched:
        for module in (judging, run):
            patched.setattr(module, "make_critic", lambda _: pick_first)
        patched.setattr(
            machine, "choose_threshold", lambda *_, **__: Threshold(-99.0, None, Interval(1.0, 1.0, 1.0, 9))
        )
        return asked, out, simulate(asked, out, display=quiet())


class TestLoop:
    def test_what_a_machine_accepted_is_learnt_with_less_weight_and_stays_on_offer(
        self, accepting: tuple[SimulationSettings, Path, dict[str, Any]]
    ) -> None:
        _, out, result = accepting
        first, second = result["seeds"]["1"]["rounds"]
        stages = out / "stages" / "seed-1"
        judged = [
            {row["example_id"] for row in read_json(stages / f"round-{n}/judging.json")["content"]} for n in (1, 2)
        ]
        rows = [json.loads(line) for line in (stages / "round-1/train.jsonl").read_text().splitlines()]
        light = [row for row in rows if row.get("weight") == 0.5]
        assert {row["id"] for row in light} == {f"train-{n}" for n in range(5)} - judged[0]
        assert len(light) == first["machine"]["accepted"] == 3
        assert first["accepted_prompts"] == 2, "only people's picks are accepted"
        assert first["tuning"]["n_rationale"] == first["accepted_rationales"] + 3
        assert judged[0].isdisjoint(judged[1])
        assert second["machine"]["offered"] == 1
        assert first["machine"]["right"] <= 3

    def test_from_the_second_round_on_what_is_shown_is_chosen_of_more(
        self, accepting: tuple[SimulationSettings, Path, dict[str, Any]]
    ) -> None:
        _, out, result = accepting
        rounds = result["seeds"]["1"]["rounds"]
        assert [sum(one["judged"] for one in each["selection"].values()) for each in rounds] == [0, rounds[1]["judged"]]
        assert all(one["judged"] == one["with_fitting"] for one in rounds[1]["selection"].values())
        stages = out / "stages" / "seed-1"
        judged = [read_json(stages / f"round-{n}/judging.json")["content"] for n in (1, 2)]
        assert {row["selection"] for row in judged[0]} == {None}
        assert {row["selection"] for row in judged[1]} <= {"selected", "unselected"}
        assert all(len(row["candidates"]) <= 3 for rows in judged for row in rows)

    def test_a_second_start_computes_nothing(
        self, accepting: tuple[SimulationSettings, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, out, result = accepting
        compute_nothing(monkeypatch)
        assert simulate(asked, out, display=quiet()) == result

    def test_without_people_one_candidate_is_picked_that_helps(
        self, settings: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The scores are given: the second candidate of the first set helps, nothing of the second one."""
        asked = replace(settings, critic="helpfulness", controls=(), baselines=())

        def give(_: object, __: object, rows: Sequence[tuple[Example, str]]) -> list[CriticScore]:
            assert len(rows) == 4
            return [CriticScore(0.0, blank) for blank in (0.1, 0.2, -0.1, 0.0)]

        monkeypatch.setattr(machine, "score_rationales", give)
        result = simulate(asked, tmp_path, display=quiet())
        rows = read_json(tmp_path / "stages/seed-1/round-1/judging.json")["content"]
        assert [row["picks"] for row in rows] == [[1], []]
        assert result["seeds"]["1"]["rounds"][0]["accepted_prompts"] == 1
        assert (tmp_path / "stages/seed-1/round-1/judging-critic/half-1/adapter").is_dir()

    def test_a_verifier_judges_after_people_did(
        self, settings: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The scores are given: the first candidate of a set fits more likely than not, the second does not."""
        asked = replace(settings, critic="verifier", rounds=2, controls=(), baselines=())
        learnt: list[Sequence[JudgedRationale]] = []

        def fit(_: object, judged: Sequence[JudgedRationale], *others: Any, **__: object) -> FittedCritic:
            learnt.append(judged)
            assert others[1].kind == "verifier"
            return FittedCritic(others[1], others[0], ("a", "b"))

        def give(_: object, __: object, rows: Sequence[tuple[Example, str]]) -> list[CriticScore]:
            return [CriticScore(0.1 if place % 2 == 0 else -0.1, 9.0) for place in range(len(rows))]

        monkeypatch.setattr(machine, "fit_critic", fit)
        monkeypatch.setattr(machine, "score_rationales", give)
        simulate(asked, tmp_path, display=quiet())
        first, second = (
            read_json(tmp_path / f"stages/seed-1/round-{number}/judging.json")["content"] for number in (1, 2)
        )
        assert all(row["picks"] == row["right"] for row in first)
        assert all(row["picks"] == [0] for row in second)
        [judged] = learnt
        assert {one.example.id for one in judged} == {row["example_id"] for row in first}

    def test_without_verdicts_enough_there_is_no_verifier(
        self, settings: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fit(*_: object, **__: object) -> FittedCritic:
            raise TooFewVerdictsError("nothing was turned down")

        monkeypatch.setattr(machine, "fit_critic", fit)
        asked = replace(settings, critic="verifier", rounds=2, controls=(), baselines=())
        with pytest.raises(SimulationError, match="too few verdicts for a verifier: nothing was turned down"):
            simulate(asked, tmp_path, display=quiet())


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mistakes": 0.1}, "mistakes: is for verdicts of people"),
            ({"machine_accepts": True}, "machine_accepts: is for verdicts of people"),
            ({"critic": "verifier", "rounds": 2, "machine_accepts": True}, "in every round, unlike critic verifier"),
            (
                {"critic": "verifier", "rounds": 2, "machine_critic": "helpfulness"},
                "machine_critic: the critic verifier",
            ),
            ({"critic": "verifier", "rounds": 1}, "rounds: must be at least 2, since the critic verifier"),
            ({"next_prompt": "critic"}, "next_prompt: is for verdicts of people"),
            ({"show_of": 12}, "show_of: is for verdicts of people"),
            ({"critic": "rouge", "show_of": 2}, "show_of: must be above what is shown of a set, which is 2"),
            ({"prompts_per_round": 0, "picks_per_round": 3}, "picks_per_round: is for verdicts of people"),
            ({"critic": "rouge", "machine_weight": 0.0}, "machine_weight: must be above 0 and at most 1, not 0.0"),
        ],
    )
    def test_what_cannot_be_meant(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(SimulationError, match=message):
            replace(SETTINGS, **{"critic": "helpfulness", **changes})

    def test_the_command(self, tmp_path: Path) -> None:
        words = ["--out", str(tmp_path), "--heldout-scenes", "9", "--next-prompt", "critic", "--machine-accepts"]
        words += ["--machine-critic", "helpfulness", "--machine-labels", "permuted", "--machine-weight", "0.2"]
        words += ["--show-of", "12"]
        found = read_settings(parser().parse_args(words))
        assert found.show_of == 12
        assert (found.next_prompt, found.machine_accepts, found.machine_critic) == ("critic", True, "helpfulness")
        assert (found.machine_labels, found.machine_weight, found.critic) == ("permuted", 0.2, "truth")
        alone = read_settings(parser().parse_args([*words[:4], "--critic", "helpfulness"]))
        assert not alone.has_people
