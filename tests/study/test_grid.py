"""The grid: the union of its groups without what is excluded, in order; what is compared in it;
and every mistake at once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrant.errors import StudyError
from calibrant.lab.study import Study
from calibrant.lab.study.checking import Mistakes, gathered
from calibrant.lab.study.study import read

STOPS = {"compare": "full_stops", "with": "random_tokens"}
LOSSES = (
    "loss(source='python_docs', tokens=10)",
    "loss(source='arithmetic')",
    "loss(source='arithmetic', length=64)",
)


GIVEN: dict[str, Any] = {
    "models": "smollm2",
    "data": ["random_tokens", "full_stops", "arithmetic:icl", "arithmetic:cot"],
    "methods": ["wanda", "sparsegpt", "magnitude"],
    "targets": [0.5, "2:4"],
    "seeds": [0, 1],
    "evaluate": LOSSES,
}


def asked(**changes: Any) -> Study:
    return Study(**{**GIVEN, **changes})


def problems(**changes: Any) -> list[tuple[str, str]]:
    """What is wrong with a study, given as a file would give it: also what Python's types
    forbid.
    """
    mistakes = Mistakes()
    read({**GIVEN, **changes}, mistakes)
    assert {p.line for p in mistakes.problems()} == {0}
    return [(p.where, p.message) for p in mistakes.problems()]


def of(study: Study) -> list[tuple[str, int, str, str]]:
    return [(labels.data, labels.seed, labels.method, labels.target) for labels in study.labels()]


def test_groups_are_grids_with_axes_replaced_and_each_cell_is_asked_once():
    groups = {
        "headline": {"method": "wanda", "target": 0.6, "seeds": [0, 1, 2]},
        "again": {"method": ["wanda", "magnitude"], "target": [0.6], "seeds": 0},
        "methods": {"data": ["random_tokens"], "method": "sparsegpt"},
    }
    cells = of(asked(groups=groups))
    assert len(set(cells)) == len(cells) == 1 + 1 + 4 * 3 + 2 * 2
    assert [c[2] for c in cells if not c[0]] == ["none", "magnitude"]
    assert [s for _, s, _, _ in cells[2:]] == sorted(s for _, s, _, _ in cells[2:])
    assert {c[3] for c in cells if c[2] == "sparsegpt"} == {"0.5", "2:4"}


def test_whole_numbers_of_numpy_are_whole_numbers():
    found = gathered({"seeds": np.arange(2), "samples": np.int64(4)})
    assert found == {"seeds": [0, 1], "samples": 4}
    assert [type(number) for number in (*found["seeds"], found["samples"])] == [int, int, int]


def test_a_file_by_two_paths_is_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.txt"
    file.write_text("a text\nanother text\n")
    found = problems(data=["mine.txt", "./mine.txt", str(file), "mine.txt@one"])
    assert [place for place, _ in found] == ["data[1]", "data[2]"]
    assert "it is the same as mine.txt (data[0])" in found[0][1]


def test_a_single_group_stands_for_a_list_of_one():
    study = asked(groups={"small": {"seeds": 0}, "large": {}})
    assert study.chosen("small") == study.chosen(["small"])


def test_a_group_may_ask_for_another_propagation():
    study = asked(
        groups={
            "own": {},
            "parity": {
                "data": "random_tokens",
                "method": ["wanda", "magnitude"],
                "propagate": "reference",
            },
        }
    )
    seen = {
        (q.cell.method, q.cell.propagate, q.recipe.propagate)
        for q in study.requests()
        if q.calibration
    }
    assert seen == {
        ("wanda", "dense", "dense"),
        ("sparsegpt", "arrival", "arrival"),
        ("wanda", "reference", "reference"),
    }
    assert (
        sum(labels.method == "magnitude" for labels in study.labels()) == 2
    )  # it looks at nothing, whatever the propagation


def test_an_axis_that_every_group_gives_need_not_stand_above_them():
    study = asked(data=(), groups={"a": {"data": "random_tokens"}, "b": {"sets": ["full_stops"]}})
    assert [c[0] for c in of(study) if c[1:3] == (0, "wanda") and c[3] == "0.5"] == [
        "random_tokens",
        "full_stops",
    ]
    assert "data:" not in study.as_yaml().partition("groups")[0]
    assert [
        where for where, _ in problems(data=(), groups={"a": {"data": "random_tokens"}, "b": {}})
    ] == ["data"]


def test_where_nothing_looks_at_data_none_is_needed():
    assert of(asked(data=[], methods="none", models=["one", "two"])) == [("", 0, "none", "0.0")] * 2
    assert of(asked(data=[], methods="magnitude", targets=0.5)) == [
        ("", 0, "none", "0.0"),
        ("", 0, "magnitude", "0.5"),
    ]
    looking = (
        {"methods": ["none", "wanda"]},
        {"methods": "magnitude", "allocation": "owl"},
        {"groups": {"a": {"method": "sparsegpt"}}},
    )
    for changes in looking:
        assert [
            where for where, _ in problems(**{"data": (), "methods": "magnitude", **changes})
        ] == ["data"]


def test_cells_that_match_every_key_are_left_out():
    left = of(
        asked(
            exclude=[
                {"method": "sparsegpt", "target": "2:4"},
                {"data": ["full_stops", "random_tokens"], "seed": 1},
            ]
        )
    )
    whole = of(asked())
    gone = [
        c
        for c in whole
        if c[2:] == ("sparsegpt", "2:4") or (c[0] in ("full_stops", "random_tokens") and c[1] == 1)
    ]
    assert left == [c for c in whole if c not in gone]
    assert ("", 0, "magnitude", "2:4") not in of(
        asked(exclude=[{"method": "magnitude", "target": "2:4"}])
    )


def test_what_readers_need_is_in_canonical_texts():
    study = asked(
        baseline="full_stops@many(separator='')",
        pools={
            "both": ["arithmetic", "arithmetic:cot@many"],
            "controls": ("random_tokens", "full_stops"),
        },
        primary=[
            {"name": "content", "compare": "both", "with": "controls"},
            {
                "compare": "arithmetic",
                "with": "full_stops",
                "on": "loss(tokens=10, source=python_docs)",
                "method": "sparsegpt(damp=0.01)",
            },
        ],
    )
    assert study.for_reading() == {
        "baseline": "full_stops",
        "pools": {
            "both": ["arithmetic:icl", "arithmetic:cot"],
            "controls": ["random_tokens", "full_stops"],
        },
        "primary": [
            {"name": "content", "compare": "both", "with": "controls"},
            {
                "name": "arithmetic:icl against full_stops",
                "compare": "arithmetic:icl",
                "with": "full_stops",
                "on": ["loss(source='python_docs', tokens=10)"],
                "method": ["sparsegpt"],
            },
        ],
    }
    assert asked().for_reading() == {"baseline": None, "pools": {}, "primary": []}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"models": ["a", "a"]}, "model[1]", "'a'"),
    ({"device": "gpu"}, "device", "'gpu'"),
    ({"statistics_gb": -1}, "statistics_gb", "-1"),
    ({"data": {"a": 1}}, "data", "{'a': 1}"),
    ({"data": ["arithmetic", "arithmetic:icl"]}, "data[1]", "'arithmetic:icl'"),
    ({"evaluate": ["loss", "loss(source=wikitext)"]}, "evaluate[1]", "loss"),
    ({"evaluate": "agreement(source=full_stops)"}, "evaluate[0]", "'full_stops'"),
    ({"allocation": "owll"}, "allocation", "'owll'"),
    ({"methods": "awq", "targets": "w4g64", "propagate": "reference"}, "propagate", "awq"),
    (
        {"targets": "w4g64", "groups": {"a": {"method": "awq", "propagate": "arrival"}}},
        "groups.a",
        "awq",
    ),
    ({"transform": "permute", "methods": "wanda", "targets": 0.5}, "target", "permute"),
    ({"groups": {"a": {"method": []}}}, "groups.a.method", "method"),
    ({"groups": ["a"]}, "groups", "['a']"),
    ({"exclude": [{"method": "magnitude", "seeds": 1}]}, "exclude[0]", "35"),
    ({"exclude": [{}]}, "exclude[0]", ""),
    ({"exclude": [{"target": [0.5, "2:4"]}]}, "exclude", "35"),
    ({"baseline": "full_stop"}, "baseline", "'full_stops'"),
    ({"pools": {"a": ["full_stops", "full_stops"]}}, "pools.a", "full_stops"),
    ({"pools": {"arithmetic": ["full_stops"]}}, "pools.arithmetic", "'arithmetic'"),
    ({"primary": [{"compare": "full_stops"}]}, "primary[0]", "'with'"),
    (
        {"primary": [{"compare": "full_stops", "with": "full_stops@many(separator='')"}]},
        "primary[0]",
        "full_stops",
    ),
    (
        {
            "primary": [{"compare": "full_stops", "with": "poool"}],
            "pools": {"pool": ["random_tokens"]},
        },
        "primary[0].with",
        "'pool'",
    ),
    ({"primary": [{**STOPS, "on": "loss(source=c4)"}]}, "primary[0].on", "c4"),
    ({"primary": [{**STOPS, "on": "loss"}]}, "primary[0].on", "'loss'"),
    ({"primary": [{**STOPS, "on": []}]}, "primary[0].on", ""),
    ({"primary": [{**STOPS, "on": [LOSSES[0], LOSSES[0]]}]}, "primary[0].on", "twice"),
    ({"primary": [{**STOPS, "method": "magnitude"}]}, "primary[0].method", "sparsegpt"),
    ({"primary": [{**STOPS, "model": []}]}, "primary[0].model", "model"),
    ({"primary": [STOPS] * 2}, "primary[1]", "primary[0]"),
    (
        {"primary": [STOPS, {"compare": STOPS["with"], "with": STOPS["compare"]}]},
        "primary[1]",
        "primary[0]",
    ),
    (
        {
            "primary": [
                STOPS,
                {**STOPS, "model": "smollm2", "on": [*LOSSES], "method": ["wanda", "sparsegpt"]},
            ]
        },
        "primary[1]",
        "primary[0]",
    ),
    (
        {"primary": [{**STOPS, "method": method} for method in ("wanda", ["wanda", "wanda"])]},
        "primary[1]",
        "primary[0]",
    ),
    ({"primary": [{**STOPS, "on": "loss(typo=none)"}]}, "primary[0].on", "typo"),
    (
        {
            "groups": {
                "a": {"data": "full_stops"},
                "b": {"data": "random_tokens", "method": "sparsegpt"},
            },
            "primary": [{**STOPS, "method": "wanda"}],
        },
        "primary[0]",
        "wanda",
    ),
]


@pytest.mark.parametrize(("changes", "where", "given"), WRONG, ids=range(len(WRONG)))
def test_mistakes_are_told_by_their_places_and_what_stands_there(
    changes: dict[str, Any], where: str, given: str
):
    found = problems(**changes)
    places = {where, where.removesuffix("[0]")}
    assert any(place in places and given in said for place, said in found), found


def test_an_axis_that_a_contrast_does_not_have_is_not_said_to_be_the_same_for_all():
    for key in ("data", "seeds", "allocation", "set"):
        ((where, said),) = problems(primary=[{**STOPS, key: 0}])
        assert where == f"primary[0].{key}"
        assert "whole study" not in said
        assert "perhaps you mean" not in said


def test_two_words_for_one_list_are_both_named():
    with pytest.raises(StudyError) as raised:
        Study(model="smollm2", data="c4", target=0.5, targets=0.6)
    (problem,) = raised.value.problems
    assert problem.where == "target"
    assert "targets" in problem.message


def test_a_target_that_a_method_does_not_accept_is_refused():
    found = problems(methods=["wanda", "rtn"], targets=[0.5, "w4g64"])
    assert [where for where, _ in found] == ["target", "target"]
    assert [said.partition(":")[0] for _, said in found] == [
        "rtn can't be asked for 0.5",
        "wanda can't be asked for w4g64",
    ]
    ((where, message),) = problems(
        groups={
            "fine": {"method": "wanda", "target": 0.5},
            "wrong": {"method": "rtn", "target": [0.3, "w8"]},
        }
    )
    assert where == "groups.wrong"
    assert "0.3" in message


def test_methods_that_remove_and_round_stand_in_groups_or_are_taken_apart_by_exclude():
    pairs = {("wanda", "0.5"), ("wanda", "2:4"), ("rtn", "w4g64")}
    grouped = asked(
        groups={"removed": {"method": "wanda"}, "rounded": {"method": "rtn", "target": "w4g64"}}
    )
    left_out = [
        {"method": "rtn", "target": [0.5, "2:4"]},
        {"method": "wanda", "target": "w4g64"},
    ]
    excluded = asked(methods=["wanda", "rtn"], targets=[0.5, "2:4", "w4g64"], exclude=left_out)
    for study in (grouped, excluded):
        assert {(of.method, of.target) for of in study.labels() if of.method != "none"} == pairs
        assert [
            (of.data, of.seed, of.propagate) for of in study.labels() if of.method == "rtn"
        ] == [("", 0, "")], "one run for all data"
        assert {str(q.recipe.target) for q in study.requests()} == {"0.0", "0.5", "2:4", "w4g64"}
