"""How a study looks: what it would do, and what it came to."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from calibrant.cli.screen._lines import counted, labelled, noted, one_line, table_of
from calibrant.spec.grammar import read_target

BUSY: Final = 1.5
"""Programs for each processor from which on what was timed says little of a quiet machine."""
_KINDS: Final = {"FeatureNorms": "norms", "Gram": "Gram matrices"}


def planned(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a study would do: counts, what is shared, each model, what the sets hold, the
    time, and what should be known before it begins.
    """
    runs, measurements, shared = result["runs"], result["measurements"], result["shared"]
    draws = counted(len(result["draws"]), "draw")
    yield from labelled(
        (
            "runs",
            f"{_left(runs)}: {counted(len(result['models']), 'model')}, {counted(len(result['sets']), 'set')}, {draws}, {_targets(result)}",
        ),
        (
            "measurements",
            f"{_left(measurements)}: {counted(len(result['evaluators']), 'evaluator')} on each run",
        ),
        (
            "failed",
            f"{result['failed']:,} before, which are tried again only with --retry"
            if result["failed"]
            else "",
        ),
        ("tested", counted(result["contrasts"], "primary contrast") if result["contrasts"] else ""),
        (
            "shared",
            f"{shared['drawn']:,} draws of sets serve {shared['looking']:,} runs; {counted(shared['baselines'], 'run')} look at no data",
        ),
        (
            "dense",
            f"{shared['from_passes']:,} runs are made from {shared['passes']:,} passes over untouched models"
            if shared["passes"]
            else "",
        ),
    )
    for method, seen, why in result["methods"]:
        yield from labelled(
            (
                "propagation",
                f"{method}: {seen}, since {why}" if why[:2] == "it" else f"{method}: {seen}; {why}",
            )
        )
    for model in result["models"]:
        yield from _planned_model(model, result["limit_bytes"])
    yield from _stocked(result["supplies"])
    yield from _time(result)
    yield from _sentences("look at this first", result["warnings"])
    yield from _sentences("can't be known here", result["unknown"])


def _planned_model(model: Mapping[str, Any], limit: int) -> Iterator[Any]:
    each = ", ".join(
        f"{_size(size)} of {_KINDS.get(kind, kind)}" for kind, size in model["statistics"].items()
    )
    size, cap = model["statistics_bytes"], f"{limit / 1e9:g} GB allowed"
    fits = cap if size <= limit else f"more than the {cap}, so a set's go after its last use"
    phases = " · ".join(
        f"{phase} {_lasting(seconds)}"
        for phase, seconds in model["seconds"].items()
        if seconds >= 1
    )
    yield ""
    if not model["matrices"]:
        yield from labelled(("model", f"{model['model']}: {_left(model['runs'])} runs"))
        return
    inputs = f"{model['inputs']:,} distinct inputs"
    yield from labelled(
        ("model", noted(model["model"], model["note"])),
        (
            "matrices",
            f"{model['matrices']:,} in {model['blocks']} blocks, with {inputs}, {model['dtype']}",
        ),
        ("left to do", f"{_left(model['runs'])} runs, {_left(model['measurements'])} measurements"),
        (
            "statistics",
            f"{_size(size)} on disk ({each} for a set and draw); {fits}" if each else "",
        ),
        ("time", phases),
    )


def _stocked(sets: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """A line for each set: how long a draw is, and how many disjoint ones there are."""
    if not sets:
        return
    table = table_of("set", "tokens a draw", "draws", "disjoint ones")
    for one in sets:
        few = one["held"] is not None and one["held"] < one["draws"]
        table.add_row(
            one["data"],
            f"{one['tokens']:,}",
            f"{one['draws']}",
            Text(_held(one), style="bold yellow" if few else ""),
        )
    yield ""
    yield table


def _held(one: Mapping[str, Any]) -> str:
    """How many disjoint draws there are, as far as it is known."""
    disjoint = one["held"]
    if disjoint is None:
        return "not known" if one["why"] else "no end"
    if one["exact"]:
        return f"{disjoint:.0f}" + (" or more" if disjoint == one["draws"] else "")
    return f"about {disjoint:,.1f}" if disjoint < 10 else f"about {disjoint:,.0f}"


def _time(result: Mapping[str, Any]) -> Iterator[Any]:
    """The estimate, with what it rests on."""
    if result["seconds"] is None:
        return
    blind = [model["model"] for model in result["models"] if model["why"]]
    without = f", without {', '.join(blind)}" if blind else ""
    yield ""
    busy = (
        "; it was busy with other things too, so it may well take less"
        if (result["load"] or 0) > BUSY
        else ""
    )
    yield Text.assemble(
        (f"About {_lasting(result['seconds'])} for one worker{without}. ", "bold"),
        "This is an estimate: one block's forward and compression and a few items of each evaluator were timed just now on this machine, and "
        f"multiplied{busy}.",
    )


def finished(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a study came to."""
    cells = result["cells"]
    yield from labelled(
        (
            "runs",
            f"{len(cells):,}, with {sum(len(cell['measures']) for cell in cells):,} measurements",
        ),
        (
            "computed",
            f"{result['computed']:,} runs and measurements; {result['found']:,} were there",
        ),
        (
            "propagation",
            ", ".join(
                dict.fromkeys(
                    f"{cell['method']}: {cell['propagate']}" for cell in cells if cell["propagate"]
                )
            ),
        ),
        (
            "time",
            " · ".join(
                f"{phase} {_lasting(seconds)}" for phase, seconds in result["seconds"].items()
            ),
        ),
        ("peak memory", f"{result['peak_memory_bytes'] / 1e9:.2f} GB"),
        ("results", f"{result['folder']}, which calibrant report shows"),
    )
    yield from _sentences("workers lost", result["died"])
    yield from _sentences(
        "failed",
        [f"{failure['what']}: {failure['error']}" for failure in result["failures"].values()],
    )
    if result["failures"]:
        yield "the same command with --retry tries again what failed"


def _sentences(heading: str, sentences: Sequence[str]) -> Iterator[Any]:
    if sentences:
        yield ""
        yield Text(heading, style="bold")
        yield from (Text("  • " + one_line(sentence)) for sentence in sentences)


def _left(count: Mapping[str, int]) -> str:
    left = count["asked"] - count["done"]
    return f"{left:,} of {count['asked']:,}" if count["done"] else f"{left:,}"


def _targets(result: Mapping[str, Any]) -> str:
    targets = result["targets"]
    if not targets:
        return "no method that prunes"
    noun = "sparsity" if all(read_target(target).sparsity for target in targets) else "targets"
    return f"{noun} {', '.join(targets)}"


def _lasting(seconds: float) -> str:
    """A time as one would say it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    """Bytes as one would say them."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
