"""`calibrant explain`: of a model, of a study, and what it refuses."""

from pathlib import Path

import pytest
from rich.console import Console

from calibrant.compare import kept_words_in
from calibrant.screen.words import explained, kept_by_sets
from calibrant.store import Store

from tests.cli.conftest import SMALL, Ask
from tests.compare.test_words import results, score

HOSTILE = "\x1b[31mred\u202e"


def test_words_of_a_pruned_model(ask: Ask, model: Path, tmp_path: Path) -> None:
    ask("prune", model, "--out", "pruned", "--sparsity", "0.5", *SMALL)
    task = "words(source='python_docs', tokens=12000, least=4)"
    words = ("explain", "pruned", "--task", task, "--most", 4, "--dtype", "float32", "--out", "all.json")
    answer = ask(*words)
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    for said in ("pruned, against", task, "of the responses to", "least kept in", "rank correlation of"):
        assert said in answer.out, said
    shown = ask(*words, "--json").json
    assert Path("all.json").read_text(encoding="utf-8").startswith("{")
    damages = [word["damage"] for word in shown["words"]]
    assert damages == sorted(damages, reverse=True)
    assert shown["score"]["value"] == pytest.approx(1 - sum(damages) / len(damages), abs=1e-4)
    first = shown["words"][0]
    head = next(at for at, line in enumerate(lines) if line.startswith("word"))
    assert lines[head + 2].split()[:3] == [first["word"], str(first["count"]), f"{first['damage']:.3f}"]
    assert len(first["strongest"]) == min(3, first["neurons"])
    sizes = [abs(neuron["dense"]) for neuron in first["strongest"]]
    assert sizes == sorted(sizes, reverse=True)
    # The texts of Python's documentation may be shown, and a passage has its word in it.
    assert shown["unquoted"] == ""
    assert first["word"] in first["passages"][0].lower()
    assert f"  {first['word']}: … " in answer.out


def test_the_words_of_a_study(ask: Ask, tmp_path: Path) -> None:
    made = results(c0=score({"onion": 0.5, HOSTILE: 0.9}), g0=score({"onion": 0.75}))
    tables = [one.to_json() for one in kept_words_in(made)]
    console = Console(width=100, record=True, color_system=None, markup=False, highlight=False)
    for line in kept_by_sets(tables, 20):
        console.print(line)
    text = console.export_text()
    assert "small, wanda at 0.5, arrival" in text
    assert [line.split() for line in text.splitlines() if line.startswith("onion")] == [["onion", "5", "0.500", "0.750"]]
    assert "\x1b[31m" not in text
    assert "\\x1b[31mred\\u202e" in text
    with Store(tmp_path / "results") as store:
        store.write_cells([])
    answer = ask("explain", "results")
    assert answer.code == 2
    assert "holds no measurement of words" in answer.err


def test_hostile_words_and_passages_cannot_steer_a_terminal() -> None:
    word = {"word": HOSTILE, "count": 5, "damage": 0.5, "raised_next": None, "block": 1, "strongest": [], "passages": [f"a {HOSTILE} b"]}
    facts = {"groups": 1, "responses": 3, "responses_tested": 9, "kept_by_block": [0.5, None]}
    score = {"value": 0.5, "stderr": None, "facts": facts}
    result = {"model": HOSTILE, "reference": "dense", "task": HOSTILE, "score": score, "words": [word], "unquoted": HOSTILE}
    console = Console(width=100, record=True, color_system=None, markup=False, highlight=False)
    for line in explained(result, 20):
        console.print(line)
    text = console.export_text()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("\\x1b[31mred\\u202e") >= 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--source", "no_such"), "no_such"),
        (("--groups", "lemas"), "did you mean 'lemmas'"),
        (("--task", "loss(source='python_docs')"), "isn't about words"),
        (("--task", "words(source='python_docs')", "--source", "c4"), "names its own source, and 'c4' was given beside it"),
        (("--tokens", "0"), "tokens must be at least 1"),
        (("--source", "python_docs"), "which one that is isn't known; give --"),
    ],
)
def test_what_cannot_be_explained_is_one_sentence(ask: Ask, model: Path, words: tuple[str, ...], said: str) -> None:
    answer = ask("explain", model, *words)
    assert answer.code == 2, answer.out
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_neurons_of_languages_and_what_stays_of_them(ask: Ask, model: Path, tmp_path: Path) -> None:
    ask("prune", model, "--out", "pruned", "--sparsity", "0.5", *SMALL)
    words = ("lape", model, "--language", "python_docs", "--language", "arithmetic", "--tokens", 2000, "--length", 64, "--lowest", "0.1")
    shown = ask(*words, "--pruned", "pruned", "--dtype", "float32", "--out", "neurons.json", "--json").json
    assert list(shown["languages"]) == ["python_docs", "arithmetic"]
    for name, found in shown["languages"].items():
        assert found["specific"] == sum(found["by_block"]) == len(found["neurons"])
        assert shown["staying"][name] is None or 0 <= shown["staying"][name] <= 1
    assert Path("neurons.json").read_text(encoding="utf-8").startswith("{")
    answer = ask(*words, "--pruned", "pruned", "--dtype", "float32")
    assert answer.code == 0, answer.err
    assert "neurons of feed-forward networks in" in answer.out
    (line,) = (line.split() for line in answer.out.splitlines() if line.startswith("arithmetic"))
    assert line[:3] == ["arithmetic", f"{shown['languages']['arithmetic']['tokens']:,}", f"{shown['languages']['arithmetic']['specific']:,}"]
    assert line[-1] == ("—" if shown["staying"]["arithmetic"] is None else f"{shown['staying']['arithmetic']:.3f}")
    alone = ask("lape", model, "--language", "python_docs")
    assert alone.code == 2
    assert "name two or more" in alone.err
