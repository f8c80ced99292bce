"""How the choice of calibration data looks: the mixture that was result, and what speaks for it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calibrant.cli.screen._lines import counted, labelled, noted, one_line, table_of


def mixed(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield a mixture: the expression, the errors of every set under every judge, what leaving a
    source out does, whether the tokens are enough.
    """
    search, final = result["samples"]["search"], result["samples"]["final"]
    judged = f"{counted(result['evaluations'], 'mixture')} on {_sample(search)}, the best once more on {_sample(final)}"
    yield from labelled(
        ("mixture", result["expr"]),
        ("for", noted(result["model"], result["note"])),
        ("method", f"{result['method']} to {result['sparsity']}, {result['dtype']}"),
        ("objective", f"{result['objective']}: {result['value']:.2%} of the outputs' energy lost"),
        (
            "sources",
            f"{result['tokens']:,} tokens of each in windows of {result['length']:,}, draw {result['seed']}; as many, held out, to judge with",
        ),
        ("judged", judged),
        (
            "statistics",
            f"{result['gathered']} sets in {result['folder']}, {result['reused']} of them were there already",
        ),
        (
            "time",
            " · ".join(f"{phase} {seconds:.1f} s" for phase, seconds in result["seconds"].items()),
        ),
    )
    yield ""
    yield _errors(result)
    yield "per cent of the outputs' energy, mean over matrices; judged on texts that no calibration set can hold; mean and worst are over the sources"
    yield "the mixture was chosen by these figures, so its own are a little too good"
    yield from labelled(*(("mind", note) for note in result["notes"]))
    if result["influence"]:
        yield ""
        yield from _influence(result["influence"], result["objective"])
    if result["enough"]:
        yield ""
        yield from _enough(result["enough"])


def _sample(sample: Mapping[str, int]) -> str:
    return f"{sample['rows']} rows of each matrix in {sample['blocks']} of {sample['of']} blocks"


def _errors(result: Mapping[str, Any]) -> Any:
    table = table_of("calibrated on", *map(one_line, result["judges"]), "mean", "worst")
    for row in result["rows"]:
        numbers = [*(row["errors"][judge] for judge in result["judges"]), row["mean"], row["worst"]]
        table.add_row(
            one_line(row["calibrated_on"]), *(f"{100 * number:.2f}" for number in numbers)
        )
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
    table = table_of(
        "masks of two halves agree", "tokens in a half, and weights about which they agree", ""
    )
    for curve in curves:
        points = ", ".join(
            f"{point['tokens']:,}: {point['agreement']:.2%}" for point in curve["points"]
        )
        table.add_row(one_line(curve["data"]), points, _verdict(curve))
    yield table
    yield "enough tokens are where doubling them raised the agreement by less than 0.5 per cent of all weights"


def _verdict(curve: Mapping[str, Any]) -> str:
    if curve["enough"] is None:
        return "not known from so few windows"
    if curve["enough"]:
        return f"enough, at {curve['needed']:,} already"
    forecast = (
        f"at about {curve['needed']:,}, if it goes on like this"
        if curve["needed"]
        else "no end in sight"
    )
    return f"not enough: the last doubling gave {curve['gain']:.2%}; {forecast}"


def recommended(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the advice, every candidate with what was predicted and what was measured of it, and
    last the command that follows the advice.
    """
    yield one_line(result["text"])
    yield ""
    yield _candidates(result)
    yield "predicted: share of the outputs' energy lost on text like the target, without any result being measured; intervals at 95 %, each alone"
    if result["predicted_by"]:
        yield f"predicted by what comes near {one_line(result['method'])}: {result['predicted_by']}; what was measured is the method itself"
    if any(one["divergence"] for one in result["candidates"]):
        yield "KL: how far predictions are from the dense model's, in nats a token, on text like the target; it decides nothing"
    if result["siblings"]:
        yield "sibling: calibrated on one half of your file and judged by the other, which has other templates; what is behind is behind there"
    yield from (f"failed: {one_line(failure)}" for failure in result["failures"])
    yield ""
    took = sum(result["seconds"].values())
    times = " · ".join(f"{phase} {seconds:.0f} s" for phase, seconds in result["seconds"].items())
    more = f"; one more draw of what is still in would take about {result['another_draw']:.0f} s"
    yield from labelled(
        ("measured by", ", ".join(result["measures"])),
        *((("fitted", result["fitted"]),) if result["fitted"] else ()),
        *((("no sibling", result["no_sibling"]),) if result["no_sibling"] else ()),
        ("model", noted(result["model"], result["note"])),
        (
            "time",
            f"{took:.0f} s of {60 * result['minutes']:.0f} s: {times}"
            + (more if result["why"] == "time" else ""),
        ),
        ("results", f"{result['folder']}: the same command goes on from there"),
    )
    yield ""
    yield f"to {result['verb']} with it:"
    yield one_line(result["command"])


def _candidates(result: Mapping[str, Any]) -> Any:
    siblings, diverging = (
        bool(result["siblings"]),
        any(one["divergence"] for one in result["candidates"]),
    )
    heads = [
        "predicted",
        *(["on the sibling"] * siblings),
        f"lost, {result['unit']}",
        *(["on the sibling"] * siblings),
    ]
    table = table_of(
        "calibrated on",
        *heads,
        f"worse than {one_line(result['baseline'])}",
        *(["KL"] * diverging),
        "draws",
        "",
    )
    for one in result["candidates"]:
        status = f"behind since round {one['dropped']}" if one["dropped"] else one["status"]
        predicted = [
            "" if value is None else f"{value:.2%}"
            for value in (one["predicted"], one["predicted_sibling"])
        ]
        measured = [_interval(one["increase"]), _interval(one["sibling"])]
        figures = [
            *predicted[: 1 + siblings],
            *measured[: 1 + siblings],
            _interval(one["against_baseline"]),
        ]
        figures += [
            f"{one['divergence']['value']:.3f}" if one["divergence"] else ""
        ] * diverging + [f"{one['draws'] or ''}"]
        table.add_row(one_line(one["name"]), *figures, status)
    return table


def _interval(estimate: Mapping[str, Any] | None) -> str:
    """A number, and its interval behind it if it covers draws."""
    if estimate is None:
        return ""
    interval = estimate["interval"] if estimate["over_draws"] else None
    return f"{estimate['value']:+.3f}" + (
        f" ({interval['low']:+.3f} to {interval['high']:+.3f})" if interval else ""
    )
