"""The command `calibrant`, and `python -m calibrant`, which is also what torchrun starts: `torchrun
--nproc-per-node 2 -m calibrant prune …`.
"""

import sys


def main() -> None:
    """Run the command line and exit with its code, also where it is interrupted while it is still
    being imported.
    """
    try:
        from calibrant.cli import main as run

        run()
    except KeyboardInterrupt:
        # Not above: nothing is imported where an interruption would be a traceback.
        from calibrant.errors import INTERRUPTED

        sys.stderr.write(f"{INTERRUPTED}\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
