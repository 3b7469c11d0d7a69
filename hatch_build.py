"""Puts the server into the wheel as `illume/_server`: packages, pages, migrations, starter, as in the repository.

An editable installation gets nothing copied: it uses the repository itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SERVER = ("app", "worker", "migrations", "templates", "static", "starter")
ASSETS = ("static/vendor/htmx.min.js", "static/vendor/chartist.js")


class ServerHook(BuildHookInterface[Any]):
    """Adds the server to a wheel, and refuses to build one whose pages would lack their scripts."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fill `build_data`. Raises FileNotFoundError where the browser assets were not fetched."""
        if version == "editable":
            return
        missing = [asset for asset in ASSETS if not Path(self.root, asset).exists()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing: `make dist` fetches it, or tools/fetch-assets PYTHON.")
        if self.target_name == "wheel":
            build_data["force_include"].update({folder: f"illume/_server/{folder}" for folder in SERVER})
