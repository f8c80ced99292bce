"""A module imports only from the floors below its own; what is said to be free of torch is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import calibrant

ROOT = Path(calibrant.__file__).parent
FLOORS = [
    "errors extras foreign spec grammar families named registry seals progress declarations notebook process clock launch numerics",
    "compiling divergence divergence_kernel activations packed targets llama_cpp store outcomes durable sealed_tensors estimates wire",
    "data models searching",
    "walk edits job",
    "methods allocations transforms exports select",
    "inspection compress evaluators importance testing languages",
    "study compare mixtures names",
    "report screen advice",
    "demo",
    "cli",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
LOWEST = "compiling targets durable estimates walk inspection"
LOW = "divergence_kernel packed sealed_tensors outcomes edits methods compress languages"
LOWER_FIRST = {**dict.fromkeys(LOWEST.split(), -2), **dict.fromkeys(LOW.split(), -1)}
"""What stands at the foot of its floor: its neighbours may use it."""
TORCH_FREE = ["names", "notebook", "launch", "store", "searching", "compare", "report", "screen", "cli"]
"""Each brings what it needs of the floors below."""


def room(path: Path) -> str:
    """The top-level module or package that a file belongs to; the package's own doors, `__init__` and `__main__`, are `calibrant`."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "calibrant" if first in ("__init__", "__main__") else first


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports anywhere in it: in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_below(used: str, user: str) -> bool:
    if FLOOR[used] == FLOOR[user]:
        return LOWER_FIRST.get(used, 0) < LOWER_FIRST.get(user, 0)
    return FLOOR[used] < FLOOR[user]


def test_imports_come_from_below():
    wrong: list[str] = []
    for path in sorted(ROOT.rglob("*.py")):
        own = room(path)
        if own == "calibrant":
            continue
        for name in imports(path):
            parts = name.split(".")
            used = parts[1] if parts[0] == "calibrant" and len(parts) > 1 else own
            if used == own or used == "__version__":
                continue
            if used not in FLOOR:
                wrong.append(f"{path.relative_to(ROOT)} imports {used}, which has no floor, or stands in the package's own root")
            # The ground floor is one family: spec explains unknown names with the registry's "did you mean".
            elif not (FLOOR[used] == FLOOR[own] == 0 or is_below(used, own)):
                wrong.append(f"{path.relative_to(ROOT)} (floor {FLOOR[own]}) imports {used} (floor {FLOOR[used]})")
    assert not wrong, "\n".join(wrong)


def test_importing_leaves_torch_out_and_so_do_lists_of_names_and_what_the_shell_completes():
    """Each in turn in one process: what an earlier one brought would be there already."""
    code = """
import importlib, sys

HEAVY = {'torch', 'transformers', 'datasets', 'numba', 'pyarrow', 'polars', 'scipy', 'sklearn', 'altair'}
for name in sys.argv[1:]:
    importlib.import_module(name)
    if heavy := HEAVY & sys.modules.keys():
        sys.exit(f'import {name} brings {heavy}')

from calibrant.cli import completing
from calibrant.names import KINDS, catalogue

for kind in KINDS:
    assert catalogue(kind), kind
assert completing.expression('gsm8k:co') == ['gsm8k:cot']
if heavy := HEAVY & sys.modules.keys():
    sys.exit(f'a list of names brings {heavy}')
"""
    names = ["calibrant", *(f"calibrant.{name}" for name in TORCH_FREE)]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
