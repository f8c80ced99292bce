"""The tables of the study of served formats: python -m studies.served.tables FOLDER, in which
smollm2.yaml and smooth.yaml beside this have stores of these names.

Divergences are nats per token, KL(dense ‖ compressed), on rows that no draw calibrates on. The
analysis was fixed before the first run.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from studies.sensitivity.tables import sensitivity_table

from calibrant.lab.stats import Comparison, Sensitivity, compare, read
from calibrant.lab.stats.contrasts import Contrast, holm
from calibrant.results import Store

STORES: Final = ("smollm2", "smooth")
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
PLANNED: Final = 18
"""How many primary questions there are."""


def planned(found: Mapping[str, Comparison]) -> Iterator[str]:
    """Rows: the primary questions, corrected together (Holm).

    The first eight give the variance between sets over that between draws, with its interval; the
    others how much worse the first set is than the second, and what true difference four such
    studies in five find.
    """
    sensitivities: dict[tuple[str, str, str], Sensitivity] = {}
    differences: list[Contrast] = []
    for store, comparison in found.items():
        differences += comparison.contrasts
        for sensitivity in comparison.sensitivities:
            sensitivities[store, sensitivity.method, sensitivity.target] = sensitivity
    known = [sensitivities[asked] for asked in ASKED]
    ratios: list[Contrast] = []
    for sensitivity in known:
        name = "sets vary beyond draws"
        method = sensitivity.method
        ratios.append(Contrast(name, "", "", (), "", method, sensitivity.target, p=sensitivity.p))
    family = holm([*ratios, *differences])
    assert len(family) == PLANNED
    yield "| question | method | target | found | 4 in 5 see | p (Holm) |"
    yield "| --- | --- | --- | ---: | ---: | ---: |"
    told = [_ratio(sensitivity) for sensitivity in known]
    told += [_difference(difference) for difference in differences]
    for contrast, figure in zip(family, told, strict=True):
        seen = "" if contrast.detectable is None else f"{contrast.detectable:.5f}"
        p = "" if contrast.p_holm is None else f"{contrast.p_holm:.1g}"
        cells = [contrast.name, f"`{contrast.method}`", contrast.target, figure, seen, p]
        yield f"| {' | '.join(cells)} |"


def _ratio(sensitivity: Sensitivity) -> str:
    if sensitivity.ratio is None or sensitivity.ratio_interval is None:
        return ""
    low, high = sensitivity.ratio_interval
    return f"{sensitivity.ratio:.1f} ({low:.1f} to {high:.1f})"


def _difference(contrast: Contrast) -> str:
    if contrast.difference is None:
        return ""
    value = f"{contrast.difference.value:+.5f}"
    interval = contrast.difference.interval()
    if interval is None:
        return value
    # Five digits: at eight bits a model is some thousandths of a nat from the dense one.
    low, high = interval
    return f"{value} ({low:+.5f} to {high:+.5f})"


def compared(folder: Path) -> dict[str, Comparison]:
    """What each store says, by its name."""
    found: dict[str, Comparison] = {}
    for name in STORES:
        with Store(folder / name, create=False) as store:
            found[name] = compare(read(store), measures=["agreement"])
    return found


def tables(folder: Path) -> dict[str, str]:
    """Each table in Markdown, by name."""
    found = compared(folder)
    sensitivities: list[Sensitivity] = []
    for comparison in found.values():
        sensitivities += comparison.sensitivities
    return {
        "planned": "\n".join(planned(found)),
        "sensitivity": "\n".join(sensitivity_table(sensitivities, {})),
    }


if __name__ == "__main__":
    for name, table in tables(Path(sys.argv[1])).items():
        sys.stdout.write(f"{name}\n\n{table}\n\n")
