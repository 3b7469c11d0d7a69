"""The procedural data set of scenes, of which the other tasks are made too.

Reading order: `kinds` (what a scene can contain), `graph` (the scene graph), `questions` (questions, their answers, and
scenes that fit them), `rationales` (correct, circular and hallucinated ones), `parsing` and `faithfulness` (whether a
rationale is true of a scene), `drawing` and `emoji` (pictures), `making` (the data set as files).
"""
