"""Bad input: exit 2, one sentence that holds what was given, no traceback, and nothing left
behind.
"""

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from calibrant.testing import tiny_folder, tiny_gguf

from tests.cli.conftest import SMALL, Ask, assert_refused


@pytest.fixture
def unchanged(tmp_path: Path):
    """Nothing is left behind: what was there before, and nothing else, is there afterwards. Call
    it once all is prepared.
    """
    before: list[dict[Path, bytes]] = []

    def listing() -> dict[Path, bytes]:
        return {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")}

    yield lambda: before.append(listing())
    assert before, "the test never said when all was prepared"
    assert listing() == before[0]


WRONG_WORDS = [
    ("--data", "wikitxt", "wikitxt"),
    ("--data", "missing.jsonl", "missing.jsonl"),
    ("--data", "mix(a=python_docs, python_code=0.5)", "mix(a=python_docs, python_code=0.5)"),
    ("--method", "wnada", "wnada"),
    ("--method", "wanda(x=__import__('os'))", "__import__"),
    ("--method", "rtn", "rtn"),
    ("--target", "1", "1.0"),
    ("--target", "2:5", "2:5"),
    ("--dtype", "float7", "float7"),
    ("--device", "gpu", "gpu"),
    ("--samples", "0", "samples"),
    ("--tokens", "64", "tokens is 64"),
    ("--data-dir", "nowhere", "nowhere"),
    ("--samples", "100000", "python_docs"),
]


@pytest.mark.parametrize(("option", "value", "given"), WRONG_WORDS)
def test_words(ask: Ask, unchanged, model: Path, option: str, value: str, given: str):
    unchanged()
    assert_refused(ask("prune", model, "--out", "pruned", *SMALL, f"{option}={value}"), given)


@pytest.mark.parametrize("ref", ["smolm2", "./nothing", "nothing.gguf"])
def test_models_that_are_not_there(ask: Ask, unchanged, ref: str):
    unchanged()
    assert_refused(ask("prune", ref, "--out", "pruned", *SMALL), repr(ref))
    assert_refused(ask("evaluate", ref, "--task", "loss(source='python_docs')"), repr(ref))
    assert_refused(ask("inspect", "python_docs", "--model", ref), repr(ref))


FILES = {
    "empty.jsonl": "",
    "broken.jsonl": '{"text": "all is well"}\n{"text": \n',
    "columns.jsonl": '{"words": "no text", "title": "x"}\n',
    "short.txt": "a few words",
    "short.jsonl@crop": "\n".join(json.dumps({"text": f"text number {n}"}) for n in range(50)),
    "empty.csv": "",
    "broken.parquet": "PAR1 no parquet",
    "picture.png": "no text",
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_user(ask: Ask, unchanged, model: Path, tmp_path: Path, name: str):
    file, _, _ = name.partition("@")
    (tmp_path / file).write_text(FILES[name])
    unchanged()
    assert_refused(ask("prune", model, "--out", "pruned", *SMALL, "--data", name), file)


def test_a_file_that_is_no_gguf(ask: Ask, unchanged, tmp_path: Path):
    cut = tiny_gguf(tmp_path / "cut.gguf")
    cut.write_bytes(cut.read_bytes()[:-5000])
    (tmp_path / "text.gguf").write_bytes(b"nothing of the kind")
    unchanged()
    assert_refused(ask("prune", "cut.gguf", "--out", "pruned", *SMALL), "cut.gguf")
    assert_refused(
        ask("prune", "text.gguf", "--out", "pruned", *SMALL), "text.gguf is no GGUF file"
    )


def test_a_corrupt_safetensors(ask: Ask, unchanged, tmp_path: Path):
    folder = tiny_folder(tmp_path / "tiny")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    unchanged()
    assert_refused(ask("prune", folder, "--out", "pruned", *SMALL), "model.safetensors")


def test_a_pickle(ask: Ask, unchanged, tmp_path: Path):
    folder = tiny_folder(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    unchanged()
    for given in (folder, folder / "pytorch_model.bin"):
        assert_refused(
            ask("prune", given, "--out", "pruned", *SMALL), "pytorch_model.bin", "pickle"
        )


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ({"model.layers.1.mlp.up_proj.weight": float("nan")}, "model.layers.1.mlp.up_proj"),
        (
            {"model.layers.0.input_layernorm.weight": 3e38, "model.embed_tokens.weight": 1e3},
            "model.layers.0.self_attn.q_proj",
        ),
    ],
    ids=["weights", "activations"],
)
def test_what_is_no_number_is_named(
    ask: Ask, unchanged, tmp_path: Path, harm: dict[str, float], named: str
):
    folder = tiny_folder(tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    for name, bad in harm.items():
        tensors[name].view(-1)[0] = bad
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    unchanged()
    assert_refused(ask("prune", folder, "--out", "pruned", *SMALL), named)


def test_a_model_that_transformers_does_not_save(ask: Ask, unchanged, tmp_path: Path):
    folder = tiny_folder(tmp_path / "own")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "output_attentions": True}))
    unchanged()
    assert_refused(ask("prune", folder, "--out", "pruned", *SMALL), folder, "output_attentions")


