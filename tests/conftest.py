"""What every test runs under: one thread, no hub, no sockets (see pyproject.toml), warnings as
errors.

Tiny tensors gain nothing from a second thread, and lose much to it on a busy machine.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "200"

import gc
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.type_checks import check_shapes_only_where_they_stand

check_shapes_only_where_they_stand()

# Imported after this, so that it is checked.
from calibrant.spec import classes, registry  # noqa: E402

torch.set_num_threads(1)
# How long an example takes depends on what else the machine does.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

HEAVY = re.compile(
    r"\b(tiny_\w+|trained|subprocess|import torch|Study|asked|store_of|ask\w*: "
    r"Ask|open_model|write_plots|mark\.slow|seconds=)\b"
)
"""What a test file mentions that opens a model, runs a study, starts a process or draws."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="only the files that open no model and start no process: for every save",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("--quick") and collection_path.name.startswith("test_"):
        return bool(HEAVY.search(collection_path.read_text()))
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A local mirror of real data sets is a rare tool too. Big models are only tested when `-m`
    says so, also where they are installed.
    """
    big: list[pytest.Item] = []
    for item in items:
        if isinstance(item, pytest.Function) and "real_mirror" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("big") and "big" not in config.getoption("-m"):
            big.append(item)
    if big:
        config.hook.pytest_deselected(items=big)
        items[:] = [item for item in items if item not in big]


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it for garbage again and again is a good
    part of a test's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def _llama_cpp() -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Nothing may depend on the global random state; should something do, it at least does so in
    the same way each time.
    """
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """No journal of a test lands in the user's cache, and none stays: a real model unpacked in
    each would fill a disk.
    """
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("CALIBRANT_CACHE", raising=False)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


Plug = Callable[..., None]


@pytest.fixture
def plugged(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Plug]:
    """Installs a package for one test: `plugged({"calibrant.methods": {"mine": "module:Mine"}},
    module="its code")`.
    """
    added: list[str] = []

    def forget() -> None:
        classes._entries.cache_clear()
        registry._every_entry.cache_clear()
        registry._warn.cache_clear()
        ours = [module for name, module in sys.modules.items() if name.startswith("calibrant")]
        for one in [
            thing
            for module in ours
            for thing in vars(module).values()
            if isinstance(thing, registry.Registry)
        ]:
            for found in ("_entries", "_foreign"):
                one.__dict__.pop(found, None)

    def plug(groups: Mapping[str, Mapping[str, str]], **modules: str) -> None:
        folder = tmp_path_factory.mktemp("plugged")
        facts = folder / f"plugged{len(added)}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: plugged{len(added)}\nVersion: 1.0\n"
        )
        lines = [
            line
            for group, names in groups.items()
            for line in (f"[{group}]", *(f"{name} = {value}" for name, value in names.items()))
        ]
        (facts / "entry_points.txt").write_text("\n".join(lines))
        for name, code in modules.items():
            (folder / f"{name}.py").write_text(code)
            added.append(name)
        monkeypatch.syspath_prepend(folder)
        forget()

    yield plug
    monkeypatch.undo()
    for name in added:
        sys.modules.pop(name, None)
    forget()
