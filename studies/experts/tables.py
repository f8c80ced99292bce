"""The tables and the picture of docs/findings/experts.md, made of the store beside this file:
python -m studies.experts.tables [--write]

Which experts go with prose, arithmetic, code and random tokens: overlaps of what each keeps, and
what each then loses in nats a byte.
"""

import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from scipy.stats import entropy, kendalltau
from studies.arms import bold_if, planned, table_head, table_row, with_interval
from studies.overlaps import against, between, part_of_the_set, within
from studies.pages import draw_png, write_or_print

from calibrant.errors import DataError
from calibrant.lab.report.plots import Plot, routers
from calibrant.lab.stats import Estimate, draws, kept_experts, read
from calibrant.lab.stats.crossed import ItemValues, Side, combination
from calibrant.lab.stats.kept import overlap, overlap_by_chance, survivors
from calibrant.results import Cell, Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/experts.md"
IMAGES: Final = HERE.parents[1] / "docs/images"
STORE: Final = HERE / "kinds"
TEXTS: Final = {"c4": "prose", "gsm8k:cot": "arithmetic", "python_code": "code"}
"""The texts that are calibrated on and measured, in words."""
TEXT_OF: Final = {text.partition(":")[0]: text for text in TEXTS}
"""The text by its source."""
NOTHING: Final = "random_tokens"
SETS: Final = {**TEXTS, NOTHING: "random tokens"}
TARGETS: Final = {"experts 0.5": "half", "experts 0.25": "a quarter"}
CHANCE: Final = "random"
DEFAULT: Final = "ean"
"""The criterion of `mc_suite` without parameters."""
SHOWN: Final = ("euf", "ean", "ege", "reap")
"""The criteria of the picture, which are those of the contrasts that the study names."""
ROUNDS: Final = {"experts 0.5": "half", "experts 0.75": "three quarters"}
IN_ROUNDS: Final = {
    "ean": ("mc_suite", "mc_suite(rounds=4)", "mc_suite(rounds=4, steps=15, rate=0.0001)"),
    "reap": ("mc_suite(criterion='reap')", "mc_suite(criterion='reap', rounds=4)", ""),
}
"""Of rounds.yaml, by criterion: at once, in rounds, and with training."""
Kept = Mapping[int, frozenset[int]]
"""By block the experts that a run keeps."""
Pair = tuple[np.ndarray, np.ndarray]
"""The shares of a layer's tokens that each expert got, of two draws."""


