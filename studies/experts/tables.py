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
from studies.overlaps import against, between, part_of_the_set, within
from studies.pages import write_or_print

from calibrant.errors import DataError
from calibrant.lab.report.plots import Plot, routers, write
from calibrant.lab.stats import Estimate, draws, kept_experts, read
from calibrant.lab.stats.crossed import ItemValues, Side, combination
from calibrant.lab.stats.kept import overlap, overlap_by_chance, survivors
from calibrant.results import Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/experts.md"
IMAGES: Final = HERE.parents[1] / "docs/images"
STORE: Final = HERE / "kinds"
TEXTS: Final = {"c4": "prose", "gsm8k:cot": "arithmetic", "python_code": "code"}
"""The texts that are calibrated on and measured, in words."""
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
        self.dense = {_text_of(name): side for name, side in _sides(store, method="none").items()}
        there = set(store.ids())
        cells = [
            c
            for c in store.cells()
            if c.target == target
            and c.run in there
            and len(store.measurements(c.run)) == len(c.measures)
        ]
        chance: list[dict[str, ItemValues]] = []
        for method, data in dict.fromkeys((cell.method, cell.data) for cell in cells):
            own = sorted(
                (cell for cell in cells if (cell.method, cell.data) == (method, data)),
                key=lambda cell: cell.seed,
            )
            if data and len(own) < 3:
                continue
            edits = [_edit(store, cell.run) for cell in own]
            criterion = edits[0]["notes"]["criterion"]
            self.experts, self.left = edits[0]["of"], edits[0]["of"] - len(edits[0]["experts"]["0"])
            if criterion == CHANCE:  # each seed is a method of its own
                found = draws(store, method=method, target=target)
                chance.append(
                    {_text_of(name): ItemValues.of(one) for name, (one, *_) in found.items()}
                )
                self.kept.setdefault(CHANCE, {}).setdefault("", []).append(survivors(edits[:1])[1])
                continue
            self.sides.setdefault(criterion, {})[data] = _sides(
                store, method=method, target=target, data=data
            )
            self.kept.setdefault(criterion, {})[data] = [survivors([edit])[1] for edit in edits]
            self.scores.setdefault(criterion, {})[data] = _by_block(
                [edit["notes"]["scores"] for edit in edits]
            )
            if criterion == "euf":
                self.loads[data] = [
                    {int(b): one["counts"] for b, one in edit["notes"]["routing"].items()}
                    for edit in edits
                ]
        if len(chance) > 1:
            self.sides[CHANCE] = {
                "": {name: Side.of([one[name] for one in chance]) for name in chance[0]}
            }

    @cached_property
    def of_text(self) -> list[str]:
        """The criteria that look at text and have been measured with all sets."""
        return [criterion for criterion, by_set in self.kept.items() if set(SETS) <= by_set.keys()]

    @cached_property
    def without(self) -> list[str]:
        """The criteria that look at no text, chance last."""
        return sorted(
            (criterion for criterion, by_set in self.kept.items() if set(by_set) == {""}),
            key=lambda name: name == CHANCE,
        )

    def worse(self, terms: Sequence[tuple[str, str, Mapping[str, float]]]) -> Estimate:
        """A combination of losses; each term a criterion, a calibration set, and by measured
        text a coefficient.
        """
        return combination(
            [
                (self.sides[criterion][data], {text: by_text.get(text, 0.0) for text in TEXTS})
                for criterion, data, by_text in terms
            ]
        )

    def increase(self, criterion: str, choose: Callable[[str], Sequence[str]]) -> float:
        """How much is lost over the untouched model, the mean over the measured texts; `choose`
        says which sets each text is measured with.
        """
        each = [
            statistics.mean(self.sides[criterion][data][text].value for data in choose(text))
            - self.dense[text].value
            for text in TEXTS
        ]
        return statistics.mean(each)


