"""Settings for all tests: one thread; tiny tensors are faster so, and bits must not depend on the number of cores."""

import os

import pytest

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # read when torch is loaded, here and in the processes that tests start


@pytest.fixture(autouse=True)
def _no_doubt_was_told_before() -> None:
    """Let every test hear every warning about a file, whatever others heard."""
    from medmvl.imaging import header

    header._WARNED.clear()
