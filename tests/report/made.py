"""Rankings, contrasts and agreements made by hand, so that what is shown can be told from what
was computed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calibrant.lab.report.facts import StudyFacts
from calibrant.lab.report.reporting import Report
from calibrant.lab.stats import (
    Comparison,
    Contrast,
    Estimate,
    Evidence,
    PaperQuestion,
    RankAgreement,
    Ranking,
    RankingEntry,
    Results,
    label_set,
)
from calibrant.results import PROFILE, Cell, Measurement, Outcome, Record, Run, Score, Store

DENSE = {"docs:text": 2.6, "code:text": 2.3}
NOTHING = Estimate(math.nan, None, 0.0, 0)


def entry(
    name: str,
    increases: tuple[float, float],
    to_best: float | None,
    *,
    tied: bool = False,
    draws: int = 1,
    spread: float = 0.02,
) -> RankingEntry:
    each = {m: Estimate(v, spread, 20.0, 21) for m, v in zip(DENSE, increases, strict=True)}
    losses = {m: replace(e, value=e.value + DENSE[m]) for m, e in each.items()}
    gap = None if to_best is None else Estimate(to_best, spread, 20.0, 42)
    mean = Estimate(sum(increases) / 2, spread, 20.0, 42)
    label = label_set(name) if draws else None
    return RankingEntry(
        name,
        bool(label and label.control),
        (f"sha256:{name}",),
        draws,
        losses,
        each,
        mean,
        gap,
        tied,
        label=label,
    )


def renamed(made: RankingEntry, name: str) -> RankingEntry:
    """The same row of another set."""
    return replace(made, name=name, label=label_set(name))


def ranking(
    *entries: RankingEntry, baselines: tuple[RankingEntry, ...] = (), **changes: object
) -> Ranking:
    given = {
        "model": "smollm2",
        "method": "wanda",
        "target": "0.6",
        "measured": tuple(DENSE),
        "averaged": tuple(DENSE),
        "unit": "nats/token",
        "entries": entries,
        "baselines": baselines,
        "dense": entry("dense", (0.0, 0.0), None, draws=0),
        "missing": (),
        **changes,
    }
    return Ranking(**given)


BEST, SECOND, LAST = (
    entry("python_docs", (1.4, 1.8), None),
    entry("c4", (1.5, 1.9), 0.1),
    entry("full_stops", (6.0, 7.0), 4.9),
)
MAGNITUDE = entry("magnitude", (5.0, 5.5), 3.65, draws=0)
PLAIN = ranking(BEST, SECOND, LAST, baselines=(MAGNITUDE,))


def lettered(
    made: RankingEntry, letters: str, ranks: tuple[int, int], *best_on: str
) -> RankingEntry:
    kept = {m: Estimate(math.exp(-e.value), 0.01, 20.0, 21) for m, e in made.increases.items()}
    return replace(
        made,
        letters={**dict.fromkeys(DENSE, letters), "mean": letters},
        ranks=ranks,
        best_on=frozenset(best_on),
        share_kept=kept,
    )


HOLED = replace(
    renamed(SECOND, "pile"),
    mean=NOTHING,
    to_best=None,
    **{f: {"code:text": getattr(SECOND, f)["code:text"]} for f in ("losses", "increases")},
)
FULL = ranking(
    lettered(BEST, "a", (1, 1), "docs:text", "mean"),
    lettered(replace(SECOND, tied=True), "ab", (2, 3)),
    lettered(LAST, "b", (2, 3)),
    baselines=(MAGNITUDE,),
    partial=(HOLED,),
    propagate="dense",
    units=dict.fromkeys(DENSE, "nats/token"),
    better=dict.fromkeys(DENSE, "lower"),
)


def contrasted(
    name: str,
    difference: float | None,
    p_holm: float | None,
    draws: tuple[int, int] = (3, 3),
    **changes: object,
) -> Contrast:
    given = {
        "difference": None if difference is None else Estimate(difference, 0.02, 8.0, 40),
        "p": None if p_holm is None else p_holm / 4,
        "p_holm": p_holm,
        "draws": draws,
        "detectable": None if difference is None else 0.055,
        "unit": "nats/token",
        **changes,
    }
    return Contrast(name, "gsm8k:icl", "c4", ("docs:text",), "smollm2", "wanda", "0.6", **given)


BETTER = contrasted("own data", -0.123, 0.004)
WORSE = contrasted("", 0.2, 0.0004)
OPEN = contrasted("", -0.02, 0.6, needs="To detect 0.020 it would take 14 draws a set.")
ONCE = contrasted(
    "drawn once", -0.2, None, (1, 1), reason="The interval covers other documents only."
)
LOST = contrasted("", None, None, reason="Pile (draw 0) failed: no rows.", unit="")
CONTRASTS = (BETTER, WORSE, OPEN, ONCE, LOST)
AGREEMENTS = (
    RankAgreement("method", "wanda", "sparsegpt", "smollm2", 0.87, (0.5, 1.0), 6, "60 % sparsity"),
    RankAgreement("method", "wanda", "sparsegpt", "qwen", 0.2, (-0.1, 0.5), 6, "60 % sparsity"),
    RankAgreement("target", "0.6", "2:4", "smollm2", -0.1, None, 6, "wanda"),
)
EVERYTHING = Comparison(
    (FULL,),
    CONTRASTS,
    AGREEMENTS,
    comparisons=63,
    tested=len(CONTRASTS),
    missing=("pile (draw 0) on loss(source='docs'): DataError: no rows",),
    stale=2,
)
ACCOUNT = StudyFacts({"smollm2": "dequantized from Q4_1"}, {}, {"compress": 3.0}, {}, {}, (), "")


READING = Results((), {}, {}, {}, {}, {}, frozenset())
"""Of nothing."""


def reported(comparison: Comparison = EVERYTHING) -> Report:
    """A report that no store stands behind."""
    return Report(Path("nowhere"), comparison, READING, ACCOUNT.models)


def plain(text: str) -> str:
    """`text` with spaces that break."""
    return text.replace("\u00a0", " ")


def measured(name: str, loss: float, wobble: float, items: int = 8) -> Measurement:
    outcomes = tuple(
        Outcome(f"sha256:{i}", 10 * (loss + 0.1 * i + wobble * (-1) ** i * (i % 3)), 10.0)
        for i in range(items)
    )
    facts = {"tokens": 10 * items, "length": 512, "perplexity": 7.5, "bits_per_byte": 0.9}
    return Measurement(
        Score(name, "loss", loss, 0.1, items, "nats/token", "lower", facts=facts),
        outcomes,
        {"seconds": 2.5},
    )


def store_of(
    folder: Path,
    sets: Mapping[str, Sequence[float]],
    model: str = "smollm2",
    names: Sequence[str] = ("docs:text", "code:text"),
    items: int = 8,
    profile: Mapping[str, object] | None = None,
) -> Path:
    """A store with a loss per measured set for the dense model, magnitude and each set, which have
    this profile.
    """
    with Store(folder) as store:
        cells: list[Cell] = []
        for number, (label, losses) in enumerate(
            {"": (2.0, 3.0), "magnitude": (4.0, 5.0), **sets}.items()
        ):
            method = {"": "none", "magnitude": "magnitude"}.get(label, "wanda")
            data = label if method == "wanda" else ""
            run = Run(
                "sha256:m",
                model,
                data,
                f"sha256:{number}",
                {"spec": method, "revision": 1},
                "0.0" if method == "none" else "0.6",
                {"spec": "uniform"},
                "dense",
                "float32",
            )
            facts = {
                "windows": 16,
                "length": 512,
                "tokens": 8192,
                "overlap": 0.0,
                "parts": [{"rows": 9, "licence": "MIT"}],
            }
            how = {
                "seconds": {"compress": 3.0},
                "model_note": "dequantized from Q4_1",
                "device": "cpu",
                "threads": 2,
                "versions": {"torch": "2.13"},
            }
            files = {PROFILE: json.dumps(profile).encode()} if data and profile else {}
            store.add_record(
                Record(run, 0.6, data_facts=facts if data else {}, provenance=how), files
            )
            ids = {
                f"loss({n})": store.add_measurement(
                    run.id, {"spec": "loss", "source": n}, measured(n, v, 0.01 * number, items)
                )
                for n, v in zip(names, losses, strict=True)
            }
            cells.append(Cell(model, data, method, run.target, 0, run.id, ids))
        store.write_cells(cells)
        store.write_text("study.yaml", f"models: [{model!r}]\n")
    return folder


def piece(
    value: float,
    verdict: str,
    where: str = "wanda at 0.6",
    on: str = "mean",
    half: float = 0.05,
    unit: str = "nats/token",
) -> Evidence:
    return Evidence(
        "gsm8k:icl against c4",
        where,
        on,
        Estimate(value, half / 2, 9.0, 9),
        (value - half, value + half),
        verdict,
        unit,
    )  # pyright: ignore[reportArgumentType]


ASKED = PaperQuestion(
    "icl",
    "Do examples help?",
    "it depends",
    "They do once.",
    (piece(-0.2, "better"), piece(0.1, "worse", on="x"), piece(0.01, "not significant", on="y")),
)
