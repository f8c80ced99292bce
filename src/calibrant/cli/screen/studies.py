"""How a study and its store look: what it would do, what it came to, whether the store is whole."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from calibrant.cli.screen.lines import labelled, listed, noted, one_line, phases, table_of
from calibrant.numerics import counted, duration, gigabytes, megabytes
from calibrant.spec.grammar import read_target

BUSY: Final = 1.5
"""Programs for each processor from which on what was timed says little of a quiet machine."""
_KINDS: Final = {"FeatureNorms": "norms", "Gram": "Gram matrices"}


def planned(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a study would do: counts, what is shared, each model, what the sets hold, the
    time, and what should be known before it begins.
    """
    shared = result["shared"]
    axes = (
        counted(len(result["models"]), "model"),
        counted(len(result["sets"]), "set"),
        counted(len(result["draws"]), "draw"),
        _targets(result),
    )
    evaluators = counted(len(result["evaluators"]), "evaluator")
    facts = {
        "runs": f"{_left(result['runs'])}: {', '.join(axes)}",
        "measurements": f"{_left(result['measurements'])}: {evaluators} on each run",
    }
    if result["failed"]:
        retry = "which are tried again only with --retry"
        facts["failed"] = f"{result['failed']:,} before, {retry}"
    if result["contrasts"]:
        facts["tested"] = counted(result["contrasts"], "primary contrast")
    blind = counted(shared["baselines"], "run")
    facts["shared"] = (
        f"{shared['drawn']:,} draws of sets serve {shared['looking']:,} runs; "
        f"{blind} look at no data"
    )
    if shared["passes"]:
        passes = f"{shared['passes']:,} passes over untouched models"
        facts["dense"] = f"{shared['from_passes']:,} runs are made from {passes}"
    yield from labelled(facts)
    for method, propagate, reason in result["methods"]:
        because = f"; {reason}"
        if reason.startswith("it"):
            because = f", since {reason}"
        yield from labelled({"propagation": f"{method}: {propagate}{because}"})
    for model in result["models"]:
        yield ""
        yield from _planned_model(model, result["limit_bytes"])
    if result["supplies"]:
        yield ""
        yield _stocked(result["supplies"])
    if result["seconds"] is not None:
        yield ""
        yield _time(result)
    yield from _sentences("look at this first", result["warnings"])
    yield from _sentences("can't be known here", result["unknown"])


def _planned_model(model: Mapping[str, Any], limit: int) -> Iterator[Any]:
    runs = f"{_left(model['runs'])} runs"
    if not model["matrices"]:
        yield from labelled({"model": f"{model['model']}: {runs}"})
        return
    statistics: list[str] = []
    for kind, size in model["statistics"].items():
        statistics.append(f"{_size(size)} of {_KINDS.get(kind, kind)}")
    needed = ""
    if statistics:
        size = model["statistics_bytes"]
        fits = f"{limit / 1e9:g} GB allowed"
        if size > limit:
            fits = f"more than the {fits}, so a set's go after its last use"
        each = ", ".join(statistics)
        needed = f"{_size(size)} on disk ({each} for a set and draw); {fits}"
    noticeable = {phase: spent for phase, spent in model["seconds"].items() if spent >= 1}
    matrices = f"{model['matrices']:,} in {model['blocks']} blocks"
    inputs = f"{model['inputs']:,} distinct inputs"
    yield from labelled(
        {
            "model": noted(model["model"], model["note"]),
            "matrices": f"{matrices}, with {inputs}, {model['dtype']}",
            "left to do": f"{runs}, {_left(model['measurements'])} measurements",
            "statistics": needed,
            "time": phases(noticeable),
        }
    )


def _stocked(sets: Sequence[Mapping[str, Any]]) -> Any:
    """A line for each set: how long a draw is, and how many disjoint ones there are."""
    table = table_of("set", "tokens a draw", "draws", "disjoint ones")
    for supply in sets:
        style = ""
        if supply["held"] is not None and supply["held"] < supply["draws"]:
            style = "bold yellow"
        tokens = f"{supply['tokens']:,}"
        draws = str(supply["draws"])
        table.add_row(supply["data"], tokens, draws, Text(_held(supply), style))
    return table


