"""The policy of a prompt and its right values, in the forms of prompts of projects whose answers are structured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy.orm import Session

from app.errors import DomainError
from app.models import PolicyVersion, Project, Prompt
from app.services.kernel.actors import Actor
from app.services.projects.policies import answer_fields_of, load_policies
from app.services.projects.projects import settings_of
from app.services.read_models.policies import list_histories
from app.web.forms import Field
from illume.fields.definitions import AnswerField
from illume.phrases import _

POLICY = "policy"
GOLD = "gold-"
"""What the names of the form's fields for right values begin with; the number of the project's field follows."""


@dataclass(frozen=True, slots=True)
class Gold:
    """What a prompt's form asks for beside what all prompts have: nothing where answers are texts.

    `policies` are the versions to choose from, by id and name; `fields` are the project's without the rationale, each
    with its choices, those of all these versions where the policy has them.
    """

    policies: tuple[tuple[str, str], ...] = ()
    fields: tuple[tuple[AnswerField, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, session: Session, actor: Actor, project: Project, prompt: Prompt | None = None) -> Self:
        """What the form of `project` asks for; the version that `prompt` names can be kept."""
        answers = answer_fields_of(settings_of(session, project))
        histories = list_histories(session, actor, project)
        named = {one.newest.id: _label(one.name, one.newest.number) for one in histories}
        kept = None if prompt is None else prompt.policy_version_id
        if kept is not None and kept not in named:
            version = session.get_one(PolicyVersion, kept)
            name = load_policies(session, [kept])[kept].name
            label = _label(name, version.number)
            named[kept] = label if version.base_id is None else _("%(policy)s, a variant", policy=label)
        if answers is None:
            return cls(_options(named))
        said = load_policies(session, named).values()
        fields = []
        for one in answers.fields:
            if one.role != "rationale":
                found = [one.values(None)] if not one.from_policy else [one.values(policy) for policy in said]
                fields.append((one, tuple(dict.fromkeys(value for values in found for value in values))))
        return cls(_options(named), tuple(fields))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the form's fields."""
        return (*([POLICY] if self.policies else []), *(f"{GOLD}{place}" for place in range(len(self.fields))))

    def typed(self, prompt: Prompt) -> dict[str, str]:
        """What the form of a prompt has in its fields."""
        gold = prompt.fields or {}
        found = {f"{GOLD}{place}": gold.get(one.name) or "" for place, (one, _choices) in enumerate(self.fields)}
        return {**found, POLICY: "" if prompt.policy_version_id is None else str(prompt.policy_version_id)}

    def read(self, typed: Mapping[str, str], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The submitted values as a prompt's; of those `before` the form keeps what it does not ask for."""
        values: dict[str, Any] = {POLICY: typed[POLICY] or None} if self.policies else {}
        if self.fields:
            asked = {one.name: typed[f"{GOLD}{place}"].strip() for place, (one, _) in enumerate(self.fields)}
            kept = {name: value for name, value in (before or {}).items() if name not in asked}
            values["fields"] = {**kept, **{name: value for name, value in asked.items() if value}} or None
        return values

    def form_fields(self, typed: Mapping[str, str], error: DomainError | None) -> tuple[Field, ...]:
        """The form's fields with their submitted values and problems."""
        wrong = error.field or "" if error is not None else ""

        def problem(name: str) -> str:
            return error.detail if error is not None and wrong == name else ""

        found = []
        if self.policies:
            help_text = _("The rules that the image is judged by. They no longer change once there are explanations.")
            options = (("", _("No policy")), *self.policies)
            value = typed.get(POLICY, "")
            found.append(
                Field(POLICY, _("Policy"), "select", value, help_text, problem=problem(POLICY), options=options)
            )
        for place, (one, choices) in enumerate(self.fields):
            name = f"{GOLD}{place}"
            found.append(
                Field(
                    name,
                    _("Right value: %(field)s", field=one.name),
                    "select" if one.kind == "choice" else "area",
                    typed.get(name, ""),
                    _("Critics never see it. Versions are scored by it."),
                    problem=problem(f"fields.{one.name}"),
                    options=(("", ""), *((choice, choice) for choice in choices)),
                    rows=2,
                )
            )
        return tuple(found)


def _options(named: Mapping[int, str]) -> tuple[tuple[str, str], ...]:
    return tuple((str(version), label) for version, label in named.items())


def _label(name: str, number: int) -> str:
    return _("%(name)s, version %(number)s", name=name, number=number)
