"""Does a held-out sibling foresee what a file's owner will see: python -m studies.siblings.siblings
FOLDER [--draws 1] [--record FILE]

Three targets that are no sources (`targets.py`), each in two families of templates. The file of one
family is what the user has; the file of the other is what the model will be used on, and nothing of
it is calibrated on. Ten sets: the file and nine sources; SmolLM2, Wanda, 60 %, `dense`. Which set
is best by the file's own measured rows, which by its held-out sibling (`calibrant.lab.choose`), and
how far is each behind the best of the ten on the other family? Everything is kept in FOLDER, and
the same command goes on.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from studies.siblings.targets import TEMPLATES, write

from calibrant import Study
from calibrant.data.expression import parse_source
from calibrant.data.user_file import UserFile
from calibrant.lab.choose.halves import Halves, halves_of, held_out_side
from calibrant.lab.stats import read
from calibrant.lab.stats.crossed import Side, combination
from calibrant.lab.stats.results import DENSE, GroupResults, grouped
from calibrant.results import Store

SOURCES: Final = (
    "c4",
    "pile",
    "wikipedia",
    "gsm8k:cot",
    "commonsense_qa",
    "esnli:cot",
    "python_docs",
    "python_code",
    "arithmetic:cot",
)
TOKENS, LENGTH, MEASURED = 2048, 256, 1500
FAMILIES: Final = ("a", "b")


def study(sets: tuple[str, ...], files: list[str], draws: int) -> Study:
    """The study of some sets, measured on some files."""
    return Study(
        models=("smollm2",),
        data=sets,
        methods=("wanda",),
        targets=(0.6,),
        seeds=tuple(range(draws)),
        evaluate=tuple(loss(file) for file in files),
        tokens=TOKENS,
        length=LENGTH,
        propagate="dense",
        allow_leak=True,
    )


def loss(file: str) -> str:
    """What measures on a file."""
    return f"loss(source='{file}', tokens={MEASURED}, length={LENGTH})"


def own_sets(file: str, halves: Halves) -> dict[str, tuple[str, str]]:
    """The set that is the file, with its twins of either half."""
    own = f"{file}:icl"
    return {own: (halves.replaced_in(own, 0), halves.replaced_in(own, 1))}


class Results:
    """What one store has: the sides of each set by the file that was measured."""

    def __init__(self, folder: Path) -> None:
        self.results = read(Store(folder, create=False))
        (self.cells,) = grouped(self.results.cells).values()
        self.group = GroupResults.of(self.cells, self.results)

    def sides(self, data: str) -> Mapping[str, Side]:
        """The sides of a set by the evaluator's text."""
        return {text: self.group.sides[data][name] for text, name in self.group.names.items()}

    def sibling(self, twins: tuple[str, str], halves: Halves) -> Mapping[str, Side]:
        """The same of the set with these twins, on the sibling."""
        crossed = held_out_side(self.cells, self.results, self.group, twins, [halves])
        assert crossed is not None
        return {text: crossed[name] for text, name in self.group.names.items()}


def records(
    files: Mapping[tuple[str, int], str],
    halved: Mapping[tuple[str, int], Halves],
    names: Mapping[tuple[str, int], Any],
) -> Iterator[dict[str, Any]]:
    """What each file's sets lost: on its own rows, on its sibling, and on the other family; and
    how far the two choices are behind there.
    """
    others = Results(Path("others"))
    for (target, family), file in files.items():
        store = Path(f"{target}-{FAMILIES[family]}")
        if not store.exists():
            continue
        own = Results(store)
        halves = halved[target, family]
        here = loss(file)
        there = loss(files[target, 1 - family])
        sides = {data: others.sides(data) for data in others.group.sets}
        on_sibling = dict(sides)
        for data, twins in names[target, family].items():
            sides[data] = own.sides(data)
            on_sibling[data] = own.sibling(twins, halves)
        dense = others.sides(DENSE)
        ranked = sorted(sides, key=lambda data: sides[data][there].value)
        choices = {
            "own": min(sides, key=lambda data: sides[data][here].value),
            "sibling": min(sides, key=lambda data: on_sibling[data][here].value),
        }
        lost: dict[str, dict[str, float]] = {}
        for data in ranked:
            lost[called(data)] = {
                "own": round(sides[data][here].value - dense[here].value, 4),
                "sibling": round(on_sibling[data][here].value - dense[here].value, 4),
                "other family": round(sides[data][there].value - dense[there].value, 4),
            }
        behind: dict[str, dict[str, Any]] = {}
        best = sides[ranked[0]][there]
        for how, data in choices.items():
            worse = combination(
                [
                    ({"there": sides[data][there]}, {"there": 1.0}),
                    ({"there": best}, {"there": -1.0}),
                ]
            )
            is_best = data == ranked[0]
            interval = None if is_best else worse.interval()
            behind[how] = {
                "set": called(data),
                "behind": round(worse.value, 4),
                "interval": [round(end, 4) for end in interval] if interval else None,
                "within noise": is_best or bool(interval and interval[0] <= 0),
                "rank": ranked.index(data) + 1,
            }
        yield {
            "target": target,
            "family": FAMILIES[family],
            "draws": int(others.group.draws("c4")),
            "inside": round(halves.inside, 3),
            "across": round(halves.across, 3),
            "best": called(ranked[0]),
            "choices": behind,
            "lost": lost,
        }


def called(data: str) -> str:
    """A set without the place of its file."""
    return "the file" if ".jsonl" in data else data


def main() -> None:
    """Compute what FOLDER lacks, and write the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--draws", type=int, default=1)
    options.add_argument("--record", type=Path, default=Path(__file__).parent / "record.json")
    options.add_argument("--tables", action="store_true", help="compute nothing")
    given = options.parse_args()
    record = given.record.absolute()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(given.folder)
    files = write(Path("files"))
    halved: dict[tuple[str, int], Halves] = {}
    names: dict[tuple[str, int], dict[str, tuple[str, str]]] = {}
    studies = {"others": study(SOURCES, list(files.values()), given.draws)}
    for (target, family), file in files.items():
        source = parse_source(file)
        assert isinstance(source, UserFile)
        halves = halves_of(source, Path("files") / f"{target}-{FAMILIES[family]}")
        assert isinstance(halves, Halves)
        halved[target, family] = halves
        names[target, family] = own_sets(file, halves)
        sets: list[str] = []
        for data, twins in names[target, family].items():
            sets += [data, *twins]
        studies[f"{target}-{FAMILIES[family]}"] = study(
            tuple(dict.fromkeys(sets)), [files[target, 0], files[target, 1]], given.draws
        )
    if given.tables:
        studies = {}
    for name, one in studies.items():
        finished = one.run(name)
        print(
            f"{name}: {finished.computed} computed, {finished.found} found, "
            f"{len(finished.failures)} failed",
            file=sys.stderr,
            flush=True,
        )
        for failure in finished.failures.values():
            print(failure["what"], failure["error"], file=sys.stderr)
    found = list(records(files, halved, names))
    record.write_text(
        json.dumps(
            {
                "tokens": TOKENS,
                "length": LENGTH,
                "measured": MEASURED,
                "templates": len(TEMPLATES),
                "files": found,
            },
            indent=1,
        )
        + "\n"
    )
    for one in found:
        print(one["target"], one["family"], "best", one["best"], one["choices"])


if __name__ == "__main__":
    main()