class Results:
    """What the store has of one share: by criterion and calibration set (none: `""`) the draws
    of each measure, and what each draw kept.
    """

    def __init__(self, store: Store, target: str) -> None:
        self.sides: dict[str, dict[str, dict[str, Side]]] = {}
        self.kept: dict[str, dict[str, list[Kept]]] = {}
        self.loads: dict[str, list[dict[int, list[float]]]] = {}
        self.scores: dict[str, dict[str, dict[int, list[list[float]]]]] = {}
        self.experts, self.left = 0, 0
        self.dense = _sides(store, method="none")
        chance: list[dict[str, ItemValues]] = []
        for (method, data), cells in _measured_cells(store, target).items():
            if data and len(cells) < 3:
                continue
            edits = [_edit(store, cell.run) for cell in cells]
            first = edits[0]
            criterion = first["notes"]["criterion"]
            self.experts = first["of"]
            self.left = first["of"] - len(first["experts"]["0"])
            if criterion == CHANCE:  # each seed is a method of its own
                chance.append(_first_draw(store, method, target))
                self.kept.setdefault(CHANCE, {}).setdefault("", []).append(_kept_by(first))
                continue
            sides = _sides(store, method=method, target=target, data=data)
            self.sides.setdefault(criterion, {})[data] = sides
            self.kept.setdefault(criterion, {})[data] = [_kept_by(edit) for edit in edits]
            scores = _by_block([edit["notes"]["scores"] for edit in edits])
            self.scores.setdefault(criterion, {})[data] = scores
            if criterion == "euf":
                self.loads[data] = [_loads_of(edit) for edit in edits]
        if len(chance) > 1:
            together = {text: Side.of([one[text] for one in chance]) for text in chance[0]}
            self.sides[CHANCE] = {"": together}

    @cached_property
    def of_text(self) -> list[str]:
        """The criteria that look at text and have been measured with all sets."""
        return [criterion for criterion, by_set in self.kept.items() if set(SETS) <= by_set.keys()]

    @cached_property
    def without(self) -> list[str]:
        """The criteria that look at no text, chance last."""
        found = [criterion for criterion, by_set in self.kept.items() if set(by_set) == {""}]
        return sorted(found, key=lambda criterion: criterion == CHANCE)

    def worse(self, terms: Sequence[tuple[str, str, Mapping[str, float]]]) -> Estimate:
        """A combination of losses; each term a criterion, a calibration set, and by measured
        text a coefficient.
        """
        sides_and_coefficients: list[tuple[Mapping[str, Side], Mapping[str, float]]] = []
        for criterion, data, by_text in terms:
            coefficients = {text: by_text.get(text, 0.0) for text in TEXTS}
            sides_and_coefficients.append((self.sides[criterion][data], coefficients))
        return combination(sides_and_coefficients)

    def increase(self, criterion: str, choose: Callable[[str], Sequence[str]]) -> float:
        """How much is lost over the untouched model, the mean over the measured texts; `choose`
        says which sets each text is measured with.
        """
        increases: list[float] = []
        for text in TEXTS:
            loss = statistics.mean(self.sides[criterion][data][text].value for data in choose(text))
            increases.append(loss - self.dense[text].value)
        return statistics.mean(increases)


def _measured_cells(store: Store, target: str) -> dict[tuple[str, str], list[Cell]]:
    """By method and calibration set the runs of this share that are measured whole, draw by
    draw.
    """
    there = set(store.ids())
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in store.cells():
        if cell.target != target or cell.run not in there:
            continue
        if len(store.measurements(cell.run)) == len(cell.measures):
            found.setdefault((cell.method, cell.data), []).append(cell)
    for cells in found.values():
        cells.sort(key=lambda cell: cell.seed)
    return found


def _sides(store: Store, **labels: str) -> dict[str, Side]:
    """By text what the draws with these labels gave."""
    sides: dict[str, Side] = {}
    for measured, drawn in draws(store, **labels).items():
        sides[_text_of(measured)] = Side.of([ItemValues.of(draw) for draw in drawn])
    return sides


def _first_draw(store: Store, method: str, target: str) -> dict[str, ItemValues]:
    """By text what the first draw gave."""
    found = draws(store, method=method, target=target)
    return {_text_of(measured): ItemValues.of(drawn[0]) for measured, drawn in found.items()}


def _text_of(measured: str) -> str:
    """`gsm8k:cot` of what was measured."""
    return TEXT_OF[measured.partition(":")[0]]


def _kept_by(edit: Mapping[str, Any]) -> Kept:
    _, kept = survivors([edit])
    return kept


def _loads_of(edit: Mapping[str, Any]) -> dict[int, list[float]]:
    """By block how often each expert was picked."""
    routing = edit["notes"]["routing"]
    return {int(block): of_block["counts"] for block, of_block in routing.items()}


def _edit(store: Store, run: str) -> Mapping[str, Any]:
    record = store.record(run, whole=False)
    if record is None or len(record.edits) != 1:
        raise DataError(
            f"the run {run} has no record with one edit; run the study again", subject=run
        )
    return record.edits[0]


def _by_block(scores: Sequence[Mapping[str, Any]]) -> dict[int, list[list[float]]]:
    """By block each draw's scores; of a criterion of pairs each expert's sum over the others."""
    found: dict[int, list[list[float]]] = {}
    for of_draw in scores:
        for block, of_experts in of_draw.items():
            found.setdefault(int(block), []).append([_score(one) for one in of_experts])
    return found


