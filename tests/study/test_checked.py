"""What a study kept is compared before it is used again: statistics, masks and edits that are
damaged or another run's change no number.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.errors import DataError
from calibrant.results import EDITS, MASK, Store, verify
from calibrant.results.verifying import LEFTOVER
from calibrant.system.durable import UNFINISHED

from tests.study.small import asked, kept_files, tables

DENSE = {"methods": ["wanda"], "propagate": "dense", "data": ["random_tokens", "full_stops"]}


def zeroed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-256] + bytes(256))


def flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 16]) + content[-8:])


def swapped(path: Path) -> None:
    other = path.with_name("block-00001.safetensors")
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize("harm", [pytest.param(zeroed, marks=pytest.mark.slow), flipped, swapped])
def test_a_statistic_that_is_not_what_was_written_is_made_again(
    given: dict[str, str],
    tmp_path: Path,
    harm: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
):
    store, whole = tmp_path / "store", tmp_path / "whole"
    asked(given, **DENSE).run(whole)
    shutil.copytree(whole, store)
    for path in sorted((store / "statistics").glob("*/norms/block-00000.safetensors")):
        harm(path)
    assert {problem.where.partition("/")[0] for problem in verify(store)} == {"statistics"}
    caplog.clear()
    for folder in (store, whole):
        asked(given, **{**DENSE, "methods": ["wanda", "ria"]}).run(folder)
    assert [record.levelname for record in caplog.records].count("WARNING") >= 1
    assert tables(store) == tables(whole)
    assert verify(store) == []


def test_a_statistic_that_a_kill_left_half_written_is_a_leftover(whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    *_, path = sorted(tmp_path.glob("statistics/*/norms/block-00000.safetensors"))
    path.with_name(f"{UNFINISHED}-{path.name}").write_bytes(path.read_bytes()[:-9])
    (problem,) = verify(tmp_path)
    assert problem.remedy == LEFTOVER
    assert problem.where.endswith(f"{UNFINISHED}-{path.name}")


def test_a_mask_or_edits_of_another_run_are_not_put_into_the_model(
    given: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    losses = [f"loss(source={given[name]!r}, tokens=200, length=64)" for name in ("verse", "prose")]
    store, whole = tmp_path / "store", tmp_path / "whole"
    asked(given, methods=["wanda", "sparsegpt"], evaluate=losses[:1]).run(whole)
    shutil.copytree(whole, store)
    for name in (MASK, EDITS):
        first, second, *_ = sorted(kept_files(store, name).values())
        shutil.copyfile(first, tmp_path / "first")
        shutil.copyfile(second, first)
        shutil.copyfile(tmp_path / "first", second)
    caplog.clear()
    for folder in (store, whole):
        asked(given, methods=["wanda", "sparsegpt"], evaluate=losses).run(folder)
    assert [record.levelname for record in caplog.records].count("WARNING") == 4
    assert tables(store) == tables(whole)
    assert verify(store) == [], "what was damaged was written again"


@pytest.mark.parametrize(
    ("table", "column"), [("runs", "record"), ("measurements", "score"), ("measurements", "items")]
)
def test_a_result_that_is_not_what_was_written_is_refused(
    whole: Path, tmp_path: Path, table: str, column: str
):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with Store(tmp_path) as store:
        ((harmed, content),) = store.live.database.rows(
            f"SELECT id, {column} FROM {table} ORDER BY id LIMIT 1"
        )
        spoilt = content[:-9] + (b"~" if isinstance(content, bytes) else "~") + content[-8:]
        with store.live.database.writing("harm it") as connection:
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (spoilt, harmed))
    with pytest.raises(DataError) as raised:
        tables(tmp_path)
    assert Path(raised.value.subject).name == harmed.rpartition(":")[2]
