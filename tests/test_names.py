"""What can be named, and that each name can be used."""

from functools import cache

import pytest

from calibrant.errors import SpecError
from calibrant.methods import methods
from calibrant.names import KINDS, catalogue, names, removing
from calibrant.targets import Share, Sparsity, parse_target

listed = cache(catalogue)
"""Files are read again at each call."""


def test_every_kind_is_listed_in_order_and_explained():
    for kind in KINDS:
        entries = listed(kind)
        assert all(entry.summary for entry in entries), kind
        if kind != "models":
            assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    with pytest.raises(SpecError, match="packings") as refused:
        catalogue("packngs")
    assert refused.value.subject == "packngs"


def test_methods_say_their_parameters_and_what_they_accept_and_look_at():
    entries = listed("methods")
    for entry in entries:
        given = ", ".join(f"{name}={default}" for name, default in entry.parameters.items())
        assert methods.build(f"{entry.name}({given})" if given else entry.name).spec_name() == entry.name
    facts = {entry.name: entry.facts for entry in entries}
    assert facts["wanda"] == {"accepts": "0.5 or 2:4", "looks_at": "feature norms"}
    assert facts["magnitude"]["looks_at"] == "no data"


def test_sources_say_their_licence_and_targets_are_called_as_they_are_written():
    assert {entry.name: entry.facts["licence"] for entry in listed("sources")}["gsm8k"] == "MIT"
    targets = [entry.name for entry in listed("targets")]
    assert [str(parse_target(target)) for target in targets] == targets
    assert {"0.5", "2:4", "w4g64"} <= set(targets)


def test_what_removes_is_what_accepts_such_targets_and_does_not_leave_all_as_it_is():
    found, known = removing(), {name: methods.get(name) for name in names("methods")}
    expected = [name for name, cls in known.items() if cls.prunes and any(issubclass(kind, cls.accepts) for kind in (Sparsity, Share))]
    assert [entry.name for entry in found] == sorted(expected)
    assert {"wanda", "short_gpt", "refined"} <= set(expected)
    assert not {"none", "rtn", "gptq"} & set(expected)
    assert all(entry.title for entry in found)
