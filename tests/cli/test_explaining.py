"""`calibrant explain` and `lape`: of a model, of a study, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from calibrant.cli.screen.words import explained
from calibrant.results import Measurement, Score, Store

from tests.cli.conftest import SMALL, Ask, assert_refused
from tests.results.conftest import RECORD, RUN

HOSTILE = "\x1b[31mred\u202e"
SHOWN = r"\x1b[31mred\u202e"


def test_words_of_a_pruned_model(ask: Ask, model: Path, tmp_path: Path) -> None:
    ask("prune", model, "--out", "pruned", "--target", "0.5", *SMALL)
    task = "words(source='python_docs', tokens=12000, least=4)"
    words = (
        "explain",
        "pruned",
        "--task",
        task,
        "--most",
        4,
        "--dtype",
        "float32",
        "--out",
        "all.json",
    )
    answer = ask(*words)
    assert answer.code == 0, answer.err
    shown = ask(*words, "--json").json
    assert Path("all.json").read_text(encoding="utf-8").startswith("{")
    damages = [word["damage"] for word in shown["words"]]
    assert damages == sorted(damages, reverse=True)
    assert shown["score"]["value"] == pytest.approx(1 - sum(damages) / len(damages), abs=1e-4)
    first = shown["words"][0]
    told = [first["word"], str(first["count"]), f"{first['damage']:.3f}"]
    assert told in [line.split()[:3] for line in answer.out.splitlines()]
    assert len(first["strongest"]) == min(3, first["neurons"])
    sizes = [abs(neuron["dense"]) for neuron in first["strongest"]]
    assert sizes == sorted(sizes, reverse=True)
    # The texts of Python's documentation may be shown, and a passage has its word in it.
    assert shown["unquoted"] == ""
    assert first["word"] in first["passages"][0].lower()


def test_words_that_cannot_be_measured_leave_no_new_store(
    ask: Ask, model: Path, tmp_path: Path
) -> None:
    task = "words(source='python_docs', tokens=64, least=9999)"
    words = ("explain", model, "--against", model, "--task", task, "--dtype", "float32")
    assert_refused(ask(*words, "--store", "results"), "none of")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("most", [0, -3])
def test_a_table_of_words_has_at_least_one(ask: Ask, most: int) -> None:
    assert_refused(ask("explain", "smollm2", f"--most={most}"), f"--most is {most}")


def test_the_words_of_a_study(ask: Ask, tmp_path: Path) -> None:
    kept = {"c4": {"onion": 0.5, HOSTILE: 0.9}, "gsm8k": {"onion": 0.75, HOSTILE: 0.8}}
    with Store(tmp_path / "results") as store:
        for data, words in kept.items():
            run = replace(RUN, data=data, tokens=f"sha256:{data}")
            store.add_record(replace(RECORD, run=run))
            columns = {"word": list(words), "count": [5, 5], "kept": list(words.values())}
            score = Score(
                "wikipedia:text", "kept", 0.5, 0.1, 8, "share", "higher", 0.0, {"words": columns}
            )
            store.add_measurement(run.id, {"spec": "words", "revision": 1}, Measurement(score))
    answer = ask("explain", "results")
    assert answer.code == 0, answer.err
    written: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "calibrant.cli.explaining.show", lambda *_: written.append(Path("all.json").is_file())
        )
        ask("explain", "results", "--out", "all.json")
    assert written == [True], "printing may end the process, as head does"
    rows = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines() if line}
    assert dict(zip(rows["word"], rows["onion"], strict=True)) == {
        "count": "5",
        "c4": "0.500",
        "gsm8k": "0.750",
    }
    assert "\x1b[31m" not in answer.out
    assert SHOWN in answer.out
    with Store(tmp_path / "empty") as store:
        store.write_cells([])
    assert_refused(ask("explain", "empty"), "empty")
    assert_refused(ask("explain", "results", "--source", "c4"), "takes no --source")
    assert_refused(ask("explain", "results", "--dtype", "float32"), "takes no --dtype")


def test_hostile_words_and_passages_cannot_steer_a_terminal() -> None:
    word = {
        "word": HOSTILE,
        "count": 5,
        "damage": 0.5,
        "raised_next": None,
        "block": 1,
        "strongest": [],
        "passages": [f"a {HOSTILE} b"],
    }
    facts = {"groups": 1, "responses": 3, "responses_tested": 9, "kept_by_block": [0.5, None]}
    score = {"value": 0.5, "stderr": None, "facts": facts}
    result = {
        "model": HOSTILE,
        "reference": "dense",
        "task": HOSTILE,
        "score": score,
        "words": [word],
        "unquoted": HOSTILE,
    }
    console = Console(width=100, record=True, color_system=None, markup=False, highlight=False)
    for line in explained(result, 20):
        console.print(line)
    text = console.export_text()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count(SHOWN) >= 5


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (("--source", "no_such"), "no_such"),
        (("--task", "loss(source='python_docs')"), "words"),
        (("--task", "words(source='python_docs')", "--source", "c4"), "'c4'"),
        (("--source", "python_docs"), "--"),
    ],
)
def test_what_cannot_be_explained(
    ask: Ask, model: Path, words: tuple[str, ...], given: str
) -> None:
    assert_refused(ask("explain", model, *words), given)


def test_neurons_of_languages_and_what_stays_of_them(ask: Ask, model: Path, tmp_path: Path) -> None:
    ask("prune", model, "--out", "pruned", "--target", "0.5", *SMALL)
    words = (
        "lape",
        model,
        "--language",
        "python_docs",
        "--language",
        "arithmetic",
        "--tokens",
        2000,
        "--length",
        64,
        "--lowest",
        "0.1",
    )
    shown = ask(
        *words, "--pruned", "pruned", "--dtype", "float32", "--out", "neurons.json", "--json"
    ).json
    assert list(shown["languages"]) == ["python_docs", "arithmetic"]
    for name, found in shown["languages"].items():
        assert found["specific"] == sum(found["by_block"]) == len(found["neurons"])
        assert shown["staying"][name] is None or 0 <= shown["staying"][name] <= 1
    assert Path("neurons.json").read_text(encoding="utf-8").startswith("{")
    answer = ask(*words, "--pruned", "pruned", "--dtype", "float32")
    assert answer.code == 0, answer.err
    often = f"if active on more than {100 * shown['threshold']:.1f} % of the tokens of some"
    assert often in " ".join(answer.out.split())
    (line,) = (line.split() for line in answer.out.splitlines() if line.startswith("arithmetic"))
    assert line[:3] == [
        "arithmetic",
        f"{shown['languages']['arithmetic']['tokens']:,}",
        f"{shown['languages']['arithmetic']['specific']:,}",
    ]
    assert line[-1] == (
        "—" if shown["staying"]["arithmetic"] is None else f"{shown['staying']['arithmetic']:.3f}"
    )
    assert_refused(ask("lape", model, "--language", "python_docs"), "python_docs")
