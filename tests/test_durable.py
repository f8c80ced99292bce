"""Files that appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

from calibrant.system.durable import put, replacing

WRITER = """
import sys
from pathlib import Path
from calibrant.system.durable import put

put(Path(sys.argv[1]), b"other")
"""


def test_another_process_writes_to_another_half(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    with replacing(path) as half:
        half.write_bytes(b"mine")
        subprocess.run([sys.executable, "-c", WRITER, str(path)], check=True)
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"mine"


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".unfinished-a[1].json-999999999"
    left.write_bytes(b"half")
    living = tmp_path / f".unfinished-a[1].json-{os.getppid()}"
    living.write_bytes(b"half")
    put(tmp_path / "a[1].json", b"whole")
    assert not left.exists()
    assert living.exists()
