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
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        places = re.findall(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.DOTALL)
        if len(places) != 1:
            raise DataError(
                f"the page has {len(places)} places for the table {name!r}; it needs one",
                subject=name,
            )
        text = text.replace(places[0], f"{begin}\n\n{table}\n\n{end}")
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
            found = draw_png(drawn, Path(folder), dark)
            Image.open(found).convert("RGB").quantize(COLOURS).save(IMAGES / image, optimize=True)
    numbers.write_text(json.dumps({"shown": drawn.spec["datasets"]}, indent=1), encoding="utf-8")


def draw_png(drawn: Plot, folder: Path, dark: bool) -> Path:
    """Draw a picture into the folder; return where its PNG is."""
    (found,) = [path for path in write([drawn], folder, dark) if path.suffix == ".png"]
    return found


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
