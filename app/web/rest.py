"""The REST interface as a page: the OpenAPI description, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.http.problems import API_PAGE
from app.web.access import Me
from app.web.rendering import page, shell_for

router = APIRouter()
JSON = ("application/json", "application/problem+json")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a type's text; `shape` is the shape that it links to, or empty."""

    text: str
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter of a call, or a field of a shape."""

    name: str
    place: str
    type: tuple[Piece, ...]
    required: bool
    description: str


@dataclass(frozen=True, slots=True)
class Content:
    """A body as it is sent or comes back; `status` is empty for one that is sent."""

    status: str
    description: str
    type: tuple[Piece, ...]
    example: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call: what it takes and what it returns."""

    id: str
    method: str
    path: str
    summary: str
    parameters: tuple[Field, ...]
    bodies: tuple[Content, ...]
    answers: tuple[Content, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """A named shape and its fields, or its values."""

    name: str
    description: str
    type: tuple[Piece, ...]
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class RestView:
    """The whole description, calls grouped by noun."""

    groups: tuple[tuple[str, tuple[Call, ...]], ...]
    shapes: tuple[Shape, ...]


@router.get(API_PAGE)
def show(request: Request, who: Me) -> Response:
    """Show every call and shape of the REST interface."""
    shell = shell_for(request, who.actor, who.csrf_token, title="REST API", section="")
    return page("rest.html", shell=shell, view=rest_view(request.app.openapi()))


def rest_view(described: dict[str, Any]) -> RestView:
    """The page of an OpenAPI description."""
    groups: dict[str, list[Call]] = {}
    for path, methods in described["paths"].items():
        for method, call in methods.items():
            name = call.get("tags", ["others"])[0]
            groups.setdefault(name, []).append(call_of(method.upper(), path, call))
    shapes = sorted(described["components"]["schemas"].items())
    return RestView(
        groups=tuple((name, tuple(calls)) for name, calls in groups.items()),
        shapes=tuple(shape_of(name, schema) for name, schema in shapes),
    )


def call_of(method: str, path: str, call: dict[str, Any]) -> Call:
    """A call of the description."""
    body = call.get("requestBody", {})
    return Call(
        id=call["operationId"],
        method=method,
        path=path,
        summary=call.get("description") or call.get("summary", ""),
        parameters=tuple(
            Field(one["name"], one["in"], pieces(one["schema"]), one.get("required", False), described_by(one))
            for one in call.get("parameters", ())
        ),
        bodies=tuple(contents("", body)) if body else (),
        answers=tuple(one for status, answer in call["responses"].items() for one in contents(status, answer)),
    )


def described_by(parameter: dict[str, Any]) -> str:
    """What a parameter means."""
    return str(parameter.get("description") or parameter["schema"].get("description", ""))


def contents(status: str, answer: dict[str, Any]) -> Iterator[Content]:
    """Each kind of content that an answer or a body may have; one without a type if it has none."""
    description = answer.get("description", "")
    for media_type, content in (answer.get("content") or {"": {}}).items():
        type_ = pieces(content.get("schema", {})) if media_type in JSON else (Piece(media_type),)
        example = content.get("example")
        shown = "" if example is None else json.dumps(example, indent=2, ensure_ascii=False)
        yield Content(status, description, type_, shown)


def shape_of(name: str, schema: dict[str, Any]) -> Shape:
    """A named shape of the description."""
    required = schema.get("required", ())
    fields = tuple(
        Field(field, "", pieces(one), field in required, one.get("description", ""))
        for field, one in schema.get("properties", {}).items()
    )
    return Shape(name, schema.get("description", ""), pieces(schema), fields)


def pieces(schema: dict[str, Any]) -> tuple[Piece, ...]:
    """The type of a schema in words, with links to named shapes."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return (Piece(name, name),)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        found = [piece for one in options for piece in (Piece(" or "), *pieces(one))]
        return tuple(found[1:])
    if "enum" in schema:
        return (Piece(", ".join(json.dumps(value) for value in schema["enum"])),)
    if "const" in schema:
        return (Piece(json.dumps(schema["const"])),)
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return (Piece("list of "), *pieces(schema.get("items", {})))
    return (Piece(f"{kind} ({schema['format']})" if "format" in schema else kind),)
