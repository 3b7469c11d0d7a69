"""The folder that holds the server's packages and data, in the repository and where Illume was installed from a wheel.

No other module derives a path of these from its own place. No torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent
INSTALLED = PACKAGE / "_server"
"""Where a wheel has what the repository has at its top, so that it claims no other top-level name than `illume`."""

IS_INSTALLED = INSTALLED.is_dir()
ROOT = INSTALLED if IS_INSTALLED else PACKAGE.parent
"""Holds `app`, `worker`, `migrations`, `templates`, `static` and `starter`."""

STARTER = ROOT / "starter"


def default_data_dir() -> Path:
    """Where data are kept unless told otherwise: `data` in the repository, else this account's folder for such data."""
    return platformdirs.user_data_path("illume", appauthor=False) if IS_INSTALLED else ROOT / "data"


def module_path(environment: Mapping[str, str]) -> str:
    """The PYTHONPATH with which a Python started in `environment` finds our packages before any others."""
    found = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join(found if str(ROOT) in found else [str(ROOT), *found])


def make_importable() -> None:
    """Let this process and its children import the server's packages, and no namesakes from the current folder."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = module_path(os.environ)
    os.environ["PYTHONSAFEPATH"] = "1"