def _score(of_expert: float | list[float]) -> float:
    """An expert's score; of its scores with the others the sum."""
    return sum(of_expert) if isinstance(of_expert, list) else of_expert


def overlaps(results: Results) -> Iterator[str]:
    """Rows: how alike what is kept is for two draws of a text, two texts, a text and random
    tokens; and the first less the second.
    """
    yield from table_head(
        ["experts go by"],
        ["two draws of a text", "two texts", "a text and random tokens", "the text's part"],
    )
    for criterion in results.of_text:
        sets = results.kept[criterion]
        texts = {name: sets[name] for name in TEXTS}
        alike = (
            within(texts, overlap),
            between(texts, overlap),
            against(list(texts.values()), sets[NOTHING], overlap),
        )
        means = [f"{mean:.2f}" for mean in alike]
        yield table_row([f"`{criterion}`", *means, part_of_the_set(texts, overlap)])
    chance = overlap_by_chance(results.experts, results.left)
    yield f"| two sets by chance | {chance:.2f} | {chance:.2f} | {chance:.2f} | |"


def losses(results: Results) -> Iterator[str]:
    """Rows: the mean increase with the measured text itself, with another, with random tokens;
    and what another and random tokens cost more.
    """
    yield from table_head(
        ["experts go by"],
        [
            "own text",
            "another text",
            "random tokens",
            "another costs more",
            "random tokens cost more",
            "better than chance by",
        ],
    )
    third, sixth = 1 / 3, 1 / 6
    all_texts = dict.fromkeys(TEXTS, third)
    for criterion in sorted(results.of_text, key=lambda name: results.increase(name, own_text)):
        less_own = [(criterion, text, {text: -third}) for text in TEXTS]
        with_others: list[tuple[str, str, Mapping[str, float]]] = []
        for text in TEXTS:
            coefficients = {**dict.fromkeys(TEXTS, sixth), text: -third}
            with_others.append((criterion, text, coefficients))
        increases = (
            results.increase(criterion, own_text),
            results.increase(criterion, other_texts),
            results.increase(criterion, lambda _: [NOTHING]),
        )
        costs = (
            results.worse(with_others),
            results.worse([(criterion, NOTHING, all_texts), *less_own]),
            results.worse([(CHANCE, "", all_texts), *less_own]),
        )
        means = [f"{mean:.3f}" for mean in increases]
        yield table_row([f"`{criterion}`", *means, *map(with_interval, costs)])

    def without_text(criterion: str) -> float:
        return results.increase(criterion, lambda _: [""])

    for criterion in sorted(results.without, key=without_text):
        mean = f"{without_text(criterion):.3f}"
        if criterion == CHANCE:
            name, better = "chance, three seeds", ""
        else:
            name = f"`{criterion}` (no text)"
            terms = [(CHANCE, "", all_texts), (criterion, "", dict.fromkeys(TEXTS, -third))]
            better = with_interval(results.worse(terms))
        yield f"| {name} | {mean} | {mean} | {mean} | | | {better} |"


def own_text(text: str) -> list[str]:
    """The sets that a text is measured with: itself."""
    return [text]


def other_texts(text: str) -> list[str]:
    """The sets that a text is measured with: the others."""
    return [other for other in TEXTS if other != text]


def by_text(results: Results) -> Iterator[str]:
    """Rows: what each calibration set loses on each text, mean of the draws ± half of their
    range, the text's own bold.
    """
    yield from table_head(["experts go by", "calibrated on"], list(TEXTS.values()))
    dense = {text: results.dense[text].value for text in TEXTS}
    yield f"| nothing goes | | {' | '.join(f'{nats:.3f} nats' for nats in dense.values())} |"
    for criterion in SHOWN:
        if criterion not in results.of_text:
            continue
        for data, words in SETS.items():
            sides = results.sides[criterion][data]
            cells = [_cell(sides[text].draws - dense[text], data == text) for text in TEXTS]
            yield table_row([f"`{criterion}`", words, *cells])
    if CHANCE in results.sides:
        sides = results.sides[CHANCE][""]
        cells = [_cell(sides[text].draws - dense[text], False) for text in TEXTS]
        yield f"| chance | | {' | '.join(cells)} |"


