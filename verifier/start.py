"""Where the command `verifier` starts: holds signals back until someone can answer them, before anything else is imported."""
from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))  # until the supervisor notes them
    from verifier.supervisor import supervise

    sys.exit(supervise("verifier", _work))


def _work() -> int:
    # Read when torch starts its threads: those that spin while they wait make a shared machine ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Read when numpy loads: the checker has its own two threads, and OpenBLAS's would wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from verifier.cli import run

    return run(sys.argv[1:])
