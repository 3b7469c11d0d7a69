"""What is wrong with a value, in words for people."""

from __future__ import annotations

import pickle
from typing import Any, Literal

import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from illume.phrases import Phrase, _
from illume.validation import FieldError, describe_problem, place_of


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = Field(default=1, ge=1, le=2_147_483_647)
    share: float = Field(default=0.5, gt=0, lt=0.75, allow_inf_nan=False)
    name: str = Field(default="a", min_length=1, max_length=3)
    items: list[int] = Field(default=[1], max_length=2)
    split: Literal["train", "val"] = "train"
    on: bool = True
    more: dict[str, int] = {}
    at: AwareDatetime | None = None

    @field_validator("name")
    @classmethod
    def check_name(cls, name: str) -> str:
        if name == "b":
            raise ValueError("is taken")
        return name


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("count", 0, "must be at least 1"),
        ("count", 2**31, "must be at most 2147483647"),
        ("count", "two", "must be a whole number"),
        ("count", 1.5, "must be a whole number"),
        ("share", 0, "must be more than 0"),
        ("share", 0.75, "must be less than 0.75"),
        ("share", "half", "must be a number"),
        ("share", "nan", "must be a finite number"),
        ("name", "", "must have at least 1 character"),
        ("name", "long", "must have at most 3 characters"),
        ("name", 3, "must be text"),
        ("name", "b", "is taken"),
        ("items", [1, 2, 3], "must have at most 2 items"),
        ("items", "1", "must be a list"),
        ("split", "test", "must be 'train' or 'val'"),
        ("on", "perhaps", "must be true or false"),
        ("more", [], "must be an object"),
        ("at", "2026-01-31", "must have a time zone"),
        ("at", "soon", "must be a time in ISO 8601, such as 2026-01-31T12:00:00Z"),
        ("surprise", 1, "is not a known field"),
    ],
)
def test_a_problem_follows_the_name_of_its_field(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({name: value})
    assert describe_problem(caught.value.errors()[0]) == problem


def test_a_field_that_is_missing() -> None:
    class Named(BaseModel):
        name: str

    with pytest.raises(ValidationError) as caught:
        Named.model_validate({})
    assert describe_problem(caught.value.errors()[0]) == "is missing"


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (FieldError("fields.rating", _("is empty"), sign=" "), ("fields.rating", "is empty")),
        (FieldError("fields", _("is empty")), ("fields", "is empty")),
        (FieldError("fieldset", _("is empty")), ("fields", "fieldset: is empty")),
        (ValueError("fields.rating: is empty"), ("fields.rating", "is empty")),
        (ValueError(_("is empty")), ("fields", "is empty")),
    ],
)
def test_errors_name_a_place_within_a_field(error: ValueError, found: tuple[str, str]) -> None:
    assert place_of("fields", error) == found


def test_what_is_wrong_stays_a_phrase() -> None:
    placed = FieldError("a.b", _("is empty"), sign=" ")
    for error in (placed, ValueError(_("is empty")), pickle.loads(pickle.dumps(placed))):  # noqa: S301 - our own
        assert isinstance(place_of("a", error)[1], Phrase)
    assert str(pickle.loads(pickle.dumps(placed))) == "a.b is empty"  # noqa: S301 - our own
