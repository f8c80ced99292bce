"""Pages whose tables are made of records: each table stands between two comments with its name."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from calibrant.errors import DataError


def filled(text: str, tables: Mapping[str, str]) -> str:
    """The page with its tables made anew. Raises `DataError` where it hasn't exactly one place for each."""
    for name, table in tables.items():
        between = f"<!-- {name} -->\n\n{table}\n\n<!-- end of {name} -->"
        text, count = re.subn(
            rf"<!-- {re.escape(name)} -->.*?<!-- end of {re.escape(name)} -->", lambda _, between=between: between, text, flags=re.DOTALL
        )
        if count != 1:
            raise DataError(f"the page has {count} places for the table {name!r}; it needs one", subject=name)
    return text


def write_or_print(page: Path, tables: Mapping[str, str]) -> None:
    """Fill the page with `--write` on the command line; else print the tables."""
    if "--write" in sys.argv[1:]:
        page.write_text(filled(page.read_text("utf-8"), tables), encoding="utf-8")
    else:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables.items()))
