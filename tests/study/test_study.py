"""A study's runs: each as if it were alone, none twice, failures with their own records, and
nothing that is measured is calibrated on.
"""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant.compress import prune
from calibrant.data import parse_source
from calibrant.errors import DataError, ModelError, OutputError, SpecError
from calibrant.evaluators import evaluate
from calibrant.lab.report import report
from calibrant.lab.study import Study, StudyResult, driver, workers
from calibrant.lab.study.known import known_cells
from calibrant.lab.study.loaded import LoadedModel
from calibrant.lab.study.plan import plan
from calibrant.methods.pruning.wanda import Wanda
from calibrant.results import MASK, PROFILE, STUDY, Store, is_store, pack, verify
from calibrant.spec import identity
from calibrant.system.durable import read_json
from calibrant.testing import tiny_folder

from tests.study.small import answers, asked, kept_files, results


class Counted:
    """Counts the compressions and measurements of a study, and may stop it at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int = -1) -> None:
        self.compressed: list[str] = []
        self.measured: list[str] = []
        compress, timed = driver.compress, driver.timed

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._step(stop_at)
            self.compressed.append(kwargs["data"])
            return compress(*args, **kwargs)

        def measured(*args: Any) -> Any:
            self._step(stop_at)
            self.measured.append(str(args[0]))
            return timed(*args)

        monkeypatch.setattr(driver, "compress", counted)
        monkeypatch.setattr(driver, "timed", measured)

    def _step(self, stop_at: int) -> None:
        if len(self.compressed) + len(self.measured) == stop_at:
            raise KeyboardInterrupt


def test_everything_asked_for_is_in_the_store(given: dict[str, str], whole: Path):
    store, study = Store(whole, create=False), asked(given)
    cells = store.cells()
    assert [(of.data, of.method, of.target) for of in cells] == [
        (of.data, of.method, of.target) for of in study.labels()
    ]
    for cell in cells:
        record = store.record(cell.run)
        assert record is not None
        assert record.sparsity == (0 if cell.method == "none" else 0.5)
        assert set(cell.measures.values()) == set(store.measurements(cell.run))
        assert record.provenance["seconds"]["compress"] > 0
        if cell.data:
            way = {"sparsegpt": ("arrival", False), "wanda": ("dense", True)}[cell.method]
            assert (record.run.propagate, store.file(cell.run, "mask.npz") is not None) == way, (
                "what updates weights keeps no mask"
            )
    assert (whole / "study.yaml").read_text() == study.as_yaml()
    assert replace(study, propagate="reference").propagation("wanda") == "reference"


def test_each_run_is_measured_as_if_it_were_alone(given: dict[str, str], whole: Path):
    """What came before a run in the study leaves no trace in it."""
    study = asked(given)
    cell = next(
        c
        for c in Store(whole, create=False).cells()
        if c.data == "random_tokens" and c.method == "wanda"
    )
    pruned = prune(
        given["model"],
        data="random_tokens",
        method="wanda",
        target=0.5,
        samples=4,
        length=32,
        propagate="dense",
        dtype="float32",
    )
    assert pruned.record.run.id == cell.run
    alone = evaluate(pruned.opened, tasks=list(study.evaluate))
    kept = Store(whole, create=False).measurements(cell.run)
    assert [m.score for m in alone] == [
        kept[cell.measures[str(e)]].score for e in study.evaluators()
    ]


def test_asking_again_computes_nothing_and_a_damaged_index_is_made_anew(
    given: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    before, told, seen = results(store), answers(store), list[set[tuple[str, str]]]()
    counted = Counted(monkeypatch)
    finished = asked(given).run(store, lambda *_: seen.append(answers(store)))
    assert (counted.compressed, counted.measured) == ([], [])
    assert (finished.computed, finished.found) == (0, 24)
    assert len(seen) > len(finished.cells)
    assert all(there == told for there in seen), (
        "what the grid told before is told while it goes on"
    )
    with Store(store) as harmed, harmed.live.database.writing("harm it") as connection:
        done = connection.execute("UPDATE documents SET content = '{' WHERE kind = 'index'")
        assert done.rowcount == 1
    assert asked(given).run(store).cells == finished.cells
    assert results(store) == before


def test_the_index_is_not_written_for_what_it_tells_already(
    given: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    write, written = Store.write_cells, list[int]()

    def counted(*args: Any) -> None:
        written.append(1)
        write(*args)

    monkeypatch.setattr(Store, "write_cells", counted)
    asked(given).run(store)
    assert len(written) == 2, "at the beginning and at the end"


def test_an_edited_study_tells_meanwhile_what_it_told_before(
    given: dict[str, str], whole: Path, tmp_path: Path
):
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    study, seen = asked(given), list[set[tuple[str, str]]]()

    def note(*_: Any) -> None:
        seen.append(answers(store))

    told = answers(store)
    replace(study, baseline="full_stops").run(store, note)
    assert all(there == told for there in seen)
    seen.clear()
    fewer = replace(study, evaluate=study.evaluate[:1])
    finished = fewer.run(store, note)
    assert finished.computed == 0
    left = answers(store)
    assert left < told
    assert all(there in (told, left) for there in seen)
    seen.clear()
    replace(fewer, samples=3, methods="wanda").run(store, note)
    first = next(there for there in seen if there != left)
    dense = finished.cells[0].run
    assert {run for run, _ in first} == {dense}, "the others are other runs"


def test_an_interrupt_leaves_an_index_of_all_that_is_done(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is written seldom where that takes long."""
    monkeypatch.setattr("calibrant.lab.study.workers.PAUSES", 1e9)
    Counted(monkeypatch, 11)
    with pytest.raises(KeyboardInterrupt):
        asked(given).run(tmp_path)
    with Store(tmp_path, create=False) as store:
        told = {cell.run for cell in store.index().cells if cell.run}
        assert len(told) > 2
        assert told >= set(store.ids())


