"""What of a user's file isn't used is said on standard error, and in the record."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Ask

MESSAGES = ("Be brief.", "How warm is it in Jena?", "It is warm.", "And in Rome?", "Warmer.")
ROLES = ("system", "user", "assistant", "user", "assistant")
LOST = {
    "talks.jsonl": "these conversations have 20 messages and 8 are used",
    "mixed.jsonl": "20 of 40 rows without a text left out",
}


def write_rows(path: Path) -> None:
    """Write 40 conversations to a file; in `mixed.jsonl` every other row is a text."""
    lines: list[str] = []
    for number in range(40):
        said = [f"{content} ({number})" for content in MESSAGES]
        turns = [{"role": role, "content": text} for role, text in zip(ROLES, said, strict=True)]
        row: dict[str, object] = {"messages": turns}
        if path.name == "mixed.jsonl" and number % 2:
            row = {"text": f"Number {number} is a text."}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_of_a_file_is_said(ask: Ask, model: Path, tmp_path: Path, name: str):
    write_rows(tmp_path / name)
    small = ("--samples", "4", "--length", "64")
    pruned = ask("prune", model, "--data", name, *small, "--out", "pruned", "--json")
    (part,) = pruned.json["data_facts"]["parts"]
    written = ask("data", name, "--model", model, *small, "--out", "windows.jsonl")
    assert LOST[name] in part["note"]
    for answer in (pruned, written):
        assert f"warning: {part['data']}: {LOST[name]}\n" in answer.err
    fixes = ask("inspect", name, "--model", model, *small, "--json").json["verdict"]
    shown = f"{part['data']}: {LOST[name]}: talks.jsonl:chat@whole shows all"
    assert (shown in fixes) == (name == "talks.jsonl")
    planned = ask("prune", model, "--data", name, *small, "--plan", "--json")
    assert (
        f"the tokens of {name} weren't counted: it may hold fewer than 256 tokens"
        in planned.json["notes"]
    )