def _sides(store: Store, **labels: str) -> dict[str, Side]:
    return {
        _text_of(name): Side.of([ItemValues.of(one) for one in found])
        for name, found in draws(store, **labels).items()
    }


def _text_of(measured: str) -> str:
    """`gsm8k:cot` of what was measured."""
    return next(text for text in TEXTS if measured.partition(":")[0] == text.partition(":")[0])


def _edit(store: Store, run: str) -> Mapping[str, Any]:
    record = store.record(run, whole=False)
    if record is None or len(record.edits) != 1:
        raise DataError(
            f"the run {run} has no record with one edit; run the study again", subject=run
        )
    return record.edits[0]


def _by_block(scores: Sequence[Mapping[str, Any]]) -> dict[int, list[list[float]]]:
    """By block each draw's scores; of a criterion of pairs each expert's sum over the others."""
    flat = [
        {
            int(block): [sum(row) if isinstance(row, list) else row for row in one]
            for block, one in each.items()
        }
        for each in scores
    ]
    return {block: [each[block] for each in flat] for block in flat[0]}


def overlaps(results: Results) -> Iterator[str]:
    """Rows: how alike what is kept is for two draws of a text, two texts, a text and random
    tokens; and the first less the second.
    """
    yield "| experts go by | two draws of a text | two texts | a text and random tokens | the text's part |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for criterion in results.of_text:
        sets = results.kept[criterion]
        texts = {name: sets[name] for name in TEXTS}
        random = against(list(texts.values()), sets[NOTHING], overlap)
        part = part_of_the_set(texts, overlap)
        yield f"| `{criterion}` | {within(texts, overlap):.2f} | {between(texts, overlap):.2f} | {random:.2f} | {part} |"
    chance = overlap_by_chance(results.experts, results.left)
    yield f"| two sets by chance | {chance:.2f} | {chance:.2f} | {chance:.2f} | |"


def losses(results: Results) -> Iterator[str]:
    """Rows: the mean increase with the measured text itself, with another, with random tokens;
    and what another and random tokens cost more.
    """
    yield "| experts go by | own text | another text | random tokens | another costs more | random tokens cost more | better than chance by |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    third, sixth = 1 / 3, 1 / 6
    for criterion in sorted(
        results.of_text, key=lambda name: results.increase(name, lambda text: [text])
    ):
        own = {text: (criterion, text, {text: third}) for text in TEXTS}
        others = results.worse(
            [
                (criterion, data, {text: sixth if text != data else -third for text in TEXTS})
                for data in TEXTS
            ]
        )
        nothing = results.worse(
            [
                (criterion, NOTHING, dict.fromkeys(TEXTS, third)),
                *((c, d, {t: -third}) for t, (c, d, _) in own.items()),
            ]
        )
        chance = results.worse(
            [
                (CHANCE, "", dict.fromkeys(TEXTS, third)),
                *((c, d, {t: -third}) for t, (c, d, _) in own.items()),
            ]
        )
        means = (
            results.increase(criterion, lambda text: [text]),
            results.increase(criterion, lambda text: [other for other in TEXTS if other != text]),
            results.increase(criterion, lambda _: [NOTHING]),
        )
        yield f"| `{criterion}` | {' | '.join(f'{mean:.3f}' for mean in means)} | {' | '.join(map(told, (others, nothing, chance)))} |"
    for criterion in sorted(
        results.without, key=lambda name: results.increase(name, lambda _: [""])
    ):
        mean = results.increase(criterion, lambda _: [""])
        better = results.worse(
            [
                (CHANCE, "", dict.fromkeys(TEXTS, third)),
                (criterion, "", dict.fromkeys(TEXTS, -third)),
            ]
        )
        name = "chance, three seeds" if criterion == CHANCE else f"`{criterion}` (no text)"
        yield f"| {name} | {mean:.3f} | {mean:.3f} | {mean:.3f} | | | {'' if criterion == CHANCE else told(better)} |"


