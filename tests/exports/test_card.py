"""The model card says what was done, with what, and where it came from; nothing that comes from
outside is read as Markdown or HTML.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.compress import prune, quantize
from calibrant.errors import SpecError
from calibrant.exports import _card, card
from calibrant.results import Record
from calibrant.system.markdown import without_folders
from calibrant.testing import tiny_folder

from tests.models.refused import refusal_of

SMALL = {"samples": 4, "length": 16, "dtype": "float32"}
TASK = "loss(source=python_code, tokens=128, length=64)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("card") / "model")


@pytest.fixture(scope="module")
def record(folder: Path) -> Record:
    return prune(str(folder), data="0.5*python_docs + 0.5*random_tokens", **SMALL).record


def front(text: str) -> dict[str, object]:
    """The hub's facts at the head of a card."""
    _, facts, _ = text.split("---\n", 2)
    return YAML(typ="safe").load(facts)


def test_the_card_of_a_pruned_model(folder: Path, tmp_path: Path) -> None:
    done = prune(
        str(folder),
        data="python_docs",
        method="sparsegpt(damp=0.02)",
        target="2:4",
        out=tmp_path / "out",
        **SMALL,
    )
    text = (tmp_path / "out" / "README.md").read_text()
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["calibrant", "pruned", "sparsegpt"],
    }
    for fact in (
        "50.00%",
        "`2:4`",
        "`python_docs`",
        f"`{done.record.run.id}`",
        f"`{done.record.run.model}`",
        "`PSF-2.0`",
        "damp=0.02",
    ):
        assert fact in text
    assert str(tmp_path) not in text
    assert str(folder.parent) not in text


def test_the_card_of_a_scheme_says_how_inputs_are_rounded(folder: Path, tmp_path: Path) -> None:
    quantize(
        str(folder), data="python_docs", target="FP8(range=mse)", out=tmp_path / "out", **SMALL
    )
    text = (tmp_path / "out" / "README.md").read_text()
    assert "`FP8(range=mse)`" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| inputs |")]
    assert "e4m3" in line
    assert "mse" in line
    assert "21 matrices" in line


def test_names_of_the_hub_are_facts_for_the_hub(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/tiny").mkdir(parents=True)
    parts = [
        {"hub": {"id": "allenai/c4"}, "licence": "odc-by"},
        {"hub": {"id": "allenai/c4"}},
        {"hub": None},
    ]
    text = card(
        replace(
            record,
            run=replace(record.run, model_name="owner/a-model_1.0"),
            data_facts={"parts": parts},
        )
    )
    assert front(text)["base_model"] == "owner/a-model_1.0"
    assert front(text)["datasets"] == ["allenai/c4"]
    for path in ("/home/me/model", "../model", "./model", "a/b/c", "smollm2", "models/tiny"):
        assert "base_model" not in front(
            card(replace(record, run=replace(record.run, model_name=path)))
        )


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", "a|b", "``` `x`", "x\n---\nbase_model: y", "\u202egnp", "`"],
)
def test_what_comes_from_outside_is_only_shown(record: Record, hostile: str) -> None:
    text = card(
        replace(
            record,
            run=replace(record.run, model_name=hostile, data=hostile, method={"spec": hostile}),
        ),
        hostile,
    )
    assert front(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "\u202e" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.count("|") == 3 for line in table)
    assert all(
        "<script>" not in line.replace("`<script>alert(1)</script>`", "")
        for line in text.splitlines()
        if "tags:" not in line
    )


def test_folders_of_a_path_are_left_out(record: Record) -> None:
    run = replace(
        record.run,
        model_name="/home/me/secret/model",
        data="0.5*'/home/me/secret/rows.jsonl':text + 0.5*c4",
    )
    text = card(replace(record, run=run))
    assert "secret" not in text
    assert "0.5*'…/rows.jsonl':text + 0.5*c4" in text


def test_an_export_that_nobody_knows_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    said = refusal_of(
        prune,
        "no/such/model",
        data="python_docs",
        kind=SpecError,
        out=tmp_path / "out",
        export=("gguff",),
    )
    assert said.subject == "gguff"
    assert "'gguf'" in str(said)
    assert not list(tmp_path.iterdir())


def test_scores_go_into_the_card_in_place_of_the_last_ones_and_into_no_card_that_is_not_ours(
    folder: Path, tmp_path: Path
) -> None:
    prune(str(folder), data="python_docs", out=tmp_path / "out", **SMALL)
    card_file, manifest = tmp_path / "out" / "README.md", tmp_path / "out" / "calibrant.json"
    words = ["evaluate", str(tmp_path / "out"), "--task", TASK, "--card"]
    for _ in range(2):
        assert CliRunner().invoke(app, words).exit_code == 0
    text = card_file.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| `python_code")]
    assert "`loss`" in line, line
    assert text.count("<!-- measured -->") == text.count("<!-- /measured -->") == 1
    assert "| run |" in text
    for content in (b"# mine", text.encode("utf-16")):
        card_file.write_bytes(content)
        assert CliRunner().invoke(app, words).exit_code == 2
        assert card_file.read_bytes() == content
    card_file.unlink()
    assert CliRunner().invoke(app, words).exit_code == 2
    card_file.write_text(text)
    manifest.unlink()
    assert CliRunner().invoke(app, words).exit_code == 2
    assert card_file.read_text() == text


def test_a_card_that_cannot_be_written_is_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(str(folder), data="python_docs", out=tmp_path / "out", **SMALL)
    # To root every folder can be written.
    monkeypatch.setattr(_card, "takes_files", lambda folder: False)
    words = ["evaluate", str(tmp_path / "out"), "--task", TASK, "--card"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 2
    assert told.stdout == ""
    assert "is it yours to write to?" in told.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/model", "…/model"),
        ("/home/o'neil/s/x", "…/x"),
        ('"/home/o\'neil/s/x"', '"…/x"'),
        ("'/home/me/x' + \"/home/you/y\"", "'…/x' + \"…/y\""),
        (r"\\server\share\me\x", "…/x"),
        (r"'\\\\server\\share\\x'", "'…/x'"),
        (r"C:\Users\me\x", "…/x"),
        ("mix(a=/home/me/x, b='/home/me/y')", "mix(a=…/x, b='…/y')"),
        ("see https://hub/me/x", "see https://hub/me/x"),
        ("gsm8k:cot", "gsm8k:cot"),
    ],
)
def test_folders_of_absolute_paths_are_left_out(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_a_card_says_that_a_target_was_not_reached(record: Record) -> None:
    said = "50.0000% of the weights went, which is less than 0.7: only whole weights go"
    assert said in card(replace(record, run=replace(record.run, target="0.7")))
    assert "not reached" not in card(record)


def test_a_card_says_what_was_condensed_and_names_no_block_where_halves_went(
    record: Record,
) -> None:
    halves = {"edit": "drop_blocks", "blocks": [], "of": 3}
    layers = {"1": {"experts": [0, 3]}}
    condensed = {"edit": "condense", "layers": layers, "of": 8}
    text = card(replace(record, edits=(halves, condensed)))
    assert "| condensed | `1 layer of experts, to 2 of 8` |" in text
    assert "Blocks removed" not in text
