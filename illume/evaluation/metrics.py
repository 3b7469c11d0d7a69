"""Scores of rationales and answers, with bootstrap intervals.

Every metric gives one score per prompt, so that two versions can be compared pair by pair. The exception is BLEU, which
is a corpus score: its interval resamples whole corpora. There are two tokenisations; each metric says which it uses:

* `words` of `illume.texts`: folded words in any script. On English texts without points or hyphens inside words it
  counts the same words as the other one.
* `caption_words`: the tokenisation of the COCO caption evaluation (Penn Treebank rules, lower case, no punctuation),
  which is for English. CIDEr, METEOR and the scores as the field reports them use it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from illume.texts import fold, normalise_answer, words

METRICS_VERSION = 2
"""Counted up whenever a score of the same texts changes: scores that are kept carry it."""

_REMEMBERED = 100_000
"""Texts whose scores are kept: versions of a model write many of the same texts about the same prompts."""

Ngram = tuple[str, ...]
Counts = NDArray[np.float64]

_CAPTION_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|(?<!\w)n't(?!\w)|[^\W_]+(?:[-.&@/][^\W_]+)*|'[^\W\d_]+|\S")
_CLITIC = re.compile(r"(?<=[^\W\d_])(n't|'(?:s|m|d|ll|re|ve))(?![^\W_])")
_KEPT = re.compile(r"[^\W_]|[%$&]")
_CANNOT = re.compile(r"\b(can)(not)\b")


# Tokenisation


def caption_words(text: str) -> list[str]:
    """Splits a text as the COCO caption evaluation does: clitics split off, lower case, no punctuation."""
    return list(_caption_words(text))


@lru_cache(maxsize=50_000)
def _caption_words(text: str) -> tuple[str, ...]:
    """Cached, because references are tokenised again with every candidate."""
    text = text.lower().replace("’", "'")
    text = _CANNOT.sub(r"\1 \2", _CLITIC.sub(r" \1", text))
    return tuple(token for token in _CAPTION_TOKEN.findall(text) if _KEPT.search(token))


# Scores of one prompt


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure (beta = 1) of `candidate` with the best matching reference, on `words`, without stemming.

    Source: Lin, Text Summarization Branches Out, 2004; computed by the `rouge-score` package. Raises ValueError without
    references.
    """
    if not references:
        raise ValueError("ROUGE-L needs at least one reference")
    return _rouge_l(candidate, tuple(references))


@lru_cache(maxsize=_REMEMBERED)
def _rouge_l(candidate: str, references: tuple[str, ...]) -> float:
    return float(_rouge_scorer().score_multi(list(references), candidate)["rougeL"].fmeasure)


def caption_rouge_l(candidate: str, references: Sequence[str], *, beta: float = 1.2) -> float:
    """ROUGE-L as in the COCO caption evaluation: on `caption_words`, with `beta` as the weight of recall.

    Precision and recall are each the maximum over `references`. Raises ValueError without references.
    """
    if not references:
        raise ValueError("ROUGE-L needs at least one reference")
    tokens, others = caption_words(candidate), [caption_words(text) for text in references]
    common = [_common_length(tokens, other) for other in others]
    if not any(common):
        return 0.0
    precision = max(common) / len(tokens)
    recall = max(length / len(other) for length, other in zip(common, others, strict=True) if other)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for token in one:
        before = 0
        for column, other_token in enumerate(other, start=1):
            longest = before + 1 if token == other_token else max(row[column], row[column - 1])
            before, row[column] = row[column], longest
    return row[-1]


