"""Writes what is made from the folders: the catalogue of names inside the package, the tables and
counts of the README and the docs, the picture of what imports what, and what is frozen of new
names: python -m tools.generate

Between `<!-- formats -->` and `<!-- /formats -->` stands the table of the formats, and so with the
other folders; `<!-- count of sources -->` has their number behind it. With `--survey` sources that
the record of the survey lacks are tried too, which takes the model `smollm2` and the data. What was
frozen before stays (`tools/freeze.py`): a mask that is another one now is a change of numbers, and
for the tests to tell. Where a file has new names beside such changes, none is added: it says so,
and exits with 1.

`--check` writes nothing: it names what is stale and the command that puts it right, and exits with
1 if anything is.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tools import freeze, imports

from calibrant.data.inspect.surveying import FORMATS, as_markdown
from calibrant.data.select import Picking, selectors
from calibrant.names import CATALOGUE, FOLDERS, Named, entries_of, from_entry
from calibrant.spec import build
from calibrant.spec.families import WORDS

PROJECT: Final = Path(__file__).parents[1]
PAGES: Final = (PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md")))
MASKS: Final = "masks.json"
SURVEY: Final = PROJECT / "studies/sources/survey.json"
HEADS: Final = {
    "formats": "one row becomes",
    "packings": "a window holds",
    "selectors": "what comes first",
    "tasks": "what is measured",
}
"""What the second column of a table says."""
_PLACE: Final = re.compile(r"(<!-- ([a-z]+) -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)
_COUNT: Final = re.compile(r"(<!-- count of ([a-z]+) -->)[0-9]+")


def filled(page: str) -> str:
    """A page's text with its tables and counts as they are now."""
    page = _COUNT.sub(lambda found: f"{found[1]}{len(ours(found[2]))}", page)
    return _PLACE.sub(
        lambda found: (
            found[1]
            + ("\n".join(made) + "\n" if (made := list(_table(found[2]))) else found[3])
            + found[4]
        ),
        page,
    )


def stale() -> list[Path]:
    """The pages that say something else than the folders do."""
    return [page for page in PAGES if filled(page.read_text("utf-8")) != page.read_text("utf-8")]


def catalogue() -> str:
    """What the file of the catalogue must say, by the classes of this package alone."""
    entries = {kind: entries_of(kind) for kind in FOLDERS}
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def stale_catalogue() -> bool:
    """Whether the file of the catalogue says something else than the classes do."""
    return not CATALOGUE.exists() or CATALOGUE.read_text("utf-8") != catalogue()


def stale_picture() -> bool:
    """Whether the picture of the imports shows something else than the files import."""
    picture = imports.PICTURE
    return not picture.exists() or picture.read_text("utf-8") != imports.picture()


def ours(kind: str) -> list[Named]:
    """What this package has of a kind, whatever others are installed beside it."""
    return [from_entry(entry) for entry in entries_of(kind).values()]


def _table(kind: str) -> Iterator[str]:
    """The lines of a table; none for a mark that is somebody else's."""
    if kind == "survey":
        yield from as_markdown(surveyed()).splitlines()
    elif kind == "families":
        yield from _lines(("family", "sources"), _families())
    elif kind == "selectors":
        heads = ("selector", HEADS[kind], "the model", "after")
        yield from _lines(
            heads,
            ((*_told(e), _part_of_the_model(e), e.facts.get("after", "")) for e in ours(kind)),
        )
    elif kind in FOLDERS:
        yield from _lines((kind[:-1], HEADS.get(kind, "what it is")), map(_told, ours(kind)))


def _families() -> Iterator[tuple[str, str]]:
    """Each family with the sources that say they are of it."""
    known: dict[str, list[str]] = {family: [] for family in WORDS}
    for entry in ours("sources"):
        known[entry.facts["family"]].append(f"`{entry.name}`")
    yield from ((f"{WORDS[family]}", ", ".join(names)) for family, names in known.items() if names)


def _part_of_the_model(entry: Named) -> str:
    """What the model does for a selector, if nothing but what it can't do without is given."""
    cls = selectors.get(entry.name)
    if not issubclass(cls, Picking):
        return "writes"
    made = build(
        cls, {name: "python_docs" for name, default in entry.parameters.items() if not default}
    )
    return "reads" if made.needs_model else "–"


def _told(entry: Named) -> tuple[str, str]:
    """A name as it is typed, with what must be given, and what it is."""
    needed = ", ".join(f"{name}=…" for name, default in entry.parameters.items() if not default)
    return f"`{entry.name}({needed})`" if needed else f"`{entry.name}`", entry.summary.replace(
        "|", "\\|"
    )


def _lines(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    for cells in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(cells)} |"


def surveyed() -> list[dict[str, Any]]:
    """What the record of the survey holds."""
    return json.loads(SURVEY.read_text("utf-8"))


def lacking() -> list[str]:
    """The sources that the survey has not tried in every format."""
    tried = {(one["source"], one["format"]) for one in surveyed()}
    return [
        entry.name
        for entry in ours("sources")
        if any((entry.name, form) not in tried for form in FORMATS)
    ]


def _survey() -> None:
    from calibrant.data.inspect import survey

    names = lacking()
    known = {entry.name for entry in ours("sources")}
    kept = [one for one in surveyed() if one["source"] in known.difference(names)]
    kept += (
        [one.to_json() for one in survey(names, "smollm2", tokens=8192, length=512)]
        if names
        else []
    )
    kept.sort(key=lambda one: (one["source"], FORMATS.index(one["format"])))
    SURVEY.write_text(json.dumps(kept) + "\n", "utf-8")


def stale_masks() -> bool:
    """Whether a method at its revision lacks frozen masks, or some are there of none."""
    from tests.frozen import masks

    return set(freeze.read(MASKS)) != masks.keys()


def complaints() -> list[str]:
    """Say what is stale, a sentence for each file, with the command that puts it right."""
    found = [f"{page.relative_to(PROJECT)} is stale: make generate" for page in stale()]
    if stale_catalogue():
        found.append(f"src/calibrant/{CATALOGUE.name} is stale: make generate")
    if stale_picture():
        found.append(f"docs/images/{imports.PICTURE.name} is stale: make generate")
    if stale_masks():
        found.append(f"tests/frozen/{MASKS} is stale: make generate")
    if missing := lacking():
        names = ", ".join(missing)
        place = SURVEY.relative_to(PROJECT)
        found.append(f"{place} is stale, it lacks {names}: python -m tools.generate --survey")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is stale; with `--check` say what is, and return 1 if anything is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--survey", action="store_true", help="try the sources that the survey lacks")
    only.add_argument("--check", action="store_true", help="write nothing; name what is stale")
    options = parser.parse_args(arguments)
    if options.check:
        found = complaints()
        for sentence in found:
            print(sentence, file=sys.stderr)
        return 1 if found else 0
    if options.survey:
        _survey()
    if stale_catalogue():
        CATALOGUE.write_text(catalogue(), "utf-8")
    if stale_picture():
        imports.PICTURE.write_text(imports.picture(), "utf-8")
    held_back = freeze.add(freeze.files())
    for page in stale():
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
    for sentence in held_back:
        print(f"tests/frozen/{sentence}", file=sys.stderr)
    return 1 if held_back else 0


if __name__ == "__main__":
    sys.exit(main())
