"""Two processes may write one file of a store at the same moment."""

import subprocess
import sys
from pathlib import Path

from calibrant.results import STUDY, Store

TIMES = 100
WRITER = """
import sys
from calibrant.results import STUDY, Store

folder, text, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store(folder) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(times):
        store.write_text(STUDY, text * 1000)
"""


def test_two_writers_of_one_file_both_succeed_and_leave_a_whole_one(tmp_path: Path):
    folder = tmp_path / "store"
    texts = ("a", "b")
    writers: list[subprocess.Popen[str]] = []
    for text in texts:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), text, str(TIMES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        writers.append(writer)
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, complaint = writer.communicate(timeout=60)
        assert writer.returncode == 0, complaint
    assert (folder / STUDY).read_text() in [text * 1000 for text in texts]
    assert not list(folder.glob(".unfinished*"))
    with Store(folder, create=False) as store:
        assert len(store.study_text()) == 1000


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path):
    with Store(tmp_path) as store:
        left = tmp_path / f".unfinished-{STUDY}-0123abcd"
        left.write_text("model: sm")
        store.write_text(STUDY, "model: smollm2\n")
    assert not left.exists()
