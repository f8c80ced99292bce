"""What `import calibrant` offers."""

import ast
import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import calibrant

ROOT = Path(calibrant.__file__).parent
NAMES = {
    "CalibrantError": "errors",
    "CalibrationSet": "data",
    "InputError": "errors",
    "Study": "study",
    "catalogue": "catalogue",
    "compress": "compress",
    "demo": "demo",
    "evaluate": "evaluate",
    "inspect": "inspection",
    "open_model": "models",
    "parse_target": "targets",
    "prune": "compress",
    "report": "report",
    "view": "models",
    "walk": "walk",
}


def test_nothing_else_is_public():
    assert calibrant.__all__ == sorted([*NAMES, "__version__"])
    assert dir(calibrant) == calibrant.__all__


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_what_its_module_defines(name: str):
    found = calibrant.__getattr__(name)
    assert found is getattr(importlib.import_module(f"calibrant.{NAMES[name]}"), name)
    assert found.__doc__


def test_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    shown = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert shown == {name: f"calibrant.{module}" for name, module in NAMES.items()}


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'prun'; it has .*prune"):
        calibrant.prun  # noqa: B018  # asking is the test


@pytest.mark.parametrize("first", ["", "from calibrant.evaluate.loss import Loss"])
def test_a_verb_can_be_called_whatever_was_imported_before(first: str):
    code = f"""
import calibrant
{first}
from calibrant import evaluate
for verb in (evaluate, calibrant.evaluate):
    try:
        verb("./nowhere", ["loss"])
    except calibrant.InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("'./nowhere'") == 2


def test_one_version():
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())["project"]
    assert calibrant.__version__ == project["version"] == version("calibrant")
