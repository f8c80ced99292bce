"""What is attacked: for each kind of input a case is made of a good one, and the command that is
to read it.
"""

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.results import pack
from calibrant.results.live import DATABASE
from calibrant.results.published import PACKED_PURPOSE
from calibrant.system.durable import sealed, text_of_json
from calibrant.system.seals import SEAL
from calibrant.testing import tiny_folder, tiny_gguf

from tests.attack import mangling
from tests.databases import change, reseal
from tests.report.made import store_of
from tests.results.conftest import varied

SPECS: Final = ("magnitude", "wanda", "sparsegpt(damp=0.02)", "sparsegpt(damp=0.02, block=64)")
TASKS: Final = (
    "loss(source=python_docs, tokens=64, length=32)",
    "agreement(source='rows.jsonl')",
    "task(name='gsm8k', shots=2, limit=4)",
    "perplexity",
)
EXPRESSIONS: Final = (
    "python_docs",
    "random_tokens",
    "0.3*python_docs + 0.7*full_stops",
    "rows.jsonl:text@many(shots=2)",
    "'rows.jsonl'(text='text')@one",
    "mix(a=python_docs, b=rows.jsonl, weight=0.3)",
    "mix(a=python_docs, b=full_stops, c=rows.jsonl, weights=[0.2, 0.3, 0.5])",
    "cluster(source=python_docs, k=4)",
    "python_docs:chat",
)
NUMBERS: Final = (
    "4",
    "32",
    "0",
    "1",
    "-1",
    "9" * 5000,
    "10**9",
    "1e9",
    "1000000000000",
    "٣",
    "0x10",
    " 8 ",
    "8.0",
    "nan",
    "",
    "1_000",
)
STUDY: Final = """model: MODEL
data: [python_docs, "0.5*python_docs + 0.5*full_stops"]
method: [wanda, "sparsegpt(damp=0.1)"]
target: [0.5, 2:4]
seeds: [0, 1]
samples: 4
length: 32
evaluate: ["loss(source=python_docs, tokens=64, length=32)"]
baseline: python_docs
pools: {all: [python_docs]}
groups: {small: {target: 0.5}}
exclude: [{method: wanda, target: 2:4}]
primary:
  - {compare: python_docs, with: "0.5*python_docs + 0.5*full_stops"}
"""
PLACES: Final = (
    *(
        "fifo.jsonl",
        "loop.jsonl",
        "zero.jsonl",
        "folder.jsonl",
        "/dev/stdin",
        "/proc/self/mem",
        "../../../../../etc/passwd",
        ".",
        "",
    ),
    *(
        "~nouser/x.jsonl",
        "a/" * 3000 + "x.jsonl",
        "d/" * 2000 + "x.jsonl",
        "x" * 300 + ".jsonl",
        "a\0b.jsonl",
        "rows\udcff.jsonl",
    ),
    *("*.jsonl", "**/*", "["),
)
TEMPLATES: Final = (
    *(
        "{{ nothing.at.all }}",
        "{% for x in range(10) %}",
        "{{ raise_exception('no') }}",
        "{{ messages[99].content }}",
        "{{ 1/0 }}",
    ),
    *(
        "{{ ''.__class__.__mro__ }}",
        "{% include 'x' %}",
        "{% set ns = namespace(a=1) %}{{ ns.b.c }}",
        "{{ messages | tojson | from }}",
    ),
    "{{ 'x' * 1000000000 }}",
)
ROWS: Final = [
    {
        "text": f"row {n} has a few words of its own, and a number: {n * n}",
        "question": f"what is {n}?",
        "answer": str(n),
    }
    for n in range(40)
]
SMALL: Final = ("--samples", "2", "--length", "32", "--dtype", "float32")

ROWS_OF_STORE: Final = (
    ("runs", ("record", "provenance")),
    ("measurements", ("score", "provenance")),
    ("documents", ("content",)),
)

Words = Sequence[str]


