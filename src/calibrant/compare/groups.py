"""What is compared with one another: the cells of one model, method, target and propagation, with what was measured and what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from calibrant.compare.crossed import Independence, ItemValues, Side
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
    """Return the cells of each setting, in their order: those of its sets, the dense model, and the baselines of its target."""
    places = {id(cell): place for place, cell in enumerate(cells)}
    groups: dict[Setting, list[Cell]] = {}
    for cell in cells:
        if cell.data:
            groups.setdefault(Setting(cell.model, cell.method, cell.target, cell.propagate), []).append(cell)
    baselines = [cell for cell in cells if not cell.data]
    for setting, group in groups.items():
        group += [c for c in baselines if c.model == setting.model and (c.method == "none" or c.target == setting.target)]
        group.sort(key=lambda cell: places[id(cell)])
    return dict(sorted(groups.items()))


def unranked(cells: Sequence[Cell]) -> dict[Setting, list[Cell]]:
    """Return the cells of each method that looks at no data, with the dense model, where no set has its target: it stands in no ranking."""
    ranked = {(setting.model, setting.target) for setting in grouped(cells)}
    groups: dict[Setting, list[Cell]] = {}
    for cell in cells:
        if not cell.data and cell.method != "none" and (cell.model, cell.target) not in ranked:
            groups.setdefault(Setting(cell.model, cell.method, cell.target, ""), []).append(cell)
    return {setting: [*(c for c in cells if c.method == "none" and c.model == setting.model), *group] for setting, group in groups.items()}


def label_of(cell: Cell) -> str:
    """Return a set's expression, "dense", or the name of a method that looks at no data."""
    return cell.data or (DENSE if cell.method == "none" else cell.method)


@dataclass(frozen=True)
class GroupResults:
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
        """Return how many draws a set has; 0 for what takes none."""
        return len(self.runs[label]) if label in self.sets else 0

    @staticmethod
    def of(cells: Sequence[Cell], results: Results, texts: Sequence[str] = ()) -> "GroupResults":
        """Return what a group's cells have of the evaluators `texts` (all, without). Raises `DataError` for draws that can't be paired."""
        names: dict[str, str] = {}
        for cell in cells:
            for text, measure_id in cell.measures.items():
                if (items := results.items.get(cell.run, {}).get(measure_id)) is not None:
                    names.setdefault(text, items.score.measured)
        measured = list(names.values())
        # Two evaluators that measured the same thing differently are named by their texts too.
        names = {text: name if measured.count(name) == 1 else f"{name} [{text}]" for text, name in names.items()}
        names = {text: name for text, name in names.items() if not texts or text in texts}
        complete: dict[str, dict[str, list[ItemValues]]] = {}
        incomplete: dict[str, dict[str, list[ItemValues]]] = {}
        runs: dict[str, list[str]] = {}
        for cell in cells:
            items, label = results.items.get(cell.run, {}), label_of(cell)
            # One run that answers several cells (a source that gives the same tokens for every seed) is one draw, not several.
            if cell.run in runs.get(label, ()):
                continue
            known = {name: items[i] for text, name in names.items() if (i := cell.measures.get(text, "")) in items}
            if whole := bool(names) and len(known) == len(names):
                runs.setdefault(label, []).append(cell.run)
            for name, values in known.items():
                (complete if whole else incomplete).setdefault(label, {}).setdefault(name, []).append(values)
        labels = dict.fromkeys(map(label_of, cells))
        sets = frozenset(cell.data for cell in cells if cell.data)
        overlaps = {label: max(map(results.overlap, each)) for label, each in runs.items()}
        overlapping = {label: share for label, share in overlaps.items() if share > OVERLAP}
        independence: dict[str, Independence] = {
            label: "overlapping" if label in overlapping else "independent" if label in sets else "no draws" for label in labels
        }
        return GroupResults(
            names=names,
            sides={k: {name: Side.of(draws, independence[k]) for name, draws in each.items()} for k, each in complete.items()},
            partial={
                k: {name: Side.of(draws, independence[k]) for name, draws in incomplete.get(k, {}).items()} for k in labels if k not in complete
            },
            runs={k: tuple(runs.get(k, ())) for k in labels},
            sets=sets,
            overlapping=overlapping,
        )


def missing(cells: Sequence[Cell], results: Results, texts: Sequence[str] = ()) -> Iterator[str]:
    """Yield what the cells lack of the evaluators `texts` (all that any of them names, without), a sentence each, with the reason."""
    by_cell = {tuple(f["cell"]): f for f in results.failures.values() if "cell" in f}
    texts = texts or tuple(dict.fromkeys(text for cell in cells for text in cell.measures))
    for cell in cells:
        for text in texts:
            measure_id = cell.measures.get(text, "")
            if measure_id not in results.items.get(cell.run, {}):
                labels = (cell.model, cell.data, cell.method, cell.target, cell.seed, cell.propagate)
                failures = (results.failures.get(measure_id), results.failures.get(cell.run), by_cell.get(labels), by_cell.get(labels[:5]))
                reason = next((failure for failure in failures if failure), {"error": "not computed yet"})
                yield f"{label_of(cell)} (draw {cell.seed}) on {text}: {reason.get('error')}"
