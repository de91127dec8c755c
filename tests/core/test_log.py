"""The log: rank 0 speaks, the others warn and say who they are."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
from medmvl.core.log import get_logger
log = get_logger("train"); get_logger()
log.info("told"); log.warning("warned")
import sys; print("rich" in sys.modules)
"""


@pytest.mark.parametrize(("rank", "told"), [("0", True), ("3", False)])
def test_ranks(rank: str, told: bool) -> None:
    environment = os.environ | {"RANK": rank}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
    assert ("told" in done.stderr) == told
    assert done.stderr.count("warned") == 1
    assert ("[rank 3]" in done.stderr) == (rank == "3")
    assert done.stdout.strip() == "False"
