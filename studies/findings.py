"""The tables of docs/findings.md, made of the records: python -m studies.findings [--write]

Without `--write` they are printed; with it they are put between the page's marks.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from calibrant.compare import Draws, contrast, draws
from calibrant.report import report
from calibrant.store import Store

HERE = Path(__file__).parent
STORE = HERE / "smollm2"
PAGE = HERE.parent / "docs/findings.md"
KINDS = {
    "arithmetic": ("gsm8k", "svamp", "mawps"),
    "inference": ("esnli", "anli_r1", "anli_r3"),
    "commonsense": ("commonsense_qa", "race", "winogrande"),
    "text": ("c4", "pile", "redpajama", "wikipedia"),
}
"""What was measured, by kind; the first three are the nine tasks."""

BASELINE = "c4"


def tables() -> dict[str, str]:
    """Each table in Markdown, by the name that the page marks its place with."""
    with Store(STORE, create=False) as store:
        return {"sets": "\n".join(sets(store)), "contrasts": contrasts(), "runs": runs()}


def sets(store: Store) -> Iterator[str]:
    """How much worse than C4 each set is on each kind, at the headline's method and sparsity; C4 itself against the dense model.

    Bold is told apart from C4 at 95 %, jointly over the sets of a column.
    """
    dense = draws(store, data="")
    found = headline(store)
    columns = {"nine tasks": [name for kind in list(KINDS)[:3] for name in KINDS[kind]], **KINDS}
    named = {kind: [m for m in dense if _source(m) in names] for kind, names in columns.items()}
    usual = found.pop(BASELINE)
    yield f"| calibrated on | draws | {' | '.join(columns)} |"
    yield f"| --- | ---: |{' ---: |' * len(columns)}"
    rises = [f"{contrast(_only(usual, names), _only(dense, names)):+.3f}" for names in named.values()]
    yield f"| `{BASELINE}`, above dense | {_count(usual)} | {' | '.join(rises)} |"
    worse = {name: [contrast(_only(of, names), _only(usual, names)) for names in named.values()] for name, of in found.items()}
    for name in sorted(worse, key=lambda name: worse[name][0].value):
        cells = [f"**{e:+.3f}**" if e.apart(looks=len(worse)) else f"{e:+.3f}" for e in worse[name]]
        yield f"| `{name}` | {_count(found[name])} | {' | '.join(cells)} |"


def headline(store: Store) -> dict[str, dict[str, Draws]]:
    """Every set that Wanda pruned with at 60 % and that was measured whole, and what its draws gave."""
    cells = [c for c in store.cells() if (c.method, c.target, c.propagate) == ("wanda", "0.6", "dense")]
    found = {name: draws(store, data=name, method="wanda", target="0.6", propagate="dense") for name in dict.fromkeys(c.data for c in cells)}
    return {name: of for name, of in found.items() if len(of) == sum(map(len, KINDS.values()))}


def contrasts() -> str:
    """The primary contrasts, as the report tells them."""
    return next(part for part in re.split(r"\n\s*\n", str(report(STORE))) if part.startswith("| contrast"))


def runs() -> str:
    """What was run and what it took, by the records: each worker had one thread, and two worked at a time."""
    about = report(STORE)
    spent, reading = about.account.seconds, about.reading
    measured = sum(map(len, reading.scores.values()))
    hours = {name: spent.get(name, 0.0) / 3600 for name in ("compress", "measure")}
    took = f"{hours['compress']:.1f} hours of pruning and {hours['measure']:.1f} of measuring"
    return f"{len(reading.records)} runs with {measured:,} measurements: {took}, of one thread each."


def _source(measured: str) -> str:
    return re.split(r"[ :(]", measured)[0]


def _only(of: Mapping[str, Draws], names: list[str]) -> dict[str, Draws]:
    return {name: of[name] for name in names}


def _count(of: Mapping[str, Draws]) -> int:
    return len(next(iter(of.values())))


def put(page: str, made: Mapping[str, str]) -> str:
    """The page with each table between its marks."""
    for name, table in made.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, after = page.index(begin) + len(begin), page.index(end)
        page = f"{page[:before]}\n{table}\n\n{page[after:]}"
    return page


if __name__ == "__main__":
    made = tables()
    if "--write" in sys.argv[1:]:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    print("\n\n".join(made.values()))
