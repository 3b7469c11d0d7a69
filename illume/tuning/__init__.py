"""Tunes an adapter on accepted rationales. A job folder is the whole interface.

Reading order: `job` (the files of a job folder), `launcher` (the ways to run a job), `command` (`python -m
illume.tuning`), `round` (one round from start to result), `batches` and `trainer` (training), `lora` (the adapter),
`distributed` and `accelerate_file` (several processes).
"""