class _WordTokenizer:
    """`words` with the interface of a tokenizer of `rouge-score`."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer  # takes half a second, and the server imports this module

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_WordTokenizer())


def chrf(candidate: str, references: Sequence[str]) -> float:
    """chrF++ of `candidate` with the best matching reference, from 0 to 1. It needs no tokeniser.

    F-score (beta = 2) of character n-grams up to 6, without spaces, and of word n-grams up to 2. Texts are folded as
    `words` are. Source: Popovic, WMT 2017; computed by sacrebleu. Raises ValueError without references.
    """
    if not references:
        raise ValueError("chrF++ needs at least one reference")
    return _chrf(candidate, tuple(references))


@lru_cache(maxsize=_REMEMBERED)
def _chrf(candidate: str, references: tuple[str, ...]) -> float:
    return float(_chrf_scorer().sentence_score(fold(candidate), [fold(text) for text in references]).score) / 100


@lru_cache(maxsize=1)
def _chrf_scorer() -> Any:
    from sacrebleu.metrics import CHRF  # most of a second to import, and the server imports this module

    return CHRF(word_order=2)


def answer_correct(answer: str, gold: str, *, language: str | None = None) -> bool:
    """Whether `answer` equals the gold answer after `normalise_answer`. `language` is a BCP 47 tag."""
    return normalise_answer(answer, language=language) == normalise_answer(gold, language=language)


# Scores of a corpus


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], *, max_order: int = 4) -> list[float]:
    """Corpus BLEU-1 to BLEU-`max_order` on `words`, unsmoothed, with the closest reference length.

    Source: Papineni et al., ACL 2002. An order without any match scores 0.
    """
    counts = bleu_counts(candidates, references, max_order=max_order)
    return [float(score) for score in bleu_of_counts(counts.sum(axis=0))]


def bleu_counts(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    max_order: int = 4,
    tokenise: Callable[[str], list[str]] = words,
) -> Counts:
    """The statistics of BLEU for each candidate: (candidates, 2 * orders + 2).

    A row holds the matches of each order, the n-grams of each order, the length of the candidate and the closest length
    of a reference. The statistics of a corpus are the sum of its rows, so that a corpus can be resampled without
    counting again. sacrebleu counts.
    """
    _check_corpus(candidates, references)
    pairs = zip(candidates, references, strict=True)
    return np.array([_bleu_row(text, tuple(texts), max_order, tokenise) for text, texts in pairs], dtype=np.float64)


@lru_cache(maxsize=_REMEMBERED)
def _bleu_row(
    candidate: str, references: tuple[str, ...], max_order: int, tokenise: Callable[[str], list[str]]
) -> tuple[float, ...]:
    split, *others = (" ".join(tokenise(one)) for one in (candidate, *references))
    found = _bleu_scorer(max_order).sentence_score(split, others)
    return (*found.counts, *found.totals, found.sys_len, found.ref_len)


@lru_cache
def _bleu_scorer(max_order: int) -> Any:
    from sacrebleu.metrics import BLEU  # most of a second to import, and the server imports this module

    return BLEU(tokenize="none", max_ngram_order=max_order, smooth_method="none", effective_order=True)


def bleu_of_counts(sums: Counts) -> Counts:
    """BLEU of each order from sums of rows of `bleu_counts`: (..., 2 * orders + 2) -> (..., orders).

    Our own: sacrebleu computes one corpus at a time, and an interval needs thousands of resampled ones at once.
    """
    max_order = (sums.shape[-1] - 2) // 2
    matches, totals = sums[..., :max_order], sums[..., max_order:-2]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(matches > 0, np.log(matches / totals), -np.inf)
        brevity = np.where(sums[..., -2] > 0, np.exp(np.minimum(0.0, 1 - sums[..., -1] / sums[..., -2])), 0.0)
    scores: Counts = brevity[..., None] * np.exp(np.cumsum(logs, axis=-1) / np.arange(1, max_order + 1))
    return scores


def bleu_intervals(
    runs: Sequence[Counts], *, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> list[Interval]:
    """Percentile bootstrap interval of each order's BLEU, averaged over `runs` on the same prompts.

    Prompts are resampled. Each run is a result of `bleu_counts` with one row for each prompt; the row of a prompt that
    is left out is zero.
    """

    def scores(sums: Counts) -> Counts:
        means: Counts = np.mean([bleu_of_counts(run) for run in np.split(sums, len(runs), axis=1)], axis=0)
        return means

    intervals = bootstrap_sums(np.hstack(runs), scores, seed=seed, confidence=confidence, resamples=resamples)
    return [one for one in intervals if one is not None]


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each candidate, from 0 to 10, on `caption_words`, with document frequencies from `references`.

    Source: Vedantam et al., CVPR 2015, equations 1-3 with the clipping and the Gaussian length penalty (sigma = 6) of
    CIDEr-D. As in the reference implementation, the lengths in the penalty are counted in bigrams.
    """
    _check_corpus(candidates, references)
    vectors, by_prompt = _cider_corpus(tuple(map(tuple, references)))
    scores = []
    for text, their_vectors in zip(candidates, by_prompt, strict=True):
        weights, norms, length = vectors(_all_ngrams(caption_words(text)))
        total = 0.0
        for ref_weights, ref_norms, ref_length in their_vectors:
            penalty = math.exp(-((length - ref_length) ** 2) / (2 * 6.0**2))
            for order in range(4):
                norm = norms[order] * ref_norms[order]
                if norm > 0:
                    others = ref_weights[order]
                    dot = sum(min(w, others.get(g, 0.0)) * others.get(g, 0.0) for g, w in weights[order].items())
                    total += penalty * dot / norm
        scores.append(10.0 * total / 4 / len(their_vectors))
    return scores


