"""Settings for all tests: tiny tensors run faster on one thread, and parallel test processes share the cores."""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
