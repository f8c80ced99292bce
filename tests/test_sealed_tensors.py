"""Sealed tensors are laid out as the safetensors library does it, and what a killed writer leaves
goes with the next one.
"""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from calibrant.errors import OutputError
from calibrant.system import sealed_tensors
from calibrant.system.shards import WORDS, Shard

from tests.study.small import ended, forked

PURPOSE = {"kind": "a test"}


def test_a_file_is_what_the_library_would_write(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"empty": torch.zeros(0, 3), "number": torch.tensor(0.5)}
    for dtype, word in WORDS.items():
        tensors[f"all of {word}"] = torch.arange(6).reshape(2, 3).to(dtype)
    tensors["turned"] = torch.arange(6.0).reshape(2, 3).T
    path = tmp_path / "ours/file.safetensors"
    sealed_tensors.write(path, PURPOSE, {"answer": 42}, tensors)
    stored = sealed_tensors.read(path, PURPOSE)
    assert stored.facts == {"answer": 42}
    assert stored.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(stored.tensors[name].view(tensor.dtype), tensor), name
    tensors["turned"] = tensors["turned"].contiguous()
    theirs = tmp_path / "theirs.safetensors"
    save_file(tensors, theirs, metadata={"seal": "ours"})
    again = Shard.of(tensors, tmp_path / "again.safetensors", {"seal": "ours"})
    again.begin()
    again.write(tensors)
    assert again.path.read_bytes() == theirs.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="the process is killed by a signal")
def test_what_a_killed_writer_left_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.safetensors"

    def write() -> None:
        sealed_tensors.write(path, PURPOSE, {}, {"numbers": torch.zeros(10)})

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(Shard, "write", killed)
        assert ended(forked(write)) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left != path
    write()
    assert list(tmp_path.iterdir()) == [path]


def test_a_type_of_numbers_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    tensors = {"scales": torch.zeros(4, dtype=torch.float8_e4m3fnuz)}
    with pytest.raises(OutputError, match=r"^scales has numbers of type torch\.float8_e4m3fnuz"):
        Shard.of(tensors, tmp_path / "scales.safetensors")
