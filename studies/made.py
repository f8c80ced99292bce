"""What the pages in `PAGES` are made of, and whether that changed since they were last written.

`page_hashes.json` beside this file has two hashes for each page: of the files that it is made of,
and of its tables. A page is written by its own module with `--write`, which also notes the hashes.
`make test` builds a page anew where one of them differs, and `make slow` builds every page.
`python -m studies.pages` writes and notes those that differ. The page on the dense model isn't
among them: `make test` builds it each time.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

from calibrant.errors import DataError

STUDIES: Final = Path(__file__).parent
PROJECT: Final = STUDIES.parent
HASHES: Final = STUDIES / "page_hashes.json"
IGNORED: Final = {"__pycache__", "statistics", "report.html", "build"}
"""Names that .gitignore has: what they hold isn't the same on every machine."""
DRAWN: Final = "picture.json"
"""What a picture shows: it is written with a page, and no page is made of it."""
_TABLE: Final = re.compile(r"<!-- ([^>]+) -->\n.*?<!-- end of \1 -->", re.DOTALL)


def files_in(place: Path) -> Iterator[Path]:
    """Yield the file at a place, or all in the folder there: in a checkout only those that git
    follows, so that a study may be at work beside them.
    """
    if not (PROJECT / ".git").exists():
        yield from (place, *place.rglob("*"))
        return
    command = ["git", "ls-files", "-z", str(place)]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name:
            yield PROJECT / name


@dataclass(frozen=True)
class Page:
    """A page, the module that makes its tables, and the folders and files of `studies` that it
    reads.
    """

    file: str
    module: str
    read_from: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the page is."""
        return PROJECT / self.file

    @property
    def text(self) -> str:
        """The page as it is now."""
        return self.path.read_text("utf-8")

    def load(self) -> ModuleType:
        """Import the module that makes the page; it has `tables()`."""
        return import_module(self.module)

    def inputs(self) -> Iterator[Path]:
        """Yield every file that the page is made of, in order: records, the scripts beside them,
        and the scripts that all pages share.
        """
        found = set(STUDIES.glob("*.py")) - {
            Path(__file__)
        }  # a new entry in PAGES makes no other page old
        for name in self.read_from:
            found.update(files_in(STUDIES / name))
        for path in sorted(found):
            parts = path.relative_to(STUDIES).parts
            left_out = any(part.startswith(".") or part in IGNORED for part in parts)
            if path.is_file() and path.name != DRAWN and not left_out:
                yield path

    def hashes(self) -> dict[str, str]:
        """Return the hashes of the inputs and of the tables, as they are now."""
        inputs = hashlib.sha256()
        for path in self.inputs():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            inputs.update(f"{path.relative_to(STUDIES).as_posix()} {content}\n".encode())
        tables = hashlib.sha256()
        for table in _TABLE.finditer(self.text):
            tables.update(table[0].encode())
        return {"inputs": inputs.hexdigest(), "tables": tables.hexdigest()}


PAGES: Final = (
    Page(
        "docs/findings/c4.md",
        "studies.findings",
        ("smollm2", "smollm2.yaml", "again", "elsewhere", "ablations", "packing"),
    ),
    Page("docs/findings/template.md", "studies.template.tables", ("template",)),
    Page("docs/findings/served.md", "studies.served.tables", ("served",)),
    Page(
        "docs/findings/budget.md",
        "studies.served.budget",
        ("served/budget", "served/budget.py", "served/budget.yaml"),
    ),
    Page("docs/findings/sensitivity.md", "studies.sensitivity.tables", ("sensitivity",)),
    Page("docs/findings/second-model.md", "studies.sensitivity.second", ("sensitivity",)),
    Page("docs/findings/milder.md", "studies.sensitivity.milder", ("sensitivity",)),
    Page(
        "docs/findings/choosing.md",
        "studies.sensitivity.recommended",
        ("sensitivity", "choosing", "levers"),
    ),
    Page("docs/findings/quantization.md", "studies.grids.tables", ("grids",)),
    Page("docs/findings/pruning.md", "studies.pruning.tables", ("pruning",)),
    Page("docs/findings/experts.md", "studies.experts.tables", ("experts",)),
    Page("docs/findings/words.md", "studies.words.tables", ("words",)),
    Page("docs/findings/blocks.md", "studies.blocks.tables", ("blocks",)),
    Page("docs/findings/mixing.md", "studies.mixcal.tables", ("mixcal",)),
    Page("docs/findings/languages.md", "studies.languages.tables", ("languages",)),
    Page("docs/cost.md", "studies.cost", ("cost.json", "c4_not_optimal.yaml")),
)


def noted_hashes() -> dict[str, dict[str, str]]:
    """Return the hashes that were noted when each page was last written."""
    return json.loads(HASHES.read_text("utf-8"))


def note_hashes(path: Path) -> None:
    """Note what the page at `path` is made of now. Raises `DataError` for a page that isn't
    among `PAGES`.
    """
    pages = {page.path: page for page in PAGES}
    if path not in pages:
        raise DataError(
            f"{path.name} isn't among the pages of studies/made.py; add it there", subject=path.name
        )
    hashes = noted_hashes()
    hashes[pages[path].file] = pages[path].hashes()
    HASHES.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", "utf-8")
