"""What is imported is declared, and what is declared is imported; the commands that everybody
needs work without the rest.
"""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import calibrant
from calibrant.system.extras import EXTRAS, needed_for

from tests.anew import imported_anew

ROOT = Path(calibrant.__file__).parent
PROJECT = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "ruamel": "ruamel-yaml",
    "sklearn": "scikit-learn",
    "vl_convert": "vl-convert-python",
    "yaml": "pyyaml",
}
"""Packages that are installed under another name than they are imported with."""
NOT_IMPORTED = {"accelerate", "zstandard"}
"""What a library of theirs imports when it is there: transformers reads GGUF files with the
first, datasets .zst files with the other.
"""


def distribution(package: str) -> str:
    return DISTRIBUTIONS.get(package, package.replace("_", "-"))


def declared(requirements: list[str]) -> set[str]:
    names = {
        re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ;]", text)[0]).lower() for text in requirements
    }
    return names - {"calibrant"}


REQUIRED = declared(PROJECT["dependencies"])
OPTIONAL = {
    extra: declared(texts)
    for extra, texts in PROJECT["optional-dependencies"].items()
    if extra != "dev"
}


def imported() -> set[str]:
    """Third-party packages that any file of ours imports: with `import`, or by a name that
    stands in the call.
    """
    found: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).rpartition(".")[2] in {"import_module", "_harness"}
                and node.args
            ):
                first = node.args[0]
                found |= (
                    {str(first.value).partition(".")[0]}
                    if isinstance(first, ast.Constant)
                    else set()
                )
    return found - set(sys.stdlib_module_names) - {"calibrant"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    wanted = {distribution(package) for package in imported()}
    known = REQUIRED.union(*OPTIONAL.values())
    assert wanted - known == set(), "imported, and not in pyproject.toml"
    assert known - wanted - NOT_IMPORTED == set(), "in pyproject.toml, and imported nowhere"


def test_every_optional_package_has_its_extra():
    assert {distribution(package) for package in EXTRAS} == set().union(
        *OPTIONAL.values()
    ) - REQUIRED
    assert {
        package: extra
        for package, extra in EXTRAS.items()
        if distribution(package) not in OPTIONAL[extra]
    } == {}


def test_what_is_no_optional_package_is_missing_as_it_was():
    with pytest.raises(ModuleNotFoundError, match="no_such"), needed_for("anything"):
        raise ModuleNotFoundError("No module named 'no_such'", name="no_such")


def test_prune_quantize_and_evaluate_need_no_optional_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A command that needs one says what to install."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["calibrant", "study", "study.yaml", "--out", "results"])
    measures = [
        "loss(source='python_docs', tokens=64, length=32)",
        "agreement(source='python_docs', tokens=64, length=32)",
    ]
    with imported_anew(hidden={*EXTRAS, "pandas"}):
        from calibrant import catalogue, evaluate, prune, quantize
        from calibrant.cli import main
        from calibrant.testing import tiny_folder

        tiny_folder("tiny")
        prune(
            "tiny",
            data="python_docs",
            method="sparsegpt",
            target="2:4",
            out="pruned",
            samples=2,
            length=32,
        )
        quantize("tiny", out="small", target="w4g16")
        assert len(evaluate("pruned", tasks=measures)) == 2
        for kind in ("sources", "methods", "packings", "selectors", "tasks"):
            assert catalogue(kind)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert "pip install 'calibrant[study]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.enable_socket
def test_the_wheel_installs_into_an_empty_environment(tmp_path: Path):
    """It holds every file of the package and its command; dependencies are this environment's,
    so that nothing is downloaded twice.
    """
    run = {"capture_output": True, "text": True, "check": False}
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT.parents[1]], **run
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"calibrant-{calibrant.__version__}-")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("calibrant/")}
    assert packed == {
        str(path.relative_to(ROOT.parent))
        for path in ROOT.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    python = tmp_path / "empty/bin/python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], **run
    )
    assert installed.returncode == 0, installed.stderr
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (
        tmp_path
        / "empty/lib"
        / f"python{sys.version_info.major}.{sys.version_info.minor}"
        / "site-packages/of_the_tests.pth"
    ).write_text(packages)
    said = subprocess.run(
        [tmp_path / "empty/bin/calibrant", "--version"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        **run,
    )
    assert (said.returncode, said.stdout) == (0, f"calibrant {calibrant.__version__}\n"), (
        said.stderr
    )
