"""The OpenAPI description that the server publishes, generated once for the tests of what it says."""

from __future__ import annotations

from typing import Any, Final

from app.main import create_app

DESCRIPTION: Final[dict[str, Any]] = create_app().openapi()
