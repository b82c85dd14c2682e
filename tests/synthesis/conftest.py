"""A host that lesions are put into."""

from __future__ import annotations

import pytest
from small_insertions import recipe

from medvae3d.synthesis.hosts import HostScan, phantom_host


@pytest.fixture(scope="module")
def phantom() -> HostScan:
    return phantom_host(recipe(), 0, 0)
