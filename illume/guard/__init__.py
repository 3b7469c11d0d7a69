"""The task `guard`: a scene under house rules, answered by a JSON object of rating, category and rationale.

Reading order: `policies` (categories, statuses, the policy's text, the right rating, variants of a policy),
`rationales` (correct, circular and hallucinated ones), `truth` (whether a rationale is true of scene and policy),
`making` (the data set as files).
"""
