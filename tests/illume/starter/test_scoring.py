"""The measures hold for right texts and not for wrong ones, and an untrained model scores nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from illume.guard import making as guard_making
from illume.guard.policies import answer_json
from illume.model.prompting import answer_prompt, rationale_prompt
from illume.model.vlm import Vlm, reads_pictures_first, wrap_prompt
from illume.pairs import making as pairs_making
from illume.pairs.questions import LEADS
from illume.prompts_file import load_prompts
from illume.scenes import making as scenes_making
from illume.scenes.emoji import load_sprites
from illume.starter.__main__ import main
from illume.starter.architecture import build_processor, build_starter, build_tokenizer, save_starter
from illume.starter.scoring import Share, check_claims, guard_checks, pairs_checks, scenes_checks, score_model, share_of


class TestMeasures:
    def test_guard(self) -> None:
        cases = list(guard_making.sample_prompts(12, 5))
        checks = list(guard_checks(cases))
        assert len(checks) == 4 * len(cases)
        for case, answer, blank in zip(cases, checks[::4], checks[1::4], strict=True):
            kind = "recall" if case.assessment.rating == "Unsafe" else "specificity"
            text = answer_json(case.assessment, "so it is")
            assert answer.measure(text) == {"valid": True, "ratings": True, kind: True, "categories": True}
            assert answer.measure(text[:-2]) == {"valid": False, "ratings": False, kind: False, "categories": None}
            assert blank.prompt.endswith(' A: {"rating": "')
            assert (blank.tokens, blank.choices) == (1, ("Unsafe", "Safe"))
            assert blank.measure(case.assessment.rating) == {"ratings_without_policy": True}
            assert case.policy.text in answer.prompt
            assert case.policy.text not in blank.prompt

    def test_pairs(self) -> None:
        prompts = list(pairs_making.sample_prompts(36, 5))
        checks = list(pairs_checks(prompts))
        groups = {check.group for check in checks}
        assert groups == {"pairs en", "pairs de"}
        answers = [check for check in checks if "answers" in check.measure("")]
        for check, (question, pair) in zip(answers, prompts, strict=True):
            assert check.measure(question.answer) == {"answers": True}
            assert check.measure(f"{question.answer} one") == {"answers": False}
            assert check.pictures == pair
        swapped = [check for check in checks if "swapped" in check.measure("")]
        assert 12 <= len(swapped) <= 28
        assert {check.pictures[::-1] for check in swapped} <= {check.pictures for check in answers}

    def test_scenes(self) -> None:
        checks = list(scenes_checks(scenes_making.sample_prompts(6, 5)))
        assert [set(check.measure("")) for check in checks[:3]] == [{"answers"}, {"greedy_truth"}, {"sampled_truth"}]
        assert [check.sampled for check in checks[:3]] == [False, False, True]


class TestShare:
    def test_interval(self) -> None:
        half = share_of([True, False] * 50)
        assert (half.n, half.share, half.low, half.high) == (100, 0.5, 0.4038, 0.5962)
        none = share_of([False] * 10)
        assert (none.share, none.low, none.high) == (0.0, 0.0, 0.2775)


class TestClaims:
    @staticmethod
    def row(**shares: float) -> dict[str, Share]:
        return {name: Share(100, share, share - 0.1, share + 0.1) for name, share in shares.items()}

    def test_each(self) -> None:
        truth = {"sampled_truth": 0.3, "greedy_truth": 0.4}
        scores = {
            "scenes": self.row(answers=0.95, **truth),
            "pairs en": self.row(answers=0.95, swapped=0.7, **truth),
            "pairs de": self.row(answers=0.92, swapped=0.7, **truth),
            "guard": self.row(ratings=0.8, valid=0.99, ratings_without_policy=0.55, **truth),
        }
        found = check_claims(scores)
        assert len(found) == 3 * 3 + 2 + 2 + 3 + 1
        assert all(found.values())

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"valid": 0.9}, "at least 95% of the answers valid"),
            ({"ratings": 0.9}, "from 70% to 85% of the ratings right"),
            ({"ratings_without_policy": 0.61}, "without the policy, ratings right by chance"),
            ({"sampled_truth": 0.5}, "from 25% to 45% of sampled rationales true"),
        ],
    )
    def test_what_does_not_hold_is_named(self, changes: dict[str, float], words: str) -> None:
        good = {"ratings": 0.8, "valid": 0.99, "ratings_without_policy": 0.5, "sampled_truth": 0.3, "greedy_truth": 0.4}
        found = check_claims({"guard": self.row(**{**good, **changes})})
        assert [claim for claim, holds in found.items() if not holds] == [f"guard: {words}"]

    def test_languages_are_near_each_other(self) -> None:
        rows = {f"pairs {one}": self.row(answers=share, sampled_truth=0.3, greedy_truth=0.4)
                for one, share in (("en", 0.96), ("de", 0.92))}  # fmt: skip
        assert not check_claims(rows)["pairs: German answers within 3 points of English ones"]


def test_prompts_are_those_that_the_library_makes(emoji: Path, tmp_path: Path) -> None:
    """What is scored here is read by the model in the same form as in a project or a simulation."""
    tokenizer = build_tokenizer(n=60)
    vlm = Vlm(None, build_processor(tokenizer), torch.device("cpu"), torch.float32, "starter")
    assert not reads_pictures_first(vlm)
    pairs_making.make_pairs(tmp_path, n=4, seed=5, sprites=load_sprites(emoji))
    for example, (question, _) in zip(
        load_prompts(tmp_path / "prompts.jsonl"), pairs_making.sample_prompts(4, 5), strict=True
    ):
        asked = [f"Q: {one}<image>{two}<image>{question.text} A:" for one, two in LEADS[question.language]]
        assert wrap_prompt(vlm, answer_prompt(example), 2) in asked
        whole = [f"{ask} {question.answer}, seeing that" for ask in asked]
        assert wrap_prompt(vlm, rationale_prompt(example, question.answer), 2) in whole


def test_untrained_model(emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = build_tokenizer(n=60)
    save_starter(build_starter(tokenizer), build_processor(tokenizer), tmp_path / "model")
    out = tmp_path / "scores.json"
    scores = score_model(
        tmp_path / "model", tasks=("pairs", "guard"), n=4, seed=3, sprites=load_sprites(emoji), out=out
    )
    assert set(scores) == {"pairs de", "pairs en", "guard"}
    assert {"valid", "ratings", "greedy_truth", "sampled_truth", "ratings_without_policy"} <= set(scores["guard"])
    assert scores["guard"]["valid"].share == 0.0
    assert scores["guard"]["valid"].n == 4
    written = json.loads(out.read_text())
    assert written["scores"]["guard"]["valid"]["share"] == 0.0
    assert written["claims"]["guard: at least 95% of the answers valid"] is False
    assert main(["score", "--model", str(tmp_path / "none"), "--n", "1", "--emoji", str(emoji)]) == 1
    assert "none" in capsys.readouterr().err
