"""What a file for other tools holds, what its card and script say, and what is refused."""

import ast
import errno
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from pyarrow import parquet

from calibrant import CalibrationSet, InputError, prune, write_data
from calibrant.data import Chat, as_source
from calibrant.errors import DataError, ModelError, OutputError
from calibrant.handover import ScriptFacts, tool_named, tools, write_over
from calibrant.handover._files import write_folder
from calibrant.models import open_model, open_tokenizer
from calibrant.options import WriteDataOptions
from calibrant.system.durable import locked_folder, put
from calibrant.testing import tiny_folder, tiny_model, tiny_tokenizer
from calibrant.testing.tiny import tiny_gguf

ENDINGS = (".jsonl", ".parquet", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    return datasets.Dataset.load_from_disk(str(path)).to_list()


def windows_of(calibration: CalibrationSet, folder: Path) -> list[list[int]]:
    batch = calibration.tokens(open_tokenizer(str(folder))[0])
    return [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_has_the_tokens_of_the_set(ending: str, folder: Path, tmp_path: Path) -> None:
    calibration = CalibrationSet("0.3*python_docs + 0.7*arithmetic:qa", tokens=700, length=64)
    done = write_data(folder, data=calibration, out=tmp_path / f"windows{ending}")
    written = [row["input_ids"] for row in rows_of(done.out)]
    assert written == windows_of(calibration, folder)
    assert (done.rows, done.tokens) == (len(written), 700)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_of_ids_is_the_set_again(ending: str, folder: Path, tmp_path: Path) -> None:
    calibration = CalibrationSet("python_docs", tokens=500, length=64)
    done = write_data(folder, data=calibration, out=tmp_path / f"windows{ending}")
    tokenizer = open_tokenizer(str(folder))[0]
    again = CalibrationSet(done.out)
    assert again.fitted(tokenizer).tokens(tokenizer).fingerprint == done.fingerprint
    masks = []
    for data in (calibration, done.out):
        model = open_model(str(folder)).model
        prune(model, tokenizer, data=data, method="sparsegpt", target=0.5)
        masks.append({name: weight == 0 for name, weight in model.state_dict().items()})
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    assert any(mask.any() for mask in masks[0].values())


def test_a_model_that_is_open_and_a_selector_will_do(folder: Path, tmp_path: Path) -> None:
    opened = open_model(str(folder))
    data = "least_perplexity(source=python_docs, candidates=20)"
    by_name = write_data(folder, data=data, samples=2, length=32, out=tmp_path / "a.jsonl")
    in_hand = write_data(
        opened.model, opened.tokenizer, data=data, samples=2, length=32, out=tmp_path / "b.jsonl"
    )
    assert by_name.fingerprint == in_hand.fingerprint
    assert by_name.out.read_bytes() == in_hand.out.read_bytes()


def test_texts_give_the_tokens_again(folder: Path, tmp_path: Path) -> None:
    calibration = CalibrationSet("python_docs", samples=4, length=64)
    done = write_data(folder, data=calibration, form="texts", out=tmp_path / "texts.jsonl")
    tokenizer = open_tokenizer(str(folder))[0]
    again = [tokenizer(row["text"])["input_ids"] for row in rows_of(done.out)]
    assert again == windows_of(calibration, folder)
    assert done.notes == ()


def test_conversations_are_those_that_the_windows_were_made_of(
    folder: Path, tmp_path: Path
) -> None:
    calibration = CalibrationSet("arithmetic:chat(system='Be brief.')", samples=2, length=128)
    done = write_data(folder, data=calibration, form="conversations", out=tmp_path / "talks")
    tokenizer = open_tokenizer(str(folder))[0]
    rendered = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows_of(done.out)
    ]
    form = Chat(system="Be brief.")
    used = calibration.rows(tokenizer)[0]
    assert rendered == [form.render(row, tokenizer) for row in used]


def test_calls_go_into_lines_and_into_no_table(folder: Path, tmp_path: Path) -> None:
    function = {"name": "weather", "arguments": {"town": "Jena"}}
    call = {"type": "function", "function": function}
    offered = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    messages = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "20"},
        {"role": "assistant", "content": "20 degrees."},
    ]
    talk = {"messages": messages, "tools": offered}
    calibration = CalibrationSet(f"{as_source([talk])}:chat(thinking=keep)@one", length=512)
    done = write_data(folder, data=calibration, form="conversations", out=tmp_path / "a.jsonl")
    assert list(rows_of(done.out)) == [talk]
    assert any("thinking='keep'" in note for note in done.notes)
    with pytest.raises(DataError) as caught:
        write_data(folder, data=calibration, form="conversations", out=tmp_path / "b.parquet")
    assert caught.value.subject == "b.parquet"
    assert not (tmp_path / "b.parquet").exists()