def told(estimate: Estimate) -> str:
    """A difference with its interval, bold where that leaves out zero."""
    interval = estimate.interval()
    if interval is None:
        return f"{estimate.value:+.3f}"
    words = f"{estimate.value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})"
    return f"**{words}**" if estimate.significant() else words


def by_text(results: Results) -> Iterator[str]:
    """Rows: what each calibration set loses on each text, mean of the draws ± half of their
    range, the text's own bold.
    """
    yield f"| experts go by | calibrated on | {' | '.join(TEXTS.values())} |"
    yield f"| --- | --- |{' ---: |' * len(TEXTS)}"
    yield f"| nothing goes | | {' | '.join(f'{results.dense[text].value:.3f} nats' for text in TEXTS)} |"
    for criterion in (name for name in SHOWN if name in results.of_text):
        for data, words in SETS.items():
            cells = [
                _cell(
                    results.sides[criterion][data][text].draws - results.dense[text].value,
                    data == text,
                )
                for text in TEXTS
            ]
            yield f"| `{criterion}` | {words} | {' | '.join(cells)} |"
    if CHANCE in results.sides:
        cells = [
            _cell(results.sides[CHANCE][""][text].draws - results.dense[text].value, False)
            for text in TEXTS
        ]
        yield f"| chance | | {' | '.join(cells)} |"


def _cell(values: np.ndarray, own: bool) -> str:
    words = f"+{values.mean():.3f} ± {(values.max() - values.min()) / 2:.3f}"
    return f"**{words}**" if own else words


