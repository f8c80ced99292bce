import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant.durable import read_json
from calibrant.errors import CalibrantError, DataError, ModelError, OutputError, SpecError
from calibrant.progress import silent
from calibrant.report import report
from calibrant.store import Store, verify
from calibrant.study import Study, driver
from calibrant.study.loaded import LoadedModel
from calibrant.study.plan import plan
from calibrant.study.workers import Summary, known_cells

from tests.study.small import answers
from tests.study.small import texts as made


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made(tmp_path_factory.mktemp("study") / "texts")


def asked(texts: dict[str, str], **changes: Any) -> Study:
    given: dict[str, Any] = {
        "models": texts["model"],
        "data": [texts["prose"], "random_tokens", "full_stops"],
        "evaluate": [f"loss(source={texts['verse']!r}, tokens=200, length=64)", f"loss(source={texts['prose']!r}, tokens=200, length=64)"],
        "samples": 4,
        "length": 32,
        "dtype": "float32",
    }
    return Study(**{**given, **changes})


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of every result of a store, without provenance."""
    kept = [p for p in folder.rglob("*") if p.is_file() and p.name != "provenance.json" and ".unfinished" not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}


@pytest.fixture(scope="module")
def whole(texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    finished = asked(texts).run(folder)
    assert finished.failures == {}
    assert (finished.computed, finished.found) == (5 + 10, 0)
    return folder


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


def test_the_grid_has_baselines_once_and_sets_by_draw(texts: dict[str, str]):
    study = asked(texts, methods=["wanda", "magnitude"], sparsities=[0.5, "2:4"], seeds=[0, 1])
    cells = [q.cell for q in study.requests()]
    assert [(c.data, c.method, c.target) for c in cells[:3]] == [("", "none", "0.0"), ("", "magnitude", "0.5"), ("", "magnitude", "2:4")]
    assert len(cells) == 3 + 2 * 3 * 2
    assert [c.seed for c in cells[3:]] == [0] * 6 + [1] * 6


def test_everything_asked_for_is_in_the_store(texts: dict[str, str], whole: Path):
    store = Store(whole, create=False)
    cells = store.cells()
    assert [c.data or c.method for c in cells] == ["none", "magnitude", *(str(q.calibration) for q in asked(texts).requests() if q.calibration)]
    for cell in cells:
        record = store.record(cell.run)
        assert record is not None
        assert record.sparsity == (0 if cell.method == "none" else 0.5)
        assert set(cell.measures.values()) == set(store.measurements(cell.run))
        assert record.provenance["seconds"]["compress"] > 0
    assert (whole / "study.yaml").read_text() == asked(texts).as_yaml()


def test_each_run_is_measured_as_if_it_were_alone(texts: dict[str, str], whole: Path):
    """What came before a run in the study leaves no trace in it."""
    from calibrant.compress import prune
    from calibrant.evaluators import evaluate

    study = asked(texts)
    cell = next(c for c in Store(whole, create=False).cells() if c.data == "random_tokens")
    pruned = prune(texts["model"], "random_tokens", "wanda", 0.5, samples=4, length=32, propagate="dense", dtype="float32")
    assert pruned.record.run.id == cell.run
    alone = evaluate(pruned.opened, list(study.evaluate))
    kept = Store(whole, create=False).measurements(cell.run)
    assert [m.score for m in alone] == [kept[cell.measures[str(e)]].score for e in study.evaluators()]


def test_asking_again_computes_nothing(texts: dict[str, str], whole: Path, monkeypatch: pytest.MonkeyPatch):
    before, counted = results(whole), Counted(monkeypatch)
    finished = asked(texts).run(whole)
    assert (counted.compressed, counted.measured) == ([], [])
    assert (finished.computed, finished.found) == (0, 15)
    assert results(whole) == before


@pytest.mark.parametrize("stop_at", [1, 8])
def test_interrupted_and_resumed_gives_the_same_and_nothing_twice(
    texts: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
):
    with monkeypatch.context() as patch:
        first = Counted(patch, stop_at)
        with pytest.raises(KeyboardInterrupt):
            asked(texts).run(tmp_path)
    second = Counted(monkeypatch)
    assert asked(texts).run(tmp_path).failures == {}
    assert results(tmp_path) == results(whole)
    assert len(first.compressed) + len(second.compressed) == 5 + (stop_at == 1)  # runs without a mask, stopped before they were measured
    assert len(first.measured) + len(second.measured) == 10


def test_adding_an_evaluator_measures_without_pruning_again(texts: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = asked(texts)
    replace(study, evaluate=study.evaluate[:1]).run(tmp_path / "grown")
    counted = Counted(monkeypatch)
    study.run(tmp_path / "grown")
    assert counted.compressed == ["", ""]  # the dense model and magnitude look at no data and keep no mask: they cost next to nothing
    assert counted.measured == [str(e) for e in list(study.evaluators())[1:]] * 5
    grown, at_once = results(tmp_path / "grown"), results(whole)
    assert {k: v for k, v in grown.items() if "measures" in k} == {k: v for k, v in at_once.items() if "measures" in k}


def test_adding_a_set_prunes_only_with_it(texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked(texts, data=["random_tokens"]).run(tmp_path)
    counted = Counted(monkeypatch)
    asked(texts, data=["random_tokens", "full_stops"]).run(tmp_path)
    assert counted.compressed == ["full_stops"]


def test_a_group_is_computed_first_and_the_rest_later_as_if_at_once(texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    groups = {"control": {"data": "random_tokens"}, "own": {"data": texts["prose"], "seeds": [0, 1]}, "none": {"method": "magnitude"}}
    study = asked(texts, groups=groups, methods=["wanda"])
    counted = Counted(monkeypatch)
    study.run(tmp_path / "parts", groups=["control"])
    assert counted.compressed == ["", "random_tokens"]
    with Store(tmp_path / "parts", create=False) as store:
        assert [(of.data, of.seed, of.method) for of in store.cells()] == [(of.data, of.seed, of.method) for of in study.labels()]
        assert [bool(of.data) for of in store.cells() if store.record(of.run)] == [False, True]
    study.run(tmp_path / "parts")
    assert counted.compressed[2:] == ["", texts["prose"], texts["prose"]]
    study.run(tmp_path / "at_once")
    assert results(tmp_path / "parts") == results(tmp_path / "at_once")


def test_what_the_grid_told_before_is_told_until_it_is_asked_again(texts: dict[str, str], tmp_path: Path):
    study = asked(texts, data=["random_tokens"], methods=["wanda"])
    whole = study.run(tmp_path)
    with Store(tmp_path) as store:
        assert known_cells(store, study.as_yaml()) == list(whole.cells)
        assert Summary(store, study.workload(), silent, known_cells(store, study.as_yaml())).result().cells == whole.cells
        assert known_cells(store, replace(study, dtype="bfloat16").as_yaml()) == [], "another study's answers"
        store.write_text("index.json", "{")
        assert known_cells(store, study.as_yaml()) == [], "a damaged index is made anew"
    assert study.run(tmp_path).cells == whole.cells
    told = answers(tmp_path)
    seen: list[set[tuple[str, str]]] = []
    study.run(tmp_path, lambda what, done, total: seen.append(answers(tmp_path)))
    assert len(seen) > len(whole.cells)
    assert all(there == told for there in seen), "also while it goes on"


def test_a_group_that_the_study_lacks_is_refused_before_anything_is_written(texts: dict[str, str], tmp_path: Path):
    with pytest.raises(SpecError, match=r"no group called 'contrl', did you mean 'control'\?; its groups are control, none$"):
        asked(texts, groups={"control": {"data": "random_tokens"}, "none": {}}).run(tmp_path / "out", groups=["contrl"])
    with pytest.raises(SpecError, match=r"no group called 'control'; it has none$"):
        asked(texts).run(tmp_path / "out", groups=["control"])
    assert not (tmp_path / "out").exists()


def test_without_masks_a_run_is_pruned_again_and_comes_out_the_same(texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = asked(texts, data=["random_tokens"], masks=False)
    replace(study, evaluate=study.evaluate[:1]).run(tmp_path / "again")
    counted = Counted(monkeypatch)
    study.run(tmp_path / "again")
    assert counted.compressed == ["", "", "random_tokens"]
    assert not list(tmp_path.rglob("mask.npz"))
    study.run(tmp_path / "once")
    assert {k: v for k, v in results(tmp_path / "again").items() if "runs" in k} == {
        k: v for k, v in results(tmp_path / "once").items() if "runs" in k
    }


@pytest.mark.parametrize("quotes", [True, False])
def test_excerpts_are_kept_unless_the_study_says_otherwise(texts: dict[str, str], tmp_path: Path, quotes: bool):
    asked(texts, data=["random_tokens"], methods=["wanda"], quotes=quotes).run(tmp_path)
    (path,) = tmp_path.rglob("profile.json")
    kept = read_json(path)
    assert bool(kept["examples"]) is quotes
    assert kept["counted"], "what it says of the windows stays"


def test_a_method_that_updates_weights_keeps_no_mask_and_propagates_by_arrival(texts: dict[str, str], tmp_path: Path):
    study = asked(texts, data=["random_tokens"], methods=["sparsegpt", "wanda", "magnitude"])
    assert (study.propagation("sparsegpt"), study.propagation("wanda")) == ("arrival", "dense")
    assert replace(study, propagate="reference").propagation("wanda") == "reference"
    study.run(tmp_path)
    store = Store(tmp_path, create=False)
    kept = {c.method: (r.run.propagate, store.file(c.run, "mask.npz") is not None) for c in store.cells() if (r := store.record(c.run)) and c.data}
    assert kept == {"sparsegpt": ("arrival", False), "wanda": ("dense", True)}


def test_a_mask_brings_the_pruned_model_back(texts: dict[str, str]):
    from calibrant.models import open_model

    loaded = LoadedModel(open_model(texts["model"], "float32", "cpu"))
    weight = loaded.view.weights[3]
    halved = weight.get().clone()
    halved[::2] = 0
    weight.set(halved)
    changed, mask = loaded.view.snapshot(), loaded.mask()
    assert mask is not None
    loaded.restore()
    assert (weight.stored != 0).all()
    loaded.apply(mask)
    assert all(torch.equal(w.stored, changed[w.name]) for w in loaded.view.weights)
    weight.set(weight.get() * 2)
    assert loaded.mask() is None


# Failures


def test_what_fails_is_recorded_and_the_rest_goes_on(texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compress = driver.compress

    def failing(*args: Any, **kwargs: Any) -> Any:
        if kwargs["data"] == "random_tokens":
            raise RuntimeError("out of memory at block 1")
        return compress(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "compress", failing)
        finished = asked(texts).run(tmp_path)
    (failed_id, failure), *rest = finished.failures.items()
    assert rest == []
    assert failed_id == next(c.run for c in finished.cells if c.data == "random_tokens")
    assert failure["error"] == "RuntimeError: out of memory at block 1"
    assert failure["what"] == "wanda 0.5 on random_tokens"
    assert any("failing" in line for line in failure["traceback"])
    assert len(Store(tmp_path, create=False).records()) == 4
    (ranking,) = report(tmp_path).rankings
    assert "random_tokens" not in [e.name for e in ranking.entries]
    assert "random_tokens (draw 0) on" in ranking.missing[0]
    assert "out of memory at block 1" in ranking.missing[0]
    again = asked(texts).run(tmp_path)
    assert (again.computed, list(again.failures)) == (0, [failed_id])  # not tried again unasked: it would cost its time at each resume
    assert asked(texts).run(tmp_path, retry=True).failures == {}


def test_a_measurement_that_fails_costs_no_other(texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    timed, study = driver.timed, asked(texts, data=["random_tokens"])
    bad = next(iter(study.evaluators()))

    def failing(task: Any, *others: Any) -> Any:
        if str(task) == bad:
            raise ValueError("the loss is nan")
        return timed(task, *others)

    monkeypatch.setattr(driver, "timed", failing)
    finished = study.run(tmp_path)
    assert set(finished.failures) == {c.measures[bad] for c in finished.cells}
    assert finished.computed == 3 + 3


def test_a_set_that_gives_too_little_is_a_failure_of_its_own(texts: dict[str, str], tmp_path: Path):
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "hello there"}')
    finished = asked(texts, data=[str(short), "random_tokens"]).run(tmp_path / "store")
    (failure,) = finished.failures.values()
    assert "short.jsonl" in failure["what"]
    assert [bool(c.run) for c in finished.cells] == [True, True, False, True]
    (ranking,) = report(finished).rankings
    assert "short.jsonl" in ranking.missing[0]


def test_a_model_that_is_one_of_several_may_be_missing(texts: dict[str, str], tmp_path: Path):
    gone = str(tmp_path / "gone.gguf")
    finished = asked(texts, models=[texts["model"], gone], data=["random_tokens"]).run(tmp_path / "store")
    assert {f["cell"][0] for f in finished.failures.values()} == {gone}
    assert len(finished.failures) == 3
    with pytest.raises(ModelError, match=r"gone\.gguf"):
        asked(texts, models=gone).run(tmp_path / "other")


def test_a_full_disk_ends_the_study(texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> Any:
        raise OutputError(f"can't write in {str(tmp_path)!r}: the disk is full")

    monkeypatch.setattr(Store, "add_record", full)
    with pytest.raises(OutputError, match="the disk is full"):
        asked(texts).run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data": []}, "data"),
        ({"data": "no_such_source"}, "no_such_source"),
        ({"methods": "wnda"}, "wnda"),
        ({"sparsities": 1.5}, r"1\.5"),
        ({"evaluate": "lss"}, "lss"),
        ({"propagate": "sideways"}, "sideways"),
        ({"samples": 0}, "samples"),
    ],
)
def test_a_study_that_cant_be_run_is_refused_when_it_is_built(texts: dict[str, str], changes: dict[str, Any], match: str):
    with pytest.raises(CalibrantError, match=match):
        asked(texts, **changes)


def test_single_values_stand_for_lists_of_one(texts: dict[str, str]):
    study = Study(models="smollm2", data="random_tokens", sparsities="2:4", seeds=3)
    assert (study.models, study.data, study.sparsities, study.seeds) == (("smollm2",), ("random_tokens",), ("2:4",), (3,))


def test_progress_is_told(texts: dict[str, str], tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    asked(texts, data=["random_tokens"], methods="wanda").run(tmp_path, lambda *what: told.append(what))
    assert told[0] == ("study", 0, 2)
    assert told[-1] == ("study", 2, 2)
    assert ("wanda 0.5 on random_tokens", 2, 2) in told
    assert ("measuring wanda 0.5 on random_tokens", 2, 2) in told


def leaking(folder: Path) -> str:
    """A file of which three rows of the calibrate part say what three of the measured part say, but for a word."""
    from calibrant.data import parse_source

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


def test_rows_that_are_also_measured_stop_a_study_before_anything_is_done(texts: dict[str, str], tmp_path: Path):
    file = leaking(tmp_path)
    study = asked(texts, data=[file], evaluate=[f"loss(source={file!r}, tokens=200, length=64)"], methods=["wanda"])
    with pytest.raises(DataError, match=r"3 rows of .*leaking.jsonl are also measured by loss.*--allow-leak") as caught:
        study.run(tmp_path / "store")
    assert caught.value.subject == file
    assert not list((tmp_path / "store").glob("runs/*"))


def test_an_allowed_leak_is_kept_in_the_record(texts: dict[str, str], tmp_path: Path):
    file = leaking(tmp_path)
    evaluator = f"loss(source={file!r}, tokens=200, length=64)"
    finished = asked(texts, data=[file, texts["prose"]], evaluate=[evaluator], methods=["wanda"], allow_leak=True).run(tmp_path / "store")
    kept = {cell.data: Store(tmp_path / "store").record(cell.run) for cell in finished.cells}
    assert kept[file].data_facts["leaked"] == {evaluator: 3}
    assert "leaked" not in kept[texts["prose"]].data_facts


def test_what_is_measured_is_measured_again_when_its_file_is_edited(texts: dict[str, str], tmp_path: Path):
    measured = tmp_path / "measured.jsonl"
    shutil.copy(texts["verse"], measured)
    study = asked(texts, data="full_stops", methods="wanda", evaluate=f"loss(source={str(measured)!r}, tokens=200, length=64)", seeds=0)
    first = study.run(tmp_path / "out")
    assert (first.computed, study.run(tmp_path / "out").computed, len(plan(study, tmp_path / "out", probed=False).models)) == (4, 0, 1)
    shutil.copy(texts["prose"], measured)
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
    shutil.copy(texts["verse"], measured)
    assert study.run(tmp_path / "out").computed == 0


def test_a_file_that_changes_while_it_is_measured_is_told(texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = tmp_path / "measured.jsonl"
    shutil.copy(texts["verse"], measured)
    study = asked(texts, data="full_stops", methods="wanda", evaluate=f"loss(source={str(measured)!r}, tokens=200, length=64)", seeds=0)
    timed = driver.timed

    def slow(*given: Any) -> Any:
        shutil.copy(texts["prose"], measured)
        return timed(*given)

    monkeypatch.setattr(driver, "timed", slow)
    finished = study.run(tmp_path / "out")
    assert [failure["error"].partition(" has ")[2] for failure in finished.failures.values()] == ["changed since the study began; run it again"] * 2
    monkeypatch.undo()
    assert study.run(tmp_path / "out").computed == 2
