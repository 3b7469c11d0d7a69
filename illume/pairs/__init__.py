"""The task `pairs`: two scenes with text between them, and questions that compare them, in English and German.

Reading order: `questions` (questions, their answers, and pairs of scenes that fit them), `rationales` (correct,
circular and hallucinated ones), `truth` (whether a rationale is true of a pair), `making` (the data set as files).
"""
