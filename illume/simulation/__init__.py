"""Simulates the whole loop with a simulated critic, and compares it with baselines and controls.

Reading order: `settings` (parameters and prompts), `stages` (resumable stages as files), `loop` (the rounds of one
seed), `baselines` (what the loop is compared with), `jobs` (several processes), `report`, `field` and `meteor` (the
results), `options` and `command` (the command line).
"""
