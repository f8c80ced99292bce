"""A module imports only from the floors below its own; what is said to be free of torch is, and
methods that go matrix by matrix know tensors alone.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import calibrant

ROOT = Path(calibrant.__file__).parent
FLOORS = [
    ["errors"],
    ["numerics", "spec"],
    ["system"],
    ["targets", "llama_cpp", "activations"],
    ["packed", "results"],
    ["data", "models"],
    ["walk", "edits", "decoding"],
    ["job", "vllm"],
    ["methods"],
    ["allocations", "transforms", "exports", "data.select"],
    ["options"],
    ["data.inspect", "names"],
    ["compress"],
    ["compress.importance", "evaluators", "testing", "handover"],
    ["lab.stats", "lab.mixtures"],
    ["lab.study"],
    ["lab.report", "lab.choose"],
    ["lab.demo"],
    ["cli"],
]
"""Rooms, from the ground up: a module imports from the floors below its own. `lab.study` is the
folder `lab/study`.
"""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
TORCH_FREE = [
    "errors",
    "numerics",
    "spec",
    "names",
    "results",
    "options",
    "lab.stats",
    "lab.report",
    "cli",
]
TORCH_FREE_FILES = [
    "system.launch",
    "system.extras",
    "system.seals",
    "system.progress",
    "system.notebook",
    "system.durable",
    "system.clock",
]
"""In rooms where others need it."""


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    """The room that a file belongs to; the package's own doors, `__init__` and `__main__`, are
    `calibrant`.
    """
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in ("__init__", "__main__"):
        return "calibrant"
    return room_of(parts)


def room_of(parts: Sequence[str]) -> str:
    """The room that the parts of a dotted name lead to: the longest that has a floor."""
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in FLOOR:
            return name
    return parts[0]


def imports(path: Path, anywhere: bool = True) -> Iterator[str]:
    """Dotted names of what a file imports: anywhere in it, or only when it is itself imported."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if anywhere else _at_import(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _at_import(child)


def test_every_room_has_a_floor():
    rooms = {room(path) for path in modules()}
    rooms -= {"calibrant", "lab"}  # the file `lab/__init__.py` has no code
    assert rooms <= FLOOR.keys()


def test_imports_come_from_below():
    wrong: list[str] = []
    for path in modules():
        own = room(path)
        if own == "calibrant":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "calibrant" or name == "calibrant.__version__":
                continue
            used = room_of(parts[1:])
            if used == own:
                continue
            if used not in FLOOR:
                wrong.append(
                    f"{path.relative_to(ROOT)} takes {used!r} from the package's own root; import "
                    "it where it is defined"
                )
            elif FLOOR[used] >= FLOOR[own]:
                wrong.append(
                    f"{path.relative_to(ROOT)} (floor {FLOOR[own]}) imports {used} (floor "
                    f"{FLOOR[used]})"
                )
    assert not wrong, "\n".join(wrong)


def test_the_core_imports_nothing_of_the_lab():
    halves = [name for name in FLOOR if not name.startswith("lab.") and name != "cli"]
    wrong = list[str]()
    for path in modules():
        if room(path) in halves:
            wrong += [
                f"{path.relative_to(ROOT)} imports {name}"
                for name in imports(path)
                if name.startswith("calibrant.lab")
            ]
    assert not wrong, "\n".join(wrong)


def test_torch_free_files_never_name_torch():
    named_files = [ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in TORCH_FREE_FILES]
    free = [path for path in modules() if room(path) in TORCH_FREE or path in named_files]
    assert set(named_files) <= set(free)
    for path in free:
        if room(path) == "cli":  # may use the library inside a command, and so torch
            named = {n.split(".")[0] for n in imports(path, anywhere=False)} & {
                "torch",
                "transformers",
            }
        else:
            named = {n.split(".")[0] for n in imports(path)} & {
                "torch",
                "transformers",
                "safetensors",
                "accelerate",
            }
        assert not named, f"{path.relative_to(ROOT)} imports {', '.join(named)}"


