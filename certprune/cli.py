"""The command `certprune`: what exists of training and pruning today, and the version."""
from __future__ import annotations

import sys

from certprune import __version__

HELP = f"""certprune {__version__}

This release contains the prover: see `verifier --help`.
Training, pruning and sparse export are not part of it yet, so this command only answers:

  certprune --version   the version of the distribution
  certprune --help      this text
"""


def main(arguments: list[str] | None = None) -> int:
    """0 after the version or the help text, 2 with one sentence on stderr for anything else."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"certprune {__version__}")
        return 0
    if arguments in ([], ["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    print(f"certprune: {' '.join(arguments)!r} is not a command of this release: see certprune --help.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
