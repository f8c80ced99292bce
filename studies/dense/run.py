"""Which question sets can rank anything at the size of SmolLM2-135M?

    CALIBRANT_DATA=… python studies/dense/run.py [TASK …]

Measures the dense model (SmolLM2-135M-Instruct, dequantized from Q4_1, bfloat16) on the first 300
questions of every set, zero-shot, and writes a record a set beside this file and the table in
`docs/findings/dense.md`. What has a record isn't measured again; a set that was broken off goes on.

The scoring that decides is a published convention and isn't picked from these numbers: that of
OLMES (Gu et al. 2024, arXiv:2406.08446) for the sets that it has, in its cloze form, and plain
accuracy for the others.
"""

import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import calibrant

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/findings/dense.md"
ITEMS = 300
CONVENTION = {
    "commonsense_qa": "acc_prior",
    "piqa": "acc_norm",
    "openbookqa": "acc_prior",
    "hellaswag": "acc_norm",
    "arc_easy": "acc_norm",
    "winogrande": "acc",
    "boolq": "acc",
    "race": "acc",
    "rte": "acc",
    "esnli": "acc",
    "anli_r1": "acc",
    "anli_r2": "acc",
    "anli_r3": "acc",
    "svamp": "acc",
    "mawps": "acc",
    "gsm8k": "acc",
    "arithmetic": "acc",
}
METRICS = ("acc", "acc_norm", "acc_prior", "loss", "solution")
HEAD = """# What the dense model can do

{answer}

| set | n | chance | blind | acc | acc_norm | acc_prior | loss | solution | accuracy can rank? |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""

NOTES = """
## Method and limits

SmolLM2-135M-Instruct (dequantized from Q4_1), bfloat16, zero-shot, on the first {items} questions
(in the order of their hashes) of each set's measured part, all of them where there are fewer:
`python studies/dense/run.py`, whose records lie beside it. The data are those of the local mirror,
which is not always the published set; `calibrant inspect` says how each differs.

A set whose accuracy is at chance in the dense model can't show what compression did to it: there is
nothing to lose. The last column says whether accuracy is above chance by more than two standard
errors, by the scoring in bold. That is a published convention, OLMES (Gu et al. 2024,
arXiv:2406.08446), for the sets that it has, and plain accuracy for the others; it isn't the best of
the three, which would be above chance more often than it should. (Only its choice of scoring: OLMES
shows five examples and counts characters; here are none, and bytes.) Were all {sets} sets at
chance, about {chances:.1f} of them would still be called above it.

`acc`: the likeliest choice is right; `acc_norm`: the likeliest for its length in bytes;
`acc_prior`: the one whose log likelihood the question raises most over that behind the bare
`Answer:`. WinoGrande scores what follows the gap, which is the same for both names, so its first
two agree. Answers that are numbers are ranked among three wrong ones, made by the rule in
`evaluators/_prompts.py`. It was changed once, after 50 questions of GSM8K: numbers of the question
itself as wrong ones put a model that copies at 4 %. `loss` is that of the right answer, `solution`
that of the worked solution, in nats per token; accuracies are in percent; all ± one standard error
over questions.

`blind` is what the scoring in bold would get without the question: how often the right answer comes
first behind the bare `Answer:`. `acc_prior` has taken that out and has none. Where an accuracy
isn't two of its standard errors above `blind` (one label is the most frequent, or right answers are
likely texts by themselves), little of it comes from reading the question: it can show that a model
lost its sense of which answers are likely, and no more. Two thirds of BoolQ's answers are `yes`, so
66 % is what always saying so gets there.
"""


def main() -> None:
    """Measure what lacks a record, and write the page."""
    opened = None
    for name in sys.argv[1:] or CONVENTION:
        path = HERE / f"{name}.json"
        if not path.is_file():
            opened = opened or calibrant.open_model("smollm2", "bfloat16")
            task = f"task(name={name!r}, limit={ITEMS})"
            (measured,) = calibrant.evaluate(opened, tasks=task, progress=told)
            scores = [asdict(score) for score in (measured.score, *measured.beside)]
            machine = {
                "processor": platform.processor() or platform.machine(),
                "cpus": os.cpu_count(),
                "threads": torch.get_num_threads(),
            }
            record = {
                "task": task,
                "scores": scores,
                "provenance": {**measured.provenance, **machine},
            }
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(), encoding="utf-8")


def told(what: str, done: int, total: int) -> None:
    """How far it is, on one line."""
    sys.stderr.write(f"\r{what}: {done}/{total}")


def page() -> str:
    """The page with the table of everything that has a record, in the order of CONVENTION."""
    found: dict[str, Any] = {}
    for name in CONVENTION:
        path = HERE / f"{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text("utf-8"))
    lines: list[str] = []
    for name, record in found.items():
        lines.append(line(name, {score["metric"]: score for score in record["scores"]}))
    notes = NOTES.format(items=ITEMS, sets=len(found), chances=len(found) * 0.023)
    return HEAD.format(answer=answer(found)) + "".join(lines) + notes


def line(name: str, scores: dict[str, Any]) -> str:
    """A set's row of the table."""
    chosen = scores[CONVENTION[name]]
    cells = [name, f"{chosen['n']}", f"{100 * chosen['chance']:.1f}"]
    if "blind" in chosen["facts"]:
        cells.append(f"{100 * chosen['facts']['blind']:.1f}")
    else:
        cells.append("")
    for metric in METRICS:
        if metric not in scores:
            cells.append("")
            continue
        value, stderr = scores[metric]["value"], scores[metric]["stderr"]
        if metric.startswith("acc"):
            cell = f"{100 * value:.1f} ± {100 * stderr:.1f}"
        else:
            cell = f"{value:.3f} ± {stderr:.3f}"
        cells.append(f"**{cell}**" if metric == CONVENTION[name] else cell)
    cells.append(verdict(chosen))
    return f"| {' | '.join(cells)} |\n"


def verdict(score: dict[str, Any]) -> str:
    """Whether it is above chance by more than two standard errors; and if so, whether it is
    above what it would be without the questions.
    """
    blind = score["facts"].get("blind", score["chance"])
    above_chance = (score["value"] - score["chance"]) / score["stderr"]
    above_blind = (score["value"] - blind) / score["stderr"]
    if above_chance <= 2:
        can_rank = "no"
    elif above_blind > 2:
        can_rank = "yes"
    else:
        can_rank = "without reading"
    return f"{can_rank} ({above_chance:+.1f} se)"


def answer(found: dict[str, Any]) -> str:
    """What follows from the table."""
    sets: dict[str, list[str]] = {"yes": [], "without reading": [], "no": []}
    for name, record in found.items():
        (score,) = [score for score in record["scores"] if score["metric"] == CONVENTION[name]]
        can_rank, _, _ = verdict(score).partition(" (")
        sets[can_rank].append(name)
    names = ", ".join(sets["yes"]) or "no set"
    return (
        "Rank compressed models of SmolLM2-135M-Instruct (dequantized from 4 bits) by accuracy "
        f"only on {names}. There the dense model is above chance and above `blind`, what is right "
        f"without the question. On {len(sets['without reading'])} other sets a model may be right "
        f"without reading the question; on {len(sets['no'])} the dense model isn't above chance. "
        "The last column says which these are. On them use the loss of the right answer, or of the "
        "worked solution, which has no floor. Where answers are labels, that loss says more about "
        "the form of an answer than about which is right."
    )


if __name__ == "__main__":
    main()
