"""A check of every request, before its route: text and JSON that cannot be stored are refused, naming the place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import Depends, Request
from starlette.datastructures import FormData

from app.errors import Invalid
from app.services.kernel.text_rules import refuse_unstorable, text_problem
from illume.validation import name_problem


async def check_request(request: Request) -> None:
    """Check the path, the query and a body of JSON. Raises `Invalid` with the name of the first bad place.

    A body that is no JSON at all is reported where the route reads it. Where several things are sent as `items`, each
    stands on its own, so the route checks them one by one.
    """
    check_texts(request.path_params.items())
    check_texts(request.query_params.multi_items())
    if request.headers.get("content-type", "").partition(";")[0].strip().lower().endswith("json"):
        try:
            body = await request.json()
        except (ValueError, RecursionError):
            return
        several = isinstance(body, dict) and isinstance(body.get("items"), list)
        refuse_unstorable({**body, "items": []} if several else body)


def check_texts(fields: Iterable[tuple[str, Any]]) -> None:
    """Raise `Invalid` for the first of these named values that is a text that cannot be stored."""
    for name, value in fields:
        reason = text_problem(name) or (text_problem(value) if isinstance(value, str) else "")
        if reason:
            place = name.replace("\x00", "")
            raise Invalid(name_problem(place, reason), field=place)


def check_form(form: FormData) -> FormData:
    """Return a form. Raises `Invalid` for the first field that cannot be stored."""
    check_texts(form.multi_items())
    return form


CHECK_REQUEST = [Depends(check_request)]
