"""`calibrant mix`: what it prints, what it writes, what it refuses."""

import json
import shlex
from pathlib import Path

import pytest

from calibrant.data import CalibrationSet
from calibrant.mixtures import Effort, Sample
from calibrant.screen.choosing import mixed

from tests.cli.conftest import Ask

SMALL = shlex.split("--sources python_docs --sources python_code --tokens 512 --length 64 --dtype float32")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(1, 8)
    monkeypatch.setattr("calibrant.mixtures.mixing.effort_of", lambda _: Effort(sample, 10, sample, sample))


def test_mix_prints_the_expression_the_errors_and_whether_tokens_are_enough(ask: Ask, model: Path, tmp_path: Path) -> None:
    answer = ask("mix", model, "--objective", "worst", "--out", "found.json", *SMALL)
    assert (answer.code, answer.err) == (0, "")
    found = json.loads((tmp_path / "found.json").read_text())
    for said in (
        f"mixture        {found['expr']}",
        "wanda to 0.6, float32",
        f"worst: {found['value']:.2%} of the outputs' energy lost",
        "512 tokens of each in windows of 64, draw 0",
        "8 rows of each matrix in 1 of 3 blocks",
        "4 sets in",
        "0 of them were there already",
        "uniform",
        f"{100 * found['rows'][-1]['worst']:.2f}",
        "without",
        "masks of two halves agree",
        "not known from so few windows",
    ):
        assert said in answer.out, said
    assert str(CalibrationSet(found["expr"])) == found["expr"]


def test_json_is_what_is_written_and_a_second_call_reuses_what_is_kept(ask: Ask, model: Path, tmp_path: Path) -> None:
    first = ask("mix", model, "--out", "found.json", "--json", *SMALL).json
    about = {"seconds", "folder", "gathered", "reused"}
    assert json.loads((tmp_path / "found.json").read_text()) == {name: value for name, value in first.items() if name not in about}
    second = ask("mix", model, "--objective", "target=python_code", "--json", *SMALL).json
    assert (first["reused"], second["reused"], second["gathered"]) == (0, 4, 4)
    assert second["objective"] == "target=python_code"


def test_the_same_question_writes_the_same_file(ask: Ask, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anew.json", "kept.json"):
        ask("mix", model, "--out", name, *SMALL)
    monkeypatch.setenv("CALIBRANT_CACHE", str(tmp_path / "elsewhere"))
    ask("mix", model, "--out", "elsewhere.json", *SMALL)
    assert len({(tmp_path / f"{name}.json").read_bytes() for name in ("anew", "kept", "elsewhere")}) == 1


def test_what_is_found_is_taken_by_prune(ask: Ask, model: Path) -> None:
    found = ask("mix", model, "--json", *SMALL).json
    pruned = ask("prune", model, "--out", "pruned", "--data", found["expr"], "--samples", 4, "--length", 64, "--json")
    assert pruned.code == 0
    assert pruned.json["run"]["data"] == found["expr"]


def test_a_mixture_for_a_grid_is_taken_by_quantize_and_its_imatrix_is_written(ask: Ask, model: Path, tmp_path: Path) -> None:
    found = ask("mix", model, "--target", "w4g16", "--imatrix", "mixed.gguf", "--json", *SMALL).json
    assert (found["method"], found["sparsity"], found["enough"]) == ("gptq", "w4g16", [])
    covered = ask("inspect", "mixed.gguf", "--json")
    assert covered.code == 0
    assert covered.json["datasets"][0].startswith(found["expr"])
    words = ["--data", found["expr"], "--method", "gptq", "--target", "w4g16", "--samples", 4, "--length", 64, "--json"]
    quantized = ask("quantize", model, "--out", "small", *words)
    assert quantized.code == 0
    assert quantized.json["run"]["data"] == found["expr"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sources c4", "a mixture needs two sources or more, and was given 1 (c4)"),
        ("--sources c4 --sources c4:text", "the source 'c4' is given twice"),
        ("--sources c4 --sources pile --objective best", "objective='best' is not known; write mean, worst, or target=EXPR"),
        ("--sources c4 --sources pile --objective target=", "objective='target=' is not known"),
        ("--sources c4 --sources pile --method magnitude", "magnitude looks at no data"),
        ("--sources c4 --sources pile --method rtn --target w4g64", "rtn looks at no data, so every text gives the same weights; choose gptq"),
        ("--sources c4 --sources pile --method gptq --target 2:4", "gptq can't be asked for 2:4"),
        ("--sources c4 --sources pile --target w4g16 --imatrix mixed.txt", "is no name for an imatrix"),
        ("--sources c4 --sources gsm9k", "there is no source called 'gsm9k', did you mean 'gsm8k'?"),
        ("--sources c4 --sources pile --sparsity 1.5", "1.5 is no sparsity"),
        ("--sources c4 --sources pile --out nowhere/found.json", "'nowhere/found.json' can't be written"),
        ("--sources c4 --sources 'mix(a=c4, b=pile)'", "is a mix already"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(ask: Ask, model: Path, words: str, said: str) -> None:
    answer = ask("mix", model, *shlex.split(words))
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1


def test_no_source_at_all_is_bad_input_too(ask: Ask, model: Path) -> None:
    answer = ask("mix", model)
    assert answer.code == 2
    assert "--sources" in answer.err


@pytest.mark.parametrize(
    ("enough", "needed", "said"),
    [
        (True, 2048, "enough, at 2,048 already"),
        (False, 16384, "not enough: the last doubling gave 1.00%; at about 16,384, if it goes on like this"),
        (False, None, "no end in sight"),
        (None, None, "not known from so few windows"),
    ],
)
def test_verdicts_about_tokens(capsys: pytest.CaptureFixture[str], enough: bool | None, needed: int | None, said: str) -> None:
    from calibrant.cli._frame import show

    curve = {"data": "c4\x1b[2J", "points": [{"tokens": 512, "agreement": 0.9}], "enough": enough, "needed": needed, "gain": 0.01}
    influence = [{"of": "uniform", "without": "c4", "mean": 0.001, "worst": 0.002, "value": -0.003}]
    found = {
        "expr": "c4",
        "model": "m",
        "note": "dequantized",
        "method": "wanda",
        "sparsity": "0.6",
        "dtype": "float32",
        "objective": "target=c4",
        "value": 0.05,
        "tokens": 4096,
        "length": 512,
        "seed": 0,
        "evaluations": 7,
        "gathered": 2,
        "folder": "here",
        "notes": ["c4 twice"],
        "reused": 1,
        "seconds": {"search": 1.0},
        "judges": ["c4"],
        "rows": [{"calibrated_on": "c4", "errors": {"c4": 0.05}, "mean": 0.05, "worst": 0.06}],
        "samples": {n: {"blocks": 1, "of": 2, "rows": 3} for n in ("search", "final")},
        "influence": influence,
        "enough": [curve],
    }
    show(found, False, mixed)
    out = capsys.readouterr().out
    for text in (said, "the uniform mixture without", "+0.100", "+0.200", "-0.300", "m (dequantized)", "mind           c4 twice", "512: 90.00%"):
        assert text in out, text
    assert "\x1b" not in out