# Numbers of another study


def of_two_sets(given: dict[str, str]) -> Study:
    """A study of two runs on data, measured once."""
    study = asked(given, data=["random_tokens", "full_stops"], methods="wanda")
    return replace(study, evaluate=study.evaluate[:1])


def out_of_reach(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    """Have one set give no tokens any more, as one of the hub without a network."""
    tokens = LoadedModel.tokens

    def reached(loaded: LoadedModel, calibration: Any) -> Any:
        if str(calibration) == data:
            raise DataError(f"{data} can't be reached", subject=data)
        return tokens(loaded, calibration)

    monkeypatch.setattr(LoadedModel, "tokens", reached)


def recorded_windows(finished: StudyResult) -> list[int]:
    """How many windows each run on data was calibrated on that a study's cells name."""
    windows: list[int] = []
    with Store(finished.folder, create=False) as store:
        for cell in store.cells():
            record = store.record(cell.run)
            if cell.data and record is not None:
                windows.append(record.data_facts["windows"])
    return windows


def test_an_edited_study_that_is_interrupted_at_once_keeps_no_number_of_the_old_one(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = of_two_sets(given)
    assert recorded_windows(study.run(tmp_path / "store")) == [4, 4]
    edited = replace(study, samples=3)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver, "open_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            edited.run(tmp_path / "store")
    with Store(tmp_path / "store", create=False) as store:
        assert [bool(cell.run) for cell in store.cells()] == [True, False, False]
    out_of_reach(monkeypatch, "random_tokens")
    finished = edited.run(tmp_path / "store")
    assert recorded_windows(finished) == [3]
    assert [bool(cell.run) for cell in finished.cells] == [True, False, True]
    (ranking,) = report(finished).rankings
    assert [entry.name for entry in ranking.entries] == ["full_stops"]
    (missing,) = ranking.missing
    assert "random_tokens can't be reached" in missing


def test_an_index_of_another_study_beside_the_same_text_is_not_believed(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As an interrupted start of an older version left it, or another process on the store."""
    study = of_two_sets(given)
    study.run(tmp_path / "store")
    edited = replace(study, samples=3)
    with Store(tmp_path / "store") as store:
        store.write_text(STUDY, edited.as_yaml())
    out_of_reach(monkeypatch, "random_tokens")
    assert recorded_windows(edited.run(tmp_path / "store")) == [3]


def test_what_is_known_is_of_the_methods_own_revision(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data="full_stops", methods="wanda")
    study.run(tmp_path / "store")
    monkeypatch.setattr(Wanda, "revision", Wanda.revision + 1)
    with Store(tmp_path / "store", create=False) as store:
        assert list(known_cells(store, study.workload(), range(2))) == [0]


def test_what_is_known_is_of_the_type_that_this_machine_takes(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data="full_stops", methods="wanda", dtype="auto")
    work = study.workload()
    study.run(tmp_path / "store")
    with Store(tmp_path / "store", create=False) as store:
        assert len(known_cells(store, work, range(2))) == 2
        monkeypatch.setattr("calibrant.lab.study.known.resolve_dtype", lambda *_: torch.float16)
        assert known_cells(store, work, range(2)) == {}


@pytest.mark.parametrize("stop_at", [1, 11])
def test_interrupted_and_resumed_gives_the_same_and_nothing_twice(
    given: dict[str, str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
):
    with monkeypatch.context() as patch:
        first = Counted(patch, stop_at)
        with pytest.raises(KeyboardInterrupt):
            asked(given).run(tmp_path)
    second = Counted(monkeypatch)
    assert asked(given).run(tmp_path).failures == {}
    assert results(tmp_path) == results(whole)
    assert len(first.compressed) + len(second.compressed) == 8 + (
        stop_at == 1
    )  # runs without a mask, stopped before they were measured
    assert len(first.measured) + len(second.measured) == 16


def test_a_study_that_grows_computes_only_what_is_new(
    given: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data=["random_tokens"], methods=["wanda", "magnitude"])
    replace(study, evaluate=study.evaluate[:1]).run(tmp_path / "grown")
    counted = Counted(monkeypatch)
    study.run(tmp_path / "grown")
    assert counted.compressed == [
        "",
        "",
    ]  # the dense model and magnitude look at no data and keep no mask: they cost next to nothing
    assert counted.measured == [str(e) for e in list(study.evaluators())[1:]] * 3
    asked(given, data=["random_tokens", "full_stops"], methods=["wanda", "magnitude"]).run(
        tmp_path / "grown"
    )
    assert counted.compressed[2:] == ["full_stops"]
    grown, at_once = results(tmp_path / "grown"), results(whole)
    measures = {name: content for name, content in grown.items() if name.startswith("measured")}
    assert len(measures) == 8
    assert measures.items() <= at_once.items()


def test_a_group_is_computed_first_and_the_rest_later_as_if_at_once(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    groups = {
        "control": {"data": "random_tokens"},
        "own": {"data": given["prose"], "seeds": [0, 1]},
        "none": {"method": "magnitude"},
    }
    study = asked(given, groups=groups, methods=["wanda"])
    for one, group in ((study, "contrl"), (asked(given), "control")):
        with pytest.raises(SpecError) as raised:
            one.run(tmp_path / "parts", groups=[group])
        assert raised.value.subject == group
    assert not (tmp_path / "parts").exists()
    counted = Counted(monkeypatch)
    told: list[tuple[int, int]] = []

    def note(what: str, done: int, total: int) -> None:
        if what == "study":
            told.append((done, total))

    study.run(tmp_path / "parts", note, groups=["control"])
    assert told == [(0, 2), (1, 2), (2, 2), (2, 2)]  # the dense model and one run
    assert counted.compressed == ["", "random_tokens"]
    with Store(tmp_path / "parts", create=False) as store:
        assert [(of.data, of.seed, of.method) for of in store.cells()] == [
            (of.data, of.seed, of.method) for of in study.labels()
        ]
        assert [bool(of.data) for of in store.cells() if store.record(of.run)] == [False, True]
    study.run(tmp_path / "parts")
    assert counted.compressed[2:] == ["", given["prose"], given["prose"]]
    study.run(tmp_path / "at_once")
    assert results(tmp_path / "parts") == results(tmp_path / "at_once")


def test_without_masks_and_quotes_a_run_is_pruned_again_and_comes_out_the_same(
    given: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data=["random_tokens"], methods=["wanda"], masks=False, quotes=False)
    replace(study, evaluate=study.evaluate[:1]).run(tmp_path)
    counted = Counted(monkeypatch)
    study.run(tmp_path)
    assert counted.compressed == ["", "random_tokens"]
    assert not kept_files(tmp_path, MASK)
    again = {
        name: content for name, content in results(tmp_path).items() if name.startswith("measured")
    }
    assert again.items() <= results(whole).items()
    ((run, path),) = kept_files(tmp_path, PROFILE).items()
    without, with_quotes = read_json(path), read_json(kept_files(whole, PROFILE)[run])
    assert (bool(without["examples"]), bool(with_quotes["examples"])) == (False, True)
    assert without["counted"], "what it says of the windows stays"


# Failures


def test_what_fails_is_recorded_and_the_rest_goes_on(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compress, study = driver.compress, asked(given, methods=["wanda", "magnitude"])

    def failing(*args: Any, **kwargs: Any) -> Any:
        if kwargs["data"] == "random_tokens":
            raise RuntimeError("out of memory at block 1")
        return compress(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "compress", failing)
        finished = study.run(tmp_path)
    ((failed_id, failure),) = finished.failures.items()
    assert failed_id == next(c.run for c in finished.cells if c.data == "random_tokens")
    assert failure["error"] == "RuntimeError: out of memory at block 1"
    assert failure["what"] == "wanda 0.5 on random_tokens"
    assert any("failing" in line for line in failure["traceback"])
    assert len(Store(tmp_path, create=False).records()) == 4
    (ranking,) = report(tmp_path).rankings
    assert "random_tokens" not in [e.name for e in ranking.entries]
    assert "out of memory at block 1" in ranking.missing[0]
    again = study.run(tmp_path)
    assert (again.computed, list(again.failures)) == (
        0,
        [failed_id],
    )  # not tried again unasked: it would cost its time at each resume
    assert study.run(tmp_path, retry=True).failures == {}


def test_a_measurement_that_fails_costs_no_other(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    timed, study = driver.timed, asked(given, data=["random_tokens"], methods="wanda")
    bad = next(iter(study.evaluators()))

    def failing(task: Any, *others: Any) -> Any:
        if str(task) == bad:
            raise ValueError("the loss is nan")
        return timed(task, *others)

    monkeypatch.setattr(driver, "timed", failing)
    finished = study.run(tmp_path)
    assert set(finished.failures) == {c.measures[bad] for c in finished.cells}
    assert finished.computed == 2 + 2


def test_a_measurement_that_is_refused_is_measured_anew_and_does_not_keep_a_store_from_being_packed(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data=["random_tokens"], methods="wanda")

    def refusing(*_: Any) -> Any:
        raise ValueError("its score is no number (nan)")

    with monkeypatch.context() as patch:
        patch.setattr("calibrant.evaluators._measuring.as_kept", refusing)
        finished = study.run(tmp_path)
    assert len(finished.failures) == 2 + 2
    with Store(tmp_path) as store:
        assert store.live.database.rows("SELECT * FROM journal") == []
    pack(tmp_path, tmp_path / "packed")
    again = study.run(tmp_path, retry=True)
    assert (again.computed, again.failures) == (2 + 2, {})


def test_a_set_that_gives_too_little_and_a_model_that_is_missing_are_failures_of_their_own(
    given: dict[str, str], tmp_path: Path
):
    short, gone = tmp_path / "short.jsonl", str(tmp_path / "gone.gguf")
    short.write_text('{"text": "hello there"}')
    study = asked(
        given, models=[given["model"], gone], data=[str(short), "random_tokens"], methods="wanda"
    )
    finished = study.run(tmp_path / "store")
    assert [bool(c.run) for c in finished.cells] == [True, False, True, False, False, False]
    assert [f["what"] for f in finished.failures.values() if f["cell"][0] != gone] == [
        f"wanda 0.5 on {short}"
    ]
    assert len(finished.failures) == 4
    (ranking,) = report(finished).rankings
    assert any("short.jsonl" in missing for missing in ranking.missing)
    with pytest.raises(ModelError) as raised:
        replace(study, models=[gone]).run(tmp_path / "other")
    assert raised.value.subject == gone


def test_one_of_several_models_that_has_no_room_costs_no_other(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large = str(tiny_folder(tmp_path / "large", num_hidden_layers=1))
    opening = driver.open_model

    def tight(model: str, *others: Any) -> Any:
        if model == large:
            raise MemoryError("no room for it")
        return opening(model, *others)

    monkeypatch.setattr(driver, "open_model", tight)
    study = asked(given, models=[large, given["model"]], data="full_stops", methods="wanda")
    finished = study.run(tmp_path / "store")
    assert [bool(cell.run) for cell in finished.cells] == [False, False, True, True]
    reasons = {failure["error"] for failure in finished.failures.values()}
    assert reasons == {"MemoryError: no room for it"}
    with pytest.raises(MemoryError):
        replace(study, models=[large]).run(tmp_path / "other")


def two_models(given: dict[str, str], folder: Path, **changes: Any) -> tuple[str, Study]:
    """Another model, and a study of both, each in a group of its own."""
    large = str(tiny_folder(folder / "large", num_hidden_layers=1))
    groups = {"large": {"model": large}, "small": {"model": given["model"]}}
    usual: dict[str, Any] = {"data": "full_stops", "methods": "wanda", "groups": groups}
    study = asked(given, models=[large, given["model"]], **{**usual, **changes})
    return large, replace(study, evaluate=study.evaluate[:1])


def without_room(monkeypatch: pytest.MonkeyPatch, large: str) -> list[str]:
    """Have one model not open. Which are tried is returned, and grows."""
    opening = driver.open_model
    tried: list[str] = []

    def tight(model: str, *others: Any) -> Any:
        tried.append(model)
        if model == large:
            raise MemoryError("no room for it")
        return opening(model, *others)

    monkeypatch.setattr(driver, "open_model", tight)
    return tried


def test_a_model_that_has_no_room_fails_only_what_is_asked_for_and_lacks(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large, study = two_models(given, tmp_path)
    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        tried = without_room(patch, large)
        assert study.run(store, groups="small").failures == {}
        assert tried.count(large) == 1
    assert study.run(store).computed == 4, "with room the rest is done, without being asked again"
    more = replace(study, data=["full_stops", "random_tokens"])
    with monkeypatch.context() as patch:
        tried = without_room(patch, large)
        assert study.run(store).failures == {}
        finished = more.run(store)
        (failure,) = finished.failures.values()
        assert failure["cell"] == list(finished.cells[2].labels)
        assert failure["cell"][:2] == [large, "random_tokens"]
        lacking = [missing for ranking in report(finished).rankings for missing in ranking.missing]
        assert len(lacking) == 1
        assert "no room for it" in lacking[0]
    # The dense model is looked for all the same, so the model is open by then.
    assert more.run(store).failures == {}


def test_a_model_without_room_is_not_tried_again_where_all_of_it_failed(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large, study = two_models(given, tmp_path)
    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        without_room(patch, large)
        assert len(study.run(store).failures) == 2
    tried = without_room(monkeypatch, "")
    assert len(study.run(store).failures) == 2
    assert large not in tried
    assert study.run(store, retry=True).failures == {}


def test_one_that_has_a_model_open_goes_on_though_another_has_no_room_for_it(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large, study = two_models(given, tmp_path, data=["full_stops", "random_tokens"])
    store = tmp_path / "store"
    # The other learns from the index that the dense run is there, so that is written at once.
    monkeypatch.setattr(workers, "PAUSES", 0)
    compress = driver.compress
    others: list[StudyResult] = []

    def beside(opened: Any, *args: Any, **told: Any) -> Any:
        if told["data"] == "full_stops" and opened.name == large and not others:
            with monkeypatch.context() as patch:
                without_room(patch, large)
                others.append(study.run(store))
        return compress(opened, *args, **told)

    monkeypatch.setattr(driver, "compress", beside)
    finished = study.run(store)
    failed = [failure["cell"][1] for failure in others[0].failures.values()]
    assert sorted(failed) == ["full_stops", "random_tokens"], "the dense run was there"
    assert finished.failures == {}
    assert all(Store(store, create=False).has_record(cell.run) for cell in finished.cells)
    assert Store(store, create=False).failures() == {}


def test_what_is_finished_does_not_fail_for_data_that_are_out_of_reach_by_now(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = of_two_sets(given)
    first = study.run(tmp_path / "store")
    out_of_reach(monkeypatch, "random_tokens")
    again = study.run(tmp_path / "store")
    assert (again.cells, again.failures) == (first.cells, {})
    more = replace(study, targets=[0.5, 0.25]).run(tmp_path / "store")
    failed = [failure["what"] for failure in more.failures.values()]
    assert failed == ["wanda 0.25 on random_tokens"]


def test_a_run_that_could_not_be_brought_back_is_no_failure_once_it_was(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data="full_stops", methods="wanda")
    store = tmp_path / "store"
    replace(study, evaluate=study.evaluate[:1]).run(store)

    def full(*_: Any) -> None:
        raise MemoryError("no room for the mask")

    with monkeypatch.context() as patch:
        patch.setattr(LoadedModel, "apply", full)
        finished = study.run(store)
    run = finished.cells[1].run
    assert list(finished.failures) == [run]
    assert list(study.run(store).failures) == [run], "it isn't tried again without a request"
    again = study.run(store, retry=True)
    assert (again.computed, again.failures) == (1, {})
    # An older version left such failures.
    with Store(store) as opened:
        opened.add_failure(run, finished.failures[run])
    assert study.run(store).failures == {}


def test_a_run_whose_mask_can_not_be_read_is_compressed_again(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data="full_stops", methods="wanda")
    replace(study, evaluate=study.evaluate[:1]).run(tmp_path / "store")
    fresh = study.run(tmp_path / "fresh")

    def cut(*_: Any) -> Any:
        raise ValueError("it is cut")

    monkeypatch.setattr(LoadedModel, "_packed_bits", cut)
    counted = Counted(monkeypatch)
    assert study.run(tmp_path / "store").failures == fresh.failures == {}
    assert "full_stops" in counted.compressed
    assert results(tmp_path / "store") == results(tmp_path / "fresh")


def test_a_failure_names_its_cell_with_the_propagation_and_is_of_what_was_asked(
    given: dict[str, str], tmp_path: Path
):
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "hello there"}')
    groups = {way: {"propagate": way} for way in ("arrival", "reference")}
    study = asked(given, data=str(short), methods="sparsegpt", dtype="auto", groups=groups)
    finished = study.run(tmp_path / "store")
    asked_of = [cell.labels for cell in finished.cells if cell.data]
    cells = [tuple(failure["cell"]) for failure in finished.failures.values()]
    assert sorted(cells) == sorted(asked_of)
    assert {labels[-1] for labels in cells} == set(groups)
    facts = report(tmp_path / "store").facts
    assert len(facts.failures) == 2


def test_ids_of_failures_stay_and_tell_apart_what_is_unusual(given: dict[str, str]):
    study = asked(given, data="full_stops", methods="sparsegpt", dtype="auto")
    (request,) = [one for one in study.requests() if one.calibration is not None]
    parts = [request.model, repr(request.calibration), request.recipe.method, "0.5"]
    usual = request.provisional("auto", "auto")
    # As it was before types, devices, transforms and propagations were told apart.
    assert usual == identity(parts)
    assert replace(study, propagate="arrival").requests()[-1].provisional("auto", "auto") == usual
    others = {usual}
    for dtype, device in (("float32", "auto"), ("auto", "cpu"), ("float32", "cpu")):
        others.add(request.provisional(dtype, device))
    for changes in ({"propagate": "reference"}, {"transforms": ["rotate"]}):
        changed: Any = replace(study, **changes)
        others.add(changed.requests()[-1].provisional("auto", "auto"))
    assert len(others) == 6


def test_what_failed_and_is_asked_no_more_is_no_failure_of_the_study(
    given: dict[str, str], tmp_path: Path
):
    short, store = tmp_path / "short.jsonl", tmp_path / "store"
    short.write_text('{"text": "hello there"}')
    study = asked(given, data=[str(short), "random_tokens"], methods="wanda")
    for data, failed in ((study.data, 1), (["random_tokens"], 0)):
        changed = replace(study, data=data)
        assert len(changed.run(store).failures) == failed
        assert plan(changed, store, probed=False).failed == failed
        assert len(report(store).facts.failures) == failed


def test_a_full_disk_ends_the_study(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> Any:
        raise OutputError("the disk is full", subject=str(tmp_path))

    monkeypatch.setattr(Store, "add_record", full)
    with pytest.raises(OutputError) as raised:
        asked(given).run(tmp_path)
    assert raised.value.subject == str(tmp_path)


# What is measured


def leaking(folder: Path) -> str:
    """A file of which three rows of the calibrate part say what three of the measured part say,
    but for a word.
    """
    path = folder / "leaking.jsonl"
    words = [f"w{i}" for i in range(500)]
    rows = [{"text": " ".join(random.Random(i).choices(words, k=30))} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    measured = [row.text or "" for row in parse_source(str(path)).rows("measure")][:3]
    number = 0
    while len(rows) < 63:
        number += 1
        rows.append({"text": f"{measured[len(rows) - 60]} again {number}"})
        path.write_text("\n".join(map(json.dumps, rows)))
        if rows[-1]["text"] not in [row.text for row in parse_source(str(path)).rows("calibrate")]:
            rows.pop()
    return str(path)


def test_rows_that_are_also_measured_stop_a_study_unless_that_is_allowed(
    given: dict[str, str], tmp_path: Path
):
    file = leaking(tmp_path)
    evaluator = f"loss(source={file!r}, tokens=200, length=64)"
    study = asked(given, data=[file, given["prose"]], evaluate=[evaluator], methods=["wanda"])
    planned = plan(replace(study, data=[file]), tmp_path / "store")
    assert any(file in warning and evaluator in warning for warning in planned.warnings)
    with pytest.raises(DataError) as caught:
        study.run(tmp_path / "store")
    assert caught.value.subject == file
    assert not is_store(tmp_path / "store") or not Store(tmp_path / "store", create=False).ids()
    finished = replace(study, allow_leak=True).run(tmp_path / "store")
    kept = {cell.data: Store(tmp_path / "store").record(cell.run) for cell in finished.cells}
    assert kept[file].data_facts["leaked"] == {evaluator: 3}
    assert "leaked" not in kept[given["prose"]].data_facts


def test_what_is_measured_is_measured_again_when_its_file_is_edited(
    given: dict[str, str], tmp_path: Path
):
    measured = tmp_path / "measured.jsonl"
    shutil.copy(given["verse"], measured)
    study = asked(
        given,
        data="full_stops",
        methods="wanda",
        evaluate=f"loss(source={str(measured)!r}, tokens=200, length=64)",
        seeds=0,
    )
    first = study.run(tmp_path / "out")
    assert (
        first.computed,
        study.run(tmp_path / "out").computed,
        len(plan(study, tmp_path / "out", probed=False).models),
    ) == (4, 0, 1)
    shutil.copy(given["prose"], measured)
    assert plan(study, tmp_path / "out", probed=False).measurements.left == 2
    second = study.run(tmp_path / "out")
    assert second.computed == 2
    assert plan(study, tmp_path / "out", probed=False).measurements.left == 0
    store = Store(tmp_path / "out", create=False)
    for before, after in zip(first.cells, second.cells, strict=True):
        assert before.run == after.run
        (old,), (new,) = before.measures.values(), after.measures.values()
        assert store.measurement(before.run, old).score != store.measurement(after.run, new).score
    assert verify(tmp_path / "out") == []
    shutil.copy(given["verse"], measured)
    assert study.run(tmp_path / "out").computed == 0


def test_a_file_that_changes_while_it_is_measured_is_told(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measured = tmp_path / "measured.jsonl"
    shutil.copy(given["verse"], measured)
    study = asked(
        given,
        data="full_stops",
        methods="wanda",
        evaluate=f"loss(source={str(measured)!r}, tokens=200, length=64)",
        seeds=0,
    )
    timed = driver.timed

    def slow(*task: Any) -> Any:
        shutil.copy(given["prose"], measured)
        return timed(*task)

    monkeypatch.setattr(driver, "timed", slow)
    finished = study.run(tmp_path / "out")
    assert len(finished.failures) == 2
    assert all(str(measured) in failure["error"] for failure in finished.failures.values())
    monkeypatch.undo()
    again = study.run(tmp_path / "out")
    assert (again.computed, again.failures) == (2, {})
    assert plan(study, tmp_path / "out", probed=False).failed == 0
