"""Words that a real study measured: in its store, by sets, and on its page."""

from pathlib import Path

import pytest

from calibrant.compare import kept_words
from calibrant.evaluators._forgotten import DIGITS
from calibrant.report import report

from tests.study.small import asked


def measured(given: dict[str, str]) -> list[str]:
    return [f"words(source={given['verse']!r}, tokens=600, length=64, least=5)"]


def test_words_go_from_a_study_to_its_ranking_and_its_page(given: dict[str, str], tmp_path: Path) -> None:
    study = asked(given, methods=["wanda"], sparsities=[0.5, 0.75], evaluate=measured(given))
    assert study.run(tmp_path / "results").failures == {}
    gentle, harsh = kept_words(tmp_path / "results")
    assert (gentle.target, harsh.target) == ("0.5", "0.75")
    assert len(gentle.sets) == 3
    assert {"cat", "mat"} <= set(gentle.words)
    assert max(harsh.means) < min(1.0, max(gentle.means)), "the more is removed, the less is kept"
    text = report(tmp_path / "results").write_html(tmp_path / "page.html").read_text("utf-8")
    for one, row in zip(gentle.words, zip(*gentle.kept, strict=True), strict=True):
        assert one in text
        assert all(f"{value:.3f}" in text for value in row)
    shown = {entry["name"]: entry for entry in report(tmp_path / "results").to_json()["rankings"][0]["entries"]}
    for name, row in zip(gentle.sets, gentle.kept, strict=True):
        (value,) = shown[name]["losses"].values()
        assert value["value"] == pytest.approx(sum(row) / len(row), abs=0.5 * 10**-DIGITS)  # words are told to so many digits
    assert study.run(tmp_path / "results").computed == 0
