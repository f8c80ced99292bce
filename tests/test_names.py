"""What can be named, and that each name can be used."""

import pytest

from calibrant.errors import SpecError
from calibrant.methods import methods
from calibrant.names import KINDS, catalogue, names, removing
from calibrant.targets import Share, Sparsity, parse_target


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_listed_in_order_and_explained(kind: str):
    entries = catalogue(kind)
    assert all(entry.summary for entry in entries)
    if kind != "models":
        assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)


def test_parameters_are_written_as_they_are_typed():
    for entry in catalogue("methods"):
        given = ", ".join(f"{name}={default}" for name, default in entry.parameters.items())
        assert methods.build(f"{entry.name}({given})" if given else entry.name).spec_name() == entry.name


def test_sources_say_their_licence():
    assert {entry.name: entry.facts["licence"] for entry in catalogue("sources")}["gsm8k"] == "MIT"


def test_an_unknown_kind():
    with pytest.raises(SpecError, match=r"'packngs' to list, did you mean 'packings'\?.*models, sources"):
        catalogue("packngs")


def test_methods_say_what_they_accept_and_look_at():
    facts = {entry.name: entry.facts for entry in catalogue("methods")}
    assert facts["wanda"] == {"accepts": "0.5 or 2:4", "looks_at": "feature norms"}
    assert facts["magnitude"]["looks_at"] == "no data"


def test_targets_are_called_as_they_are_written():
    assert all(str(parse_target(entry.name)) == entry.name for entry in catalogue("targets"))
    assert {"0.5", "2:4", "w4g64"} <= {entry.name for entry in catalogue("targets")}


def test_what_removes_is_what_accepts_such_targets_and_does_not_leave_all_as_it_is():
    listed, known = removing(), {name: methods.get(name) for name in names("methods")}
    expected = [name for name, cls in known.items() if cls.prunes and any(issubclass(kind, cls.accepts) for kind in (Sparsity, Share))]
    assert [entry.name for entry in listed] == sorted(expected)
    assert {"wanda", "short_gpt", "refined"} <= set(expected)
    assert not {"none", "rtn", "gptq"} & set(expected)
    assert all(entry.title for entry in listed)
