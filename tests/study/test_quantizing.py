"""A study of quantizers keeps what they did, and measures it again without doing it again."""

from pathlib import Path
from typing import Any

import pytest

from calibrant.compress import Recipe, compress
from calibrant.lab.study import Study
from calibrant.results import EDITS, Store

from tests.study.small import asked, kept_files


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
