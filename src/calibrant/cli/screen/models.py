"""How a compressed model looks: what was done to it, what its files take, where the time went, what
it scores, and what an importance matrix covers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from calibrant.cli.screen.lines import labelled, noted, one_line, phases, table_of, tenths
from calibrant.numerics import counted, decimals, gigabytes, megabytes
from calibrant.spec import parameters

DTYPE_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}

TENSORS: Final = 8
"""Tensors of an importance matrix that are listed, those that differ most."""

SEEN: Final = 0.01
"""Share of a divergence from which on its noise floor is told in words."""
MANY_CUT: Final = 0.1
"""The share of answers that may be cut without a word."""
DIGIT: Final = 1e-4
"""The last digit that scores are shown with."""


# What pruning and quantizing did.


def pruned(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield a record, with where it was saved."""
    # Imported here, since a store brings numpy, and --help needs neither.
    from calibrant.results import (
        cache_in_words,
        condensed_in_words,
        inputs_in_words,
        left_dense,
        parts_gone,
        short_of_target,
    )

    run = result["run"]
    matrices = result["weights"]
    edits = result.get("edits", ())
    provenance = result["provenance"]
    if result["already_done"]:
        yield f"{result['out']} already holds exactly this; nothing was done."
    if result["continued_from"]:
        block = result["continued_from"]
        yield f"continued from block {block}, where an earlier run was interrupted."
    method = [f"{_call(run['method'])} to {run['target']}", run["dtype"], run["propagate"]]
    yield from labelled(
        {
            "model": noted(run["model_name"], provenance.get("model_note", "")),
            "method": ", ".join(part for part in method if part),
            "calibrated on": _calibrated(run, result["data_facts"]),
            "used up": _repeated(result["data_facts"]),
            "fingerprint": run["tokens"],
            "removed": parts_gone(edits),
            "condensed": condensed_in_words(edits),
            **_size(result["sparsity"], matrices),
            "not reached": short_of_target(run["target"], result["sparsity"], matrices, edits),
            "inputs": inputs_in_words(edits),
            "KV cache": cache_in_words(edits),
            "left dense": left_dense(result["dense"]),
            "few tokens": _starved(matrices, run),
            "time": phases(provenance.get("seconds", {}), tenths),
            "peak memory": gigabytes(provenance.get("peak_memory_bytes", 0)),
            "note": provenance.get("note", ""),
            "zeros": _halves(run["dtype"], matrices),
            "files": _files(result.get("sizes", {})),
            "saved to": result["out"],
        }
    )
    if "costs" in result:
        yield from _costs(result["costs"])


def _call(method: Mapping[str, Any]) -> str:
    """A method's canonical form as text, without its revision."""
    arguments: list[str] = []
    for name, value in parameters(method).items():
        text = _call(value) if isinstance(value, Mapping) else value
        arguments.append(f"{name}={text}")
    if not arguments:
        return str(method["spec"])
    return f"{method['spec']}({', '.join(arguments)})"


