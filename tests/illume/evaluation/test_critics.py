"""Simulated critics, the accumulation of accepted rationales, and the rows that a round trains on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from illume.evaluation.critics import (
    JudgedAnswers,
    accumulate,
    answer_rejections,
    answer_rows,
    deduplicate,
    guard_rows,
    loss_weight,
    random_critic,
    rationale_rows,
    rouge_critic,
    structured_critic,
    truth_critic,
    untruth_critic,
    with_mistakes,
)
from illume.fields.answers import Values, answer_json
from illume.guard.policies import FIELDS
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


UNSAFE, SAFE = {"rating": "Unsafe", "category": "Animals"}, {"rating": "Safe", "category": "none"}


def answer(text: str, values: dict[str, str] = UNSAFE) -> Rationale:
    return replace(rationale(answer_json({**values, "rationale": text}, FIELDS)), answer="")


class TestStructuredCritic:
    ANSWERS = (
        replace(rationale("the sky is dark and full of stars"), invalid="not JSON"),
        answer("the sky is dark and full of stars"),
        answer("a dog eats"),
        answer("the sky is dark and full of stars", SAFE),
    )

    def test_picks_rationales_whatever_their_values_and_gives_the_gold_ones(self) -> None:
        critic = structured_critic(rouge_critic(), FIELDS)
        verdict = critic(example(fields=SAFE), self.ANSWERS)
        assert (verdict.kind, verdict.picks, verdict.fields) == ("picked", (1, 3), SAFE)
        assert critic(example(fields=SAFE), self.ANSWERS[:1]) == Verdict("e", "rouge", "none_fit", fields=SAFE)

    def test_what_has_no_gold_value_is_not_judged(self) -> None:
        verdict = structured_critic(rouge_critic(), FIELDS)(example(fields={"rating": "Safe"}), self.ANSWERS)
        assert verdict.fields == {"rating": "Safe"}

    def test_mistakes_are_a_share_of_the_choices_and_always_the_same(self) -> None:
        critic = structured_critic(rouge_critic(), FIELDS, mistakes=0.3, seed=1)
        given = [critic(example(f"e{number}", fields=SAFE), self.ANSWERS).fields or {} for number in range(200)]
        assert 40 <= sum(one["rating"] != "Safe" for one in given) <= 80
        assert {one["rating"] for one in given} == {"Safe", "Unsafe"}
        assert given[7] == critic(example("e7", fields=SAFE), self.ANSWERS[::-1]).fields


class TestAnswerRejections:
    """A set of four: two picked, of which one has a wrong rating, one turned down and one invalid."""

    def rows(self, picks: tuple[int, ...], accepted: tuple[str, ...] = ()) -> list[tuple[object, ...]]:
        first: Values = {**UNSAFE, "rationale": "a"}
        wrong: Values = {**UNSAFE, "rating": "Safe", "rationale": "b"}
        other: Values = {**SAFE, "rationale": "c"}
        values = (first, wrong, other, None)
        judged = [JudgedAnswers("e3", values, picks, UNSAFE), JudgedAnswers("e3", values, picks, UNSAFE)]
        pool = {"e3": accepted}
        rows = answer_rejections(PROMPTS, pool, judged, FIELDS, per_rationale=3, seed=0)
        return [(one.example.id, one.rationale, one.accepted, one.values, one.accepted_values) for one in rows]

    def test_rationales_under_the_decided_values_and_fields_by_themselves(self) -> None:
        assert self.rows((0, 1)) == [
            ("e3", "c", "a", UNSAFE, UNSAFE),
            ("e3", "b", "b", {**UNSAFE, "rating": "Safe"}, UNSAFE),
        ]

    def test_where_nothing_fits_there_is_no_pair(self) -> None:
        found = self.rows(())
        assert {(text, better) for _, text, better, _, _ in found} == {("a", None), ("b", None), ("c", None)}
        assert all(values == UNSAFE and others is None for _, _, _, values, others in found)

    def test_what_was_accepted_elsewhere_is_not_turned_down(self) -> None:
        elsewhere = answer_json({**UNSAFE, "rationale": "C!"}, FIELDS)
        assert {text for _, text, *_ in self.rows((), (elsewhere,))} == {"a", "b"}


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

    def test_a_row_per_structured_answer(self) -> None:
        accepted = {"e3": (answer("x", SAFE).text, answer("y").text)}
        rows = answer_rows(PROMPTS, accepted, FIELDS)
        assert [(row.example.id, row.rationale, row.values) for row in rows] == [("e3", "x", SAFE), ("e3", "y", UNSAFE)]

    def test_guard_of_structured_answers_needs_gold_values(self) -> None:
        prompts = [example("a", fields=SAFE), example("b", fields={"category": "none"}), example("c")]
        rows = guard_rows(prompts, {"a": ("x",)}, seed=0, fields=FIELDS)
        assert [row.example.id for row in rows] == ["a"], "an answer begins with the rating"

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
