"""What `import calibrant` offers."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

import calibrant

ROOT = Path(calibrant.__file__).parent
NAMES = {
    "CalibrantError": "errors",
    "CalibrationSet": "data",
    "InputError": "errors",
    "Study": "study",
    "catalogue": "names",
    "evaluate": "evaluators",
    "explain": "evaluators",
    "export": "compress",
    "imatrix": "importance",
    "inspect": "inspection",
    "load": "models",
    "mix": "mixtures",
    "open_model": "models",
    "parse_target": "targets",
    "prune": "compress",
    "quantize": "compress",
    "recommend": "advice",
    "survey": "inspection",
    "view": "models",
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


def test_no_public_name_is_also_a_module():
    modules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(NAMES), "importing the module would put it in the place of the name"


def test_the_version_stands_once():
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/calibrant/__init__.py"
    assert f"## [{calibrant.__version__}]" in (ROOT.parents[1] / "CHANGELOG.md").read_text()
