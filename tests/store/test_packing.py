"""A packed store is the store: it reads the same, and unpacked it is the same to the byte, whenever what was at work was killed."""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.compare import read
from calibrant.durable import read_json, text_of_json, unsealed
from calibrant.errors import DataError, OutputError
from calibrant.store import MARKER, Cell, Measurement, Outcome, Score, Store, audit, measurement_id, merge, pack, packing, unpack, verify
from calibrant.store.packed import MOVING, PACKED, PACKED_PURPOSE, settle

from tests.store.conftest import LOSS, MEASURED, RECORD, RUN, as_format_1, filled, visible
from tests.usual import usually

OTHER = replace(RUN, target="0.7")
TASK = {"spec": "task", "name": "quiz", "revision": 1}
QUIZ = Score("quiz", "loss", 2.0, None, 2, "nats/token", "lower")
FACTS = [{"nats": 1.5, "choices": [0.5, math.inf], "hit": True, "note": "ü"}, {"nats": 2.5, "choices": [-0.0, 1.0], "hit": False, "note": ""}]
SOLVED = Measurement(QUIZ, tuple(Outcome(f"q{i}", f["nats"], 1.0, f) for i, f in enumerate(FACTS)), {"seconds": 1.0}, (replace(QUIZ, metric="acc"),))
SAME_NAME = {"spec": "task", "name": "essay", "revision": 1}
WRITTEN = Measurement(
    replace(QUIZ, value=math.nan), (Outcome("e", math.nan, 1.0, {"hit": "half", "nats": 2}), Outcome("f", 0.0, 1.0, {"hit": "", "nats": 3}))
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs; columns of one name and other types; files of all kinds; a failure, a study, and somebody's own page."""
    filled(tmp_path / "s")
    with Store(tmp_path / "s") as made:
        made.add_record(replace(RECORD, run=OTHER), {"profile.json": b'{"a": 1}', "notes.bin": b"\xff\xfe"})
        for run in (RUN.id, OTHER.id):
            made.add_measurement(run, TASK, SOLVED)
            made.add_measurement(run, SAME_NAME, WRITTEN)
        made.write_text("study.yaml", "models: [tiny]\n")
        made.write_cells([Cell("tiny", "wikitext", "wanda", r.target, 3, r.id, {"loss": measurement_id(r.id, LOSS)}) for r in (RUN,)])
        made.add_failure("sha256:" + "0" * 64, {"what": "a third run", "error": "no"})
    return Store(tmp_path / "s", create=False)


def answers(folder: Path) -> str:
    """All that a store says of its results."""
    store = Store(folder, create=False)
    records = [
        (store.record(i), store.record(i, whole=False), store.provenance(i), store.evaluators(i), store.file(i, "mask.npz")) for i in store.ids()
    ]
    measured = {(i, m): (store.measurement(i, m), store.items(i, m), store.provenance(i, m)) for i in store.ids() for m in sorted(store.measured(i))}
    numbers = [(list(n), v.tobytes(), w.tobytes()) for n, v, w in store.numbers(list(measured))]
    reading = read(store)
    return repr((records, measured, numbers, store.cells(), store.failures(), store.study_text(), reading.records, reading.scores))


@pytest.mark.parametrize("first_version", [False, True])
def test_it_reads_as_before_and_comes_back_to_the_byte(store: Store, tmp_path: Path, first_version: bool):
    if first_version:
        as_format_1(store)
    before, said = visible(store.folder), answers(store.folder)
    packed = pack(store.folder, tmp_path / "packed")
    assert visible(store.folder) == before
    assert (packed.runs, packed.measurements) == (2, 5)
    assert not (tmp_path / "packed/runs").exists()
    assert answers(tmp_path / "packed") == said
    assert verify(tmp_path / "packed") == []
    assert Store(tmp_path / "packed", create=False).bytes_of("mask.npz") == 2
    unpack(tmp_path / "packed", tmp_path / "back")
    assert visible(tmp_path / "back") == before


def test_in_its_own_folder_and_back(store: Store):
    (store.folder / "README.md").write_text("# Mine\n")
    before, said = visible(store.folder), answers(store.folder)
    for _ in range(2):  # what is packed can be packed again
        pack(store.folder)
        assert answers(store.folder) == said
        assert not (store.folder / "runs").exists()
        assert read_json(store.folder / MARKER)["format"] == 3, "an older version does not take it for an empty one"
    unpack(store.folder)
    assert visible(store.folder) == before
    with pytest.raises(OutputError) as raised:
        unpack(store.folder)
    assert raised.value.subject == str(store.folder)


def test_a_study_goes_on_from_it_beside_its_tables(store: Store, tmp_path: Path):
    whole = answers(store.folder)
    pack(store.folder, tmp_path / "s2")
    third = replace(RUN, target="0.9")
    with Store(tmp_path / "s2") as later, Store(store.folder) as never_packed:
        for into in (later, never_packed):
            assert into.add_record(RECORD) == RUN.id
            into.add_measurement(RUN.id, LOSS, MEASURED)
            into.add_record(replace(RECORD, run=third))
            into.add_measurement(third.id, LOSS, MEASURED)
            into.add_measurement(OTHER.id, LOSS, MEASURED)
    assert sorted(p.name for p in (tmp_path / "s2/runs").iterdir()) == sorted(i.id[7:] for i in (OTHER, third))
    assert answers(tmp_path / "s2") == answers(store.folder) != whole
    assert verify(tmp_path / "s2") == []
    pack(tmp_path / "s2")
    assert not (tmp_path / "s2/runs").exists()
    assert answers(tmp_path / "s2") == answers(store.folder)
    unpack(tmp_path / "s2")
    assert visible(tmp_path / "s2") == visible(store.folder)


def test_it_can_be_merged_from_and_into(store: Store, tmp_path: Path):
    said = answers(store.folder)
    pack(store.folder, tmp_path / "packed")
    merged = merge(tmp_path / "new", [tmp_path / "packed"])
    assert (merged.runs, merged.measurements, merged.problems) == (2, 5, ())
    assert {k: v for k, v in visible(tmp_path / "new").items() if k.startswith("runs")} == {
        k: v for k, v in visible(store.folder).items() if k.startswith("runs")
    }
    again = merge(tmp_path / "packed", [store.folder])
    assert (again.runs, again.measurements, again.kept, again.problems) == (0, 0, 7, ())
    assert answers(tmp_path / "packed") == said
    other = Store(tmp_path / "other")
    other.add_record(replace(RECORD, sparsity=0.4))
    (problem,) = merge(tmp_path / "packed", [other.folder]).problems
    assert problem.what.endswith("sparsity")


@pytest.mark.parametrize("name", ["runs.parquet", "scores.parquet", "items.parquet", "files.zip"])
def test_a_table_that_changed_is_found(store: Store, name: str):
    pack(store.folder)
    path = store.folder / name
    path.write_bytes(path.read_bytes().replace(b"PAR1", b"par1", 1) if name != "files.zip" else b"PK")
    assert [problem.where for problem in verify(store.folder)] == [name]
    path.unlink()
    assert [problem.where for problem in audit(store.folder).problems] == [name]
    if name != "files.zip":
        with pytest.raises(DataError) as raised:
            answers(store.folder)
        assert raised.value.subject == str(path)
        with pytest.raises(DataError):
            unpack(store.folder)
        assert (store.folder / PACKED).exists()


@pytest.mark.parametrize("name", ["runs.parquet", "scores.parquet", "items.parquet"])
def test_a_table_of_another_store_is_refused_and_removes_nothing(store: Store, tmp_path: Path, name: str):
    other = Store(tmp_path / "other")
    with other:
        other.add_record(replace(RECORD, run=replace(RUN, target="0.7")))
        other.add_measurement(replace(RUN, target="0.7").id, LOSS, MEASURED)
    for folder in (store.folder, other.folder):
        pack(folder)
    shutil.copyfile(other.folder / name, store.folder / name)
    before = visible(store.folder)
    for act in (answers, unpack, pack):
        with pytest.raises(DataError) as raised:
            act(store.folder)
        assert raised.value.subject == str(store.folder / name)
    assert visible(store.folder) == before


def test_what_is_damaged_is_not_packed(store: Store):
    score = store.measure_folder(RUN.id, measurement_id(RUN.id, LOSS)) / "score.json"
    score.write_text(score.read_text().replace("1.3", "1.2"))
    before = visible(store.folder)
    with pytest.raises(DataError, match=r"score\.json"):
        pack(store.folder)
    assert visible(store.folder) == before


def test_not_where_a_study_is_at_work(store: Store, tmp_path: Path):
    with Store(store.folder) as busy:
        busy.write_text("study.yaml", "models: [tiny]\n")
        with pytest.raises(OutputError) as raised:
            pack(store.folder)
        assert raised.value.subject == str(store.folder)
        pack(store.folder, tmp_path / "elsewhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(OutputError) as raised:
        pack(store.folder, tmp_path / "full")
    assert raised.value.subject == str(tmp_path / "full")


@pytest.mark.parametrize("of", usually(["flush", "settle", "_remove_folders", "unlink", "replace", "rmdir"], ["settle"]))
def test_killed_anywhere_it_goes_on(store: Store, of: str, monkeypatch: pytest.MonkeyPatch):
    """Each call of these is a step; after each of them everything is there, and asked again it ends as it would have."""
    before, said = visible(store.folder), answers(store.folder)
    steps, owner = 0, {"unlink": Path, "rmdir": Path, "replace": os}.get(of, packing)
    original: Callable[..., object] = getattr(owner, of)
    for work in (pack, unpack):
        for until in range(1, 200):
            calls = iter(range(1, 10_000))

            def dying(*args: object, calls: Iterator[int] = calls, until: int = until, **kwargs: object) -> object:
                if next(calls) == until:
                    raise KeyboardInterrupt
                return original(*args, **kwargs)

            with monkeypatch.context() as patched:
                patched.setattr(owner, of, dying)
                try:
                    work(store.folder)
                    break
                except KeyboardInterrupt:
                    steps += 1
            assert answers(store.folder) == said, (work, until)
        assert verify(store.folder) == []
    assert steps
    assert visible(store.folder) == before


def test_a_reader_finds_tables_on_their_way(store: Store):
    said = answers(store.folder)
    pack(store.folder)
    moving = store.folder / MOVING
    moving.mkdir()
    for name in ("items.parquet", "scores.parquet", PACKED):
        (store.folder / name).rename(moving / name)
    assert answers(store.folder) == said
    assert [p.where for p in verify(store.folder)] == [MOVING]
    settle(store.folder)
    assert not moving.exists()
    assert answers(store.folder) == said


def test_by_another_version_of_the_libraries_it_is_the_same_content(store: Store, tmp_path: Path):
    pack(store.folder, tmp_path / "packed")
    manifest = tmp_path / "packed" / PACKED
    manifest.write_text(text_of_json({**unsealed(read_json(manifest), PACKED_PURPOSE), "libraries": {"pyarrow": "1", "zlib": "1"}}))
    assert verify(tmp_path / "packed") == []
    unpack(tmp_path / "packed", tmp_path / "back")
    assert answers(tmp_path / "back") == answers(store.folder)
    assert verify(tmp_path / "back") == []


def test_it_is_a_data_set_for_the_hub(store: Store, tmp_path: Path):
    from datasets import load_dataset

    pack(store.folder, tmp_path / "packed")
    loaded = {name: load_dataset(str(tmp_path / "packed"), name, split="train", cache_dir=str(tmp_path)) for name in ("runs", "scores", "items")}
    assert {name: len(rows) for name, rows in loaded.items()} == {"runs": 2, "scores": 5, "items": 10}
    assert set(loaded["scores"]["measured"]) == {"quiz", "wikitext:text"}