def test_what_a_file_cannot_carry_is_said(folder: Path, tmp_path: Path) -> None:
    data = "0.3*python_docs@one + 0.7*arithmetic:qa"
    done = write_data(folder, data=data, samples=8, length=64, out=tmp_path / "a.jsonl")
    assert any("weights" in note for note in done.notes)
    assert any("weights" in line for line in done.card.read_text("utf-8").splitlines())


def test_the_card_says_where_the_tokens_come_from(folder: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "a.jsonl", tmp_path / "folder"):
        done = write_data(folder, data="python_docs", samples=2, length=32, out=out)
        text = done.card.read_text("utf-8")
        for fact in ("PSF-2.0", done.fingerprint, "--samples 2 --length 32 --seed 0"):
            assert fact in text
        # It is there to be shown to others.
        assert str(tmp_path) not in text
        assert str(folder.parent) not in text


def test_the_card_names_no_folder_of_any_part(folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / "plain.jsonl", tmp_path / "with spaces.jsonl"]
    for file in files:
        lines = [json.dumps({"text": f"{number} in {file.stem} " * 40}) for number in range(20)]
        file.write_text("\n".join(lines))
    data = f"0.5*{files[0]} + 0.5*'{files[1]}'"
    done = write_data(folder, data=data, samples=2, length=32, out=tmp_path / "a.jsonl")
    card = done.card.read_text("utf-8")
    assert str(tmp_path) not in card
    assert "0.5*…/plain.jsonl + 0.5*'…/with spaces.jsonl'" in card


def test_an_ending_in_capitals_is_that_ending(folder: Path, tmp_path: Path) -> None:
    done = write_data(
        folder,
        data="python_docs",
        samples=2,
        length=32,
        out=tmp_path / "WINDOWS.JSONL",
        tool="gptqmodel",
    )
    assert len(done.out.read_text("utf-8").splitlines()) == 2
    assert done.script is not None
    assert "json.loads" in done.script.read_text("utf-8")


def test_objects_are_written_too(folder: Path, tmp_path: Path) -> None:
    texts = ["The first of two texts.", "The second, which is a little longer."]
    done = write_data(folder, data=texts, length=16, out=tmp_path / "a.jsonl")
    assert [row["input_ids"] for row in rows_of(done.out)] == windows_of(
        CalibrationSet(texts, length=16), folder
    )
    # No command could find them.
    assert "--model" not in done.card.read_text("utf-8")


