"""What a group of cells answers: by label and measured set, with what is missing and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from calibrant.compare.crossed import Drawn, Sample, Side
from calibrant.compare.results import Results
from calibrant.store import Cell

DENSE: Final = "dense"
"""The label of the model that nothing was pruned from."""

OVERLAP: Final = 0.10
"""The share of its rows that a draw may have in common with earlier ones and still count as another draw."""


class Setting(NamedTuple):
    """What a ranking is for."""

    model: str
    method: str
    target: str
    propagate: str


def grouped(cells: Sequence[Cell]) -> dict[Setting, list[Cell]]:
    """The cells of each group, in their order: those of its sets, the dense model, and the baselines of its target."""
    places = {id(cell): place for place, cell in enumerate(cells)}
    found: dict[Setting, list[Cell]] = {}
    for cell in cells:
        if cell.data:
            found.setdefault(Setting(cell.model, cell.method, cell.target, cell.propagate), []).append(cell)
    baselines = [cell for cell in cells if not cell.data]
    for group, mine in found.items():
        mine += [c for c in baselines if c.model == group.model and (c.method == "none" or c.target == group.target)]
        mine.sort(key=lambda cell: places[id(cell)])
    return dict(sorted(found.items()))


def unranked(cells: Sequence[Cell]) -> dict[Setting, list[Cell]]:
    """The cells of each method that looks at no data, with the dense model, where no set is asked for with its target: it stands in no ranking."""
    ranked = {(group.model, group.target) for group in grouped(cells)}
    found: dict[Setting, list[Cell]] = {}
    for cell in cells:
        if not cell.data and cell.method != "none" and (cell.model, cell.target) not in ranked:
            found.setdefault(Setting(cell.model, cell.method, cell.target, ""), []).append(cell)
    return {group: [*(c for c in cells if c.method == "none" and c.model == group.model), *mine] for group, mine in found.items()}


@dataclass(frozen=True)
class Answers:
    """By label ("dense", "magnitude", or a set), whatever has all that was measured (`sides`), and the rest (`partial`) with what it has.

    `names` maps an evaluator's text to the name of what it measured; `runs` are one a draw; `overlapping` maps the sets whose draws share rows
    to the largest share.
    """

    names: Mapping[str, str]
    sides: Mapping[str, Mapping[str, Side]]
    partial: Mapping[str, Mapping[str, Side]]
    runs: Mapping[str, tuple[str, ...]]
    sets: frozenset[str]
    overlapping: Mapping[str, float]

    def draws(self, label: str) -> int:
        """How many draws a set has; 0 for what takes none."""
        return len(self.runs[label]) if label in self.sets else 0

    @staticmethod
    def of(cells: Sequence[Cell], reading: Results, texts: Sequence[str] = ()) -> "Answers":
        """The answers of a group's cells to the evaluators `texts` (all, without). Raises `DataError` for draws that can't be paired."""
        names = {text: name for text, name in _measured_names(cells, reading).items() if not texts or text in texts}
        found: dict[str, dict[str, list[Sample]]] = {}
        part: dict[str, dict[str, list[Sample]]] = {}
        runs: dict[str, list[str]] = {}
        for cell in cells:
            here, label = reading.samples.get(cell.run, {}), label_of(cell)
            # One run that answers several cells (a source that gives the same tokens for every seed) is one draw, not several.
            if cell.run in runs.get(label, ()):
                continue
            known = {name: here[i] for text, name in names.items() if (i := cell.measures.get(text, "")) in here}
            if whole := bool(names) and len(known) == len(names):
                runs.setdefault(label, []).append(cell.run)
            for name, sample in known.items():
                (found if whole else part).setdefault(label, {}).setdefault(name, []).append(sample)
        labels = dict.fromkeys(map(label_of, cells))
        sets = frozenset(cell.data for cell in cells if cell.data)
        alike = _overlaps(runs, reading)
        drawn: dict[str, Drawn] = {k: "overlapping" if k in alike else "apart" if k in sets else "not" for k in labels}
        return Answers(
            names=names,
            sides={k: {name: Side.of(samples, drawn[k]) for name, samples in each.items()} for k, each in found.items()},
            partial={k: {name: Side.of(samples, drawn[k]) for name, samples in part.get(k, {}).items()} for k in labels if k not in found},
            runs={k: tuple(runs.get(k, ())) for k in labels},
            sets=sets,
            overlapping=alike,
        )


def _overlaps(runs: Mapping[str, Sequence[str]], reading: Results) -> dict[str, float]:
    most = {label: max(map(reading.overlap, each)) for label, each in runs.items()}
    return {label: share for label, share in most.items() if share > OVERLAP}


def label_of(cell: Cell) -> str:
    """A set's expression, "dense", or the name of a method that looks at no data."""
    return cell.data or (DENSE if cell.method == "none" else cell.method)


def _measured_names(cells: Sequence[Cell], reading: Results) -> dict[str, str]:
    """Evaluator text -> the name of what it measured, made distinct where two measure the same thing differently."""
    found: dict[str, str] = {}
    for cell in cells:
        for text, measure_id in cell.measures.items():
            if (sample := reading.samples.get(cell.run, {}).get(measure_id)) is not None:
                found.setdefault(text, sample.score.measured)
    seen = list(found.values())
    return {text: name if seen.count(name) == 1 else f"{name} [{text}]" for text, name in found.items()}


def holes(cells: Sequence[Cell], reading: Results, texts: Sequence[str] = ()) -> Iterator[str]:
    """What the cells lack of the evaluators `texts` (all that any of them names, without), a sentence each, with the reason."""
    by_cell = {tuple(f["cell"]): f for f in reading.failures.values() if "cell" in f}
    wanted = texts or tuple(dict.fromkeys(text for cell in cells for text in cell.measures))
    for cell in cells:
        for text in wanted:
            measure_id = cell.measures.get(text, "")
            if measure_id not in reading.samples.get(cell.run, {}):
                labels = (cell.model, cell.data, cell.method, cell.target, cell.seed, cell.propagate)
                known = (reading.failures.get(measure_id), reading.failures.get(cell.run), by_cell.get(labels), by_cell.get(labels[:5]))
                why = next((failure for failure in known if failure), {"error": "not computed yet"})
                yield f"{label_of(cell)} (draw {cell.seed}) on {text}: {why.get('error')}"
