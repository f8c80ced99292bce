"""`calibrant mix`: what it prints, what it writes, what it refuses."""

import json
import shlex
from pathlib import Path

import pytest

from calibrant.cli._frame import show
from calibrant.cli.screen.choosing import mixed
from calibrant.data import CalibrationSet
from calibrant.lab.mixtures import Effort, Sample

from tests.cli.conftest import Ask, assert_refused

SMALL = shlex.split(
    "--sources python_docs --sources python_code --tokens 512 --length 64 --dtype float32"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(1, 8)
    monkeypatch.setattr(
        "calibrant.lab.mixtures.mixing.effort_of", lambda _: Effort(sample, 10, sample, sample)
    )


def test_a_mixture_is_printed_and_written_and_what_is_kept_is_used_again(
    ask: Ask, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask("mix", model, "--objective", "worst", "--out", "found.json", "--json", *SMALL).json
    about = {"seconds", "folder", "gathered", "reused"}
    written = (tmp_path / "found.json").read_bytes()
    assert json.loads(written) == {
        name: value for name, value in first.items() if name not in about
    }
    assert str(CalibrationSet(first["expr"])) == first["expr"]

    printed = ask("mix", model, "--objective", "worst", "--out", "kept.json", *SMALL)
    assert (printed.code, printed.err) == (0, "")
    for said in (first["expr"], f"{first['value']:.2%}", f"{100 * first['rows'][-1]['worst']:.2f}"):
        assert said in printed.out, said
    assert (tmp_path / "kept.json").read_bytes() == written

    second = ask("mix", model, "--objective", "target=python_code", "--json", *SMALL).json
    assert (first["reused"], second["reused"], second["gathered"]) == (0, 4, 4)
    assert second["objective"] == "target=python_code"

    monkeypatch.setenv("CALIBRANT_CACHE", str(tmp_path / "elsewhere"))
    ask("mix", model, "--objective", "worst", "--out", "elsewhere.json", *SMALL)
    assert (tmp_path / "elsewhere.json").read_bytes() == written

    pruned = ask(
        "prune",
        model,
        "--out",
        "pruned",
        "--data",
        first["expr"],
        "--samples",
        4,
        "--length",
        64,
        "--json",
    )
    assert pruned.json["run"]["data"] == first["expr"]


def test_a_mixture_for_a_grid_is_taken_by_quantize_and_its_imatrix_is_written(
    ask: Ask, model: Path, tmp_path: Path
) -> None:
    found = ask("mix", model, "--target", "w4g16", "--imatrix", "mixed.gguf", "--json", *SMALL).json
    assert found["method"] == "gptq(scales='importance')"
    assert (found["target"], found["enough"]) == ("w4g16", [])
    covered = ask("inspect", "mixed.gguf", "--json")
    assert_refused(ask("inspect", "mixed.gguf", "--samples", 4), "takes no --samples")
    assert covered.code == 0
    assert covered.json["datasets"][0].startswith(found["expr"])
    words = [
        "--data",
        found["expr"],
        "--method",
        found["method"],
        "--target",
        "w4g16",
        "--samples",
        4,
        "--length",
        64,
        "--json",
    ]
    quantized = ask("quantize", model, "--out", "small", *words)
    assert quantized.code == 0
    assert quantized.json["run"]["data"] == found["expr"]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("", "--sources"),
        ("--sources c4", "c4"),
        ("--sources c4 --sources pile --objective best", "'best'"),
        ("--sources c4 --sources pile --target w4g16 --imatrix mixed.txt", "imatrix"),
        ("--sources c4 --sources pile --out nowhere/found.json", "'nowhere/found.json'"),
    ],
)
def test_bad_input(ask: Ask, model: Path, words: str, given: str) -> None:
    answer = ask("mix", model, *shlex.split(words))
    assert answer.code == 2
    assert given in answer.err


@pytest.mark.parametrize(
    ("enough", "needed", "said"),
    [(True, 2048, "2,048"), (False, 16384, "16,384"), (False, None, "1.00%"), (None, None, "few")],
)
def test_whether_tokens_are_enough_is_printed_and_no_name_acts_on_a_terminal(
    ask: Ask,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    enough: bool | None,
    needed: int | None,
    said: str,
) -> None:
    found = ask("mix", model, "--objective", "target=python_code", "--json", *SMALL).json
    curve = {
        "data": "c4\x1b[2J",
        "points": [{"tokens": 512, "agreement": 0.9}],
        "enough": enough,
        "needed": needed,
        "gain": 0.01,
    }
    influence = [
        {"of": "uniform", "without": "c4\x1b[2J", "mean": 0.001, "worst": 0.002, "value": -0.003}
    ]
    show({**found, "enough": [curve], "influence": influence, "notes": ["c4 twice"]}, False, mixed)
    out = capsys.readouterr().out
    for text in (said, "+0.100", "+0.200", "-0.300", "c4 twice", "90.00%"):
        assert text in out, text
    assert "\x1b" not in out
