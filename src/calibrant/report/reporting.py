"""From a store to a report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from calibrant.compare import Ranking, rankings
from calibrant.durable import text_of_json
from calibrant.report import tables
from calibrant.report.account import Account, account_of
from calibrant.report.page import page
from calibrant.store import Store

if TYPE_CHECKING:
    from rich.console import Console


@runtime_checkable
class InFolder(Protocol):
    """Anything that knows its folder of results: a finished study, a store."""

    @property
    def folder(self) -> Path: ...


@dataclass(frozen=True)
class Report:
    """What a study found, ready to be shown. `str` is Markdown."""

    folder: Path
    rankings: tuple[Ranking, ...]
    account: Account

    def __str__(self) -> str:
        return tables.markdown(self.rankings, dict(self.account.models))

    def to_json(self) -> list[dict[str, Any]]:
        """The rankings as plain data, infinities and all written so that JSON can hold them."""
        return json.loads(text_of_json(tables.as_json(self.rankings)))

    def html(self) -> str:
        """The page, as one self-contained text."""
        return page(self.rankings, self.account)

    def write_html(self, name: str = "report.html") -> Path:
        """Write the page into the store's folder, whole or not at all, and say where it is. Raises `OutputError` if it can't be."""
        with Store(self.folder) as store:
            return store.write_text(name, self.html())

    def show(self, console: "Console") -> None:
        """Print the rankings with what was found (rich)."""
        from rich.text import Text

        for ranking in self.rankings:
            console.print(tables.table(ranking, self.account.models.get(ranking.model, "")))
            for sentence in tables.words(ranking):
                console.print(Text(sentence), style="bold yellow" if sentence.startswith("Doubtful") else "")
            console.print()


def report(study: str | Path | InFolder) -> Report:
    """Read what a study's folder holds and compare it.

    Raises `OutputError` for a folder that holds no results, `DataError` for results that can't be compared with one another.
    """
    folder = Path(study) if isinstance(study, str | Path) else study.folder
    store = Store(folder, create=False)
    return Report(folder, tuple(rankings(store)), account_of(store))
