"""How results look in a terminal: plain data in, lines and tables out (rich). No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text


def pruned(found: Mapping[str, Any]) -> Iterator[Any]:
    """A record, with where it was saved."""
    run, how, matrices = found["run"], found["provenance"], found["weights"]
    if found["already_done"]:
        yield f"{found['out']} already holds exactly this; nothing was done."
    if found["continued_from"]:
        yield f"continued from block {found['continued_from']}, where an earlier run was interrupted."
    yield from _facts(
        ("model", _noted(run["model_name"], how.get("model_note", ""))),
        ("method", ", ".join(filter(None, [f"{_call(run['method'])} to {run['target']}", run["dtype"], run["propagate"]]))),
        ("calibrated on", _calibrated(run, found["data_facts"]) if run["data"] else ""),
        ("fingerprint", run["tokens"]),
        ("sparsity", f"{found['sparsity']:.4%} of {sum(w['shape'][0] * w['shape'][1] for w in matrices):,} weights in {len(matrices)} matrices"),
        ("left dense", _dense(found["dense"])),
        ("time", " · ".join(f"{phase} {seconds:.1f} s" for phase, seconds in how.get("seconds", {}).items())),
        ("peak memory", f"{how.get('peak_memory_bytes', 0) / 1e9:.2f} GB"),
        ("note", how.get("note", "")),
        ("saved to", found["out"]),
    )


def scores(found: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """What was measured, and everything that a loss needs before it can be compared with another."""
    table = _table("measured", "value", "perplexity", "bits/byte", "tokens", "docs", "context")
    for score in found:
        facts = score["facts"]
        name = score["measured"] if score["metric"] == "loss" else f"{score['measured']} ({score['metric']})"
        value = f"{score['value']:.4f}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.4f}")
        counts = [f"{facts[key]:,}" for key in ("tokens", "documents", "length")]
        table.add_row(name, value, f"{facts['perplexity']:.3f}", f"{facts['bits_per_byte']:.4f}", *counts)
    yield table
    how = found[0]["provenance"]
    yield f"{_noted(how.get('model', ''), how.get('note', ''))}; value: loss in {found[0]['unit']} ± one standard error over documents"


def inspected(found: Mapping[str, Any]) -> Iterator[Any]:
    """A calibration set, then each of its parts with the beginnings of a few windows."""
    yield from _facts(
        ("set", found["data"]),
        ("windows", f"{found['windows']:,} × {found['length']:,}; {found['padding']:.1%} padding; {found['repeated_windows']} repeated"),
        ("real tokens", f"{found['tokens']:,} of {found['rows']:,} rows"),
        ("draws", "no end of disjoint ones" if found["disjoint_draws"] is None else f"{found['disjoint_draws']} disjoint ones of this size"),
        ("overlap", f"{found['overlap']:.1%} of the rows are in earlier draws" if found["overlap"] else ""),
        ("fingerprint", found["fingerprint"]),
    )
    for part in found["parts"]:
        yield ""
        yield from _facts(
            (part["data"], f"{part['tokens']:,} tokens, {part['rows']:,} rows, share {part['share']:.1%}, weight {part['weight']:.4f}"),
            ("row lengths", " ≤ ".join(str(n) for n in part["row_lengths"]) + " tokens (least, quarters, most)"),
            ("source", f"{part['origin']}; {part['licence']}; {part['digest']}"),
            ("left out", f"{part['duplicates_dropped']} duplicates, {part['overlapping_dropped']} rows that are also measured"),
        )
        for text in part["texts"]:
            yield Text("  │ " + _harmless(text).replace("\n", "\n  │ "), style="dim")


def catalogued(entries: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Names with what they are and the parameters as they are typed."""
    table = _table("name", "what", "parameters")
    for entry in entries:
        given = ", ".join(f"{name}={default}" if default else name for name, default in entry["parameters"].items())
        table.add_row(entry["name"], "\n".join(filter(None, [entry["summary"], ", ".join(map(str, entry["facts"].values()))])), given)
    yield table if entries else "none yet"


def _table(*columns: str) -> Any:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _facts(*facts: tuple[str, str]) -> Iterator[Text]:
    """Named facts, one a line; a fact without content is left out."""
    for name, value in facts:
        if value:
            yield Text.assemble((f"{name:<15}", "bold"), value)


def _harmless(text: str) -> str:
    """Text of a data set without the characters that would steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _noted(model: str, note: str) -> str:
    return f"{model} ({note})" if note else model


def _call(method: Mapping[str, Any]) -> str:
    """A method's canonical form as text, without its revision."""
    given = ", ".join(f"{k}={_call(v) if isinstance(v, Mapping) else v}" for k, v in method.items() if k not in ("spec", "revision"))
    return f"{method['spec']}({given})" if given else str(method["spec"])


def _calibrated(run: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return f"{run['data']}, draw {run['seed']}: {facts['tokens']:,} real tokens in {facts['windows']:,} × {facts['length']:,}"


def _dense(dense: Sequence[Mapping[str, Any]]) -> str:
    """What was left alone, by reason; a matrix that is the only one with its reason is named."""
    names: dict[str, list[str]] = {}
    for matrix in dense:
        names.setdefault(matrix["reason"], []).append(matrix["name"])
    return "; ".join(f"{of[0]} ({reason})" if len(of) == 1 else f"{len(of)} × {reason}" for reason, of in names.items())
