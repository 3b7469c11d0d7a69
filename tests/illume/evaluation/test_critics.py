"""Simulated critics, the accumulation of accepted rationales, and the rows that a round trains on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from illume.evaluation.critics import (
    accumulate,
    deduplicate,
    guard_rows,
    loss_weight,
    random_critic,
    rationale_rows,
    rouge_critic,
    truth_critic,
    untruth_critic,
    with_mistakes,
)
from illume.records import Example, Rationale, Verdict


def example(name: str = "e", **changes: object) -> Example:
    plain = Example(name, (f"{name}.png",), "Is it night?", "yes", ("the sky is dark and full of stars",))
    return replace(plain, **changes)  # type: ignore[arg-type]


def rationale(text: str, name: str = "e") -> Rationale:
    return Rationale(name, text, 0.7, 1, -0.5, 8, "yes", "gold")


CANDIDATES = [
    rationale("the sky is dark and full of stars"),
    rationale("the sky is dark and full of snow"),
    rationale("a dog eats"),
]


class TestRougeCritic:
    def test_picks_candidates_close_to_a_reference(self) -> None:
        assert rouge_critic(threshold=0.8)(example(), CANDIDATES).picks == (0, 1)
        assert rouge_critic(threshold=0.9)(example(), CANDIDATES).picks == (0,)

    def test_threshold_is_inclusive(self) -> None:
        assert rouge_critic(threshold=1.0)(example(), CANDIDATES).picks == (0,)

    def test_none_fits(self) -> None:
        verdict = rouge_critic()(example(), CANDIDATES[2:])
        assert (verdict.kind, verdict.picks) == ("none_fit", ())

    def test_needs_references(self) -> None:
        with pytest.raises(ValueError, match="no references"):
            rouge_critic()(example(references=()), CANDIDATES)


SCENE = {
    "setting": "park",
    "weather": "clear",
    "time": "noon",
    "objects": [
        {"kind": "elephant", "column": "middle", "row": "back"},
        {"kind": "lion", "column": "right", "row": "back"},
    ],
}


class TestTruthCritic:
    asked = example(question="can you see a lion?", metadata={"scene": SCENE})
    candidates = (rationale("the lion is at the back right"), rationale("the lion is at the front left"))

    def test_picks_what_is_true_of_the_scene(self) -> None:
        assert truth_critic()(self.asked, self.candidates).picks == (0,)

    def test_untruth_critic_picks_the_rest(self) -> None:
        assert untruth_critic()(self.asked, self.candidates).picks == (1,)

    def test_needs_a_scene(self) -> None:
        with pytest.raises(ValueError, match="no scene"):
            truth_critic()(example(), CANDIDATES)


class TestMistakes:
    def test_a_share_of_the_decisions_is_inverted(self) -> None:
        critic = with_mistakes(rouge_critic(), share=0.3, seed=0)
        wrong = total = 0
        for number in range(300):
            one = example(f"e{number}")
            right = set(rouge_critic()(one, CANDIDATES).picks)
            wrong += len(right ^ set(critic(one, CANDIDATES).picks))
            total += len(CANDIDATES)
        assert wrong / total == pytest.approx(0.3, abs=0.06)

    def test_same_mistakes_each_time_and_in_any_order(self) -> None:
        critic = with_mistakes(rouge_critic(), share=0.5, seed=1)
        first = {CANDIDATES[i].text for i in critic(example(), CANDIDATES).picks}
        turned = CANDIDATES[::-1]
        assert {turned[i].text for i in critic(example(), turned).picks} == first

    def test_all_or_no_mistakes(self) -> None:
        assert with_mistakes(rouge_critic(), share=0.0, seed=0)(example(), CANDIDATES).picks == (0, 1)
        assert with_mistakes(rouge_critic(), share=1.0, seed=0)(example(), CANDIDATES).picks == (2,)

    def test_share_is_checked(self) -> None:
        with pytest.raises(ValueError, match="share"):
            with_mistakes(rouge_critic(), share=10, seed=0)


class TestRandomCritic:
    def test_picks_as_many_as_the_other_critic(self) -> None:
        critic = random_critic(like=rouge_critic(), seed=0)
        verdicts = [critic(example(f"e{number}"), CANDIDATES) for number in range(60)]
        assert {len(verdict.picks) for verdict in verdicts} == {2}
        assert {pick for verdict in verdicts for pick in verdict.picks} == {0, 1, 2}

    def test_picks_none_if_the_other_critic_picks_none(self) -> None:
        assert random_critic(like=rouge_critic(), seed=0)(example(), CANDIDATES[2:]).kind == "none_fit"


class TestAccumulate:
    def test_accepted_rationales_grow_without_duplicates(self) -> None:
        shown = {"e": CANDIDATES}
        pool = accumulate({}, [Verdict("e", "c", "picked", (0, 2))], shown)
        again = accumulate(pool, [Verdict("e", "c", "picked", (0, 1), "A dog  eats!")], shown)
        assert pool == {"e": (CANDIDATES[0].text, CANDIDATES[2].text)}
        assert again == {"e": (CANDIDATES[0].text, CANDIDATES[2].text, CANDIDATES[1].text)}

    def test_a_critics_own_rationale_counts_even_if_none_fits(self) -> None:
        assert accumulate({}, [Verdict("e", "c", "none_fit", (), " my own ")], {}) == {"e": ("my own",)}

    def test_nothing_picked_adds_nothing(self) -> None:
        verdicts = [Verdict("e", "c", "none_fit"), Verdict("f", "c", "skipped"), Verdict("g", "c", "flagged")]
        assert accumulate({}, verdicts, {}) == {}

    def test_first_wording_is_kept(self) -> None:
        assert deduplicate(["A dog.", "a dog", "a cat"]) == ("A dog.", "a cat")


PROMPTS = [example(f"e{number}") for number in range(20)]


class TestRows:
    def test_a_row_per_rationale(self) -> None:
        rows = rationale_rows(PROMPTS, {"e3": ("x", "y"), "e1": ("z",)}, answers={"e3": "no"})
        assert [(row.example.id, row.example.answer, row.rationale) for row in rows] == [
            ("e1", "yes", "z"),
            ("e3", "no", "x"),
            ("e3", "no", "y"),
        ]

    def test_a_rationale_needs_an_answer(self) -> None:
        with pytest.raises(ValueError, match="no answer"):
            rationale_rows([example(answer=None)], {"e": ("x",)})

    def test_guard_first_from_prompts_without_a_rationale(self) -> None:
        accepted = {f"e{number}": ("x",) for number in range(10)}
        rows = guard_rows(PROMPTS, accepted, per_rationale=1, seed=0)
        assert len(rows) == 10
        assert {row.example.id for row in rows} == {f"e{number}" for number in range(10, 20)}
        assert all(row.rationale is None for row in rows)

    def test_guard_then_from_the_others(self) -> None:
        accepted = {f"e{number}": ("x",) for number in range(15)}
        rows = guard_rows(PROMPTS, accepted, per_rationale=1, seed=0)
        assert {row.example.id for row in rows[:5]} == {f"e{number}" for number in range(15, 20)}
        assert len({row.example.id for row in rows}) == 15

    def test_guard_uses_each_prompt_once(self) -> None:
        rows = guard_rows(PROMPTS, {"e0": ("x", "y", "z")}, per_rationale=10, seed=0)
        assert sorted(row.example.id for row in rows) == sorted(one.id for one in PROMPTS)

    def test_guard_takes_train_prompts_with_a_gold_answer(self) -> None:
        prompts = [example("a"), example("b", split="val"), example("c", answer=None)]
        assert [row.example.id for row in guard_rows(prompts, {"a": ("x",)}, seed=0)] == ["a"]

    def test_guard_follows_the_seed_not_the_order(self) -> None:
        accepted = {"e0": ("x",)}
        rows = guard_rows(PROMPTS, accepted, per_rationale=5, seed=1)
        assert rows == guard_rows(PROMPTS[::-1], accepted, per_rationale=5, seed=1)
        assert rows != guard_rows(PROMPTS, accepted, per_rationale=5, seed=2)

    def test_guard_may_be_switched_off(self) -> None:
        assert guard_rows(PROMPTS, {"e0": ("x",)}, per_rationale=0, seed=0) == []

    @pytest.mark.parametrize(
        ("n_vqa_only", "n_rationale", "w"), [(400, 40, 10.0), (20, 40, 1.0), (0, 5, 1.0), (9, 0, 1.0)]
    )
    def test_loss_weight(self, n_vqa_only: int, n_rationale: int, w: float) -> None:
        assert loss_weight(n_vqa_only, n_rationale) == w
