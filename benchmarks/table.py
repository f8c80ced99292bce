"""The tables of docs/speed.md, docs/cost.md, docs/reference/growth.md and docs/vllm.md, made of the
records beside this file: python benchmarks/table.py

`peers.py --out benchmarks/records/peers.json` writes the record of that name, and so do
`evaluation.py` and `growth.py`. In a page a table stands between `<!-- peers -->` and `<!-- end
of peers -->`; all else there is written by hand. docs/cost.md has tables of studies too: where it
changed, `python -m studies.pages` notes that.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine, sizes
from benchmarks.peers import difference
from benchmarks.plans import expected

RECORDS: Final = Path(__file__).resolve().parent / "records"
DOCS: Final = RECORDS.parents[1] / "docs"
PAGES: Final = (
    DOCS / "speed.md",
    DOCS / "cost.md",
    DOCS / "reference/growth.md",
    DOCS / "vllm.md",
)
LACKING: Final = "No record is kept yet."
MODELS: Final = {
    "smollm2": "SmolLM2-135M (dequantized from Q4_1)",
    "qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B (dequantized from Q4_K_M)",
}
USED: Final = {"calibrant": "calibrant", "llmcompressor": "llm-compressor"}
"""What took part, by the names under which a record has versions."""
PER_WEIGHT: Final = ("method", "record", "keeping finished blocks")
"""Parts that are paid for each weight, not for each token."""
ROUNDED_BY: Final = {
    "auto_round": "auto-round",
    "autoround": "Calibrant, `autoround`",
    "gptq": "Calibrant, `gptq`",
    "rtn": "Calibrant, `rtn`",
}
"""What the rows of a record of `autoround.py` are called."""
NAMES: Final = {"llmcompressor": "llm-compressor", "literal": "the literal loop"}


def peers(record: Mapping[str, Any]) -> str:
    """The machine, its peak, and a row for each case and peer."""
    asked, cases, versions = record["asked"], record["cases"], record["versions"]
    rates = {dtype: list(_rates(cases, dtype)) for dtype in machine.DTYPES}
    ran = " and ".join(
        f"{min(of) / 1e9:,.0f} to {max(of) / 1e9:,.0f} GFLOP/s in {dtype}"
        for dtype, of in rates.items()
    )
    said = (
        f"calibrant {versions['calibrant']}, llm-compressor {versions['llmcompressor']} (with "
        f"torch {versions['peer torch']})"
    )
    name = asked.get("model", "smollm2")
    model = MODELS.get(name, name)
    budget = f"{model}, {asked['samples']} × {asked['length']} tokens, {asked['rounds']} rounds"
    told = [
        f"{budget}; {said}; {machine.told(record['machine'])}. The products of the model's shapes "
        f"ran at {ran} there. The dense model's loss is "
        f"{record['dense']:.3f}.",
        "",
        "| case, against | seconds | times faster | whole processes | peak MiB | masks or values "
        "equal | loss | ours less theirs | of the floor |",
        "| --- | --- | --- | ---: | --- | --- | --- | --- | --- |",
        *(row(case, way, found) for case, found in cases.items() for way in found["ratios"]),
    ]
    return "\n".join(told)


def _rates(cases: Mapping[str, Any], dtype: str) -> Iterator[float]:
    """The median over all rounds of the peak of every shape."""
    rounds = [
        {tuple(shape): rate for *shape, rate in products[dtype]}
        for found in cases.values()
        for products in found["products"]
    ]
    return (statistics.median(rates[shape] for rates in rounds) for shape in rounds[0])


def row(case: str, way: str, found: Mapping[str, Any]) -> str:
    """One case against one peer: ours comes first where two numbers stand together."""
    seconds, peaks, losses, dtypes = (
        found[key] for key in ("seconds", "peaks", "losses", "dtypes")
    )
    alike = _percent(found["agreement"]["arrival"][way]["mean"])
    if "same inputs" in found["agreement"]:
        same = found["agreement"]["same inputs"][way]
        alike = f"{_percent(same['mean'])} (first block {_percent(same['first'])}); {alike}"
    both = {one: losses[one][: len(losses[way])] for one in ("calibrant", way)}
    mean, error = difference(both["calibrant"], both[way])
    floor, dtype = statistics.median(found["floors"][found["floor_dtype"]]), found["floor_dtype"]
    cells = [
        f"{case}, {NAMES[way]}",
        " / ".join(f"{statistics.median(seconds[one]):.1f} ({dtypes[one]})" for one in both),
        f"**{_spread(found['ratios'][way])}",
        f"{statistics.median(found['whole_ratios'][way]):.2f}",
        " / ".join(f"{peaks[one]:,.0f}" for one in both),
        alike,
        " / ".join(f"{statistics.mean(of):.3f}" for of in both.values()),
        f"{mean:+.4f}"
        + (f" ± {error:.4f}, {len(losses[way])} draws" if error is not None else ", one draw"),
        f"{_spread(found['of_floor']).replace('**', '')} × {floor:.1f} s ({dtype})",
    ]
    return f"| {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _spread(values: Sequence[float]) -> str:
    """The median, and the range after it."""
    return f"{statistics.median(values):.2f}** ({min(values):.2f} to {max(values):.2f})"


def real_sizes(record: Mapping[str, Any]) -> str:
    """The machine, and a row for each case of a model of real size."""
    asked = record["asked"]
    versions = record.get("versions", {})
    model = MODELS.get(asked["model"], asked["model"])
    used = [f"{name} {versions[key]}" for key, name in USED.items() if key in versions]
    told = [
        f"{model}, {asked['samples']} × {asked['length']} tokens of {asked['data']}, "
        f"{asked['rounds']} rounds",
        *used,
        machine.told(record["machine"]),
    ]
    rows: list[list[str]] = []
    for case, found in record["cases"].items():
        if case == "opening":
            rows += _opening(found)
        elif case == "refined":
            rows.append(_refined(found))
        elif case.endswith(" job"):
            rows += _job(case, asked, found)
        else:
            rows.append(_next_to_peer(case, found))
    heads = ("what", "seconds", "times", "peak MiB", "masks or values equal; loss")
    return "\n".join([f"{'; '.join(told)}.", "", *_table(heads, rows)])


def _next_to_peer(case: str, found: Mapping[str, Any]) -> list[str]:
    """One case next to llm-compressor: ours comes first where two numbers stand together."""
    both = ("calibrant", "llmcompressor")
    seconds = [
        f"{statistics.median(found['seconds'][way]):.1f} ({found['dtypes'][way]})" for way in both
    ]
    ours, theirs = (found["peaks"][way] for way in both)
    losses = [f"{found['losses'][way][0]:.3f}" for way in both]
    alike = _percent(found["agreement"]["arrival"]["llmcompressor"]["mean"])
    return [
        f"{case}, next to llm-compressor",
        " / ".join(seconds),
        f"**{_spread(found['ratios']['llmcompressor'])} faster",
        f"{ours:,.0f} / {theirs:,.0f} ({ours / theirs:.2f})",
        f"{alike}; {' / '.join(losses)}",
    ]


def _refined(found: Mapping[str, Any]) -> list[str]:
    both = ("refined", "sparsegpt")
    return [
        "refined 0.5, next to our sparsegpt",
        " / ".join(f"{statistics.median(found['seconds'][method]):.1f}" for method in both),
        f"**{_spread(found['ratios'])} as long",
        " / ".join(f"{found['peaks'][method]:,.0f}" for method in both),
        "",
    ]


def _job(case: str, asked: Mapping[str, Any], found: Mapping[str, Any]) -> list[list[str]]:
    """A whole job next to the floor of its products, and what is paid for each weight."""
    jobs = found["jobs"]
    seconds = statistics.median(job["seconds"] for job in jobs)
    floor = statistics.median(job["floor"] for job in jobs)
    peak = max(job["peak"] for job in jobs)
    method = case.removesuffix(" job")
    each = [_nanoseconds(job) for job in jobs]
    rows = [
        [
            f"{method} 0.5, {2 * asked['samples']} × {asked['length']} tokens, next to the floor",
            f"{seconds:.1f} / {floor:.1f}",
            f"**{_spread(found['of_floor'])} the floor",
            f"{peak:,.0f}",
            "",
        ]
    ]
    if method == "wanda":
        rows.append(
            [
                "its choosing, record and checkpoint, nanoseconds a weight",
                "",
                f"**{_spread(each)}",
                "",
                "",
            ]
        )
    return rows


def _nanoseconds(job: Mapping[str, Any]) -> float:
    """What a weight took beside the forward and the statistics."""
    taken = sum(job["parts"].get(part, 0.0) for part in PER_WEIGHT)
    return 1e9 * taken / job["weights"]


def _opening(found: Mapping[str, Any]) -> list[list[str]]:
    rows: list[list[str]] = []
    for name, seconds in found["seconds"].items():
        rows.append([f"opening the {name}", f"{statistics.median(seconds):.1f}", "", "", ""])
    return rows


def plans(record: Mapping[str, Any]) -> str:
    """The machine, and of each job what was planned and what was taken."""
    rows: list[list[str]] = []
    for case, found in record["cases"].items():
        model, _, job = case.rpartition(", ")
        memory = [found[when]["memory"] / 1e9 for when in ("planned", "taken")]
        seconds = [sum(expected(case, found).values()), sum(found["taken"]["seconds"].values())]
        cells = [model, f"`{job}`"]
        for one, other in (memory, seconds):
            cells += [f"{one:.1f}", f"{other:.1f}", f"{one / other:.2f}"]
        rows.append(cells)
    asked = record["asked"]
    told = f"{asked['samples']} × {asked['length']} tokens, {asked['dtype']}"
    heads = [
        "model",
        "job",
        "planned, GB",
        "taken, GB",
        "planned by taken",
        "planned, s",
        "taken, s",
        "planned by taken",
    ]
    return "\n".join([f"{told}; {machine.told(record['machine'])}.", "", *_table(heads, rows)])


def evaluation(record: Mapping[str, Any]) -> str:
    """The machine, and a row for each task: the harness's own model comes first where two
    numbers stand together.
    """
    rows: list[list[str]] = []
    for case, found in record["cases"].items():
        both = {
            name: [statistics.median(found[name][way]) for way in ("hf", "calibrant")]
            for name in ("seconds", "processor")
        }
        rows.append(
            [
                case,
                " / ".join(f"{s:.1f}" for s in both["seconds"]),
                f"**{_spread(found['ratios'])}",
                " / ".join(f"{s:.1f}" for s in both["processor"]),
                f"{found['peaks']['hf']:,.0f} / {found['peaks']['calibrant']:,.0f}",
                f"{found['apart']:.1e}",
            ]
        )
    versions = (
        f"calibrant {record['versions']['calibrant']}, lm-evaluation-harness "
        f"{record['versions']['lm_eval']}"
    )
    told = (
        f"{record['items']} items of each task, {record['rounds']} rounds, float32; {versions}; "
        f"{machine.told(record['machine'])}."
    )
    return "\n".join(
        [
            told,
            "",
            *_table(
                (
                    "task",
                    "seconds",
                    "times faster",
                    "processor seconds",
                    "peak MiB",
                    "log likelihoods apart",
                ),
                rows,
            ),
        ]
    )


def imatrix(record: Mapping[str, Any]) -> str:
    """The machine, and one row: llama.cpp comes first where two numbers stand together."""
    asked, found, versions = record["asked"], record["found"], record["versions"]
    both = [
        [f"{statistics.median(found[name][way]):.1f}" for way in ("llama_cpp", "calibrant")]
        for name in ("seconds", "processor")
    ]
    row = [
        " / ".join(both[0]),
        f"**{_spread(found['ratios'])}",
        " / ".join(both[1]),
        f"{found['peaks']['llama_cpp']:,.0f} / {found['peaks']['calibrant']:,.0f}",
        f"{found['apart']['median']:.1e} / {found['apart']['largest']:.1e}",
    ]
    of = (
        f"SmolLM2-135M (dequantized from Q4_1), {asked['samples']} × {asked['length']} tokens, "
        f"{asked['rounds']} rounds, float32"
    )
    used = f"calibrant {versions['calibrant']}, llama-cpp-py-sync {versions['llama-cpp-py-sync']}"
    heads = (
        "seconds",
        "times faster",
        "processor seconds",
        "peak MiB",
        "sums apart, median / most",
    )
    return "\n".join(
        [f"{of}; {used}; {machine.told(record['machine'])}.", "", *_table(heads, [row])]
    )


def answers(record: Mapping[str, Any]) -> str:
    """The machine, and a row for each type: seconds of every way, and how many times as fast ours
    is as the best other one.
    """
    versions = record["versions"]
    ways = ["calibrant", "generate 16", "generate 64"]
    rows: list[list[str]] = []
    for dtype, rounds in record["rounds"].items():
        cells = [dtype]
        for way in ways:
            cells.append(f"{statistics.median(found[way]['seconds'] for found in rounds):.1f}")
        ratios: list[float] = []
        for found in rounds:
            others = [found[way]["seconds"] for way in ways if way != "calibrant"]
            ratios.append(min(others) / found["calibrant"]["seconds"])
        rows.append([*cells, f"**{_spread(ratios)}"])
    about = (
        f"SmolLM2-135M (dequantized from Q4_1), {record['prompts']} prompts, at most "
        f"{record['most']} tokens each, temperature {record['temperature']}; calibrant "
        f"{versions['calibrant']}, transformers {versions['transformers']}; "
        f"{machine.told(record['machine'])}."
    )
    heads = ["type", *(f"{way}, seconds" for way in ways), "times faster than the best"]
    return "\n".join([about, "", *_table(heads, rows)])


def autoround(record: Mapping[str, Any]) -> str:
    """The machine, a row for each tool and for other methods, and the ratio of our seconds to
    auto-round's.
    """
    asked = record["asked"]
    runs = record["runs"]
    rows: list[list[str]] = []
    for name, found in runs.items():
        seconds = [run["seconds"] for run in found]
        rises = [run["loss"] - record["dense"] for run in found]
        spread = f"{statistics.stdev(rises):.3f}" if len(rises) > 1 else ""
        median = statistics.median(seconds)
        rise = statistics.mean(rises)
        rows.append([ROUNDED_BY[name], str(len(found)), f"{median:.1f}", f"{rise:+.3f}", spread])
    ratios: list[float] = []
    for ours, theirs in zip(runs["autoround"], runs["auto_round"], strict=True):
        ratios.append(ours["seconds"] / theirs["seconds"])
    calibrant = runs["autoround"][0]["versions"]
    peer = runs["auto_round"][0]["versions"]
    model = MODELS.get(asked["model"], asked["model"])
    about = (
        f"{model} at {asked['target']}, {asked['samples']} × {asked['length']} tokens of "
        f"{asked['data']}, {asked['steps']} steps of 8 windows, {asked['dtype']}; "
        f"calibrant {calibrant['calibrant']}, auto-round {peer['auto_round']} "
        f"(with torch {peer['torch']}); {machine.told(record['machine'])}. The dense model's loss "
        f"is {record['dense']:.3f}."
    )
    heads = ("rounded by", "seeds", "seconds", "loss rises by", "standard deviation over seeds")
    times = f"Seconds of Calibrant over those of auto-round: **{_spread(ratios)}."
    return "\n".join([about, "", *_table(heads, rows), "", times])


def schemes(record: Mapping[str, Any]) -> str:
    """What both saw, and a row for each scheme: shares of numbers that are equal, and losses."""
    asked = record["asked"]
    rows: list[list[str]] = []
    peer: Mapping[str, str] = {}
    for case, draws in record["cases"].items():
        alike = [draw["alike"] for draw in draws]
        peer = draws[0]["versions"]
        codes = "weight" if "weight" in alike[0] else "weight_packed"
        cells = [case, str(len(draws)), _mean_percent(alike, "weight_scale", "all")]
        cells.append(_mean_percent(alike, codes, "first"))
        cells.append(_mean_percent(alike, codes, "all"))
        ours = [draw["ours"] for draw in draws]
        theirs = [draw["theirs"] for draw in draws]
        cells += [f"{statistics.mean(ours):.4f}", f"{statistics.mean(theirs):.4f}"]
        mean, error = difference(ours, theirs)
        cells.append(f"{mean:+.4f}" if error is None else f"{mean:+.4f} ± {error:.4f}")
        rows.append(cells)
    about = (
        f"{MODELS.get(asked['model'], asked['model'])}, {asked['samples']} × {asked['length']} "
        f"tokens of {asked['data']}, {asked['dtype']}; llm-compressor {peer['llmcompressor']} "
        f"(with torch {peer['torch']}); {machine.told(record['machine'])}. The dense model's loss "
        f"is {record['dense']:.4f}."
    )
    heads = (
        "scheme",
        "draws",
        "weight scales equal",
        "codes equal, first block",
        "codes equal",
        "loss, Calibrant",
        "loss, llm-compressor",
        "difference ± standard error",
    )
    return "\n".join([about, "", *_table(heads, rows)])


def _mean_percent(draws: Sequence[Mapping[str, Any]], kind: str, blocks: str) -> str:
    return _percent(statistics.mean(alike[kind][blocks] for alike in draws))


def vllm(record: Mapping[str, Any]) -> str:
    """The machine, a row for each case that vLLM runs, and its words on the others."""
    rows: list[list[str]] = []
    refused: list[str] = []
    for case, found in record["cases"].items():
        if "refused" in found:
            refused.append(f"- {case}: {found['refused']}")
            continue
        losses = [f"{found[name]:.4f}" for name in ("ours", "vllm", "apart")]
        alike = _percent(found["alike"] / found["tokens"])
        float32 = found["arithmetic"]
        beside = [_percent(float32["alike"] / found["tokens"]), f"{float32['apart']:.4f}"]
        tokens = f"{found['tokens']:,}"
        rows.append([case, tokens, alike, *losses, *beside])
        if "cut" in found:
            cut = {**found, **found["cut"]}
            alike_cut = _percent(cut["alike"] / found["tokens"])
            losses_cut = [f"{cut[name]:.4f}" for name in ("ours", "vllm", "apart")]
            rows.append([f"{case}, ours cut towards zero", tokens, alike_cut, *losses_cut, "", ""])
    versions = record["versions"]
    about = (
        f"vLLM {versions['vllm']}, calibrant {versions['calibrant']}, transformers "
        f"{versions['transformers']}, bfloat16; {machine.told(record['machine'])}."
    )
    heads = (
        "what",
        "tokens",
        "alike",
        "loss here",
        "loss in vLLM",
        "a token's loss apart",
        "alike, float32 here",
        "apart, float32 here",
    )
    parts = [about, "", *_table(heads, rows)]
    if refused:
        parts += ["", "What vLLM refused, in its words:", "", *refused]
    return "\n".join(parts)


def larger(record: Mapping[str, Any]) -> str:
    """The machine, and a row for each method."""
    rows = []
    for case, found in record["cases"].items():
        whole, again = found["whole"], found.get("again")
        resumed = (
            f"{again['continued']} of {found['blocks']} blocks, "
            f"{'the same files' if found['same'] else 'OTHER FILES'}"
            if again
            else "not tried"
        )
        rows.append(
            [
                f"{case}, {found['tokens'] // found['length']} × {found['length']:,} tokens",
                f"{found['numbers'] / 1e9:.2f}",
                f"{found['bytes'] / 1e9:.2f}",
                f"{found['memory']:.1f}",
                f"{whole['peak'] / 1e9:.2f}",
                f"{whole['seconds']:,.0f}",
                f"{whole['parts'].get('reading blocks', 0):.0f}",
                resumed,
            ]
        )
    heads = (
        "method",
        "billions of numbers",
        "GB of files",
        "GB promised",
        "GB at most",
        "processor seconds",
        "seconds of reading",
        "killed, went on from",
    )
    return "\n".join([f"{machine.told(record['machine'])}.", "", *_table(heads, rows)])


def growth(record: Mapping[str, Any]) -> str:
    """The machine, and a table for every part that was measured."""
    asked, parts = record["asked"], record["parts"]
    told = [
        f"{machine.told(record['machine'])}; calibrant {record['version']}, {asked['dtype']}; "
        f"windows of {asked['length']} tokens."
    ]
    for part, found in parts.items():
        told += ["", *PARTS[part](found)]
    return "\n".join(told)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under heads, numbers to the right."""
    return [
        f"| {' | '.join(cells)} |"
        for cells in (heads, ["---", *["---:"] * (len(heads) - 1)], *rows)
    ]


