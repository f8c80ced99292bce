"""Whatever names, columns and texts hold, nothing that a command writes acts on a terminal, and
any console can say it.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from calibrant.cli._frame import show
from calibrant.results import Store

from tests.cli.conftest import SMALL, Answer, Ask, assert_refused
from tests.report.made import store_of

ACTING = "\x1b[31m\x07\u202e\x9b2J\u2028"
"""A colour, the bell, a turned direction, a cleared screen in the old eighth bit, and an end of
a line that only some programs know.
"""
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]")
SHOWN = r"\x1b[31m\x07\u202e\x9b2J\u2028"


def still(text: str) -> None:
    raw = RAW.search(text)
    assert raw is None, (raw, text)


def only_read(answer: Answer) -> Answer:
    still(answer.out)
    still(answer.err)
    return answer


def written(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("column", ["text", f"bo{ACTING}dy"])
def test_a_files_name_its_columns_and_its_texts(ask: Ask, tmp_path: Path, column: str):
    path = written(
        tmp_path / f"my{ACTING}rows.jsonl",
        *({column: f"row {number} {ACTING} with words of its own"} for number in range(40)),
    )
    answer = only_read(ask("inspect", f"'{path}'", "--samples", "2", "--length", "32"))
    assert SHOWN in (answer.out if column == "text" else answer.err)
    assert answer.code == (0 if column == "text" else 2)
    as_json = only_read(ask("inspect", f"'{path}'", "--samples", "2", "--length", "32", "--json"))
    if column == "text":
        assert ACTING in as_json.json["data"], "a program reads what is there"


REFUSED = {
    "model": ("prune", ACTING, "--out", "pruned", *SMALL),
    "data": ("prune", "smollm2", "--out", "pruned", "--data", f"./{ACTING}.jsonl"),
    "method": ("prune", "smollm2", "--out", "pruned", *SMALL, "--method", ACTING),
    "task": ("evaluate", "smollm2", "--task", ACTING),
    "store": ("report", ACTING),
    "kind": ("list", ACTING),
    "command": (ACTING,),
    "option": ("list", "methods", f"--{ACTING}"),
    "value": ("prune", "smollm2", "--samples", ACTING),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_word_that_is_refused(ask_main: Ask, what: str):
    assert_refused(only_read(ask_main(*REFUSED[what])), r"\x1b")


def test_what_a_store_holds(ask: Ask, tmp_path: Path):
    hostile = f"set{ACTING}"
    folder = store_of(
        tmp_path / "results", {hostile: (2.5, 3.9), "other": (2.6, 3.8)}, model=f"model{ACTING}"
    )
    with Store(folder) as store:
        store.add_failure("sha256:f", {"what": hostile, "error": hostile})
    said = {
        format: only_read(ask("report", folder, "--format", format))
        for format in ("table", "markdown", "csv", "latex", "json")
    }
    assert all(answer.code == 0 for answer in said.values())
    assert hostile in {
        entry["name"] for ranking in said["json"].json["rankings"] for entry in ranking["entries"]
    }, "a program reads what is there"
    assert SHOWN in said["csv"].out
    only_read(ask("report", folder, "--html", tmp_path / "page.html"))
    # The page brings Vega's own script, which names such characters in its tables.
    still(
        re.sub(r"<script>.*?</script>", "", (tmp_path / "page.html").read_text(), flags=re.DOTALL)
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_console_that_knows_only_old_letters(ask_main: Ask, tmp_path: Path, encoding: str):
    folder = store_of(tmp_path / "results", {"数据": (2.5, 3.9), "other": (2.6, 3.8)})
    answer = ask_main("report", folder, encoding=encoding)
    assert answer.code == 0, answer.err
    assert ("+-" if encoding == "ascii" else "±") in answer.out
    assert r"\u6570\u636e" in answer.out
    assert_refused(ask_main("list", "数±据", encoding=encoding))


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes are for POSIX")
def test_a_name_that_is_no_text(ask_main: Ask):
    name = os.fsdecode(b"rows\xff.jsonl")
    answer = ask_main("inspect", f"./{name}")
    assert answer.code == 2, answer
    assert "xff" in answer.err or "udcff" in answer.err


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(5, "Input/output error", "a/file"), "'a/file'"),
        (OSError(28, "No space left on device"), "the disk is full"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, error: OSError, named: str
):
    def refuse(kind: str) -> None:
        raise error

    monkeypatch.setattr("calibrant.names.catalogue", refuse)
    assert_refused(ask("list", "methods"), named)


def test_a_device_that_runs_out_of_memory_is_a_sentence(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    def refuse(kind: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("calibrant.names.catalogue", refuse)
    answer = ask("list", "methods")
    assert answer.code == 1
    assert "--device-memory" in answer.err


def test_what_rich_takes_for_an_emoji_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]):
    show(None, False, lambda _: ["set a:key:b"])
    assert capsys.readouterr().out == "set a:key:b\n"