class Ground:
    """Good input, made once, of which each case gets a copy in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_folder(folder / "model", num_hidden_layers=2)
        self.gguf = tiny_gguf(folder / "tiny.gguf")
        self.store = store_of(
            folder / "store", {"python_docs": (2.5, 3.9), "full_stops": (8.0, 9.0)}
        )
        self.published = varied(folder / "published")
        pack(self.published)
        self.files = _files(folder / "files")


def _files(folder: Path) -> dict[str, Path]:
    """The same rows in every kind of file."""
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = pa.Table.from_pylist(ROWS)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with pa.output_stream(str(folder / "rows.jsonl.zst"), compression="zstd") as out:
        out.write(lines.encode())
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        (folder / name).write_text(
            "".join(
                mark.join(row.values()).replace(", and", " and") + "\n"
                for row in [dict(zip(ROWS[0], ROWS[0], strict=True)), *ROWS]
            )
        )
    pq.write_table(table, folder / "rows.parquet")
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    (folder / "rows.txt").write_text("\n\n".join(row["text"] for row in ROWS))
    return {path.name: path for path in folder.iterdir()}


def spec(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A method, a target, a number or a task that is no such thing."""
    _rows(ground, here)
    bad = mangling.text(chance, chance.choice(SPECS))
    base = ("prune", str(ground.model), "--out", "pruned", "--data", "random_tokens", *SMALL)
    match chance.randrange(5):
        case 0:
            return (*base, "--method", bad)
        case 1:
            return (
                *base,
                "--target",
                mangling.text(chance, chance.choice(("0.5", "2:4", "0.29"))),
            )
        case 2:
            return (
                *base,
                chance.choice(("--samples", "--tokens", "--length", "--seed", "--memory")),
                chance.choice(NUMBERS),
            )
        case 3:
            return (
                "evaluate",
                str(ground.model),
                "--task",
                mangling.text(chance, chance.choice(TASKS)),
                "--limit",
                "4",
            )
        case _:
            return (
                *base,
                chance.choice(("--propagate", "--dtype", "--device")),
                mangling.text(chance, chance.choice(("dense", "float32", "cpu"))),
            )


