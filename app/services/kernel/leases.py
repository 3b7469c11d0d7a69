"""Leases: who works on a row, and whether they have been silent for too long."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_
from sqlalchemy.orm import InstrumentedAttribute

from app.settings import get_settings


def lapsed(beats_at: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    """Whether nobody holds the lease: its holder was silent for `lease_seconds`, or gave it back."""
    return or_(beats_at.is_(None), beats_at < func.now() - timedelta(seconds=get_settings().lease_seconds))


def held(beats_at: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    """Whether somebody holds the lease."""
    return beats_at >= func.now() - timedelta(seconds=get_settings().lease_seconds)
