"""The OpenAPI description: FastAPI's, with errors as they really are and an example for each call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from app.api.openapi.examples import CALL_EXAMPLES, PARAMETER_EXAMPLES, SHAPE_EXAMPLES
from app.api.schemas import ProjectChange, PromptChange, PromptsIn
from app.services.prompts.prompts import PromptIn
from app.settings import get_settings

PROBLEM = "application/problem+json"
JSON = "application/json"
LIST = "ListOut_"
REF = "#/components/schemas/{model}"
# The bodies of calls that read plain JSON, so that each error names its item and field.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/projects/{slug}/prompts"): PromptIn | PromptsIn,
    ("PATCH", "/prompts/{prompt_id}"): PromptChange,
    ("PATCH", "/projects/{slug}"): ProjectChange,
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description, built once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
            openapi_version="3.1.0",
            servers=[{"url": sub_path}] if (sub_path := get_settings().sub_path) else None,
        )
        describe_bodies(made)
        for name, example in SHAPE_EXAMPLES.items():
            if name in made["components"]["schemas"]:
                made["components"]["schemas"][name]["examples"] = [example]
        for method, path, call in iter_calls(made):
            describe_errors(call)
            add_examples(call, made, CALL_EXAMPLES.get((method, path), {}))
        app.openapi_schema = made
    return app.openapi_schema


def iter_calls(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All calls: method, path below /api/v1, and description."""
    for path, methods in description["paths"].items():
        for method, call in methods.items():
            yield method.upper(), path.removeprefix("/api/v1"), call


def describe_bodies(description: dict[str, Any]) -> None:
    """Declare the shapes in `BODIES`."""
    for method, path, call in iter_calls(description):
        if (method, path) in BODIES:
            schema = TypeAdapter(BODIES[method, path]).json_schema(ref_template=REF)
            shapes = schema.pop("$defs", {})
            if name := schema.get("title"):
                shapes[name], schema = schema, {"$ref": REF.format(model=name)}
                if method == "PATCH":  # what is left out stays as it is
                    for field in shapes[name]["properties"].values():
                        field.pop("default", None)
            description["components"]["schemas"].update(shapes)
            call["requestBody"]["content"][JSON]["schema"] = schema


def describe_errors(call: dict[str, Any]) -> None:
    """Declare errors as problems (RFC 9457), including those caused by the server."""
    errors = call["responses"].get("4XX")
    if errors is not None:
        errors["content"] = {PROBLEM: errors["content"].get(JSON, {})}
        call["responses"]["503"] = {
            "description": "Too busy, or a dependency is unavailable: try again after Retry-After",
            "content": errors["content"],
        }


def add_examples(call: dict[str, Any], description: dict[str, Any], own: dict[str, Any]) -> None:
    """Give a call its examples: its own, or else those of the shapes it accepts and returns."""
    for parameter in call.get("parameters", ()):
        if parameter["in"] == "path" and parameter["name"] in PARAMETER_EXAMPLES:
            parameter["example"] = PARAMETER_EXAMPLES[parameter["name"]]
    asked = call.get("requestBody", {}).get("content", {}).get(JSON)
    if asked is not None:
        set_example(asked, own.get("asked", find_example(asked.get("schema", {}), description)))
    for status, answer in call["responses"].items():
        content = answer.get("content", {}).get(JSON)
        if content is not None and content.get("schema") == {"type": "string"}:
            content["schema"] = {"type": "object"}  # JSON built by PostgreSQL
        if content is not None and status.startswith("2"):
            set_example(
                content, own.get(status, own.get("answer", find_example(content.get("schema", {}), description)))
            )


def set_example(content: dict[str, Any], example: Any) -> None:
    """Set an example, if there is one."""
    if example is not None:
        content["example"] = example


def find_example(schema: dict[str, Any], description: dict[str, Any]) -> Any:
    """The example of a shape, or a list of one; None if there is none."""
    name = schema.get("$ref", "").rpartition("/")[2]
    if not name:
        options = [find_example(one, description) for one in schema.get("anyOf", ())]
        return next((one for one in options if one is not None), None)
    if name.startswith(LIST):
        inner = description["components"]["schemas"][name]["properties"]["items"].get("items", {})
        one = find_example(inner, description)
        return None if one is None else {"items": [one], "next": "WyIxMiJd"}
    return SHAPE_EXAMPLES.get(name)
