"""Models with short names: a file in installed packages, whole or in parts, that is found and
joined without importing anything.
"""

import errno
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from calibrant.compress import prune, quantize
from calibrant.evaluators import evaluate
from calibrant.models import gguf_of, in_packages, located, open_model, view
from calibrant.spec.named import NAMED, NamedModel
from calibrant.testing.tiny import tiny_gguf

from tests.models.refused import refusal_of

GEMMA = NAMED["gemma3-270m"]


@pytest.fixture
def in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[NamedModel, bytes]:
    """A tiny model in three packages."""
    whole = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    for number in range(3):
        (tmp_path / "packages" / f"part{number}" / "data").mkdir(parents=True)
        (tmp_path / "packages" / f"part{number}" / "__init__.py").write_text(
            "raise RuntimeError('it was imported')"
        )
        (tmp_path / "packages" / f"part{number}" / "data" / f"m.part{number}").write_bytes(
            whole[number * 9000 : (number + 1) * 9000 if number < 2 else None]
        )
    monkeypatch.syspath_prepend(tmp_path / "packages")
    model = NamedModel(
        "in-parts",
        "a tiny one",
        "m.gguf",
        tuple(f"part{n}/data/m.part{n}" for n in range(3)),
        "pip install it",
    )
    monkeypatch.setitem(NAMED, "in-parts", model)
    return model, whole


def test_parts_are_joined_once_in_the_users_cache(
    in_parts: tuple[NamedModel, bytes], own_cache: Path
) -> None:
    path = located("in-parts")
    assert path.read_bytes() == in_parts[1]
    assert path.is_relative_to(own_cache)
    before = path.stat().st_mtime_ns
    assert located("in-parts").stat().st_mtime_ns == before
    path.write_bytes(in_parts[1][:-1])  # what isn't whole is joined again
    assert located("in-parts").read_bytes() == in_parts[1]
    assert [file.name for file in path.parent.iterdir()] == ["m.gguf"]
    opened = open_model("in-parts", "float32", "cpu")
    assert (opened.name, opened.note) == ("in-parts", "dequantized from Q8_0")
    assert gguf_of("in-parts") == path


def test_what_a_killed_process_left_half_joined_goes(
    in_parts: tuple[NamedModel, bytes], own_cache: Path
) -> None:
    path = located("in-parts")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = path.with_name(f".m.gguf-{ended.pid}-joining")
    left.write_bytes(b"half")
    path.unlink()
    assert located("in-parts").read_bytes() == in_parts[1]
    assert not left.exists()


def test_a_part_that_is_not_installed_says_how_to_bring_it(
    in_parts: tuple[NamedModel, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        NAMED,
        "in-parts",
        replace(in_parts[0], parts=(*in_parts[0].parts[:2], "part9/data/m.part9")),
    )
    said = refusal_of(open_model, "in-parts")
    assert said.subject == "in-parts"
    assert "pip install it" in str(said)
    assert "gemma3-270m" in str(refusal_of(open_model, "gema3-270m"))


def test_parts_that_cannot_be_joined_say_how_to_name_another_folder(
    in_parts: tuple[NamedModel, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALIBRANT_CACHE", os.devnull)
    said = refusal_of(open_model, in_parts[0].name)
    assert said.subject == "in-parts"
    assert "CALIBRANT_CACHE" in str(said)


@pytest.fixture
def with_digest(
    in_parts: tuple[NamedModel, bytes], monkeypatch: pytest.MonkeyPatch
) -> tuple[NamedModel, bytes]:
    """The tiny model with the digest of its file."""
    model, whole = in_parts
    known = replace(model, digest=f"sha256:{hashlib.sha256(whole).hexdigest()}")
    monkeypatch.setitem(NAMED, "in-parts", known)
    return known, whole


def test_a_joined_file_that_was_replaced_is_joined_again(
    with_digest: tuple[NamedModel, bytes], own_cache: Path
) -> None:
    path = located("in-parts")
    path.write_bytes(bytes(len(with_digest[1])))  # as large as before, and newer
    assert located("in-parts").read_bytes() == with_digest[1]
    assert [file.name for file in path.parent.iterdir()] == ["m.gguf"]


def test_parts_that_make_another_file_are_refused_and_nothing_of_them_stays(
    with_digest: tuple[NamedModel, bytes], tmp_path: Path, own_cache: Path
) -> None:
    located("in-parts")
    part = tmp_path / "packages" / "part1" / "data" / "m.part1"
    part.write_bytes(bytes(part.stat().st_size))
    for _ in range(2):
        said = refusal_of(located, "in-parts")
        assert said.subject == "in-parts"
        assert with_digest[0].pip in str(said)
    assert not list(own_cache.rglob("*.gguf"))


def test_the_joined_file_stays_until_the_new_one_is_ready(
    with_digest: tuple[NamedModel, bytes],
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = located("in-parts")
    later = path.stat().st_mtime + 60
    os.utime(tmp_path / "packages" / "part1" / "data" / "m.part1", (later, later))
    with monkeypatch.context() as within:
        within.setattr(in_packages, "file_digest", full)
        assert refusal_of(located, "in-parts").subject == "in-parts"
    assert path.read_bytes() == with_digest[1]
    assert [file.name for file in own_cache.rglob("*.*")] == ["m.gguf"]


@pytest.mark.skipif(
    any(find_spec(part.partition("/")[0]) is None for part in GEMMA.parts),
    reason="the packages of gemma3-270m aren't installed",
)
@pytest.mark.slow
def test_gemma_opens_is_compressed_and_written_again(tmp_path: Path) -> None:
    """Its loss is sane, its walk reaches every matrix, and as GGUF, where its norms are larger
    by one, it computes the same.
    """
    opened = open_model("gemma3-270m", "bfloat16", "cpu")
    assert opened.note == "dequantized from Q4_K_M"
    assert not [name for name in sys.modules if name.startswith("gemma3_270m")]
    assert len(view(opened.model).weights) == 18 * 7
    task = "loss(source=python_docs, tokens=1024, length=256)"
    dense = evaluate(opened, tasks=task)[0].score.value
    assert 2 < dense < 4
    pruned = prune(
        "gemma3-270m",
        data="python_docs",
        method="wanda",
        target=0.3,
        out=tmp_path / "pruned",
        dtype="bfloat16",
        samples=2,
        length=128,
    )
    assert len(pruned.record.weights) == 18 * 7
    assert dense < evaluate(str(tmp_path / "pruned"), tasks=task)[0].score.value < 6
    quantize("gemma3-270m", target="w4g32", out=tmp_path / "small", dtype="bfloat16", export="gguf")
    ids = torch.arange(100, 164)[None]
    one, other = (
        open_model(str(place), "bfloat16", "cpu")
        for place in (tmp_path / "small", tmp_path / "small" / "model.gguf")
    )
    for mine, theirs in zip(view(one.model).weights, view(other.model).weights, strict=True):
        assert torch.equal(mine.get(), theirs.get())
    with torch.no_grad():
        logs = [model.model(ids).logits.float().log_softmax(-1) for model in (one, other)]
    assert float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).max()) < 1e-2
