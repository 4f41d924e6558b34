"""What the tests with real peers share."""

from __future__ import annotations

import pytest

from tests.support import guest


@pytest.fixture(scope="session")
def guest_image() -> guest.Image:
    """The small Linux guest, built once for each version of its packages."""
    try:
        return guest.image()
    except guest.BuildError as exc:
        pytest.skip(f"no guest: {exc}")
