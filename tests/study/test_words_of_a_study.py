"""Words that a real study measured: in its store, by sets, and on its page."""

from pathlib import Path

import pytest

from calibrant.compare import kept_words
from calibrant.evaluators._forgotten import DIGITS
from calibrant.report import report

from tests.study.small import asked, texts


def measured(given: dict[str, str]) -> list[str]:
    return [f"words(source={given['verse']!r}, tokens=600, length=64, least=5)"]


def test_words_go_from_a_study_to_its_page(tmp_path: Path) -> None:
    given = texts(tmp_path / "data")
    study = asked(given, methods=["wanda"], sparsities=[0.5, 0.75], evaluate=measured(given))
    assert study.run(tmp_path / "results").failures == {}
    gentle, harsh = kept_words(tmp_path / "results")
    assert (gentle.target, harsh.target) == ("0.5", "0.75")
    assert len(gentle.sets) == 3
    assert {"cat", "mat"} <= set(gentle.words)
    assert max(harsh.means) < min(1.0, max(gentle.means)), "the more is removed, the less is kept"
    text = report(tmp_path / "results").write_html(tmp_path / "page.html").read_text("utf-8")
    assert '<a href="#words">Words</a>' in text
    for one, row in zip(gentle.words, zip(*gentle.kept, strict=True), strict=True):
        assert f"<bdi>{one}</bdi>" in text
        assert all(f">{value:.3f}</td>" in text for value in row)
    assert study.run(tmp_path / "results").computed == 0


def test_what_is_kept_of_a_set_is_the_mean_over_its_words(tmp_path: Path) -> None:
    given = texts(tmp_path / "data")
    asked(given, methods=["wanda"], evaluate=measured(given)).run(tmp_path / "results")
    (of,) = kept_words(tmp_path / "results")
    ranking = report(tmp_path / "results").to_json()["rankings"][0]
    shown = {entry["name"]: entry for entry in ranking["entries"]}
    for name, row in zip(of.sets, of.kept, strict=True):
        (value,) = shown[name]["losses"].values()
        assert value["value"] == pytest.approx(sum(row) / len(row), abs=0.5 * 10**-DIGITS)  # words are told to so many digits
