"""Structured answers: a JSON object of fields, such as rating, category and rationale, given under a written policy.

Reading order: `definitions` (the fields of a project's answers), `policies` (categories with their statuses and texts),
`answers` (an answer as JSON: reading, writing, what is wrong with it), `variants` (changes of a policy, and the gold
values under each), `accepting` (what stands after the verdicts of critics).
"""
