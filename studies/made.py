"""What each page of findings is made of, and whether that changed since the page was last made.

`made.json` beside this file has two hashes for each page: of the records and scripts that it is
made of, and of its tables. A page is written by its own module with `--write`, which also notes
the hashes. A test builds a page anew where one of them differs, and `make slow` builds each.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

STUDIES: Final = Path(__file__).parent
PROJECT: Final = STUDIES.parent
NOTED: Final = STUDIES / "made.json"
_TABLE: Final = re.compile(r"<!-- ([^>]+) -->\n.*?<!-- end of \1 -->", re.DOTALL)


@dataclass(frozen=True)
class Made:
    """A page, the module that makes its tables, and the folders and files of records that it reads."""

    page: str
    module: str
    records: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the page is."""
        return PROJECT / self.page

    @property
    def text(self) -> str:
        """The page as it is now."""
        return self.path.read_text("utf-8")

    def load(self) -> ModuleType:
        """Import the module that makes the page; it has `tables()`."""
        return import_module(self.module)

    def inputs(self) -> Iterator[Path]:
        """Every file that the page is made of, in the order of their names: records, the scripts in their folders, and what all scripts share."""
        found = set(STUDIES.glob("*.py"))
        for name in self.records:
            place = STUDIES / name
            found.update(place.rglob("*") if place.is_dir() else [place])
        for path in sorted(found):
            hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(STUDIES).parts)
            if path.is_file() and not hidden:
                yield path

    def state(self) -> dict[str, str]:
        """The hashes of what the page is made of and of its tables, as they are now."""
        records = hashlib.sha256()
        for path in self.inputs():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            records.update(f"{path.relative_to(STUDIES).as_posix()} {content}\n".encode())
        tables = hashlib.sha256()
        for table in _TABLE.finditer(self.text):
            tables.update(table[0].encode())
        return {"records": records.hexdigest(), "tables": tables.hexdigest()}


PAGES: Final = (
    Made("docs/findings/c4.md", "studies.findings", ("smollm2", "smollm2.yaml", "again", "elsewhere", "ablations", "packing")),
    Made("docs/findings/sensitivity.md", "studies.sensitivity.tables", ("sensitivity",)),
    Made("docs/findings/second-model.md", "studies.sensitivity.second", ("sensitivity",)),
    Made("docs/findings/milder.md", "studies.sensitivity.milder", ("sensitivity",)),
    Made("docs/findings/choosing.md", "studies.sensitivity.recommended", ("sensitivity", "choosing", "levers")),
    Made("docs/findings/quantization.md", "studies.grids.tables", ("grids",)),
    Made("docs/findings/pruning.md", "studies.pruning.tables", ("pruning",)),
    Made("docs/findings/experts.md", "studies.experts.tables", ("experts",)),
    Made("docs/findings/words.md", "studies.words.tables", ("words",)),
    Made("docs/findings/blocks.md", "studies.blocks.tables", ("blocks",)),
    Made("docs/findings/mixing.md", "studies.mixcal.tables", ("mixcal",)),
    Made("docs/findings/languages.md", "studies.languages.tables", ("languages",)),
    Made("docs/cost.md", "studies.cost", ("cost.json", "c4_not_optimal.yaml")),
)


def noted() -> dict[str, dict[str, str]]:
    """By page the hashes of when it was made."""
    return json.loads(NOTED.read_text("utf-8"))


def note(path: Path) -> None:
    """Write down that the page at `path` is made of what is there now."""
    states = noted()
    for made in PAGES:
        if made.path == path:
            states[made.page] = made.state()
    NOTED.write_text(json.dumps(states, indent=1, sort_keys=True) + "\n", "utf-8")