def _tokens(found: Mapping[str, Any]) -> list[str]:
    line, points = found["line"], found["points"]
    rows = [
        [
            f"{p['tokens']:,}",
            f"{p['seconds']:.1f}",
            f"{line['start'] + line['slope'] * p['tokens']:.1f}",
            f"{p['peak']:,.0f}",
        ]
        for p in points
    ]
    said = (
        f"The line is {line['start']:.2f} s and {line['slope'] * 1000:.2f} s more for 1,000 "
        f"tokens; the worst point is {_percent(line['worst'])} off."
    )
    return [*_table(("tokens", "seconds", "on the line", "peak MiB"), rows), "", said]


def _sizes(found: Mapping[str, Any]) -> list[str]:
    """Seconds beside those for the same work: a billion numbers and a thousand tokens."""
    rows = []
    for point in found["points"]:
        each = point["seconds"] / (point["numbers"] / 1e9) / (found["tokens"] / 1000)
        rows.append(
            [
                point["model"],
                f"{point['blocks']}",
                f"{point['numbers'] / 1e6:.1f}",
                f"{point['seconds']:.1f}",
                f"{each:.2f}",
            ]
        )
    work = "seconds a billion numbers and 1,000 tokens"
    return _table(
        (
            f"model ({found['tokens']:,} tokens)",
            "blocks",
            "millions of numbers in their matrices",
            "seconds",
            work,
        ),
        rows,
    )


