"""A study of quantizers keeps what they did, and measures it again without doing it again."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from calibrant.compress import Recipe, compress
from calibrant.lab.study import Study
from calibrant.results import EDITS, Store

from tests.study.small import Logged, asked, kept_files, results


def study(given: dict[str, str], **changes: Any) -> Study:
    return asked(given, methods=(), **changes)


ALL = ["rtn(scales=importance)", "gptq", "rsq", "awq"]


@pytest.mark.parametrize(
    ("methods", "transform"),
    [
        (["awq"], None),
        (["rtn"], "smooth"),
        pytest.param(ALL, "rotate", marks=pytest.mark.slow),
        pytest.param(ALL, "smooth(sites=all)", marks=pytest.mark.slow),
    ],
)
def test_what_was_quantized_is_measured_again_from_what_is_stored(
    given: dict[str, str],
    methods: list[str],
    transform: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    tasks = [f"loss(source={given[name]!r}, tokens=200, length=64)" for name in ("verse", "prose")]
    groups = {
        "rounded": {"method": methods, "target": "w3g16"},
        "both": {"method": "sparsegpt", "target": "2:4+w4g16"},
    }
    usual: dict[str, Any] = {
        "data": ["random_tokens"],
        "groups": groups,
        **({"transform": transform} if transform else {}),
    }
    first = study(given, evaluate=tasks[:1], **usual).run(tmp_path / "store")
    assert not first.failures
    assert len(kept_files(tmp_path / "store", EDITS)) == len(methods) + 1
    whole = study(given, evaluate=tasks, **usual).run(tmp_path / "whole")

    def dense_alone(opened: Any, view: Any, batch: Any, recipe: Recipe, **how: Any) -> Any:
        assert not recipe.looks, f"{recipe.method} was done again"
        return compress(opened, view, batch, recipe, **how)

    monkeypatch.setattr("calibrant.lab.study.driver.compress", dense_alone)
    again = study(given, evaluate=tasks, **usual).run(tmp_path / "store")
    assert not again.failures
    values = [
        {
            run: {measure: found.score.value for measure, found in store.scores(run).items()}
            for run in store.ids()
        }
        for store in (Store(tmp_path / "store"), Store(tmp_path / "whole"))
    ]
    assert values[0] == values[1]
    assert not whole.failures


def test_a_study_of_schemes_goes_on_where_it_was_interrupted(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Interrupted before each of its runs but the first; nothing that is finished is done again."""
    schemes = study(
        given,
        evaluate=[f"loss(source={given['verse']!r}, tokens=200, length=64)"],
        data=["random_tokens"],
        transform="smooth",
        groups={
            "dynamic": {"method": "rtn", "target": ["W8A8", "NVFP4A16"]},
            "static": {"method": ["rtn", "gptq"], "target": ["FP8", "NVFP4"]},
        },
    )
    whole = schemes.run(tmp_path / "whole")
    assert not whole.failures
    log = Logged(tmp_path / "log", monkeypatch)

    def interrupt(last: int, what: str, done: int, total: int) -> None:
        if what == "study" and done > last:
            raise KeyboardInterrupt

    for last in range(6):
        with pytest.raises(KeyboardInterrupt):
            schemes.run(tmp_path / "store", partial(interrupt, last))
    assert not schemes.run(tmp_path / "store").failures
    assert results(tmp_path / "store") == results(tmp_path / "whole")
    measured = Counter(name for what, name in log() if what == "measure")
    assert len(measured) == 7
    assert set(measured.values()) == {1}
