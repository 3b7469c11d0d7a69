"""The tiny model of the tests of tuning."""

from tests.illume.tuning.conftest import base, vlm

__all__ = ["base", "vlm"]
