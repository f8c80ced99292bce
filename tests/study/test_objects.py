"""Objects stand where names do: in calibration sets, in the whole jobs, and in studies, with
workers too.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant import CalibrationSet, Study, prune
from calibrant.allocations import allocations
from calibrant.allocations.least_error import LeastError
from calibrant.data import as_source, parse_source
from calibrant.data.inspect import inspect, survey
from calibrant.errors import DataError, SpecError, StudyError
from calibrant.evaluators import evaluate, evaluators
from calibrant.evaluators.loss import Loss
from calibrant.lab.report import report
from calibrant.lab.study import plan, read_study
from calibrant.lab.study.sending import packed, unpacked
from calibrant.methods import MatrixMethod, methods
from calibrant.methods.pruning.wanda import Wanda
from calibrant.results import Store
from calibrant.spec import canonical, identity, reads_back
from calibrant.spec.registry import Registry
from calibrant.targets import parse_target
from calibrant.testing import tiny_folder, tiny_tokenizer
from calibrant.transforms import transforms

from tests.study.mortal import worked
from tests.study.own import Counted, Counting, Leading, OwnLoss
from tests.study.small import asked, results

BUDGET: dict[str, Any] = {"samples": 4, "length": 32}


def test_a_calibration_set_of_a_source_reads_back_from_its_text():
    own = CalibrationSet(Counting(first=7), **BUDGET)
    assert str(own) == "Counting(first=7)"
    assert own.parts[0].source == Counting(first=7)
    mixed = CalibrationSet("0.5*Counting(first=7) + 0.5*random_tokens", **BUDGET)
    assert [str(part.source) for part in mixed.parts] == ["Counting(first=7)", "random_tokens"]
    assert (
        own.tokens(tiny_tokenizer()).fingerprint
        == CalibrationSet(str(own), **BUDGET).tokens(tiny_tokenizer()).fingerprint
    )
    assert (
        CalibrationSet(parse_source("cluster(source='c4')")).expr
        == CalibrationSet("cluster(source='c4')").expr
    )


def test_the_whole_jobs_take_objects(tmp_path: Path):
    model = str(tiny_folder(tmp_path / "tiny", num_hidden_layers=2))
    done = prune(model, data=Counting(), method=Leading(scale=0.5), target=0.5, **BUDGET)
    assert done.record.run.method == {
        "spec": "Leading",
        "class": "tests.study.own:Leading",
        "revision": 1,
        "scale": 0.5,
    }
    assert (
        done.record.run.id
        == prune(
            model, data=CalibrationSet(Counting(), **BUDGET), method=Leading(scale=0.5), target=0.5
        ).record.run.id
    )
    assert (
        done.record.run.id
        != prune(model, data=Counting(), method="wanda", target=0.5, **BUDGET).record.run.id
    )
    (measured,) = evaluate(model, tasks=[OwnLoss("python_docs", tokens=200, length=64)])
    assert measured.score.value > 0
    assert inspect(Counting(), **BUDGET).tokens > 0
    (check, *_) = survey([Counting()], tiny_tokenizer(), tokens=64, length=32)
    assert check.source == "Counting"


def test_a_study_of_objects_is_that_of_their_texts(given: dict[str, str], tmp_path: Path):
    loss = Loss(given["verse"], tokens=200, length=64)
    of_objects = Study(
        model=given["model"],
        data=[CalibrationSet("random_tokens", **BUDGET), Counting()],
        method=[Wanda(), Leading()],
        target=parse_target("0.5"),
        evaluate=[loss, OwnLoss(given["verse"], tokens=200, length=64)],
        dtype="float32",
        **BUDGET,
    )
    assert of_objects.methods == ("wanda", "Leading")
    assert of_objects.data == ("random_tokens", "Counting")
    assert of_objects.evaluators()[str(loss)] == loss
    measures = list(of_objects.evaluators())
    assert of_objects == asked(
        given,
        data=["random_tokens", "Counting"],
        methods=["wanda", "Leading"],
        targets="0.5",
        evaluate=measures,
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert of_objects.run(one).failures == {}
    assert worked(of_objects, two).failures == {}
    assert results(one) == results(two)
    (ranking,) = report(one).comparison.rankings
    assert {entry.name for entry in (*ranking.entries, *ranking.baselines)} == {
        "random_tokens",
        "Counting",
        "Leading",
    }
    forms = [record.run.method for record in Store(one, create=False).records()]
    assert "tests.study.own:Leading" in [form.get("class") for form in forms]


def test_a_method_is_built_once(given: dict[str, str], tmp_path: Path):
    """However often it is named: in groups, in contrasts, and in what is left out."""
    methods.learn(Counted)
    text = "Counted(scale=0.5)"
    groups = {"all": {"data": given["prose"]}, "again": {"method": text, "target": [0.5, 0.6]}}
    written = {
        "model": given["model"],
        "data": ["random_tokens", "full_stops"],
        "methods": [text, "wanda"],
        "groups": groups,
        "exclude": [{"method": text, "target": 0.6}],
        "evaluate": f"loss(source={given['verse']!r}, tokens=60, length=32)",
        **BUDGET,
    }
    Counted.made.clear()
    study = Study(**written)
    assert {str(request.recipe.method) for request in study.requests()} == {"none", text, "wanda"}
    assert plan(study, tmp_path / "store", probed=False).runs.asked == len(study.labels())
    assert not study.run(tmp_path / "store").failures
    assert Counted.made == [0.5]
    (tmp_path / "study.yaml").write_text(study.as_yaml())
    assert read_study(tmp_path / "study.yaml").requests() == study.requests()
    assert Counted.made == [0.5, 0.5]
    given_object = Counted(scale=0.25)
    assert Study(**{**written, "methods": [given_object], "groups": {}, "exclude": []}).requests()
    assert Counted.made == [0.5, 0.5, 0.25]
    assert unpacked(packed(study.workload())).requests == study.workload().requests
    assert Counted.made == [0.5, 0.5, 0.25, 0.5]


def test_an_object_is_what_its_text_says(given: dict[str, str]):
    """A whole number in the place of another one is read as its text would be."""
    of_object = asked(given, methods=[Leading(scale=2)]).requests()[-1].recipe.method
    of_text = asked(given, methods=["Leading(scale=2)"]).requests()[-1].recipe.method
    assert identity(of_object) == identity(of_text) == identity(Leading(scale=2.0))
    assert identity(of_text) == identity(Leading(scale=2))


def test_a_set_with_a_budget_of_its_own_is_refused_in_a_study():
    for own in ({"samples": 4}, {"seed": 1}):
        with pytest.raises(StudyError, match="random_tokens"):
            Study(model="m", data=CalibrationSet("random_tokens", **own), samples=8)


def test_mistakes_in_objects_are_told_with_all_others():
    drawn = CalibrationSet("random_tokens", seed=1)
    with pytest.raises(StudyError) as raised:
        Study(model="m", data=[drawn, "c5"], methods=[Leading(scale=math.inf), "wanda", Wanda()])
    places = [problem.where for problem in raised.value.problems]
    assert places == ["data[0]", "data[1]", "method[0]", "method[2]"]


@pytest.mark.parametrize(
    "registry", [methods, allocations, transforms, evaluators], ids=lambda registry: registry.noun
)
def test_what_reads_back_is_told_without_building_it(registry: Registry):
    """And it is told of nothing that would be another object."""
    told = 0
    for name in registry.names():
        try:
            thing = registry.build(name)
        except SpecError:  # one that needs a parameter
            continue
        told += reads_back(thing)
        again = registry.build(str(thing))
        assert not reads_back(thing) or identity(again) == identity(thing)
    assert told > 0
    others = (
        Leading(scale=1),
        Leading(scale=math.nan),
        LeastError(method=Wanda()),
        CalibrationSet("c4").parts[0].source,
    )
    assert [reads_back(thing) for thing in others] == [False, False, False, True]


def test_what_cannot_travel_is_said_before_any_worker_starts(given: dict[str, str], tmp_path: Path):
    @dataclass(frozen=True, repr=False)
    class Here(Leading):
        """A class that no other process can import."""

    study = asked(given, methods=[Here()])
    with pytest.raises(SpecError, match="Here"):
        study.run(tmp_path / "store", workers=2)


TEXTS = [f"A text of a user's own, number {number}, which says little." for number in range(20)]


def of_texts(given: dict[str, str], **changes: Any) -> Study:
    """A study of a list of texts, with a name for it, and of token ids."""
    sets = [{"name": "mine", "data": TEXTS}, torch.full((4, 16), 9), "random_tokens"]
    return asked(given, data=sets, methods=["wanda"], **changes)


def test_a_study_compares_data_that_came_as_objects(given: dict[str, str], tmp_path: Path):
    study = of_texts(given)
    assert study.for_reading()["names"] == {str(as_source(TEXTS)): "mine"}
    assert study.run(tmp_path / "store").failures == {}
    again = asked(given, data=[CalibrationSet(TEXTS, **BUDGET), "random_tokens"], methods=["wanda"])
    finished = again.run(tmp_path / "store")
    assert (finished.computed, finished.failures) == (0, {})


def test_in_a_study_the_budget_of_objects_is_exact(given: dict[str, str]):
    for data in (TEXTS, CalibrationSet(TEXTS, length=32)):
        (calibration,) = asked(given, data=[data], samples=128).workload().calibrations.values()
        with pytest.raises(DataError, match="too little"):
            calibration.tokens(tiny_tokenizer())


def test_workers_are_sent_the_rows_of_objects(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    work = of_texts(given).workload()
    tokenizer = tiny_tokenizer()
    fingerprints = [data.tokens(tokenizer).fingerprint for data in work.calibrations.values()]
    message = packed(work)
    # A worker has nothing of what this process was given.
    monkeypatch.setattr("calibrant.data.given._CONTENTS", {})
    arrived = unpacked(message).calibrations.values()
    assert [data.tokens(tokenizer).fingerprint for data in arrived] == fingerprints


@pytest.mark.slow  # two processes
def test_workers_calibrate_on_objects(given: dict[str, str], tmp_path: Path):
    alone = tmp_path / "alone"
    shared = tmp_path / "shared"
    assert of_texts(given).run(alone).failures == {}
    assert of_texts(given).run(shared, workers=2).failures == {}
    assert results(alone) == results(shared)


def test_an_object_that_is_no_data_is_a_mistake_with_its_place(given: dict[str, str]):
    with pytest.raises(StudyError) as raised:
        asked(given, data=["random_tokens", [1.5], {"name": "empty", "data": []}])
    assert [problem.where for problem in raised.value.problems] == ["data[1]", "data[2].data"]


def test_a_class_that_cannot_be_written_is_said():
    @dataclass
    class Loose(MatrixMethod):
        """One whose fields may change."""

        def compress(self, weight: Any, seen: Any, target: Any) -> Any:
            """Isn't called."""

    @dataclass(frozen=True, repr=False)
    class Opaque(Leading):
        anything: object = None

    for one, name in ((Loose(), "Loose"), (Opaque(anything=object()), "Opaque")):
        with pytest.raises(SpecError) as raised:
            methods.text(one)
        assert raised.value.subject.startswith(name)
    assert canonical(Leading())["class"] == "tests.study.own:Leading"


def test_two_classes_of_one_name_are_said():
    first = type("Leading", (Leading,), {"__module__": "elsewhere", "__doc__": "Another."})
    methods.text(Leading())
    with pytest.raises(SpecError) as raised:
        methods.text(first())
    assert raised.value.subject == "Leading"
