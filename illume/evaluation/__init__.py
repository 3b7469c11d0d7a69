"""Judges and compares model versions: metrics, simulated critics, and the activation rule.

Reading order: `metrics` (scores of texts, bootstrap intervals), `meteor` (METEOR, an external program), `critics`
(simulated critics, and the training rows that follow from verdicts), `evaluation` (all scores of one model version),
`activation` (whether a new version replaces its parent).
"""