def _cell(values: np.ndarray, own: bool) -> str:
    half = (values.max() - values.min()) / 2
    return bold_if(own, f"+{values.mean():.3f} ± {half:.3f}")


def loads(results: Results) -> Iterator[str]:
    """Rows: how even the load of each router is, as a number of experts, by text; and how far
    apart loads are, of draws and of texts.
    """
    apart_of = ["two draws apart", "two texts apart", "from random tokens"]
    yield from table_head([], ["block", *SETS.values(), *apart_of])
    for block in results.loads["c4"][0]:
        shares: dict[str, list[np.ndarray]] = {}
        for data in SETS:
            counts = [np.array(of_draw[block]) for of_draw in results.loads[data]]
            shares[data] = [of_draw / sum(of_draw) for of_draw in counts]
        even = [statistics.mean(map(_experts_as_even, shares[data])) for data in SETS]
        two_draws: list[Pair] = []
        two_texts: list[Pair] = []
        to_random: list[Pair] = []
        for text in TEXTS:
            two_draws += itertools.combinations(shares[text], 2)
            to_random += itertools.product(shares[text], shares[NOTHING])
        for one, other in itertools.combinations(TEXTS, 2):
            two_texts += itertools.product(shares[one], shares[other])
        numbers = [f"{number:.1f}" for number in even]
        apart = [f"{_mean_apart(pairs):.4f}" for pairs in (two_draws, two_texts, to_random)]
        yield table_row([f"{block}", *numbers, *apart])


def _experts_as_even(load: np.ndarray) -> float:
    """The number of experts that would make as even a load."""
    return float(np.exp(entropy(load)))


def _mean_apart(pairs: Sequence[Pair]) -> float:
    return statistics.mean(_apart(one, other) for one, other in pairs)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Their Jensen–Shannon divergence in nats: at most ln 2 = 0.693."""
    middle = (one + other) / 2
    return float(entropy(one, middle) + entropy(other, middle)) / 2


def ranks(results: Results) -> Iterator[str]:
    """Rows: Kendall's τ of a criterion's scores of a layer's experts, of two draws, of two
    texts, of a text and random tokens; means over layers.
    """
    yield from table_head(
        ["experts go by"], ["two draws of a text", "two texts", "a text and random tokens"]
    )
    for criterion in results.of_text:
        scores = results.scores[criterion]
        pairs = itertools.combinations(TEXTS, 2)
        taus = (
            [_ranked_alike(scores, text, text) for text in TEXTS],
            [_ranked_alike(scores, one, other) for one, other in pairs],
            [_ranked_alike(scores, text, NOTHING) for text in TEXTS],
        )
        yield table_row([f"`{criterion}`", *(f"{statistics.mean(each):.2f}" for each in taus)])


def _ranked_alike(
    scores: Mapping[str, Mapping[int, list[list[float]]]], one: str, other: str
) -> float:
    """Kendall's τ of two draws, of one set or of two: the mean over pairs of draws and layers."""
    if one == other:
        pairs = list(itertools.combinations(range(3), 2))
    else:
        pairs = list(itertools.product(range(3), repeat=2))
    taus: list[float] = []
    for first, second in pairs:
        for block in scores[one]:
            tau = kendalltau(scores[one][block][first], scores[other][block][second])[0]
            taus.append(float(tau))
    return statistics.mean(taus)


