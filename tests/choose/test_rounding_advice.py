"""Advice for models that are rounded: predicted, raced, with a command to paste, within its
time; what can't be advised on is said in a sentence.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.cli.screen.choosing import recommended
from calibrant.lab.choose import recommend
from calibrant.results import Store
from calibrant.testing.tiny import tiny_gguf

from tests.trained import trained_folder

SOURCES = ("python_docs", "arithmetic:cot", "random_tokens")
pytestmark = pytest.mark.usefixtures("effort")
GOAL = "loss(source=python_docs, tokens=1024, length=128)"
SMALL: dict[str, Any] = {"tokens": 512, "length": 128, "dtype": "float32", "device": "cpu"}


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command in an empty folder, and return what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> str:
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, found.output
        return found.stdout

    return run


def pasted(ask: Callable[..., str], advice: dict[str, Any]) -> dict[str, Any]:
    """Run the command that an advice ends with, and return the record of what it made."""
    words = shlex.split(advice["command"])
    assert words[:2] == ["calibrant", advice["verb"]]
    assert words[words.index("--data") + 1] == advice["expr"]
    ask(*words[1:])
    return json.loads((Path(words[words.index("--out") + 1]) / "calibrant.json").read_text())


@pytest.mark.parametrize(
    ("options", "method", "target", "propagate", "bits"),
    [
        (["--method", "rsq", "--target", "w3g32"], "rsq", "w3g32", "arrival", 4.0),
        pytest.param(
            ["--target", "w3g32"],
            "gptq(scales='importance')",
            "w3g32",
            "arrival",
            4.0,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--method", "rtn(scales=importance)", "--target", "w3g32"],
            "rtn(scales='importance')",
            "w3g32",
            "dense",
            4.0,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--method", "awq", "--target", "w3g32"],
            "awq",
            "w3g32",
            "dense",
            4.0,
            marks=pytest.mark.slow,
        ),
        (["--target", "NVFP4"], "gptq", "NVFP4", "arrival", 4.5),
        pytest.param(
            ["--target", "W8A8"],
            "gptq(scales='importance')",
            "W8A8",
            "arrival",
            8.4,
            marks=pytest.mark.slow,
        ),
        pytest.param(["--target", "FP8"], "gptq", "FP8", "arrival", 8.0, marks=pytest.mark.slow),
        pytest.param(
            ["--target", "NVFP4A16"], "gptq", "NVFP4A16", "arrival", 4.5, marks=pytest.mark.slow
        ),
        pytest.param(
            ["--target", "2:4+w4g32"],
            "sparsegpt",
            "2:4+w4g32",
            "arrival",
            5.0,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_advice_for_a_grid_ends_with_a_command_that_does_what_was_measured(
    ask: Callable[..., str],
    options: list[str],
    method: str,
    target: str,
    propagate: str,
    bits: float,
) -> None:
    small = [
        "--tokens",
        "512",
        "--length",
        "128",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--budget",
        "0.01",
    ]
    sources = [word for source in SOURCES for word in ("--sources", source)]
    advice = json.loads(
        ask("recommend", trained_folder(), "--for", GOAL, *options, *sources, *small, "--json")
    )
    assert (advice["method"], advice["target"], advice["verb"]) == (method, target, "quantize")
    # Of some schemes a matrix has one scale, which its many weights share.
    assert advice["bits"] == pytest.approx(bits, rel=0.02)
    assert "llama.cpp" not in advice["text"]
    predicted = {one["data"]: one["predicted"] for one in advice["candidates"]}
    assert {*SOURCES} <= {*predicted}
    assert all(0 < value < 1 for value in predicted.values())
    raced = [one for one in advice["candidates"] if one["status"] != "not raced"]
    assert len(raced) >= 3
    assert all(one["divergence"]["value"] > 0 for one in raced), "KL stands beside the loss"
    assert f"{raced[0]['divergence']['value']:.3f} nats a token" in advice["text"]
    manifest = pasted(ask, advice)
    record = manifest["record"]
    assert (record["run"]["target"], record["run"]["propagate"]) == (target, propagate)
    assert manifest["id"] in {
        cell.run for cell in Store(Path(advice["folder"]) / "race").cells()
    }, "it is one of the runs that were measured"
    *_, command = recommended(advice)
    assert command == advice["command"], "the last thing that is shown can be pasted"
    assert bool(advice["predicted_by"]) == (method in ("awq", "rsq"))


@pytest.mark.parametrize("target", ["Q4_K_M", "gguf 0.03MB"])
def test_a_file_of_llama_cpp_is_advised_on_and_written(
    ask: Callable[..., str], tmp_path: Path, target: str
) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    model = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    goal = "loss(source=python_docs, tokens=512, length=64)"
    small = [
        "--tokens",
        "512",
        "--length",
        "64",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--budget",
        "0.01",
    ]
    sources = ["--sources", "python_docs", "--sources", "random_tokens"]
    advice = json.loads(
        ask("recommend", model, "--for", goal, "--target", target, *sources, *small, "--json")
    )
    assert (advice["method"], advice["target"]) == ("llama_cpp", target)
    assert all(0 < one["predicted"] < 1 for one in advice["candidates"])
    assert "--export gguf" in advice["command"]
    assert "llama.cpp rounds activations" in advice["text"]
    manifest = pasted(ask, advice)
    assert manifest["record"]["run"]["target"] == target
    assert manifest["id"] in {cell.run for cell in Store(Path(advice["folder"]) / "race").cells()}
    words = shlex.split(advice["command"])
    assert (Path(words[words.index("--out") + 1]) / "model.gguf").is_file()


def test_a_kind_of_blocks_is_advised_on(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    found = recommend(
        str(trained_folder()),
        goal=GOAL,
        sources=SOURCES,
        target="q4_0",
        minutes=1e-6,
        folder=tmp_path,
        **SMALL,
    )
    assert (found.method, found.target, found.bits) == ("ggml", "q4_0", 4.5)
    assert "--export" not in found.command, (
        "a folder that wasn't opened from GGUF has no metadata to write one with"
    )
