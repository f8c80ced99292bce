"""What `import calibrant` offers."""

from pathlib import Path

import pytest

import calibrant

ROOT = Path(calibrant.__file__).parent
NAMES = (
    *(
        "CalibrantError",
        "CalibrationSet",
        "InputError",
        "Study",
        "catalogue",
        "evaluate",
        "explain",
        "export",
        "imatrix",
        "inspect",
        "load",
    ),
    *("mix", "open_model", "parse_target", "plan", "prune", "quantize", "recommend", "survey"),
    *("view", "write_data"),
)


def test_each_public_name_is_there_with_an_explanation_and_nothing_else_is():
    assert calibrant.__all__ == dir(calibrant) == sorted([*NAMES, "__version__"])
    for name in NAMES:
        found = getattr(calibrant, name)
        assert found.__name__ == name
        assert found.__doc__
    with pytest.raises(AttributeError, match="prune"):
        calibrant.prun  # noqa: B018  # asking is the test


def test_no_public_name_is_also_a_module():
    modules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(NAMES), "importing the module would put it in the place of the name"


def test_the_log_of_changes_has_the_version():
    assert f"## [{calibrant.__version__}]" in (ROOT.parents[1] / "CHANGELOG.md").read_text()
