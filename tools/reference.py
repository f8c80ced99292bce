"""Pages of the documentation that are made from the code when it is built: every command, every
module with what it is for, and the schema of what is stored. A hook of mkdocs."""

import ast
import json
import re
from pathlib import Path

import msgspec
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from calibrant.cli import app
from calibrant.results.outcomes import ScoreFacts
from calibrant.results.records import (
    DataFacts,
    EditFacts,
    Failure,
    MatrixFacts,
    Profile,
    Provenance,
    Record,
    ScoreEntry,
    SpecForm,
    StudyIndex,
    StudyParts,
)
from calibrant.spec.grammar import SetLabel

INSIDE = (
    DataFacts,
    EditFacts,
    Failure,
    MatrixFacts,
    Profile,
    Provenance,
    ScoreFacts,
    SpecForm,
    StudyParts,
)
"""What lies within records as mappings."""
PACKAGE = Path(__file__).parents[1] / "src/calibrant"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those that mkdocs found in the folder."""
    pages = {"commands": commands(), "modules": modules(), "records": records()}
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def commands() -> str:
    """Return the page of all commands: usage, arguments, options and examples, as `--help` has
    them.
    """
    root = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "The options of `calibrant` itself stand before the command: `calibrant --quiet prune …`.",
        "",
    ]
    lines += _command(root, "calibrant", 2)
    return "\n".join(lines) + "\n"


def records() -> str:
    """Return the page of what is stored: the JSON schema of each record, as msgspec makes it of the
    classes that read stored data."""
    declared = (Record, ScoreEntry, StudyIndex, SetLabel, *INSIDE)
    _, components = msgspec.json.schema_components(declared, ref_template="#/$defs/{name}")
    lines = [
        "# Records",
        "",
        "What a store holds, as JSON schemas. Data that doesn't fit them is refused where it is "
        "read. "
        "What a newer version adds is kept. `Record`, `ScoreEntry` and `StudyIndex` are what a row "
        "holds; a mapping within them has the schema that its description names.",
        "",
    ]
    for name in sorted(components):
        text = json.dumps(components[name], indent=1, ensure_ascii=False)
        lines += [f"## {name}", "", "```json", text, "```", ""]
    return "\n".join(lines)


def _command(
    command: typer.core.TyperCommand | typer.core.TyperGroup, path: str, level: int
) -> list[str]:
    context = command.make_context(path.split()[-1], [], resilient_parsing=True)
    usage = " ".join(piece for piece in command.collect_usage_pieces(context))
    lines = [
        "#" * level + f" {path}",
        "",
        _markdown(command.help or ""),
        "",
        "```text",
        f"{path} {usage}",
        "```",
        "",
    ]
    rows = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context))
    ]
    if rows:
        lines += [
            "| | |",
            "| --- | --- |",
            *(f"| `{name}` | {_cell(text)} |" for name, text in rows),
            "",
        ]
    if epilog := command.epilog:
        lines += [
            "```console",
            *(line for line in _plain(epilog).splitlines() if line.strip()),
            "```",
            "",
        ]
    for name, inner in getattr(command, "commands", {}).items():
        lines += _command(inner, f"{path} {name}", level + 1)
    return lines


def _plain(text: str) -> str:
    return re.sub(r"\\(\[)", r"\1", text)


def _markdown(text: str) -> str:
    plain = _plain(" ".join(text.split())).replace("<", "&lt;")
    return plain.replace("][", "]\\[")  # two brackets side by side would be a link


def _cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|").replace("*", "\\*")


def modules() -> str:
    """Return the page of all modules, each with the first line of its docstring."""
    lines = [
        "# Modules",
        "",
        "Every file of the package, and what it is for. [Architecture](../architecture.md) says "
        "which may use which.",
    ]
    folder = None
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.parent != PACKAGE, path)):
        if path.parent != folder:
            folder = path.parent
            name = ".".join(["calibrant", *folder.relative_to(PACKAGE).parts])
            lines += ["", f"## {name}", "", "| | |", "| --- | --- |"]
        first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        if first:
            lines.append(f"| `{path.stem}` | {_cell(first)} |")
    return "\n".join(lines) + "\n"
