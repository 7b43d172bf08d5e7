"""Where the command `verifier` starts: holds signals back until someone can answer them, before anything else is imported."""
from __future__ import annotations

import ctypes
import os
import signal
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))  # until the supervisor notes them
    from verifier.supervisor import supervise

    sys.exit(supervise("verifier", _work))


def _work() -> int:
    settle()
    from verifier.cli import run

    return run(sys.argv[1:])


def settle() -> None:
    """What has to be said before numpy and torch load."""
    # Read when torch starts its threads: those that spin while they wait make a shared machine ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Read when numpy loads: the checker has its own two threads, and OpenBLAS's would wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _keep_memory()


def _keep_memory() -> None:
    """Large arrays come from memory that the process holds on to, where the C library is glibc: fresh pages cost more than sums in them do."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
