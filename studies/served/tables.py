"""The tables of docs/findings/served.md, made of the stores beside this file: python -m
studies.served.tables [--write]

With `--write` the picture is drawn too; picture.json has its numbers.

Divergences are nats per token, KL(dense ‖ compressed), on rows that no draw calibrates on. They
have four digits: at eight bits a model is some hundredths of a nat from the dense one. The analysis
was fixed before the first run. What isn't computed yet is left empty.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from studies.arms import measured_whole, number_or_nothing, table_head, table_row, value_of
from studies.pages import draw as draw_picture
from studies.pages import write_or_print

from calibrant.lab.report.plots import Plot
from calibrant.lab.report.plots.sensitivity import worth
from calibrant.lab.stats import MEAN, Comparison, Sensitivity, compare, read
from calibrant.lab.stats.contrasts import Contrast, holm
from calibrant.results import Measurement, Store
from calibrant.results.records import UNTOUCHED

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/served.md"
PICTURE: Final = HERE / "picture.json"
STORES: Final = ("smollm2", "smooth")
SETS: Final[Mapping[str, str]] = {
    "c4": "C4",
    "python_code": "code",
    "gsm8k:cot": "arithmetic",
    "commonsense_qa:chat": "conversations",
    "0.25*c4 + 0.25*python_code + 0.25*gsm8k:cot + 0.25*commonsense_qa:chat": "mixture",
    "random_tokens": "random tokens",
    "": "nothing",
}
TEXTS: Final[Mapping[str, str]] = {
    "c4:text": "C4",
    "python_code:text": "code",
    "gsm8k:cot": "arithmetic",
    "commonsense_qa:chat": "conversations",
}
CONVERSATIONS: Final = "commonsense_qa:chat"
"""The text whose divergence is told by role."""
LEARNED: Final = "autoround(steps=10, batch=2)"
ASKED: Final = (
    ("smollm2", "gptq", "w4g64"),
    ("smollm2", "gptq", "MXFP4"),
    ("smollm2", "gptq", "NVFP4"),
    ("smollm2", "rtn", "NVFP4"),
    ("smollm2", "rtn", "FP8"),
    ("smollm2", LEARNED, "w2g64"),
    ("smollm2", LEARNED, "w4g64"),
    ("smooth", "rtn", "W8A8"),
)
"""Of which store, method and target it is asked whether sets vary beyond draws."""
IN_PICTURE: Final[Mapping[tuple[str, str], str]] = {
    ("smollm2", "gptq"): "gptq",
    ("smollm2", LEARNED): "autoround",
    ("smollm2", "rtn"): "scales of inputs,",
    ("smooth", "rtn"): "smooth,",
}
"""What a picture calls a store's method: what data decides with it. The target follows."""
PRIMARY_COUNT: Final = 18
"""How many primary questions there are."""
EQUIVALENCE: Final = ("random tokens against C4, scales of NVFP4", "rtn", "NVFP4")
"""Name, method and target of the difference that has to lie within `MARGIN`."""
MARGIN: Final = 0.05
"""What doesn't matter, as a share of the mean divergence."""
ROLES: Final = ("kl_template", "kl_question", "kl_answer")

Asked = tuple[str, str, str]
"""A store, a method and a target."""
Runs = Sequence[Mapping[str, Measurement]]
"""What the draws of a set gave, by what was measured."""


def planned(found: Mapping[str, Comparison]) -> Iterator[str]:
    """Rows: the primary questions, corrected together (Holm).

    The first eight give the variance between sets over that between draws, with its interval; the
    others how much worse the first set is than the second, and what true difference four such
    studies in five find.
    """
    sensitivities = _sensitivities(found)
    ratios: list[Contrast] = []
    figures: list[str] = []
    for store, method, target in ASKED:
        sensitivity = sensitivities.get((store, method, target))
        p = None if sensitivity is None else sensitivity.p
        name = "sets vary beyond draws"
        label = _label(store, method)
        ratios.append(Contrast(name, "", "", (), "", label, target, p=p))
        figures.append("" if sensitivity is None else _ratio(sensitivity))
    differences: list[Contrast] = []
    for store, comparison in found.items():
        for contrast in comparison.contrasts:
            differences.append(replace(contrast, method=_label(store, contrast.method)))
            figures.append(_difference(contrast))
    family = holm([*ratios, *differences])
    assert len(family) == PRIMARY_COUNT
    yield from table_head(["question", "method", "target"], ["found", "4 in 5 see", "p (Holm)"])
    for contrast, figure in zip(family, figures, strict=True):
        seen = number_or_nothing(contrast.detectable, ".4f")
        p = number_or_nothing(contrast.p_holm, ".1g")
        cells = [contrast.name, f"`{contrast.method}`", contrast.target, figure, seen, p]
        yield table_row(cells)


def equivalent(found: Mapping[str, Comparison]) -> Iterator[str]:
    """Rows: whether random tokens serve NVFP4's scales as C4 does: whether the interval of their
    difference lies within 5 % of the mean divergence.
    """
    yield "| random tokens less C4 | 5 % of the mean divergence | within it |"
    yield "| ---: | ---: | --- |"
    sensitivity = _sensitivities(found).get(("smollm2", *EQUIVALENCE[1:]))
    for contrast in found["smollm2"].contrasts:
        if (contrast.name, contrast.method, contrast.target) != EQUIVALENCE:
            continue
        interval = None if contrast.difference is None else contrast.difference.interval()
        if interval is None or sensitivity is None or sensitivity.increase is None:
            yield "| | | |"
            continue
        margin = MARGIN * sensitivity.increase
        within = -margin < interval[0] and interval[1] < margin
        yield f"| {_difference(contrast)} | {margin:.4f} | {'yes' if within else 'no'} |"