def _held(supply: Mapping[str, Any]) -> str:
    """How many disjoint draws there are, as far as it is known."""
    disjoint = supply["held"]
    if disjoint is None:
        return "not known" if supply["why"] else "no end"
    # No more are counted than the study draws.
    if disjoint == supply["draws"]:
        return f"{disjoint:.0f} or more"
    if supply["exact"]:
        return f"{disjoint:.0f}"
    if disjoint < 10:
        return f"about {disjoint:,.1f}"
    return f"about {disjoint:,.0f}"


def _time(result: Mapping[str, Any]) -> Text:
    """The estimate, with what it rests on."""
    unknown = [model["model"] for model in result["models"] if model["why"]]
    without = ""
    if unknown:
        without = f", without {', '.join(unknown)}"
    basis = (
        "This is an estimate: one block's forward and compression and a few items of each "
        "evaluator were timed just now on this machine, and multiplied"
    )
    if (result["load"] or 0) > BUSY:
        basis += "; it was busy with other things too, so it may well take less"
    lead = f"About {duration(result['seconds'])} for one worker{without}. "
    return Text.assemble((lead, "bold"), f"{basis}.")


def finished(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a study came to."""
    cells = result["cells"]
    measurements = sum(len(cell["measures"]) for cell in cells)
    propagations: dict[str, None] = {}
    for cell in cells:
        if cell["propagate"]:
            propagations[f"{cell['method']}: {cell['propagate']}"] = None
    computed = f"{result['computed']:,} runs and measurements"
    yield from labelled(
        {
            "runs": f"{len(cells):,}, with {measurements:,} measurements",
            "computed": f"{computed}; {result['found']:,} were there",
            "propagation": ", ".join(propagations),
            "time": phases(result["seconds"]),
            "peak memory": gigabytes(result["peak_memory_bytes"]),
            "results": f"{result['folder']}, which calibrant report shows",
        }
    )
    yield from _sentences("workers lost", result["died"])
    failures = result["failures"].values()
    failed = [f"{failure['what']}: {failure['error']}" for failure in failures]
    yield from _sentences("failed", failed)
    if failed:
        yield "the same command with --retry tries again what failed"


def _sentences(heading: str, sentences: Sequence[str]) -> Iterator[Any]:
    if sentences:
        yield ""
        yield from listed(heading, sentences)


def _left(count: Mapping[str, int]) -> str:
    left = count["asked"] - count["done"]
    if not count["done"]:
        return f"{left:,}"
    return f"{left:,} of {count['asked']:,}"


def _targets(result: Mapping[str, Any]) -> str:
    targets = result["targets"]
    if not targets:
        return "no method that prunes"
    sparse = all(read_target(target).sparsity for target in targets)
    noun = "sparsity" if sparse else "targets"
    return f"{noun} {', '.join(targets)}"


def _size(count: int) -> str:
    """Bytes as one would say them."""
    if count >= 1e9:
        return gigabytes(count)
    return megabytes(count)


# The store.


def verified(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield a store that was checked: one line a problem, or that there is none."""
    yield from _problems(result["problems"])
    verdict = "every hash agrees"
    if not result["whole"]:
        verdict = counted(len(result["problems"]), "problem")
    yield f"{_runs(result)}, {verdict}"
    if result["dropped"]:
        dropped = counted(result["dropped"], "damaged row")
        yield f"{dropped} removed; the same study computes what results are gone"


def merged(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what was merged: one line a problem, then what was copied."""
    yield from _problems(result["problems"])
    counts = f"{_runs(result, ' and ')} copied into {result['folder']}"
    counts += f", {result['kept']} already there"
    if result["problems"]:
        counts += f", {counted(len(result['problems']), 'problem')}"
    yield counts


def packed(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what was packed, in a line."""
    now = f"{counted(result['files'], 'file')} of {megabytes(result['bytes'])}"
    before = f"{counted(result['files_before'], 'file')} of {megabytes(result['bytes_before'])}"
    yield f"{_runs(result)} in {result['folder']}: {now}, before {before}"


def _runs(result: Mapping[str, Any], joined: str = ", ") -> str:
    runs = counted(result["runs"], "run")
    return f"{runs}{joined}{counted(result['measurements'], 'measurement')}"


def _problems(problems: Sequence[Mapping[str, str]]) -> Iterator[str]:
    for problem in problems:
        line = f"{problem['where']}: {problem['what']}; {problem['remedy']}"
        yield one_line(line)