def _cores(found: Mapping[str, Any]) -> list[str]:
    one = found["points"][0]["seconds"]
    rows = [
        [f"{p['threads']}", f"{p['seconds']:.1f}", f"{one / p['seconds']:.2f}"]
        for p in found["points"]
    ]
    return _table(
        (f"threads ({found['tokens']:,} tokens)", "seconds", "times faster than one"), rows
    )


def _sets(found: Mapping[str, Any]) -> list[str]:
    one = found["points"][0]["seconds"]
    rows = [
        [f"{p['sets']}", f"{p['seconds']:.1f}", f"{p['seconds'] / one:.2f}"]
        for p in found["points"]
    ]
    return _table(
        (f"sets of a study ({found['tokens']:,} tokens each)", "seconds", "times one set"), rows
    )


def _methods(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, pair in found["pairs"].items():
        middle = [f"{statistics.median(pair[key]):.1f}" for key in ("one", "six")]
        rows.append([f"{name} 0.5", *middle, f"**{_spread(pair['ratios'])}"])
    return _table(
        (f"the one ({found['tokens']:,} tokens)", "seconds of one", "seconds of six", "times"), rows
    )


PARTS: Final[dict[str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "tokens": _tokens,
    "sizes": _sizes,
    "cores": _cores,
    "sets": _sets,
    "methods": _methods,
}
TABLES: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "peers": peers,
    "peers_amx": peers,
    "real_sizes": real_sizes,
    "plans": plans,
    "on_processor": sizes.on_processor,
    "on_devices": sizes.on_devices,
    "assumed": sizes.assumed,
    "factors": sizes.factors,
    "evaluation": evaluation,
    "evaluation_amx": evaluation,
    "imatrix": imatrix,
    "answers": answers,
    "autoround": autoround,
    "schemes": schemes,
    "vllm": vllm,
    "larger": larger,
    "growth": growth,
}


OF_PLANS: Final = ("on_processor", "on_devices", "assumed", "factors")
"""Tables that are made of the record of `plans`."""


def page(text: str, records: Path = RECORDS) -> str:
    """The page `text` with those tables made anew that it has a place for."""
    for name, table in TABLES.items():
        if f"<!-- {name} -->" not in text:
            continue
        kept = records / f"{'plans' if name in OF_PLANS else name}.json"
        made = table(json.loads(kept.read_text("utf-8"))) if kept.is_file() else LACKING
        between = f"<!-- {name} -->\n\n{made}\n\n<!-- end of {name} -->"
        text, count = re.subn(
            rf"<!-- {name} -->.*?<!-- end of {name} -->",
            lambda _, between=between: between,
            text,
            flags=re.DOTALL,
        )
        assert count == 1, f"the page has {count} places for the table of {name}"
    return text


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text("utf-8")), encoding="utf-8")