def _calibrated(run: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    if not run["data"]:
        return ""
    windows = f"{facts['windows']:,} × {facts['length']:,}"
    return f"{run['data']}, draw {run['seed']}: {facts['tokens']:,} real tokens in {windows}"


def _repeated(facts: Mapping[str, Any]) -> str:
    """Which parts of a set had no fresh rows left for this draw."""
    sentences: list[str] = []
    for part in facts.get("parts", ()):
        if part["overlap"]:
            sentences.append(
                f"{part['overlap']:.1%} of the rows of {part['data']} are in earlier draws too: "
                f"its {part['rows_held']:,} rows don't last"
            )
    return "; ".join(sentences)


def _size(sparsity: float, matrices: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How many weights were removed, or how many bytes they take now; nothing where all matrices
    were left.
    """
    # Imported here, since a store brings numpy, and --help needs neither.
    from calibrant.results import stored_bits

    weights = sum(_count(matrix) for matrix in matrices)
    whole = f"{weights:,} weights in {len(matrices)} matrices"
    stored = stored_bits(matrices)
    if not matrices:
        return {}
    if stored is None:
        return {"sparsity": f"{sparsity:.4%} of {whole}"}
    size = sum(matrix["bytes"] for matrix in matrices)
    bits = f"{decimals(stored)} bits a weight, scales and all"
    return {"stored": f"{bits}: {size:,} bytes for {whole}"}


def _count(matrix: Mapping[str, Any]) -> int:
    rows, columns = matrix["shape"]
    return rows * columns


def _starved(matrices: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> str:
    """How many matrices of experts were calibrated on fewer tokens than they have inputs, and
    which on fewest; empty where none was.
    """

    def tokens(matrix: Mapping[str, Any]) -> int:
        return matrix["tokens"]

    parts: list[str] = []
    few: list[Mapping[str, Any]] = []
    for matrix in matrices:
        if "tokens" in matrix:
            inputs = matrix["shape"][1]
            if matrix["tokens"] < inputs:
                few.append(matrix)
    if few:
        least = min(few, key=tokens)
        parts.append(
            f"{len(few):,} of experts' matrices saw fewer than their inputs, fewest "
            f"{least['name']}: {least['tokens']:,} for {least['shape'][1]:,}"
        )
    if run.get("starved"):
        parts.append(f"experts with few tokens: {run['starved']}")
    return "; ".join(parts)


def _halves(dtype: str, matrices: Sequence[Mapping[str, Any]]) -> str:
    """What the attention and feed-forward networks that went one without the other take, where
    there are such.
    """
    gone: list[Mapping[str, Any]] = []
    for matrix in matrices:
        if matrix.get("notes", {}).get("part") in ("attention", "feed_forward"):
            gone.append(matrix)
    if not gone:
        return ""
    numbers = sum(_count(matrix) for matrix in gone)
    size = counted(numbers, "number")
    if dtype in DTYPE_BYTES:
        size = megabytes(numbers * DTYPE_BYTES[dtype])
    return (
        f"{len(gone):,} matrices of attention or feed-forward networks that went are zeros: "
        f"{size} in the Hugging Face folder, nothing in --export sparse; "
        "memory and time of a forward stay as they were"
    )


def _files(sizes: Mapping[str, int]) -> str:
    """How many bytes each form takes, and what share of the Hugging Face folder that is."""
    whole = sizes.get("hf", 0)
    parts: list[str] = []
    for form, size in sizes.items():
        share = f" ({size / whole:.0%} of it)" if whole and form != "hf" else ""
        parts.append(f"{form} {megabytes(size)}{share}")
    return ", ".join(parts)


def exported(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a model was written as, and how many bytes it took and takes."""
    before = result["before"]
    after = result["after"]
    yield from labelled(
        {
            "model": result["model"],
            "form": result["form"],
            "files": f"{megabytes(before)} before, {megabytes(after)} now ({after / before:.0%})",
            "saved to": result["out"],
        }
    )


def _costs(costs: Mapping[str, Any]) -> Iterator[Any]:
    """Where the time went: each phase, what compressing consists of, and the floor."""
    whole = sum(costs["phases"].values())
    table = table_of("where the time went", "seconds", "of all")
    for phase, seconds in costs["phases"].items():
        table.add_row(phase, f"{seconds:.2f}", f"{seconds / whole:.0%}")
        if phase == "compress":
            for name, spent in costs["parts"].items():
                table.add_row(f"  {name}", f"{spent:.2f}", f"{spent / whole:.0%}")
    yield table
    floor = costs["floor"]
    if floor:
        tokens = f"{costs['tokens']:,} tokens, once, in {costs['dtype']}"
        speed = f"{costs['peak'] / 1e9:,.0f} GFLOP/s"
        ratio = costs["phases"]["compress"] / floor
        yield from labelled(
            {
                "floor": f"{floor:.2f} s: the blocks' matrix products with {tokens}",
                "peak": f"{speed}, measured just now with matrices of these shapes",
                "above floor": f"compressing took {ratio:.2f} times the floor",
            }
        )


# What was measured.


def scores(result: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yield what was measured: each measurement's score and those beside it, and everything that
    a number needs before it can be compared with another.
    """
    table = table_of("task", "metric", "value", "n", "chance", "of")
    for measured in result:
        for score in (measured, *measured.get("beside", ())):
            value = f"{score['value']:.4f}"
            if score["stderr"] is not None:
                value += f" ± {score['stderr']:.4f}"
            chance = ""
            if score["chance"] is not None:
                chance = f"{score['chance']:.4f}"
            table.add_row(
                score["measured"],
                f"{score['metric']} ({score['unit']})",
                value,
                f"{score['n']:,}",
                chance,
                _facts(score["facts"]),
            )
    yield table
    provenance = result[0]["provenance"]
    model = noted(provenance.get("model", ""), provenance.get("note", ""))
    yield f"{model}; value ± one standard error over n items"
    for score in result:
        for sentence in filter(None, (_floor(score), _many_cut(score))):
            yield f"{score['measured']}: {sentence}"
    for score in result:
        leaked = score["provenance"].get("leaked")
        if leaked:
            yield (
                f"{score['measured']}: the model was calibrated on {leaked} of the rows that this "
                "can measure (--allow-leak)"
            )


def _floor(score: Mapping[str, Any]) -> str:
    """What rounding alone does to a divergence, where a digit that is shown could be made of it."""
    facts = score["facts"]
    floor = facts.get("floor", 0.0)
    if floor < max(SEEN * score["value"], DIGIT):
        return ""
    sentence = (
        f"a difference of KL below {floor:.1e} is none that a runtime would keep: so far apart are "
        f"{facts['floor_between']} with the same numbers, over {facts['floor_tokens']:,} tokens"
    )
    # The dense model's own divergence would be about the floor there.
    if score["value"] - floor <= floor:
        sentence += "; this model can't be distinguished from the dense one there"
    return sentence


def _many_cut(score: Mapping[str, Any]) -> str:
    """That the limit ended many answers, which count as wrong unless they had said it already."""
    facts = score["facts"]
    cut = facts.get("cut", 0.0)
    if cut <= MANY_CUT:
        return ""
    limit = f"{facts['max_tokens']:,} tokens"
    return f"{cut:.0%} of the answers were cut at {limit}; give more max_tokens"


def _passed_over(rows: int) -> str:
    return f"{rows:,} rows passed over" if rows else ""


def _dense_share(share: Any) -> str:
    # Of some scores this isn't one number.
    return f"dense {share:.4f}" if isinstance(share, float) else ""


FACTS: Final[Mapping[str, Callable[[Any], str]]] = {
    "dense": _dense_share,
    "perplexity": "perplexity {:.3f}".format,
    "bits_per_byte": "{:.4f} bits/byte".format,
    "tokens": "{:,} tokens".format,
    "length": "context {:,}".format,
    "stride": "stride {:,}".format,
    "shots": "{} shots".format,
    "style": str,
    "task_version": "version {}".format,
    "passed_over": _passed_over,
    "left_out": _passed_over,
    "unclear": _passed_over,
    "floor": "noise floor {:.1e}".format,
}
"""How the facts of a score are written; others are for programs."""


def _facts(facts: Mapping[str, Any]) -> str:
    parts: list[str] = []
    if "rows" in facts:
        whole = f" of {facts['rows_of']:,}" if "rows_of" in facts else ""
        parts.append(f"{facts['rows']:,}{whole} rows")
    for name, write in FACTS.items():
        if facts.get(name) is not None:
            parts.append(write(facts[name]))
    return ", ".join(part for part in parts if part)


# Importance matrices, and how much of a set experts get.


def gathered(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what an importance matrix was made of, and where it is."""
    yield from covered(result)
    reason_by_matrix = result["left_out"]
    left_out = ""
    if reason_by_matrix:
        reasons = sorted({str(reason) for reason in reason_by_matrix.values()})
        left_out = f"{len(reason_by_matrix):,} matrices: {'; '.join(reasons)}"
    yield from labelled(
        {
            "left out": left_out,
            "note": result["note"],
            "written to": result["out"],
        }
    )


def covered(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what an importance matrix covers; with another, how alike the two are, and the
    tensors that differ most.
    """
    experts = ""
    if result["experts"]:
        experts = (
            f"{result['unseen']:,} of {result['experts']:,} saw no token, "
            f"{result['rare']:,} fewer than 16"
        )
    windows = f"{result['chunks']:,}"
    if result["chunk_size"]:
        windows += f" of {result['chunk_size']:,} tokens"
    yield from labelled(
        {
            "imatrix of": "; ".join(result["datasets"]) or "it doesn't say what",
            "windows": windows,
            "tensors": f"{result['tensors']:,}",
            "experts": experts,
        }
    )
    if result.get("alike") is not None:
        yield from _alike(result)


def _alike(result: Mapping[str, Any]) -> Iterator[Any]:
    """How alike two importance matrices are."""
    alike = sorted((value, name) for name, value in result["alike"].items())
    same = sum(value == 1 for value, _ in alike)
    lowest = decimals(alike[0][0])
    median = decimals(result["median"])
    yield from labelled(
        {
            "same in both": f"{same:,} of {len(alike):,} tensors",
            "alike": f"median correlation of log importance {median}, lowest {lowest}",
            "only here": ", ".join(result["only_here"][:TENSORS]),
            "only there": ", ".join(result["only_there"][:TENSORS]),
        }
    )
    if same < len(alike):
        yield ""
        yield "least alike"
        for value, name in alike[:TENSORS]:
            if value < 1:
                yield f"  {decimals(value)}  {one_line(name)}"


def covered_experts(experts: Mapping[str, Any] | None) -> str:
    """Return how many experts a set leaves without tokens or with few, and how evenly they are
    used; empty for a model without experts.
    """
    if not experts:
        return ""
    if experts["why"]:
        return experts["why"]
    even = sorted(layer["even"] / layer["experts"] for layer in experts["layers"].values())
    return (
        f"{experts['unseen']:,} of {experts['experts']:,} get none of {experts['tokens']:,} "
        f"tokens, {experts['starved']:,} would get fewer of all {experts['of']:,} than they have "
        f"inputs; the load is as even as if {even[0]:.0%} to {even[-1]:.0%} of a layer's were "
        "used alike"
    )