def test_an_output_that_is_not_ours(ask: Ask, unchanged, model: Path, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    unchanged()
    assert_refused(ask("prune", model, "--out", "taken", *SMALL), "taken")
    assert_refused(ask("prune", model, "--out", "file", *SMALL), "file")
    assert_refused(
        ask(
            "evaluate",
            model,
            "--task",
            "loss(source='python_docs')",
            "--out",
            "nowhere/scores.json",
        ),
        "nowhere/scores.json",
    )
    assert_refused(
        ask("evaluate", model, "--task", "loss(source='python_docs')", "--out", "taken"), "'taken'"
    )


def test_a_file_of_the_user_is_no_output(ask: Ask, unchanged, model: Path, tmp_path: Path):
    notes = tmp_path / "notes.jsonl"
    notes.write_text('{"text": "mine"}\n{"text": "mine too"}\n')
    (tmp_path / "settings.json").write_text('{"model": "llama"}')
    (tmp_path / "list.json").write_text("[1, 2]")
    unchanged()
    said = "no earlier result is in it"
    loss = f"loss(source={str(notes)!r})"
    for taken in ("notes.jsonl", "settings.json", "list.json"):
        assert_refused(ask("evaluate", model, "--task", loss, "--out", taken), taken, said)
        assert_refused(ask("explain", model, "--out", taken), taken, said)
        assert_refused(ask("mix", model, "--sources", "c4", "--out", taken), taken, said)
        languages = ("--language", "english.txt", "--language", "german.txt")
        assert_refused(ask("lape", model, *languages, "--out", taken), taken, said)
        assert_refused(ask("report", "store", "--html", taken), taken, said)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a folder in use can't be removed")
def test_a_current_folder_that_was_removed(
    ask: Ask, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    answer = ask("prune", model, "--out", "pruned", "--data", "random_tokens")
    monkeypatch.chdir(tmp_path)
    assert_refused(answer, "the current folder was removed; change to one that is there")


def test_an_earlier_result_is_replaced(ask: Ask, model: Path, tmp_path: Path):
    rows = [json.dumps({"text": f"mine, yours and theirs {number}"}) for number in range(9)]
    (tmp_path / "notes.jsonl").write_text("\n".join(rows))
    (tmp_path / "scores.json").touch()
    texts: set[str] = set()
    for length in (8, 16):
        task = f"loss(source='notes.jsonl', length={length})"
        assert ask("evaluate", model, "--task", task, "--out", "scores.json").code == 0
        texts.add((tmp_path / "scores.json").read_text())
    assert len(texts) == 2


def test_an_output_of_ours_that_holds_something_else(ask: Ask, unchanged, model: Path):
    assert ask("prune", model, "--out", "pruned", *SMALL).code == 0
    unchanged()
    assert_refused(
        ask("prune", model, "--out", "pruned", *SMALL, "--target", "0.6"), "pruned", "0.5"
    )


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A limit on the size of files stands for the disk: the system refuses to write at the same
    places.
    """
    before, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    "size", [1_000, 60_000], ids=["no room for a block", "no room for the model"]
)
def test_a_disk_that_takes_no_more(ask: Ask, model: Path, tmp_path: Path, size: int):
    with files_no_larger_than(size):
        answer = ask("prune", model, "--out", "pruned", *SMALL)
    assert_refused(answer, "pruned")
    left = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert all(p.match(".pruned.calibrant-partial/edits-*.safetensors") for p in left), (
        "only finished blocks stay, to go on from"
    )
    if size == 1_000:
        assert not list(tmp_path.iterdir())
    else:
        assert left
    assert ask("prune", model, "--out", "pruned", *SMALL).code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["pruned"]