def test_a_script_needs_a_model_that_has_a_name(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": "python_docs", "samples": 2, "length": 32}
    model = tiny_model("llama")
    with pytest.raises(ModelError):
        write_data(model, tiny_tokenizer(), out=tmp_path / "a", tool="modelopt", **settings)
    assert not list(tmp_path.iterdir())
    assert write_data(model, tiny_tokenizer(), out=tmp_path / "a", **settings).rows == 2


NASTY = 'a\'b"c\\ $(touch x); `y`\n"""\u202e'


@pytest.mark.parametrize("name", tools.names())
def test_a_script_is_short_and_whatever_is_in_a_name_stays_a_text(name: str) -> None:
    tool = tool_named(name)
    for ending in tool.endings:
        script = tool.script(ScriptFacts(NASTY, f"{NASTY}{ending}", 8, 64))
        assert len(script.splitlines()) <= 30
        constants = {
            node.targets[0].id: node.value.value
            for node in ast.parse(script).body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        assert constants["FILE"] == f"{NASTY}{ending}"
        if ending != ".txt":
            assert constants["MODEL"] == NASTY


def test_tools_are_known_as_their_makers_call_them() -> None:
    for name in ("llm-compressor", "auto-round", "gptqmodel", "modelopt", "llama.cpp"):
        assert tool_named(name).spec_name() in tools.names()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("compresor", {"tool": "llm-compresor"}),
        (".csv", {"out": "windows.csv"}),
        ("texs", {"form": "texs"}),
        ("texts", {"form": "texts", "tool": "gptqmodel"}),
        ("ids", {"form": "ids", "out": "windows.txt"}),
        ("windows.jsonl", {"tool": "llama.cpp"}),
        ("mix", {"data": "mix(python_docs=0.5, arithmetic:qa=0.5)"}),
        ("python_docs", {"form": "conversations"}),
        ("nowhere", {"out": "nowhere/windows.jsonl"}),
        ("'.'", {"out": ".", "tool": "gptqmodel"}),
        ("python_docs", {"samples": 10**7}),
        ("llama.cpp", {"tool": "llama.cpp", "out": "windows.txt"}),
        ("my model.gguf' --out FOLDER", {"tool": "auto-round", "model": "my model.gguf"}),
        (
            "is quantized to Q8_0 already",
            {"tool": "llama.cpp", "out": "windows.txt", "model": "small.gguf"},
        ),
    ],
)
def test_what_cannot_be_handed_over_is_refused(
    given: str,
    options: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model: Any = folder
    if "model" in options:
        model = str(tiny_gguf(tmp_path / options.pop("model")))
    there = sorted(tmp_path.iterdir())
    settings: dict[str, Any] = {
        "data": "python_docs",
        "out": "windows.jsonl",
        "samples": 2,
        "length": 32,
    }
    with pytest.raises(InputError) as refused:
        write_data(model, **(settings | options))
    assert given in str(refused.value)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("packed", ["F32", "F16"])
def test_llama_cpp_gets_its_text_whole(packed: str, tmp_path: Path) -> None:
    """Its tools take one newline away from the end of a file."""
    model = str(tiny_gguf(tmp_path / "model.gguf", packed))
    text = "a line of sixteen\n" * 8
    (tmp_path / "prose.jsonl").write_text(json.dumps({"text": text}) + "\n")
    done = write_data(
        model,
        data=f"{tmp_path / 'prose.jsonl'}@imatrix",
        out=tmp_path / "windows.txt",
        tool="llama.cpp",
        samples=8,
        length=18,
    )
    assert done.rows == 8
    written = (tmp_path / "windows.txt").read_text("utf-8")
    assert written == text + "\n"
    assert done.notes == ()
    # What its tools read then are all eight windows.
    assert len(open_tokenizer(model)[0](written.removesuffix("\n")).input_ids) == 8 * 18


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ("python_docs", "; leave --as"),
        ("arithmetic:qa", "; write arithmetic:chat, or leave --as"),
    ],
)
def test_a_chat_is_advised_only_where_rows_can_be_one(
    data: str, advice: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=advice):
        write_data(folder, data=data, form="conversations", out=tmp_path / "talks.jsonl")


@pytest.mark.parametrize(
    "there", ["windows.jsonl", "windows.jsonl.md", "windows.jsonl.gptqmodel.py"]
)
def test_what_exists_is_left_alone(there: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(InputError) as refused:
        write_data(
            folder,
            data="python_docs",
            out=tmp_path / "windows.jsonl",
            tool="gptqmodel",
            samples=2,
            length=32,
        )
    assert there in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


@pytest.mark.parametrize("there", [set(), {"windows.jsonl.md"}])
def test_where_a_file_cannot_be_written_it_is_named_and_nothing_new_stays(
    there: set[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "windows.jsonl"
    for name in there:
        (tmp_path / name).write_text("mine")

    def full(path: Path, content: bytes) -> None:
        if path == out:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(path, content)

    monkeypatch.setattr("calibrant.handover._files.put", full)
    options = WriteDataOptions(folder, data="python_docs", out=out, samples=2, length=32)
    with pytest.raises(OutputError) as refused:
        write_over(options)
    assert refused.value.subject == str(out)
    assert {path.name for path in tmp_path.iterdir()} == there


def test_a_call_that_was_killed_before_its_data_is_asked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "windows.jsonl"
    asked: dict[str, Any] = {"data": "python_docs", "samples": 2, "length": 32, "out": out}

    def killed_at_data(path: Path, content: bytes) -> None:
        if path == out:
            raise KeyboardInterrupt
        put(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("calibrant.handover._files.put", killed_at_data)
        with pytest.raises(KeyboardInterrupt):
            write_data(folder, tool="modelopt", **asked)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"windows.jsonl.md", "windows.jsonl.modelopt.py"}
    done = write_data(folder, tool="modelopt", **asked)
    assert rows_of(out)
    # What somebody else wrote there stays.
    assert done.script is not None
    out.unlink()
    done.script.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_data(folder, tool="modelopt", **asked)
    assert done.script.read_text() == "mine"
    assert not out.exists()


def test_a_folder_that_another_is_writing_keeps_what_is_beside_it(tmp_path: Path):
    pytest.importorskip("fcntl", reason="Windows has none")
    half = tmp_path / ".unfinished-data"
    half.mkdir()
    script = tmp_path / "data.py"
    script.write_bytes(b"theirs")
    with locked_folder(half), pytest.raises(OutputError, match="made by another process"):
        write_folder(tmp_path / "data", [{"text": "a"}], "a card", {script: b"mine"})
    assert script.read_bytes() == b"theirs"
    assert not (tmp_path / "data").exists()