def at_stake(found: Mapping[str, Comparison]) -> Iterator[str]:
    """Rows: worst less best set, text by text, as a share of the mean divergence, beside what
    chance makes of sets that are alike; then the same where one set must serve all texts.
    """
    heads = ["mean", "worst less best", "cross-fitted", "by chance at most", "of the mean"]
    heads += ["one set for all texts", "of the mean", "between sets / draws"]
    yield from table_head(["method", "target"], heads)
    for (store, method, target), sensitivity in _sensitivities(found).items():
        low, high = sensitivity.worth_interval
        cells = [f"`{_label(store, method)}`", target]
        cells.append(number_or_nothing(sensitivity.increase, ".4f"))
        cells.append(f"{sensitivity.worth:.4f} ({low:.4f} to {high:.4f})")
        cells += [f"{sensitivity.cross_fitted:.4f}", f"{sensitivity.by_chance:.4f}"]
        cells.append(number_or_nothing(sensitivity.share, ".0%"))
        one_set = sensitivity.gaps[MEAN].value
        cells.append(f"{one_set:.4f}")
        share = one_set / sensitivity.increase if sensitivity.increase else None
        cells.append(number_or_nothing(share, ".0%"))
        cells.append(_ratio(sensitivity))
        yield table_row(cells)


def by_text(runs: Mapping[Asked, Mapping[str, Runs]]) -> Iterator[str]:
    """Rows: the divergence on each text, of every method and set; also of what looks at no data."""
    yield from table_head(["method", "target", "calibrated on"], list(TEXTS.values()))
    for (store, method, target), sets in runs.items():
        for data, draws in sets.items():
            cells = [f"`{_label(store, method)}`", target, SETS[data]]
            for text in TEXTS:
                cells.append(_mean([draw[text].score.value for draw in draws]))
            yield table_row(cells)


def by_role(runs: Mapping[Asked, Mapping[str, Runs]]) -> Iterator[str]:
    """Rows: the divergence on conversations, by the role of a token."""
    roles = ["the template's own tokens", "questions", "answers"]
    yield from table_head(["method", "target", "calibrated on"], roles)
    for (store, method, target), sets in runs.items():
        for data, draws in sets.items():
            cells = [f"`{_label(store, method)}`", target, SETS[data]]
            for role in ROLES:
                cells.append(_mean([value_of(draw[CONVERSATIONS], role) for draw in draws]))
            yield table_row(cells)


def _label(store: str, method: str) -> str:
    return f"smooth, {method}" if store == "smooth" else method


def _sensitivities(found: Mapping[str, Comparison]) -> dict[Asked, Sensitivity]:
    sensitivities: dict[Asked, Sensitivity] = {}
    for store, comparison in found.items():
        for sensitivity in comparison.sensitivities:
            sensitivities[store, sensitivity.method, sensitivity.target] = sensitivity
    return sensitivities


def _ratio(sensitivity: Sensitivity) -> str:
    if sensitivity.ratio is None or sensitivity.ratio_interval is None:
        return ""
    low, high = sensitivity.ratio_interval
    return f"{sensitivity.ratio:.1f} ({low:.1f} to {high:.1f})"


def _difference(contrast: Contrast) -> str:
    if contrast.difference is None:
        return ""
    value = f"{contrast.difference.value:+.4f}"
    interval = contrast.difference.interval()
    if interval is None:
        return value
    low, high = interval
    return f"{value} ({low:+.4f} to {high:+.4f})"


def _mean(values: Sequence[float]) -> str:
    """The mean of the draws, and half of what they lie apart."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.4f}"


def runs_of(store: Store, name: str) -> Mapping[Asked, Mapping[str, Runs]]:
    """The runs of a store that were measured whole, by method and target, then by set."""
    runs: dict[Asked, dict[str, list[Mapping[str, Measurement]]]] = {}
    for cell in store.cells():
        measured = measured_whole(store, cell)
        if measured is None or cell.method == UNTOUCHED:
            continue
        sets = runs.setdefault((name, cell.method, cell.target), {})
        sets.setdefault(cell.data, []).append(measured)
    return runs


def compared() -> dict[str, Comparison]:
    """What each store's runs say of its sets, by the store's name."""
    found: dict[str, Comparison] = {}
    for name in STORES:
        with Store(HERE / name, create=False) as store:
            found[name] = compare(read(store), measures=["agreement"])
    return found


def picture() -> Plot:
    """What the choice of set is worth by method, both stores together."""
    found: list[Sensitivity] = []
    for (store, method, _), sensitivity in _sensitivities(compared()).items():
        found.append(replace(sensitivity, method=IN_PICTURE[store, method]))
    drawn = worth(found)
    assert drawn is not None
    return drawn


def tables() -> dict[str, str]:
    """Each table in Markdown, by name."""
    found = compared()
    runs: dict[Asked, Mapping[str, Runs]] = {}
    for name in STORES:
        with Store(HERE / name, create=False) as store:
            runs |= runs_of(store, name)
    made = {
        "planned": planned(found),
        "equivalent": equivalent(found),
        "at stake": at_stake(found),
        "by text": by_text(runs),
        "by role": by_role(runs),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
    if "--write" in sys.argv[1:]:
        draw_picture(picture(), "served", PICTURE)