def rounds() -> Iterator[str]:
    """Rows: what is lost when experts go at once, in rounds, and with training after each round;
    and how much less than at once.
    """
    yield from table_head(
        ["gone", "experts go by"],
        [
            "at once",
            "in four rounds",
            "less by",
            "trained after each round",
            "less than in rounds by",
        ],
    )
    with Store(HERE / "rounds", create=False) as store:
        dense = _sides(store, method="none")
        methods = dict.fromkeys(cell.method for cell in store.cells() if cell.method != "none")
        by_criteria = [method for method in methods if CHANCE not in method]
        by_chance = [method for method in methods if CHANCE in method]
        for target, words in ROUNDS.items():
            sides: dict[str, dict[str, Side]] = {}
            increase: dict[str, float] = {}
            for method in by_criteria:
                of_method = _sides(store, method=method, target=target)
                sides[method] = of_method
                increase[method] = statistics.mean(
                    of_method[text].value - dense[text].value for text in TEXTS
                )
            for criterion, (once, turns, trained) in IN_ROUNDS.items():
                cells = [
                    f"{increase[once]:.3f}",
                    f"{increase[turns]:.3f}",
                    with_interval(_less(sides[once], sides[turns])),
                ]
                if trained:
                    less = with_interval(_less(sides[turns], sides[trained]))
                    cells += [f"{increase[trained]:.3f}", less]
                else:
                    cells += ["", ""]
                yield table_row([words, f"`{criterion}`", *cells])
            untouched = statistics.mean(side.value for side in dense.values())
            raised: list[float] = []
            for method in by_chance:
                found = draws(store, method=method, target=target)
                loss = statistics.mean(drawn[0].score.value for drawn in found.values())
                raised.append(loss - untouched)
            told = f"{statistics.mean(raised):.3f} ({min(raised):.3f} to {max(raised):.3f})"
            yield f"| {words} | chance, three seeds | {told} | | | | |"


def _less(one: Mapping[str, Side], other: Mapping[str, Side]) -> Estimate:
    """How much less the other loses, the mean over the measured texts."""
    share = 1 / len(TEXTS)
    return combination([(one, dict.fromkeys(TEXTS, share)), (other, dict.fromkeys(TEXTS, -share))])


def evenness() -> Iterator[str]:
    """Rows: how even the load is when the second round begins, after the first round's experts
    went, with and without training; means over draws.
    """
    yield from table_head(["gone in the end"], ["without training", "with 15 steps"])
    _, turns, trained = IN_ROUNDS[DEFAULT]
    with Store(HERE / "rounds", create=False) as store:
        for target, words in ROUNDS.items():
            cells: list[str] = []
            for method in (turns, trained):
                even = [
                    _even(store, cell.run)
                    for cell in store.cells()
                    if cell.method == method and cell.target == target
                ]
                mean = statistics.mean(even)
                cells.append(f"{mean:.2f} ({min(even):.2f} to {max(even):.2f})")
            yield table_row([words, *cells])


def _even(store: Store, run: str) -> float:
    """The mean over layers of the number of experts that would make as even a load, when the
    second round begins.
    """
    record = store.record(run, whole=False)
    assert record is not None
    notes = [edit["notes"] for edit in record.edits]
    second_round = [of_edit for of_edit in notes if of_edit.get("round") == 2]
    routing = second_round[0]["routing"]
    loads = [np.array(of_block["counts"], float) for of_block in routing.values()]
    return statistics.mean(map(_experts_as_even, loads))


def planted() -> Iterator[str]:
    """Rows: how often each criterion has a planted expert first, and the worst it does."""
    yield from table_head(["planted", "goes by"], ["first", "at worst"])
    found = json.loads((HERE / "planted.json").read_text("utf-8"))
    before: dict[tuple[str, str, str], list[int]] = {}
    for row in found:
        key = (row["planted"], row["criterion"], row["drop"])
        before.setdefault(key, []).append(row["before"])
    for (what, criterion, drop), counts in before.items():
        end = "smallest" if drop == "min" else "largest"
        first = f"{counts.count(0)} of {len(counts)}"
        yield table_row([what, f"{end} `{criterion}`", first, f"place {max(counts) + 1} of 16"])