_Vectors = tuple[list[dict[Ngram, float]], list[float], int]
"""Of one text: the weights of its n-grams by order, their norms, and the number of its bigrams."""


@lru_cache(maxsize=8)
def _cider_corpus(
    references: tuple[tuple[str, ...], ...],
) -> tuple[Callable[[Counter[Ngram]], _Vectors], list[list[_Vectors]]]:
    """What weighs n-grams by their document frequencies in `references`, and the vectors of these.

    Kept, because all versions of a model are scored against the same references.
    """
    ngrams = [[_all_ngrams(caption_words(text)) for text in texts] for texts in references]
    document_frequency: Counter[Ngram] = Counter()
    for of_one in ngrams:
        document_frequency.update({ngram for counts in of_one for ngram in counts})
    log_size = math.log(len(references))

    def vectors(counts: Counter[Ngram]) -> _Vectors:
        weights: list[dict[Ngram, float]] = [{} for _ in range(4)]
        for ngram, count in counts.items():
            idf = log_size - math.log(max(1, document_frequency[ngram]))
            weights[len(ngram) - 1][ngram] = count * idf
        norms = [math.sqrt(sum(value * value for value in order.values())) for order in weights]
        return weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

    return vectors, [[vectors(counts) for counts in of_one] for of_one in ngrams]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct-n: the share of distinct n-grams in `texts`, on `words` (Li et al., NAACL 2016); 0 without n-grams."""
    counts: Counter[Ngram] = Counter()
    for text in texts:
        counts.update(_ngrams(words(text), n))  # `+=` would look through all n-grams each time
    return len(counts) / counts.total() if counts else 0.0


def _check_corpus(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates but {len(references)} sets of references")
    if not candidates:
        raise ValueError("a corpus score needs at least one candidate")
    if not all(references):
        raise ValueError("every candidate needs at least one reference")


def _ngrams(tokens: Sequence[str], order: int) -> Counter[Ngram]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))


def _all_ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    counts: Counter[Ngram] = Counter()
    for order in range(1, 5):
        counts.update(_ngrams(tokens, order))
    return counts


# Bootstrap intervals


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` prompts with its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_interval(
    values: Sequence[float], *, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Percentile bootstrap interval of the mean of `values` (Efron & Tibshirani 1993, chapter 13).

    Raises ValueError for no values, for a value that is not finite, or for a confidence outside (0, 1).
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError("an interval needs at least one value")
    if not np.isfinite(data).all():
        raise ValueError("an interval needs finite values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 2_000_000 // data.size)  # bounds memory for any number of values
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means[start : start + rows] = data[generator.integers(0, data.size, (rows, data.size))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(data.mean()), low=float(low), high=float(high), n=int(data.size))


def bootstrap_sums(
    counts: Counts,
    statistic: Callable[[Counts], Counts],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> list[Interval | None]:
    """Percentile bootstrap intervals of statistics of summed counts, such as a ratio, in which rows are drawn.

    `counts` is (rows, columns); what belongs together, such as all prompts of an image, is one row. `statistic` turns
    sums (resamples, columns) into values (resamples, statistics), NaN where one is not defined: such resamples are left
    out, and a statistic that is not defined for the sums of all rows is None.
    """
    n = len(counts)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    whole, values = statistic(counts.sum(axis=0, keepdims=True))[0], statistic(weights @ counts)
    tail = (1 - confidence) / 2
    intervals: list[Interval | None] = []
    for middle, column in zip(whole, values.T, strict=True):
        defined = column[~np.isnan(column)]
        if np.isnan(middle) or not len(defined):
            intervals.append(None)
            continue
        low, high = np.quantile(defined, [tail, 1 - tail])
        intervals.append(Interval(float(middle), float(low), float(high), n))
    return intervals


def paired_bootstrap(
    new: Sequence[float], old: Sequence[float], *, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Bootstrap interval of the mean of `new - old`, paired by prompt. Raises ValueError if the lengths differ."""
    if len(new) != len(old):
        raise ValueError(f"pairs are needed: {len(new)} new values, {len(old)} old ones")
    differences = [float(a) - float(b) for a, b in zip(new, old, strict=True)]
    return bootstrap_interval(differences, seed=seed, confidence=confidence, resamples=resamples)
