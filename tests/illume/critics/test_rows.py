"""What was judged, its halves by image, and the labels and texts of controls."""

from __future__ import annotations

from collections import Counter

from illume.critics.rows import (
    JudgedRationale,
    assign_halves,
    judged_rationales,
    permute_labels,
    shuffle_rationales,
)
from illume.evaluation.critics import JudgedSet
from illume.records import Example


def example(name: str, *images: str, answer: str | None = "red") -> Example:
    return Example(name, images or (f"{name}.png",), "what?", answer)


class TestJudged:
    def test_what_is_accepted_anywhere_is_not_turned_down(self) -> None:
        sets = [JudgedSet("a", ("good",), ("bad", "Later.")), JudgedSet("a", (), ("bad", "Good!"))]
        found = judged_rationales(
            [example("b"), example("a")], {"a": ("good", "later")}, sets, logprobs={("a", "bad"): -2.0}
        )
        assert [(one.rationale, one.picked, one.mean_logprob) for one in found] == [
            ("good", True, None),
            ("later", True, None),
            ("bad", False, -2.0),
        ]

    def test_the_answer_is_the_one_of_the_prompt(self) -> None:
        sets = [JudgedSet("a", (), ("bad",))]
        assert judged_rationales([example("a", answer=None)], {}, sets) == []
        [one] = judged_rationales([example("a", answer=None)], {}, sets, answers={"a": "blue"})
        assert one.example.answer == "blue"


class TestHalves:
    def test_what_shares_an_image_stays_together(self) -> None:
        examples = [example(f"p{n}", f"{n // 2}.png", f"x{n}.png") for n in range(20)]
        examples.append(example("bridge", "0.png", "5.png"))
        halves = assign_halves(examples, {}, seed=1)
        of_image: dict[str, set[int]] = {}
        for one in examples:
            for image in one.images:
                of_image.setdefault(image, set()).add(halves[one.id])
        assert all(len(one) == 1 for one in of_image.values())
        assert halves["p0"] == halves["p10"]
        assert sorted(Counter(halves.values()).values()) == [10, 11]

    def test_they_have_as_much_that_was_judged(self) -> None:
        examples = [example(f"p{n}") for n in range(10)]
        halves = assign_halves(examples, {"p1": 4, "p5": 4}, seed=1)
        assert halves["p1"] != halves["p5"]
        assert sorted(Counter(halves.values()).values()) == [5, 5]
        assert halves != assign_halves(examples, {"p1": 4, "p5": 4}, seed=2)


JUDGED = [JudgedRationale(example(f"p{n // 2}"), f"text {n}", n % 2 == 0) for n in range(40)]
HALVES = {f"p{n}": n % 2 for n in range(20)}


class TestControls:
    def test_permuted_labels_are_as_many_in_each_half(self) -> None:
        found = permute_labels(JUDGED, HALVES, seed=1)
        assert [(one.example, one.rationale) for one in found] == [(one.example, one.rationale) for one in JUDGED]
        assert 10 < sum(one.picked != other.picked for one, other in zip(found, JUDGED, strict=True)) < 30
        for half in (0, 1):
            mine = [one for one in found if HALVES[one.example.id] == half]
            assert sum(one.picked for one in mine) == 10

    def test_shuffled_rationales_stand_beside_another_prompt(self) -> None:
        found = shuffle_rationales(JUDGED, seed=1)
        assert [(one.rationale, one.picked) for one in found] == [(one.rationale, one.picked) for one in JUDGED]
        assert all(one.example.id != other.example.id for one, other in zip(found, JUDGED, strict=True))
