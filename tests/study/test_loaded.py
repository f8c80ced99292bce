"""What the state of a compressed model is read as."""

import struct
from pathlib import Path

from calibrant.edits.file import to_bytes
from calibrant.lab.study.loaded import LoadedModel
from calibrant.models import open_model
from calibrant.testing import tiny_folder


def test_edits_whose_header_is_as_long_as_a_zip_file_says_are_no_mask(tmp_path: Path):
    loaded = LoadedModel(open_model(str(tiny_folder(tmp_path / "model")), "float32"))
    content = to_bytes([])
    (length,) = struct.unpack("<Q", content[:8])
    longer = int.from_bytes(b"PK", "little")
    header = content[8 : 8 + length].ljust(longer)
    edits = struct.pack("<Q", longer) + header + content[8 + length :]
    assert edits.startswith(b"PK")
    loaded.apply(edits)
