"""How the choice of calibration data looks: the mixture that was found, and what speaks for it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calibrant.screen._lines import counted, labelled, noted, one_line, table_of


def mixed(found: Mapping[str, Any]) -> Iterator[Any]:
    """A mixture: the expression, the errors of every set under every judge, what leaving a source out does, whether the tokens are enough."""
    search, final = found["samples"]["search"], found["samples"]["final"]
    judged = f"{counted(found['evaluations'], 'mixture')} on {_sample(search)}, the best once more on {_sample(final)}"
    yield from labelled(
        ("mixture", found["expr"]),
        ("for", noted(found["model"], found["note"])),
        ("method", f"{found['method']} to {found['sparsity']}, {found['dtype']}"),
        ("objective", f"{found['objective']}: {found['value']:.2%} of the outputs' energy lost"),
        ("sources", f"{found['tokens']:,} tokens of each in windows of {found['length']:,}, draw {found['seed']}; as many, held out, to judge with"),
        ("judged", judged),
        ("statistics", f"{found['gathered']} sets in {found['folder']}, {found['reused']} of them were there already"),
        ("time", " · ".join(f"{phase} {seconds:.1f} s" for phase, seconds in found["seconds"].items())),
    )
    yield ""
    yield _errors(found)
    yield "per cent of the outputs' energy, mean over matrices; judged on texts that no calibration set can hold; mean and worst are over the sources"
    yield "the mixture was chosen by these figures, so its own are a little too good"
    yield from labelled(*(("mind", note) for note in found["notes"]))
    if found["influence"]:
        yield ""
        yield from _influence(found["influence"], found["objective"])
    if found["enough"]:
        yield ""
        yield from _enough(found["enough"])


def _sample(sample: Mapping[str, int]) -> str:
    return f"{sample['rows']} rows of each matrix in {sample['blocks']} of {sample['of']} blocks"


def _errors(found: Mapping[str, Any]) -> Any:
    table = table_of("calibrated on", *map(one_line, found["judges"]), "mean", "worst")
    for row in found["rows"]:
        numbers = [*(row["errors"][judge] for judge in found["judges"]), row["mean"], row["worst"]]
        table.add_row(one_line(row["calibrated_on"]), *(f"{100 * number:.2f}" for number in numbers))
    return table


def _influence(influence: Sequence[Mapping[str, Any]], objective: str) -> Iterator[Any]:
    """Which source is missed most when it is left out, first."""
    of = "the mixture" if influence[0]["of"] == "mixture" else "the uniform mixture"
    target = objective not in ("mean", "worst")
    table = table_of(f"{of} without", "mean", "worst", *([one_line(objective)] if target else []))
    for one in sorted(influence, key=lambda one: -one["value"]):
        numbers = [one["mean"], one["worst"], *([one["value"]] if target else [])]
        table.add_row(one_line(one["without"]), *(f"{100 * number:+.3f}" for number in numbers))
    yield table
    yield "change of the error in per cent, on the smaller sample; above 0, the source is missed"


def _enough(curves: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """How far the masks of two halves agree, and what that says."""
    table = table_of("masks of two halves agree", "tokens in a half, and weights about which they agree", "")
    for curve in curves:
        points = ", ".join(f"{point['tokens']:,}: {point['agreement']:.2%}" for point in curve["points"])
        table.add_row(one_line(curve["data"]), points, _verdict(curve))
    yield table
    yield "enough tokens are where doubling them raised the agreement by less than 0.5 per cent of all weights"


def _verdict(curve: Mapping[str, Any]) -> str:
    if curve["enough"] is None:
        return "can't be told from so few windows"
    if curve["enough"]:
        return f"enough, at {curve['needed']:,} already"
    told = f"at about {curve['needed']:,}, if it goes on like this" if curve["needed"] else "no end in sight"
    return f"not enough: the last doubling gave {curve['gain']:.2%}; {told}"


def recommended(found: Mapping[str, Any]) -> Iterator[Any]:
    """The advice, and every candidate with what was predicted and what was measured of it."""
    yield one_line(found["text"])
    yield ""
    base = one_line(found["baseline"])
    table = table_of("calibrated on", "predicted error", f"lost, {found['unit']}", f"worse than {base}", "draws", "")
    for one in found["candidates"]:
        said = f"behind since round {one['left']}" if one["left"] else one["said"]
        predicted = "" if one["predicted"] is None else f"{one['predicted']:.2%}"
        table.add_row(one_line(one["data"]), predicted, _interval(one["rise"]), _interval(one["against_baseline"]), f"{one['draws'] or ''}", said)
    yield table
    yield "predicted: share of the outputs' energy lost on text like the target, without any pruning being measured; intervals at 95 %, each alone"
    yield from (f"failed: {one_line(failure)}" for failure in found["failures"])
    yield ""
    yield from labelled(
        ("measured by", ", ".join(found["measures"])),
        ("model", noted(found["model"], found["note"])),
        ("time", " · ".join(f"{phase} {seconds:.0f} s" for phase, seconds in found["seconds"].items())),
        ("results", f"{found['folder']}: asked again, it goes on from there"),
    )


def _interval(estimate: Mapping[str, Any] | None) -> str:
    """A number, and its interval behind it if it covers draws."""
    if estimate is None:
        return ""
    interval = estimate["interval"] if estimate["over_draws"] else None
    return f"{estimate['value']:+.3f}" + (f" ({interval['low']:+.3f} to {interval['high']:+.3f})" if interval else "")
