"""What `evaluate` measures into a store is compared as what a study measured."""

import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from calibrant.allocations import allocations
from calibrant.allocations.least_error import LeastError
from calibrant.compress import prune, quantize
from calibrant.errors import DataError, InputError, OutputError, SpecError
from calibrant.evaluators import _measuring, evaluate, explain, loss
from calibrant.evaluators._measured_run import MeasuredRun
from calibrant.lab.report import report
from calibrant.lab.stats import compare
from calibrant.lab.study import Study
from calibrant.methods import methods
from calibrant.models import open_model
from calibrant.models.reading import reading_digest
from calibrant.results import Store, merge, pack, verify
from calibrant.results.store import UNKNOWN_ORIGIN
from calibrant.testing import tiny_folder

from tests.refusing import refused

TASKS = [
    "loss(source='python_docs', tokens=600, length=64)",
    "loss(source='arithmetic', tokens=400, length=64)",
]
GENERATED = "generation(name='arithmetic', shots=0, limit=2, max_tokens=4, template=True)"
SETS = ["python_docs", "random_tokens"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("dense") / "tiny"))


@pytest.fixture(scope="module")
def pruned(dense: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The dense model pruned with each of the sets."""
    folder = tmp_path_factory.mktemp("pruned")
    for data in SETS:
        prune(
            dense,
            data=data,
            method="wanda",
            target=0.5,
            out=folder / data,
            samples=4,
            length=64,
            propagate="dense",
            dtype="float32",
        )
    return [str(folder / data) for data in SETS]


@pytest.fixture(scope="module")
def elsewhere(pruned: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same models without Calibrant's manifest, as another tool would have written them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for place, name in zip(pruned, SETS, strict=True):
        shutil.copytree(place, folder / name, ignore=shutil.ignore_patterns("calibrant*"))
    return [str(folder / name) for name in SETS]


def asked(dense: str) -> Study:
    """The study of the same models, measured on the same."""
    return Study(
        models=dense,
        data=SETS,
        methods="wanda",
        targets=[0.5],
        evaluate=TASKS,
        samples=4,
        length=64,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def study(dense: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it found."""
    folder = tmp_path_factory.mktemp("study") / "results"
    asked(dense).run(folder)
    return folder


def put(model: str, store: Path, label: str = "", tasks: list[str] = TASKS) -> list[float]:
    measured = evaluate(model, tasks=tasks, dtype="float32", store=store, label=label)
    return [measurement.score.value for measurement in measured]


def said(store: Path) -> object:
    """All that a report says of the rankings of sets."""
    return [entry for entry in report(store).to_json()["rankings"] if entry["method"] == "wanda"]


def test_models_that_we_wrote_are_compared_as_in_a_study(
    dense: str, pruned: list[str], study: Path, tmp_path: Path
):
    store = tmp_path / "results"
    # A folder has several names.
    for model in (pruned[0], f"{dense}/", pruned[1]):
        put(model, store)
    assert said(store) == said(study)
    assert verify(store) == []
    with Store(store, create=False) as ours, Store(study, create=False) as theirs:
        assert ours.ids() == theirs.ids()
        assert all(ours.measured(run) == theirs.measured(run) for run in ours.ids())


def test_a_study_finds_what_was_measured_before_it_and_leaves_the_rest(
    dense: str, pruned: list[str], elsewhere: list[str], tmp_path: Path
):
    store = tmp_path / "results"
    for model in (dense, *pruned):
        put(model, store)
    put(elsewhere[0], store, "other tool")
    before = report(store).to_json()["rankings"]
    finished = asked(dense).run(store)
    assert finished.computed == 0
    assert report(store).to_json()["rankings"] == before


def test_finished_models_have_the_differences_that_the_same_models_have_in_a_study(
    dense: str, elsewhere: list[str], study: Path, tmp_path: Path
):
    labels: dict[str, str] = dict(zip(("tool a", "tool b"), elsewhere, strict=True))
    for label, model in labels.items():
        put(model, tmp_path / "alone", label)
    (ranking,) = compare(Store(tmp_path / "alone", create=False)).rankings
    assert ranking.dense is None
    (expected,) = compare(Store(study, create=False)).rankings
    names: dict[str, str] = dict(zip(labels, SETS, strict=True))
    # Into the study's own store: its dense model is theirs, and its own ranking stays.
    both = tmp_path / "both"
    shutil.copytree(study, both)
    for label, model in labels.items():
        put(model, both, label)
    of_sets, finished = compare(Store(both, create=False)).rankings
    assert of_sets == expected
    assert [names[entry.name] for entry in finished.entries] == [
        entry.name for entry in expected.entries
    ]
    for entry, other in zip(finished.entries, expected.entries, strict=True):
        assert entry.losses == other.losses
        assert entry.increases == other.increases
        assert entry.to_best == other.to_best
        assert (entry.tied, entry.letters, entry.draws) == (other.tied, other.letters, 1)
    assert finished.model == of_sets.model


def test_every_reader_shows_finished_models(dense: str, elsewhere: list[str], tmp_path: Path):
    store = tmp_path / "results"
    label = "tool [b]a[/b] <i>"
    put(dense, store)
    put(elsewhere[0], store, label)
    put(elsewhere[1], store, "tool b")
    shown = report(store)
    page = shown.write_html(tmp_path / "page.html").read_text()
    assert label in shown.table()
    assert label.replace("<", "&lt;").replace(">", "&gt;") in page
    assert label not in page
    before = shown.to_json()["rankings"]
    merge(tmp_path / "merged", [store])
    pack(tmp_path / "merged")
    assert verify(tmp_path / "merged") == []
    assert report(tmp_path / "merged").to_json()["rankings"] == before
    # A published store takes more.
    put(elsewhere[0], tmp_path / "merged", "tool c")
    with Store(tmp_path / "merged", create=False) as merged:
        assert [cell.data for cell in merged.cells()] == ["", label, "tool b", "tool c"]


def test_stores_of_a_study_and_of_evaluate_are_merged(
    dense: str, elsewhere: list[str], study: Path, tmp_path: Path
):
    store = tmp_path / "results"
    put(dense, store)
    put(elsewhere[0], store, "tool a")
    found = merge(tmp_path / "merged", [study, store])
    assert found.problems == ()
    assert said(tmp_path / "merged") == said(study)
    # Two machines may have given one label to two models: the first stays.
    put(elsewhere[1], tmp_path / "other", "tool a")
    found = merge(tmp_path / "merged", [tmp_path / "other"])
    assert len(found.problems) == 1
    with Store(tmp_path / "merged", create=False) as merged:
        (shown,) = [cell for cell in merged.cells() if cell.data == "tool a"]
        with Store(store, create=False) as first:
            assert merged.run(shown.run) == first.run(shown.run)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches that are scored."""
    scored: list[int] = []
    score = loss.summed_nats

    def counted(model: Any, batch: Any) -> Any:
        scored.append(len(batch))
        return score(model, batch)

    monkeypatch.setattr(loss, "summed_nats", counted)
    return scored


def test_the_same_call_measures_once(dense: str, tmp_path: Path, batches: list[int]):
    first = put(dense, tmp_path / "results")
    assert batches
    batches.clear()
    assert put(dense, tmp_path / "results") == first
    assert batches == []
    # In another type it is another model.
    with pytest.raises(OutputError):
        evaluate(dense, tasks=TASKS, dtype="bfloat16", store=tmp_path / "results")
    evaluate(dense, tasks=TASKS[0], dtype="bfloat16", store=tmp_path / "results", label="short")
    assert batches


def test_a_kill_between_tasks_loses_nothing(
    dense: str, tmp_path: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
):
    store = tmp_path / "results"
    add = Store.add_measurement

    def killed(*args: Any) -> None:
        add(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "add_measurement", killed)
        with pytest.raises(KeyboardInterrupt):
            put(dense, store)
    one_task = len(batches)
    batches.clear()
    put(dense, store)
    both = len(batches)
    batches.clear()
    put(dense, tmp_path / "another")
    assert len(batches) == one_task + both
    assert report(store).to_json()["unranked"] == report(tmp_path / "another").to_json()["unranked"]


@pytest.mark.parametrize("failure", [DataError("it can't be"), KeyboardInterrupt()], ids=repr)
def test_a_store_that_got_nothing_goes_and_another_stays(
    dense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
):
    def fail(*_: Any) -> None:
        raise failure

    def try_to_put(store: Path, label: str = "", owner: Any = Store, name: str = "add_measurement"):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            with pytest.raises(type(failure)):
                put(dense, store, label)

    new = tmp_path / "made for it" / "new"
    steps = [
        (Store, "add_cell"),
        (Store, "add_record"),
        (_measuring, "_journal"),
        (Store, "add_measurement"),
    ]
    for owner, name in steps:
        try_to_put(new, owner=owner, name=name)
        assert not new.parent.exists(), name
    new.mkdir(parents=True)
    try_to_put(new)
    assert not list(new.iterdir())
    values = put(dense, new)
    try_to_put(new, "another")
    assert put(dense, new) == values
    assert len(Store(new, create=False).cells()) == 2


def test_a_run_whose_new_store_was_removed_is_put_there_again(
    dense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    once = MeasuredRun.once

    def after_removal(run: MeasuredRun, *rest: Any) -> Any:
        # As another process would, which failed between the two.
        with Store(run.folder) as store:
            store.remove_unmeasured(run.cell.run)
        return once(run, *rest)

    store = tmp_path / "results"
    with monkeypatch.context() as patched:
        patched.setattr(MeasuredRun, "once", after_removal)
        values = put(dense, store)
    assert put(dense, store) == values
    assert not list(verify(store))


@pytest.mark.slow
def test_several_processes_add_to_one_store(dense: str, elsewhere: list[str], tmp_path: Path):
    store = tmp_path / "results"
    context = get_context("spawn")
    calls = [(dense, ""), (elsewhere[0], "tool a"), (elsewhere[1], "tool b"), (dense, "")]
    started = [context.Process(target=put, args=(model, store, label)) for model, label in calls]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    assert verify(store) == []
    (ranking,) = compare(Store(store, create=False)).rankings
    assert ranking.dense is not None
    assert {entry.name for entry in ranking.entries} == {"tool a", "tool b"}


def test_a_task_that_only_some_were_measured_on_leaves_a_study_s_tables_alone(
    dense: str, elsewhere: list[str], study: Path, tmp_path: Path
):
    store = tmp_path / "results"
    shutil.copytree(study, store)
    before = said(store)
    more = ["perplexity(source='python_docs', tokens=256, length=64)"]
    put(dense, store, tasks=more)
    put(elsewhere[0], store, "tool a", tasks=more)
    assert said(store) == before
    _, finished = compare(Store(store, create=False)).rankings
    assert [entry.name for entry in finished.entries] == ["tool a"]
    assert len(finished.measured) == 1
    assert finished.entries[0].increases


def test_a_model_in_memory_is_what_was_made_of_it(dense: str, pruned: list[str], tmp_path: Path):
    opened = open_model(dense, "float32")
    model = opened.model
    tokenizer = opened.tokenizer
    evaluate(model, tokenizer, tasks=TASKS, store=tmp_path / "memory")
    prune(
        model,
        tokenizer,
        data=SETS[0],
        method="wanda",
        target=0.5,
        samples=4,
        length=64,
        propagate="dense",
    )
    evaluate(model, tokenizer, tasks=TASKS, store=tmp_path / "memory")
    for name in (dense, pruned[0]):
        put(name, tmp_path / "folder")
    cells = [Store(tmp_path / name, create=False).cells() for name in ("memory", "folder")]
    assert cells[0] == cells[1]
    # What another tool does to a model leaves no trace but its numbers.
    other = open_model(dense, "float32").model
    with torch.no_grad():
        other.get_parameter("lm_head.weight").mul_(1.5)
    with pytest.raises(SpecError):
        evaluate(other, tokenizer, tasks=TASKS, store=tmp_path / "memory")
    evaluate(other, tokenizer, tasks=TASKS, store=tmp_path / "memory", label="louder")


def test_what_it_is_compared_with_says_what_a_model_was_made_from(
    dense: str, elsewhere: list[str], tmp_path: Path
):
    store = tmp_path / "results"
    task = "agreement(source='python_docs', tokens=256, length=64)"
    evaluate(elsewhere[0], tasks=task, reference=dense, dtype="float32", store=store)
    (cell,) = Store(store, create=False).cells()
    assert (cell.model, cell.data, cell.method) == (dense, elsewhere[0], "measured")


AGREEMENT = "agreement(source='python_docs', tokens=256, length=64)"


def test_a_comparison_with_another_model_is_refused_and_not_taken_for_the_first(
    dense: str, elsewhere: list[str], tmp_path: Path
):
    store = tmp_path / "results"

    def compared(reference: str, label: str) -> float:
        (measured,) = evaluate(
            elsewhere[0],
            tasks=AGREEMENT,
            reference=reference,
            dtype="float32",
            store=store,
            label=label,
        )
        return measured.score.value

    first = compared(dense, "tool")
    with pytest.raises(SpecError):
        compared(elsewhere[1], "tool")
    assert compared(dense, "tool") == first
    assert compared(elsewhere[1], "the other") != first


def test_a_model_that_was_changed_since_is_not_what_its_record_says(
    dense: str, pruned: list[str], tmp_path: Path
):
    store = tmp_path / "results"
    opened = open_model(dense, "float32")
    in_memory = opened.model
    prune(
        in_memory,
        opened.tokenizer,
        data=SETS[0],
        method="wanda",
        target=0.5,
        samples=4,
        length=64,
        propagate="dense",
    )
    loaded = AutoModelForCausalLM.from_pretrained(pruned[0], dtype=torch.float32)
    for number, model in enumerate((in_memory, loaded)):
        with torch.no_grad():
            model.get_parameter("lm_head.weight").mul_(1.5)
        with pytest.raises(SpecError):
            evaluate(model, opened.tokenizer, TASKS, store=store)
        evaluate(model, opened.tokenizer, TASKS, store=store, label=f"louder {number}")
    put(dense, store)
    put(pruned[0], store)
    of_sets, finished = compare(Store(store, create=False)).rankings
    values = [entry.losses[of_sets.measured[0]].value for entry in finished.entries]
    assert values[0] == values[1] != of_sets.entries[0].losses[of_sets.measured[0]].value


@pytest.mark.parametrize("first", ["dense", "finished"])
def test_one_dense_model_by_several_names_is_one(
    dense: str, elsewhere: list[str], tmp_path: Path, first: str
):
    store = tmp_path / "results"
    calls = [
        lambda: put(f"{dense}/", store),
        lambda: evaluate(
            elsewhere[0], tasks=TASKS, reference=dense, dtype="float32", store=store, label="tool"
        ),
    ]
    for call in calls if first == "dense" else reversed(calls):
        call()
    (ranking,) = compare(Store(store, create=False)).rankings
    assert ranking.dense is not None
    # Compared with itself, it is still the dense model.
    (itself,) = evaluate(
        dense, tasks=AGREEMENT, reference=f"{dense}/", dtype="float32", store=store
    )
    assert itself.score.value == 0
    assert len(Store(store, create=False).cells()) == 2


def test_a_label_like_a_set_s_leaves_the_set_what_it_is(
    elsewhere: list[str], study: Path, tmp_path: Path
):
    store = tmp_path / "results"
    shutil.copytree(study, store)
    before = said(store)
    put(elsewhere[0], store, "random_tokens")
    assert said(store) == before


def test_what_a_finished_model_was_made_from_is_learnt_later_and_then_stays(
    dense: str, elsewhere: list[str], tmp_path: Path
):
    store = tmp_path / "results"

    def origins(reference: str | None) -> list[str]:
        evaluate(
            elsewhere[0],
            tasks=TASKS,
            reference=reference,
            dtype="float32",
            store=store,
            label="tool",
        )
        return [cell.model for cell in Store(store, create=False).cells()]

    assert origins(None) == [UNKNOWN_ORIGIN]
    assert origins(dense) == [dense]
    with pytest.raises(SpecError):
        origins(elsewhere[1])
    assert origins(None) == [dense]


def a_file(folder: Path) -> Path:
    folder.write_text("mine")
    return folder


def not_ours(folder: Path) -> Path:
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    return folder


@pytest.mark.parametrize("made", [a_file, not_ours])
def test_a_folder_that_is_no_store_is_refused_and_stays(
    dense: str, tmp_path: Path, made: Callable[[Path], Path], batches: list[int]
):
    place = made(tmp_path / "results")
    with pytest.raises(OutputError) as raised:
        put(dense, place)
    assert str(place) in str(raised.value)
    assert batches == []
    assert [path.read_text() for path in (place, *place.rglob("*")) if path.is_file()] == ["mine"]


def test_two_models_can_not_have_one_label(elsewhere: list[str], tmp_path: Path):
    store = tmp_path / "results"
    put(elsewhere[0], store, "tool")
    with pytest.raises(OutputError):
        put(elsewhere[1], store, "tool")
    with Store(store, create=False) as kept:
        assert len(kept.ids()) == 1
    put(elsewhere[1], store, "another tool")


@pytest.mark.parametrize("label", [" tool", "two\nlines", "x" * 1000, "dense"])
def test_a_label_that_can_name_no_row_is_refused(dense: str, tmp_path: Path, label: str):
    with pytest.raises(SpecError):
        put(dense, tmp_path / "results", label)
    assert not (tmp_path / "results").exists()


def test_a_label_needs_a_store(dense: str):
    with pytest.raises(InputError):
        evaluate(dense, tasks=TASKS, label="tool")


def test_a_compressed_model_is_measured_in_its_own_type(pruned: list[str], tmp_path: Path):
    with pytest.raises(SpecError):
        evaluate(pruned[0], tasks=TASKS, dtype="bfloat16", store=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_folder_whose_recipe_is_refused_today_is_measured_under_its_own_name(
    dense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    allocation = "least_error(method=rsq, reach=1)"

    def accept(made: LeastError) -> None:
        object.__setattr__(made, "method", methods.build(made.method))

    with monkeypatch.context() as earlier:
        earlier.setattr(LeastError, "__post_init__", accept)
        quantize(
            dense,
            data=SETS[0],
            method="rtn",
            target="w4g16",
            allocation=allocation,
            out=tmp_path / "model",
            samples=4,
            length=64,
            dtype="float32",
        )
    with refused(SpecError, "rsq"):
        allocations.build(allocation)
    model = str(tmp_path / "model")
    evaluate(model, tasks=TASKS[0], store=tmp_path / "results", dtype="float32")
    store = Store(tmp_path / "results", create=False)
    (cell,) = store.cells()
    assert cell.method.startswith("rtn + least_error(method=rsq(importance='attention', ")
    assert compare(store).rankings


def test_explain_stores_what_evaluate_would(dense: str, pruned: list[str], tmp_path: Path):
    task = "words(source='python_docs', tokens=1024, length=128, least=4)"
    explain(pruned[0], task=task, dtype="float32", store=tmp_path / "explained")
    evaluate(pruned[0], tasks=task, dtype="float32", store=tmp_path / "evaluated")
    kept: list[object] = []
    for name in ("explained", "evaluated"):
        with Store(tmp_path / name, create=False) as store:
            (run,) = store.ids()
            kept.append((store.cells(), store.measurements(run)))
    assert kept[0] == kept[1]


def test_a_measurement_is_not_taken_for_that_of_another_chat_template(
    dense: str, tmp_path: Path
) -> None:
    """The template, and where answers end, are neither in the model's digest nor in the task."""
    folder = tmp_path / "model"
    shutil.copytree(dense, folder)
    task = GENERATED
    before = reading_digest(open_model(str(folder), "float32"))
    evaluate(folder, tasks=task, store=tmp_path / "store", dtype="float32")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another one #}")
    assert reading_digest(open_model(str(folder), "float32")) != before
    with refused(SpecError, task):
        evaluate(folder, tasks=task, store=tmp_path / "store", dtype="float32")


def test_a_saved_model_reads_as_the_one_that_it_was_made_from(
    dense: str, pruned: list[str]
) -> None:
    opened = open_model(dense, "float32")
    before = reading_digest(opened)
    opened.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=2)
    assert reading_digest(opened) == before, "calls leave traces in a tokenizer"
    assert reading_digest(open_model(pruned[0], "float32")) == before