def expression(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A calibration set that is none."""
    _rows(ground, here)
    return (
        "inspect",
        mangling.text(chance, chance.choice(EXPRESSIONS)),
        *SMALL[:4],
        "--model",
        str(ground.model),
    )[: chance.choice((6, 8))]


def study(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A study's file with mistakes, which is only planned."""
    made = mangling.text(chance, STUDY).replace("MODEL", str(ground.model))
    (here / "study.yaml").write_bytes(made.encode("utf-8", "surrogatepass"))
    return ("study", "study.yaml", "--out", "results", "--plan", "--quick")


def rows(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A data file that is damaged, or holds what no row should."""
    name = chance.choice(sorted(ground.files))
    good = ground.files[name].read_bytes()
    if name.endswith((".jsonl", ".json")) and chance.random() < 0.5:
        bad = _bad_rows(chance, name)
    else:
        bad = (
            mangling.data(chance, good)
            if chance.random() < 0.7
            else mangling.text(chance, good.decode("latin-1")).encode("latin-1", "replace")
        )
    (here / name).write_bytes(bad)
    column = chance.choice(("", "", "(text='text')", "(question='question', answer='answer')"))
    return ("inspect", f"./{name}{column}", *SMALL[:4])


def places(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A path to what is no file, or none that can be had."""
    os.mkfifo(here / "fifo.jsonl")
    os.symlink("loop.jsonl", here / "loop.jsonl")
    os.symlink("/dev/zero", here / "zero.jsonl")
    os.symlink("/dev/zero", here / "config.json")
    (here / "folder.jsonl").mkdir()
    path = chance.choice(PLACES)
    return chance.choice(
        (
            ("inspect", f"'{path}'" if chance.random() < 0.5 else path, *SMALL[:4]),
            ("prune", str(ground.model), "--data", "random_tokens", *SMALL, "--out", path),
            ("prune", path or "x", "--data", "random_tokens", *SMALL, "--out", "pruned"),
            (
                "evaluate",
                str(ground.model),
                "--task",
                f"loss(source={path!r}, tokens=64, length=32)",
            ),
            (
                "evaluate",
                str(ground.model),
                "--task",
                "loss(source=python_docs, tokens=64, length=32)",
                "--out",
                path,
            ),
            ("study", path, "--out", "results"),
            ("report", path),
            ("report", str(ground.store), "--html", path),
            ("store", "verify", path),
            ("store", "merge", "into", path),
            ("inspect", "python_docs", *SMALL[:4], "--data-dir", path),
        )
    )


def configuration(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A model's folder whose configuration, index or tokenizer says what it shouldn't."""
    folder = _model(ground, here)
    name = chance.choice(
        (
            "config.json",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "model.safetensors.index.json",
        )
    )
    if name.endswith("index.json"):
        tensors = ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"]
        index = {
            "metadata": {"total_size": 1},
            "weight_map": dict.fromkeys(
                tensors, chance.choice(("model.safetensors", "../x.safetensors", "evil.bin"))
            ),
        }
        (folder / name).write_bytes(
            mangling.as_json(chance, index) if chance.random() < 0.8 else json.dumps(index).encode()
        )
    elif (folder / name).is_file():
        (folder / name).write_bytes(
            mangling.as_json(chance, json.loads((folder / name).read_text()))
        )
    return _opened(chance, folder)


def template(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A chat template that is broken, or does what it shouldn't."""
    folder = _model(ground, here)
    path = folder / "chat_template.jinja"
    good = (
        path.read_text()
        if path.exists()
        else "{% for message in messages %}{{ message['role'] + message['content'] }}{% endfor %}"
    )
    path.write_text(
        mangling.text(chance, good) if chance.random() < 0.6 else chance.choice(TEMPLATES),
        errors="replace",
    )
    return (
        "inspect",
        "python_docs:chat" if chance.random() < 0.1 else "rows.jsonl:chat",
        *SMALL[:4],
        "--model",
        _with_rows(ground, here, folder),
    )


def header(chance: random.Random, ground: Ground, here: Path) -> Words:
    """Weights whose header is damaged, or doesn't fit the configuration."""
    folder = _model(ground, here)
    path = folder / "model.safetensors"
    good = path.read_bytes()
    size = int.from_bytes(good[:8], "little")
    if chance.random() < 0.6:
        said = mangling.as_json(chance, json.loads(good[8 : 8 + size]))
        path.write_bytes(len(said).to_bytes(8, "little") + said + good[8 + size :])
    else:
        path.write_bytes(mangling.data(chance, good[: 8 + size]) + good[8 + size :])
    return _opened(chance, folder)


def gguf(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A GGUF file that is damaged."""
    good = ground.gguf.read_bytes()
    (here / "tiny.gguf").write_bytes(mangling.data(chance, good))
    return _opened(chance, here / "tiny.gguf")


def store(chance: random.Random, ground: Ground, here: Path) -> Words:
    """A store, or a published one, one of whose files is another, or a row of which holds what none
    should."""
    published = chance.random() < 0.3
    shutil.copytree(ground.published if published else ground.store, here / "store")
    path = chance.choice(sorted(path for path in (here / "store").rglob("*") if path.is_file()))
    if path.name == DATABASE and chance.random() < 0.8:
        _mangle_row(chance, path)
    elif path.suffix == ".json" and chance.random() < 0.8:
        _mangle_manifest(chance, path)
    else:
        path.write_bytes(mangling.data(chance, path.read_bytes()))
    return chance.choice(
        (
            ("report", "store", "--format", "json"),
            ("report", "store"),
            ("store", "verify", "store"),
            ("store", "merge", "into", "store"),
        )
    )


def _mangle_manifest(chance: random.Random, path: Path) -> None:
    """Put something else into the list of what is published, with the right seal."""
    document = json.loads(path.read_text())
    name = chance.choice(sorted(document.keys() - {SEAL}))
    document[name] = mangling.value(chance, document[name])
    path.write_text(text_of_json(sealed(document, PACKED_PURPOSE)), errors="replace")


def _mangle_row(chance: random.Random, path: Path) -> None:
    """Put something else into one of the rows of a store, with the right seal."""
    table, columns = chance.choice(ROWS_OF_STORE)
    column = chance.choice(columns)
    name = "name" if table == "documents" else "id"
    key, content = chance.choice(change(path, f"SELECT {name}, {column} FROM {table}"))
    made = mangling.as_json(chance, json.loads(content)).decode("utf-8", "replace")
    reseal(path, table, key, column, made)


KINDS: Final[dict[str, Callable[[random.Random, Ground, Path], Words]]] = {
    kind.__name__: kind
    for kind in (
        spec,
        expression,
        study,
        rows,
        places,
        configuration,
        template,
        header,
        gguf,
        store,
    )
}


def _bad_rows(chance: random.Random, name: str) -> bytes:
    bad: list[Any] = [
        mangling.as_json(chance, row) if chance.random() < 0.2 else json.dumps(row).encode()
        for row in ROWS
    ]
    return b"\n".join(bad) if name.endswith("l") else b"[" + b",".join(bad) + b"]"


def _rows(ground: Ground, here: Path) -> None:
    shutil.copyfile(ground.files["rows.jsonl"], here / "rows.jsonl")


def _with_rows(ground: Ground, here: Path, folder: Path) -> str:
    _rows(ground, here)
    return str(folder)


def _model(ground: Ground, here: Path) -> Path:
    return Path(shutil.copytree(ground.model, here / "model"))


def _opened(chance: random.Random, model: Path) -> Words:
    """A command that opens the model."""
    return chance.choice(
        (
            (
                "prune",
                str(model),
                "--data",
                "random_tokens",
                *SMALL,
                "--out",
                "pruned",
                "--method",
                chance.choice(("magnitude", "wanda")),
            ),
            (
                "evaluate",
                str(model),
                "--task",
                "loss(source=python_docs, tokens=64, length=32)",
                "--dtype",
                "float32",
            ),
            ("inspect", "python_docs", *SMALL[:4], "--model", str(model)),
        )
    )
