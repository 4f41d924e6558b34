"""What the peers marker and CI do to a run: checked on a small run of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def run(tmp_path: Path, test: str, *, ci: bool) -> subprocess.CompletedProcess[str]:
    """pytest on one test file beside our conftest."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  peers: needs real peers\n")
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_it.py").write_text("import pytest\n" + test)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"CI": "true"} if ci else {}
    argv = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", str(tmp_path)]
    return subprocess.run(
        argv, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60, check=False
    )


LACKING = """
import conftest
conftest.PEERS["nothing"] = (lambda: False, "no-such-package")

@pytest.mark.peers("nothing")
def test_peer():
    pass

def test_other():
    pass
"""

SKIPS_ITSELF = """
@pytest.mark.peers
def test_peer():
    pytest.skip("not today")

def test_other():
    pass
"""


@pytest.mark.parametrize("test", [LACKING, SKIPS_ITSELF])
def test_missing_peer_is_a_skip_by_hand_and_a_failure_in_ci(tmp_path: Path, test: str) -> None:
    by_hand = run(tmp_path, test, ci=False)
    assert by_hand.returncode == 0
    assert "1 passed, 1 skipped" in by_hand.stdout
    in_ci = run(tmp_path, test, ci=True)
    assert in_ci.returncode == 1
    assert "a peer that CI must have" in in_ci.stdout


def test_the_reason_names_the_package(tmp_path: Path) -> None:
    assert "nothing is missing (install no-such-package)" in run(tmp_path, LACKING, ci=False).stdout


def test_ci_needs_a_test_that_ran(tmp_path: Path) -> None:
    only_skips = 'def test_it():\n    pytest.skip("always")\n'
    assert run(tmp_path, only_skips, ci=False).returncode == 0
    assert run(tmp_path, only_skips, ci=True).returncode == 5
    assert run(tmp_path, "", ci=True).returncode == 5


def test_other_skips_stay_skips_in_ci(tmp_path: Path) -> None:
    test = 'def test_a():\n    pytest.skip("always")\ndef test_b():\n    pass\n'
    assert run(tmp_path, test, ci=True).returncode == 0
