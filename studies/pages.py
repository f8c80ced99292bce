"""Pages whose tables are made of records: each table stands between two comments with its name. And
the pictures beside them.

python -m studies.pages    # writes the tables of each page whose records, scripts or tables changed
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from PIL import Image
from studies.made import PAGES, note_hashes, noted_hashes

from calibrant.errors import DataError
from calibrant.lab.report.plots import Plot, write

IMAGES: Final = Path(__file__).parents[1] / "docs/images"
COLOURS: Final = 128


def filled(text: str, tables: Mapping[str, str]) -> str:
    """The page with its tables made anew. Raises `DataError` where it hasn't exactly one place
    for each.
    """
    for name, table in tables.items():
        between = f"<!-- {name} -->\n\n{table}\n\n<!-- end of {name} -->"
        text, count = re.subn(
            rf"<!-- {re.escape(name)} -->.*?<!-- end of {re.escape(name)} -->",
            lambda _, between=between: between,
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise DataError(
                f"the page has {count} places for the table {name!r}; it needs one", subject=name
            )
    return text


def write_or_print(page: Path, tables: Mapping[str, str]) -> None:
    """Fill the page with `--write` on the command line, and note what it is made of; else print
    the tables.
    """
    if "--write" in sys.argv[1:]:
        page.write_text(filled(page.read_text("utf-8"), tables), encoding="utf-8")
        note_hashes(page)
    else:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables.items()))


def draw(drawn: Plot, name: str, numbers: Path) -> None:
    """Draw a picture of the documentation, light and dark, and keep what it shows: a drawing's
    bytes are other ones wherever fonts are.

    With few colours, which makes a third of the file.
    """
    with TemporaryDirectory() as folder:
        for image, dark in ((f"{name}.png", False), (f"{name}-dark.png", True)):
            (found,) = (
                path for path in write([drawn], Path(folder), dark) if path.suffix == ".png"
            )
            Image.open(found).convert("RGB").quantize(COLOURS).save(IMAGES / image, optimize=True)
    numbers.write_text(json.dumps({"shown": drawn.spec["datasets"]}, indent=1), encoding="utf-8")


def main() -> None:
    """Write the tables of each page that is no longer what was noted, and note what it is made
    of.
    """
    noted = noted_hashes()
    for page in PAGES:
        if page.hashes() != noted.get(page.file):
            page.path.write_text(filled(page.text, page.load().tables()), encoding="utf-8")
            note_hashes(page.path)
            print(page.file)


if __name__ == "__main__":
    main()