def condensed() -> Iterator[str]:
    """Rows: by how much the loss rises, the mean over the three texts and the draws, for each
    way to condense half of the layers.
    """
    yield from table_head(["kept of condensed layers"], ["loss raised by", "draws"])
    found = json.loads((HERE / "condensed.json").read_text("utf-8"))
    (untouched,) = [row for row in found if row["way"] == "untouched"]
    dense = statistics.mean(untouched["loss"].values())
    first_data, *_ = [row["data"] for row in found if row["data"]]
    raised: dict[str, list[float]] = {}
    for row in found:
        if row["data"] == first_data:
            loss = statistics.mean(row["loss"].values())
            raised.setdefault(row["way"], []).append(loss - dense)
    for way in sorted(raised, key=lambda way: -statistics.mean(raised[way])):
        values = raised[way]
        mean = statistics.mean(values)
        yield f"| {way} | {mean:.4f} | {min(values):.4f} to {max(values):.4f} |"


def upcycled() -> Iterator[str]:
    """Rows: what SmolLM2 loses, dense and split into experts, and how alike texts rank its
    experts by load (Kendall's τ, mean over layers).
    """
    found = json.loads((HERE / "upcycled.json").read_text("utf-8"))
    texts = list(found["dense"])
    yield f"| | {' | '.join(name.partition(':')[0] for name in texts)} |"
    yield f"| --- |{' ---: |' * len(texts)}"
    picked = [name for name in found if name.startswith("picked")]
    for name in ("dense", *picked):
        yield table_row([f"{name}: loss", *(f"{found[name][text]:.3f}" for text in texts)])
    yield "\n| loads of | agree by |\n| --- | ---: |"
    for pair, tau in found["agreement of loads"].items():
        yield f"| {pair.replace(', ', ' and ')} | {tau:.3f} |"


def training() -> Iterator[str]:
    """Rows: the losses of the model by step."""
    course = json.loads((HERE / "three_texts.json").read_text("utf-8"))["course"]
    yield from table_head([], ["step", *TEXTS.values(), "balance"])
    first, *_ = course
    hundredths = [entry for entry in course if entry["step"] % 100 == 0]
    for entry in (first, *hundredths):
        losses_and_balance = [f"{entry[name]:.3f}" for name in (*TEXTS, "balance")]
        yield table_row([f"{entry['step']}", *losses_and_balance])


def tables() -> dict[str, str]:
    """Each table in Markdown, by name."""
    made = {
        "planned": "\n".join(planned(STORE)),
        "training": "\n".join(training()),
        "rounds": "\n".join(rounds()),
        "evenness": "\n".join(evenness()),
        "planted": "\n".join(planted()),
        "condensed": "\n".join(condensed()),
        "upcycled": "\n".join(upcycled()),
    }
    with Store(STORE, create=False) as store:
        for target, words in TARGETS.items():
            results = Results(store, target)
            if results.of_text:
                made[f"overlap, {words}"] = "\n".join(overlaps(results))
                made[f"losses, {words}"] = "\n".join(losses(results))
            if target == "experts 0.5":
                made["by text"] = "\n".join(by_text(results))
                made["loads"] = "\n".join(loads(results))
                made["ranks"] = "\n".join(ranks(results))
    return made


def picture() -> Plot:
    """Layer by expert: how many draws of each calibration set keep an expert, when half of them
    go; a panel for each criterion.
    """
    with Store(STORE, create=False) as store:
        every = kept_experts(read(store, items=False))
    by_criterion = {
        _criterion_of(group.method): group for group in every if group.target == "experts 0.5"
    }
    shown = {criterion: by_criterion[criterion] for criterion in SHOWN if criterion in by_criterion}
    drawn = routers(list(shown.values()), list(shown))
    if drawn is None:
        raise DataError("no run of the store dropped half of the experts", subject=str(STORE))
    return drawn


def _criterion_of(method: str) -> str:
    named = re.search(r"criterion='?(\w+)", method)
    return DEFAULT if named is None else named[1]


if __name__ == "__main__":
    write_or_print(PAGE, tables())
    if "--write" in sys.argv[1:]:
        drawn = picture()
        with TemporaryDirectory() as folder:
            for name, dark in (("experts.png", False), ("experts-dark.png", True)):
                image = draw_png(drawn, Path(folder), dark)
                IMAGES.joinpath(name).write_bytes(image.read_bytes())
