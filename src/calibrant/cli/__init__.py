"""The command line: each command parses, calls one library function, and prints.

Results go to standard output (`--json` for programs), progress and complaints to standard error.
Exit codes: 0 done; 2 what was given can't be used, in one sentence; 1 a fault of ours; 130
interrupted. The library is imported inside the commands, so that `--help` answers at once.
"""

# The help page lists commands in the order in which they are imported.
from calibrant.cli import model  # isort: skip
from calibrant.cli import study  # isort: skip
from calibrant.cli import data  # isort: skip
from calibrant.cli import importance  # isort: skip
from calibrant.cli import choosing  # isort: skip
from calibrant.cli import explaining  # isort: skip
from calibrant.cli._frame import app, main, progress

__all__ = [
    "app",
    "choosing",
    "data",
    "explaining",
    "importance",
    "main",
    "model",
    "progress",
    "study",
]
