"""What can be named, and that each name can be used."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant import names as naming
from calibrant.errors import SpecError
from calibrant.methods import methods
from calibrant.names import KINDS, Named, catalogue, names, removing
from calibrant.targets import Share, Sparsity, parse_target


def test_every_kind_is_listed_in_order_and_explained():
    for kind in KINDS:
        entries = catalogue(kind)
        assert all(entry.summary for entry in entries), kind
        if kind != "models":
            assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    with pytest.raises(SpecError, match="packings") as refused:
        catalogue("packngs")
    assert refused.value.subject == "packngs"


def test_methods_say_their_parameters_and_what_they_accept_and_look_at():
    entries = catalogue("methods")
    for entry in entries:
        given = ", ".join(f"{name}={default}" for name, default in entry.parameters.items())
        assert (
            methods.build(f"{entry.name}({given})" if given else entry.name).spec_name()
            == entry.name
        )
    facts = {entry.name: entry.facts for entry in entries}
    assert facts["wanda"] == {"accepts": "0.5 or 2:4", "looks_at": "feature norms"}
    assert facts["magnitude"]["looks_at"] == "no data"


def test_sources_say_their_licence_and_targets_are_called_as_they_are_written():
    assert {entry.name: entry.facts["licence"] for entry in catalogue("sources")}["gsm8k"] == "MIT"
    targets = [entry.name for entry in catalogue("targets")]
    assert [str(parse_target(target)) for target in targets] == targets
    assert {"0.5", "2:4", "w4g64"} <= set(targets)


def test_what_removes_is_what_accepts_such_targets_and_does_not_leave_all_as_it_is():
    found, known = removing(), {name: methods.get(name) for name in names("methods")}
    expected = [
        name
        for name, cls in known.items()
        if cls.prunes and any(issubclass(kind, cls.accepts) for kind in (Sparsity, Share))
    ]
    assert [entry.name for entry in found] == sorted(expected)
    assert {"wanda", "short_gpt", "refined"} <= set(expected)
    assert not {"none", "rtn", "gptq"} & set(expected)
    assert all(entry.title for entry in found)


@pytest.fixture
def older_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks a method, and has one whose file is gone."""
    generated = json.loads(naming.CATALOGUE.read_text("utf-8"))
    generated["methods"]["gone"] = generated["methods"].pop("wanda")
    older = tmp_path / "catalogue.json"
    older.write_text(json.dumps(generated), "utf-8")
    monkeypatch.setattr(naming, "CATALOGUE", older)


def test_the_folder_decides_which_names_there_are(request: pytest.FixtureRequest):
    listed = catalogue("methods")
    request.getfixturevalue("older_catalogue")
    assert catalogue("methods") == listed
    removes = [entry.name for entry in removing()]
    assert "wanda" in removes
    assert "gone" not in removes


MINE = '''
"""What I made."""

from dataclasses import dataclass, field
from calibrant.methods import Compressed, MatrixMethod

@dataclass(frozen=True, repr=False)
class Mine(MatrixMethod):
    """Does what I do."""

    power: float = max(0.5, 0.25)
    parts: tuple = field(default=(1, 2))
    needed: int = field(kw_only=True)

    def compress(self, weight, seen, target):
        return Compressed(weight)
'''


def test_a_method_of_another_package_is_read_from_its_class_when_it_is_listed(
    plugged: Callable[..., None],
):
    plugged({"calibrant.methods": {"mine": "mine:Mine"}}, mine=MINE)
    assert "mine" in names("methods")
    assert "mine" in [entry.name for entry in removing()]
    assert "mine" not in sys.modules, "what completes a word and what helps import nothing of it"
    entry = next(entry for entry in catalogue("methods") if entry.name == "mine")
    parameters = {"power": "0.5", "parts": "[1, 2]", "needed": ""}
    facts = {"class": "mine:Mine", "accepts": "0.5 or 2:4", "looks_at": "no data"}
    assert entry == Named("mine", "Does what I do.", parameters, facts, "What I made.")


@pytest.mark.usefixtures("older_catalogue")
def test_a_method_of_another_package_is_not_taken_for_ours_that_had_its_name(
    plugged: Callable[..., None],
):
    plugged({"calibrant.methods": {"gone": "mine:Mine"}}, mine=MINE)
    (entry,) = [entry for entry in catalogue("methods") if entry.name == "gone"]
    assert entry.facts["class"] == "mine:Mine"


RANK = '''
from dataclasses import dataclass
from calibrant.methods import Compressed, MatrixMethod
from calibrant.targets import Target

@dataclass(frozen=True, repr=False)
class Rank(Target):
    """A rank."""

    rank: int
    written = "a rank rank=R"
    example = "rank=16"

    @classmethod
    def read(cls, value):
        return None

    def __str__(self):
        return f"rank={self.rank}"

@dataclass(frozen=True, repr=False)
class Lower(MatrixMethod):
    """Lowers the rank."""

    accepts = (Rank,)

    def compress(self, weight, seen, target):
        return Compressed(weight)
'''


def test_a_target_of_another_package_is_listed_and_so_is_what_accepts_it(
    plugged: Callable[..., None],
):
    plugged(
        {
            "calibrant.targets": {"rank": "ranks:Rank"},
            "calibrant.methods": {"lower": "ranks:Lower"},
        },
        ranks=RANK,
    )
    targets = {entry.name: entry for entry in catalogue("targets")}
    assert targets["rank=16"].facts == {"class": "ranks:Rank", "written": "a rank rank=R"}
    assert "0.5" in targets
    listed = {entry.name: entry.facts for entry in catalogue("methods")}
    assert listed["lower"] == {"class": "ranks:Lower", "accepts": "rank=16", "looks_at": "no data"}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("class Mine(", "SyntaxError"),
        ("raise ValueError(1)", "ValueError"),
        ("Mine = 1", "SpecError"),
    ],
)
def test_what_cannot_be_imported_is_listed_with_the_reason(
    plugged: Callable[..., None], code: str, reason: str
):
    ours = catalogue("methods")
    plugged({"calibrant.methods": {"mine": "mine:Mine"}}, mine=code)
    entries = catalogue("methods")
    assert [entry for entry in entries if entry.name != "mine"] == ours
    (entry,) = [entry for entry in entries if entry.name == "mine"]
    assert reason in entry.summary
