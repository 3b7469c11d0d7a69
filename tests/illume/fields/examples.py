"""A policy of ten categories and 800 words, some names with commas, quotes and in Arabic, and fields to go with it."""

from __future__ import annotations

from typing import Any

from illume.fields.definitions import read_answer_fields
from illume.fields.policies import Policy, PolicyCategory

CATEGORIES = (
    "O1: Hate, Humiliation, Harassment",
    "O2: Violence, Harm, or Cruelty",
    "O3: Sexual Content",
    "O3: Sexual Content, drawn",  # begins like the one before
    "O4: Nudity",
    "العنف أو القسوة",
    'O6: "Weapons" or Substance Abuse',
    "O7: Self-Harm\\Injury",
    "O8: Animal Cruelty",
    "O9: Disasters\nor Emergencies",
)


def _text(name: str, status: str) -> str:
    words = f"what shows {name} is judged as {status}, whatever it is meant for and whoever may be seen in it; "
    return (words * 4).strip("; ") + "."


POLICY = Policy(
    header="Everything below is assessed by these rules.",
    categories=tuple(
        PolicyCategory(
            name=name,
            status=("default", "strict", "allowed")[number % 3],
            default=_text(name, "sensitive in part"),
            allowed=_text(name, "no violation at all"),
            strict=_text(name, "a violation in any case"),
        )
        for number, name in enumerate(CATEGORIES)
    ),
)


def fields_data() -> list[dict[str, Any]]:
    """The definition of a rating, a category of the policy, and a rationale, as JSON data."""
    return [
        {
            "name": "rating",
            "kind": "choice",
            "role": "rating",
            "choices": ["Unsafe", "Safe"],
            "ordinal": True,
            "positive": ["Unsafe"],
            "description": "Whether the picture violates the policy.",
        },
        {
            "name": "category",
            "kind": "choice",
            "role": "category",
            "choices": "policy",
            "none": "NA: None applying",
        },
        {"name": "rationale", "kind": "text", "role": "rationale"},
    ]


FIELDS = read_answer_fields(fields_data())
