"""How a compressed model looks: what was done to it, what its files take, and where the time
went.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from calibrant.cli.screen._lines import counted, labelled, noted, table_of
from calibrant.cli.screen.experts import starved
from calibrant.spec import parameters

DTYPE_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


def pruned(result: Mapping[str, Any]) -> Iterator[Any]:
    """A record, with where it was saved."""
    run, how, matrices = result["run"], result["provenance"], result["weights"]
    if result["already_done"]:
        yield f"{result['out']} already holds exactly this; nothing was done."
    if result["continued_from"]:
        yield f"continued from block {result['continued_from']}, where an earlier run was interrupted."
    yield from labelled(
        ("model", noted(run["model_name"], how.get("model_note", ""))),
        (
            "method",
            ", ".join(
                filter(
                    None,
                    [f"{_call(run['method'])} to {run['target']}", run["dtype"], run["propagate"]],
                )
            ),
        ),
        ("calibrated on", _calibrated(run, result["data_facts"]) if run["data"] else ""),
        ("used up", _repeated(result["data_facts"])),
        ("fingerprint", run["tokens"]),
        _result(result["sparsity"], matrices),
        ("left dense", _dense(result["dense"])),
        ("few tokens", starved(matrices, run)),
        (
            "time",
            " · ".join(
                f"{phase} {seconds:.1f} s" for phase, seconds in how.get("seconds", {}).items()
            ),
        ),
        ("peak memory", f"{how.get('peak_memory_bytes', 0) / 1e9:.2f} GB"),
        ("note", how.get("note", "")),
        ("zeros", _halves(run["dtype"], matrices)),
        ("files", _sizes(result.get("sizes", {}))),
        ("saved to", result["out"]),
    )
    if "costs" in result:
        yield from _costs(result["costs"])


def _result(sparsity: float, matrices: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """How many weights were removed, or how much room they take now."""
    from calibrant.results import (
        stored_bits,
    )  # here, since a store brings numpy and --help needs neither

    of = f"{sum(w['shape'][0] * w['shape'][1] for w in matrices):,} weights in {len(matrices)} matrices"
    stored = stored_bits(matrices)
    if stored is None:
        return "sparsity", f"{sparsity:.4%} of {of}"
    return (
        "stored",
        f"{stored:.3f} bits a weight, scales and all: {sum(w['bytes'] for w in matrices):,} bytes for {of}",
    )


def _halves(dtype: str, matrices: Sequence[Mapping[str, Any]]) -> str:
    """What the attention and feed-forward networks that went one without the other take, where
    there are such.
    """
    gone = [
        matrix
        for matrix in matrices
        if matrix.get("notes", {}).get("part") in ("attention", "feed_forward")
    ]
    if not gone:
        return ""
    numbers = sum(matrix["shape"][0] * matrix["shape"][1] for matrix in gone)
    room = (
        f"{numbers * DTYPE_BYTES[dtype] / 1e6:,.1f} MB"
        if dtype in DTYPE_BYTES
        else counted(numbers, "number")
    )
    what = f"{len(gone):,} matrices of attention or feed-forward networks that went are zeros"
    return f"{what}: {room} in the Hugging Face folder, nothing in --export sparse; memory and time of a forward stay as they were"


def _sizes(sizes: Mapping[str, int]) -> str:
    """How many bytes each form takes, and what share of the Hugging Face folder that is."""
    whole = sizes.get("hf", 0)
    shares = {
        form: f" ({size / whole:.0%} of it)" if whole and form != "hf" else ""
        for form, size in sizes.items()
    }
    return ", ".join(f"{form} {size / 1e6:,.1f} MB{shares[form]}" for form, size in sizes.items())


def exported(result: Mapping[str, Any]) -> Iterator[Any]:
    """What a model was written as, and how many bytes it took and takes."""
    before, after = result["before"], result["after"]
    yield from labelled(
        ("model", result["model"]),
        ("form", result["form"]),
        (
            "files",
            f"{before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB now ({after / before:.0%})",
        ),
        ("saved to", result["out"]),
    )


def _costs(costs: Mapping[str, Any]) -> Iterator[Any]:
    """Where the time went: each phase, what compressing consists of, and the floor."""
    whole = sum(costs["phases"].values())
    table = table_of("where the time went", "seconds", "of all")
    for phase, seconds in costs["phases"].items():
        table.add_row(phase, f"{seconds:.2f}", f"{seconds / whole:.0%}")
        for name, spent in costs["parts"].items() if phase == "compress" else ():
            table.add_row(f"  {name}", f"{spent:.2f}", f"{spent / whole:.0%}")
    yield table
    if costs["floor"]:
        yield from labelled(
            (
                "floor",
                f"{costs['floor']:.2f} s: the blocks' matrix products with {costs['tokens']:,} tokens, once, in {costs['dtype']}",
            ),
            (
                "peak",
                f"{costs['peak'] / 1e9:,.0f} GFLOP/s, measured just now with matrices of these shapes",
            ),
            (
                "above floor",
                f"compressing took {costs['phases']['compress'] / costs['floor']:.2f} times the floor",
            ),
        )


def _call(method: Mapping[str, Any]) -> str:
    """A method's canonical form as text, without its revision."""
    arguments = ", ".join(
        f"{k}={_call(v) if isinstance(v, Mapping) else v}" for k, v in parameters(method).items()
    )
    return f"{method['spec']}({arguments})" if arguments else str(method["spec"])


def _calibrated(run: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return f"{run['data']}, draw {run['seed']}: {facts['tokens']:,} real tokens in {facts['windows']:,} × {facts['length']:,}"


def _repeated(facts: Mapping[str, Any]) -> str:
    """Which parts of a set had no fresh rows left for this draw."""
    return "; ".join(
        f"{part['overlap']:.1%} of the rows of {part['data']} are in earlier draws too: its {part['rows_held']:,} rows don't last"
        for part in facts.get("parts", ())
        if part["overlap"]
    )


def _dense(dense: Sequence[Mapping[str, Any]]) -> str:
    """What was left alone, by reason; a matrix that is the only one with its reason is named."""
    names: dict[str, list[str]] = {}
    for matrix in dense:
        names.setdefault(matrix["reason"], []).append(matrix["name"])
    return "; ".join(
        f"{of[0]} ({reason})" if len(of) == 1 else f"{len(of)} × {reason}"
        for reason, of in names.items()
    )
