"""The same walk through each deployment. `python -m tests.deployments` does it outside pytest."""

from __future__ import annotations

import pytest

from tests.deployments.site import CASES
from tests.deployments.walk import walk

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES)
def test_a_deployment(case: str) -> None:
    print(walk(case))