def test_importing_leaves_torch_out_and_so_do_lists_of_names_help_and_what_the_shell_completes():
    """Each in turn in one process: what an earlier one brought would be there already."""
    code = """
import contextlib, importlib, io, sys

import calibrant.cli

if needless := {'sqlite3', 'msgspec', 'psutil', 'numpy'} & sys.modules.keys():
    sys.exit(f'every command waits for {needless}')
HEAVY = {'torch', 'transformers', 'datasets', 'numba'}
HEAVY |= {'pyarrow', 'polars', 'scipy', 'sklearn', 'altair'}
for name in sys.argv[1:]:
    importlib.import_module(name)
    if heavy := HEAVY & sys.modules.keys():
        sys.exit(f'import {name} brings {heavy}')

from calibrant.cli import app, completing
from calibrant.names import KINDS, catalogue, removing
from typer.main import get_command

for kind in KINDS:
    assert catalogue(kind), kind
assert removing()
assert completing.expression('gsm8k:co') == ['gsm8k:cot']
for verb in ('prune', 'quantize', 'imatrix', 'evaluate'):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        get_command(app)([verb, '--help'], standalone_mode=False)
    assert '--dtype' in shown.getvalue(), verb
if heavy := HEAVY & sys.modules.keys():
    sys.exit(f'a list of names or help brings {heavy}')
"""
    names = ["calibrant", *(f"calibrant.{name}" for name in (*TORCH_FREE, *TORCH_FREE_FILES))]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


APART = ("calibrant.walk", "calibrant.models", "calibrant.data", "calibrant.edits", "calibrant.job")


@pytest.mark.parametrize(
    "method",
    [
        "pruning.wanda",
        "pruning.sparsegpt",
        "pruning.refined",
        "pruning.robust",
        "pruning.held_out",
        "quantization.gptq",
        "quantization.rsq",
    ],
)
def test_a_matrix_method_brings_neither_walk_nor_models_nor_data(method: str):
    code = f"import sys, calibrant.methods.{method}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith(APART)] == []


def _used_files(path: Path) -> set[Path]:
    """The files of the package that a file imports anywhere in it: in functions and for types
    too.
    """
    used: set[Path] = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "calibrant":
            continue
        for tail in (
            parts[1:],
            parts[1:-1],
        ):  # what is imported may be a file, or something that a file holds
            file = ROOT.joinpath(*tail)
            if file.with_suffix(".py").is_file():
                used.add(file.with_suffix(".py"))
                break
            if (file / "__init__.py").is_file():
                used.add(file / "__init__.py")
                break
    return used - {path}


def _reached(start: Path, uses: dict[Path, set[Path]]) -> set[Path]:
    found, ahead = set[Path](), list(uses.get(start, ()))
    while ahead:
        path = ahead.pop()
        if path not in found:
            found.add(path)
            ahead += uses.get(path, ())
    return found


def test_the_files_of_a_room_import_in_no_circle():
    for name in sorted({room(path) for path in modules() if path.parent != ROOT}):
        inside = [path for path in modules() if room(path) == name]
        uses = {path: _used_files(path) & set(inside) for path in inside}
        circle = sorted(
            str(path.relative_to(ROOT)) for path in inside if path in _reached(path, uses)
        )
        assert not circle, (
            f"these import each other in a circle: {', '.join(circle)}; move what they share into "
            "a file of its own"
        )


def test_a_circle_of_files_would_be_found():
    one, two, three = Path("one"), Path("two"), Path("three")
    uses = {one: {two}, two: {three}, three: {one}}
    assert _reached(one, uses) == {one, two, three}
    assert _reached(one, {one: {two}, two: {three}}) == {two, three}


def test_a_class_has_a_name_that_no_other_has():
    places = dict[str, list[str]]()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
