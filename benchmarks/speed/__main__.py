"""``python -m benchmarks.speed``: one thread for all numeric libraries, before they load."""

from __future__ import annotations

import os
import sys

__all__ = ["ONE_THREAD", "main"]

ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Variables that numeric libraries read once, when they load."""


def main() -> int:
    """Run the command; return the exit status."""
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    if "numpy" in sys.modules:  # it has read them already
        command = [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:]]
        os.execv(sys.executable, command)
    from benchmarks.speed.command import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