def loads(results: Results) -> Iterator[str]:
    """Rows: how even the load of each router is, as a number of experts, by text; and how far
    apart loads are, of draws and of texts.
    """
    yield f"| block | {' | '.join(SETS.values())} | two draws apart | two texts apart | from random tokens |"
    yield f"| ---: |{' ---: |' * (len(SETS) + 3)}"
    for block in results.loads["c4"][0]:
        shares = {
            data: [np.array(one[block]) / sum(one[block]) for one in results.loads[data]]
            for data in SETS
        }
        even = [
            statistics.mean(float(np.exp(entropy(one))) for one in shares[data]) for data in SETS
        ]
        same = [_apart(a, b) for data in TEXTS for a, b in itertools.combinations(shares[data], 2)]
        cross = [
            _apart(a, b)
            for x, y in itertools.combinations(TEXTS, 2)
            for a in shares[x]
            for b in shares[y]
        ]
        nothing = [_apart(a, b) for x in TEXTS for a in shares[x] for b in shares[NOTHING]]
        apart = " | ".join(f"{statistics.mean(each):.4f}" for each in (same, cross, nothing))
        yield f"| {block} | {' | '.join(f'{number:.1f}' for number in even)} | {apart} |"


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Their Jensen–Shannon divergence in nats: at most ln 2 = 0.693."""
    middle = (one + other) / 2
    return float(entropy(one, middle) + entropy(other, middle)) / 2


def ranks(results: Results) -> Iterator[str]:
    """Rows: Kendall's τ of a criterion's scores of a layer's experts, of two draws, of two
    texts, of a text and random tokens; means over layers.
    """
    yield "| experts go by | two draws of a text | two texts | a text and random tokens |"
    yield "| --- | ---: | ---: | ---: |"
    for criterion in results.of_text:
        scores = results.scores[criterion]

        def alike(one: str, other: str, scores: Mapping[str, Any] = scores) -> float:
            pairs = (
                itertools.combinations(range(3), 2)
                if one == other
                else itertools.product(range(3), repeat=2)
            )
            blocks = scores[one].keys()
            return statistics.mean(
                float(kendalltau(scores[one][b][i], scores[other][b][j])[0])
                for i, j in list(pairs)
                for b in blocks
            )

        each = (
            [alike(text, text) for text in TEXTS],
            [alike(x, y) for x, y in itertools.combinations(TEXTS, 2)],
            [alike(text, NOTHING) for text in TEXTS],
        )
        yield f"| `{criterion}` | {' | '.join(f'{statistics.mean(taus):.2f}' for taus in each)} |"


def rounds() -> Iterator[str]:
    """Rows: what is lost when experts go at once, in rounds, and with training after each round;
    and how much less than at once.
    """
    yield "| gone | experts go by | at once | in four rounds | less by | trained after each round | less than in rounds by |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    with Store(HERE / "rounds", create=False) as store:
        dense = {_text_of(name): side for name, side in _sides(store, method="none").items()}
        cells = [cell for cell in store.cells() if cell.method != "none"]
        for target, words in ROUNDS.items():
            sides = {
                method: _sides(store, method=method, target=target)
                for method in dict.fromkeys(c.method for c in cells)
                if CHANCE not in method
            }
            increase = {
                method: statistics.mean(side[text].value - dense[text].value for text in TEXTS)
                for method, side in sides.items()
            }
            for criterion, (once, turns, trained) in IN_ROUNDS.items():
                told_of = [
                    f"{increase[once]:.3f}",
                    f"{increase[turns]:.3f}",
                    told(_less(sides[once], sides[turns])),
                ]
                told_of += (
                    [f"{increase[trained]:.3f}", told(_less(sides[turns], sides[trained]))]
                    if trained
                    else ["", ""]
                )
                yield f"| {words} | `{criterion}` | {' | '.join(told_of)} |"
            chance = [
                draws(store, method=method, target=target)
                for method in dict.fromkeys(c.method for c in cells)
                if CHANCE in method
            ]
            each = [
                statistics.mean(one.score.value for (one, *_) in of.values())
                - statistics.mean(side.value for side in dense.values())
                for of in chance
            ]
            yield f"| {words} | chance, three seeds | {statistics.mean(each):.3f} ({min(each):.3f} to {max(each):.3f}) | | | | |"


def _less(one: Mapping[str, Side], other: Mapping[str, Side]) -> Estimate:
    """How much less the other loses, the mean over the measured texts."""
    share = 1 / len(TEXTS)
    return combination([(one, dict.fromkeys(TEXTS, share)), (other, dict.fromkeys(TEXTS, -share))])


def evenness() -> Iterator[str]:
    """Rows: how even the load is when the second round begins, after the first round's experts
    went, with and without training; means over draws.
    """
    yield "| gone in the end | without training | with 15 steps |"
    yield "| --- | ---: | ---: |"
    _, turns, trained = IN_ROUNDS[DEFAULT]
    with Store(HERE / "rounds", create=False) as store:
        for target, words in ROUNDS.items():
            told_of: list[str] = []
            for method in (turns, trained):
                runs = [
                    cell.run
                    for cell in store.cells()
                    if (cell.method, cell.target) == (method, target)
                ]
                told_of.append(_ranged([_even(store, run) for run in runs]))
            yield f"| {words} | {' | '.join(told_of)} |"


def _even(store: Store, run: str) -> float:
    """The mean over layers of the number of experts that would make as even a load, when the
    second round begins.
    """
    record = store.record(run, whole=False)
    assert record is not None
    second = [edit["notes"] for edit in record.edits if edit["notes"].get("round") == 2]
    counts = [np.array(of["counts"], float) for of in second[0]["routing"].values()]
    return statistics.mean(float(np.exp(entropy(one))) for one in counts)


def _ranged(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def planted() -> Iterator[str]:
    """Rows: how often each criterion has a planted expert first, and the worst it does."""
    yield "| planted | goes by | first | at worst |"
    yield "| --- | --- | ---: | ---: |"
    found = json.loads((HERE / "planted.json").read_text("utf-8"))
    for what, criterion, drop in dict.fromkeys(
        (row["planted"], row["criterion"], row["drop"]) for row in found
    ):
        before = [
            row["before"]
            for row in found
            if (row["planted"], row["criterion"], row["drop"]) == (what, criterion, drop)
        ]
        end = "smallest" if drop == "min" else "largest"
        yield f"| {what} | {end} `{criterion}` | {before.count(0)} of {len(before)} | place {max(before) + 1} of 16 |"


def condensed() -> Iterator[str]:
    """Rows: by how much the loss rises, the mean over the three texts and the draws, for each
    way to condense half of the layers.
    """
    yield "| kept of condensed layers | loss raised by | draws |"
    yield "| --- | ---: | ---: |"
    found = json.loads((HERE / "condensed.json").read_text("utf-8"))
    means = {id(row): statistics.mean(row["loss"].values()) for row in found}
    (dense,) = (means[id(row)] for row in found if row["way"] == "untouched")
    data = next(row["data"] for row in found if row["data"])
    ways = dict.fromkeys(row["way"] for row in found if row["way"] != "untouched")
    raised = {
        way: [means[id(row)] - dense for row in found if (row["way"], row["data"]) == (way, data)]
        for way in ways
    }
    for way in sorted(ways, key=lambda way: -statistics.mean(raised[way])):
        yield f"| {way} | {statistics.mean(raised[way]):.4f} | {min(raised[way]):.4f} to {max(raised[way]):.4f} |"


def upcycled() -> Iterator[str]:
    """Rows: what SmolLM2 loses, dense and split into experts, and how alike texts rank its
    experts by load (Kendall's τ, mean over layers).
    """
    found = json.loads((HERE / "upcycled.json").read_text("utf-8"))
    texts = list(found["dense"])
    yield f"| | {' | '.join(name.partition(':')[0] for name in texts)} |"
    yield f"| --- |{' ---: |' * len(texts)}"
    for name in ("dense", *(each for each in found if each.startswith("picked"))):
        yield f"| {name}: loss | {' | '.join(f'{found[name][text]:.3f}' for text in texts)} |"
    yield "\n| loads of | agree by |\n| --- | ---: |"
    for pair, tau in found["agreement of loads"].items():
        yield f"| {' and '.join(pair.split(', '))} | {tau:.3f} |"


def training() -> Iterator[str]:
    """Rows: the losses of the model by step."""
    course = json.loads((HERE / "three_texts.json").read_text("utf-8"))["course"]
    yield f"| step | {' | '.join(TEXTS.values())} | balance |"
    yield f"| ---: |{' ---: |' * (len(TEXTS) + 1)}"
    for one in (*course[:1], *(each for each in course if each["step"] % 100 == 0)):
        yield f"| {one['step']} | {' | '.join(f'{one[name]:.3f}' for name in (*TEXTS, 'balance'))} |"


def tables() -> dict[str, str]:
    """Each table in Markdown, by name."""
    made = {
        "training": "\n".join(training()),
        "rounds": "\n".join(rounds()),
        "evenness": "\n".join(evenness()),
    }
    made |= {
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
        groups = [
            group
            for group in kept_experts(read(store, items=False))
            if group.target == "experts 0.5"
        ]
    by_criterion = {
        (re.search(r"criterion='?(\w+)", group.method) or [DEFAULT, DEFAULT])[1]: group
        for group in groups
    }
    shown = {criterion: by_criterion[criterion] for criterion in SHOWN if criterion in by_criterion}
    drawn = routers(list(shown.values()), list(shown))
    if drawn is None:
        raise DataError("no run of the store dropped half of the experts", subject=str(STORE))
    return drawn


if __name__ == "__main__":
    write_or_print(PAGE, tables())
    if "--write" in sys.argv[1:]:
        with TemporaryDirectory() as folder:
            for name, dark in (("experts.png", False), ("experts-dark.png", True)):
                (image,) = (
                    path for path in write([picture()], Path(folder), dark) if path.suffix == ".png"
                )
                IMAGES.joinpath(name).write_bytes(image.read_bytes())
