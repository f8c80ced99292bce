"""How the choice of calibration data looks: the mixture that was found, the advice, and what speaks
for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from calibrant.cli.screen.lines import labelled, noted, one_line, phases, table_of, tenths
from calibrant.numerics import counted, decimals, signed


def mixed(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield a mixture: the expression, the errors of every set under every judge, what leaving a
    source out does, whether the tokens are enough.
    """
    search = _sample(result["samples"]["search"])
    final = _sample(result["samples"]["final"])
    tried = counted(result["evaluations"], "mixture")
    yield from labelled(
        {
            "mixture": result["expr"],
            "for": noted(result["model"], result["note"]),
            "method": f"{result['method']} to {result['target']}, {result['dtype']}",
            "objective": f"{result['objective']}: {result['value']:.2%} of the outputs' "
            "energy lost",
            "sources": f"{result['tokens']:,} tokens of each in windows of {result['length']:,}, "
            f"draw {result['seed']}; as many, held out, to judge with",
            "judged": f"{tried} on {search}, the best once more on {final}",
            "statistics": f"{result['gathered']} sets in {result['folder']}, "
            f"{result['reused']} of them were there already",
            "time": phases(result["seconds"], tenths),
        }
    )
    yield ""
    yield _errors(result)
    yield (
        "per cent of the outputs' energy, mean over matrices; judged on texts that no calibration "
        "set can hold; mean and worst are over the sources"
    )
    yield "the mixture was chosen by these figures, so its own are a little too good"
    for note in result["notes"]:
        yield from labelled({"mind": note})
    if result["influence"]:
        yield ""
        yield from _influence(result["influence"], result["objective"])
    if result["enough"]:
        yield ""
        yield from _enough(result["enough"])


def _sample(sample: Mapping[str, int]) -> str:
    return f"{sample['rows']} rows of each matrix in {sample['blocks']} of {sample['of']} blocks"


def _errors(result: Mapping[str, Any]) -> Table:
    judges = result["judges"]
    table = table_of("calibrated on", *map(one_line, judges), "mean", "worst")
    for row in result["rows"]:
        errors = [*(row["errors"][judge] for judge in judges), row["mean"], row["worst"]]
        shares = [f"{100 * error:.2f}" for error in errors]
        table.add_row(one_line(row["calibrated_on"]), *shares)
    return table


def _influence(influence: Sequence[Mapping[str, Any]], objective: str) -> Iterator[Any]:
    """Which source is missed most when it is left out, first."""

    def missed(source: Mapping[str, Any]) -> float:
        return -source["value"]

    whole = "the mixture" if influence[0]["of"] == "mixture" else "the uniform mixture"
    heads = ["mean", "worst"]
    keys = ["mean", "worst"]
    if objective not in heads:
        heads.append(one_line(objective))
        keys.append("value")
    table = table_of(f"{whole} without", *heads)
    for source in sorted(influence, key=missed):
        changes = [f"{100 * source[key]:+.3f}" for key in keys]
        table.add_row(one_line(source["without"]), *changes)
    yield table
    yield "change of the error in per cent, on the smaller sample; above 0, the source is missed"


def _enough(curves: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """How far the masks of two halves agree, and what that says."""
    heads = ("masks of two halves agree", "tokens in a half, and weights about which they agree")
    table = table_of(*heads, "")
    for curve in curves:
        points: list[str] = []
        for point in curve["points"]:
            points.append(f"{point['tokens']:,}: {point['agreement']:.2%}")
        table.add_row(one_line(curve["data"]), ", ".join(points), _verdict(curve))
    yield table
    yield (
        "enough tokens are where doubling them raised the agreement by less than 0.5 per cent of "
        "all weights"
    )


def _verdict(curve: Mapping[str, Any]) -> str:
    if curve["enough"] is None:
        return "not known from so few windows"
    if curve["enough"]:
        return f"enough, at {curve['needed']:,} already"
    forecast = "no end in sight"
    if curve["needed"]:
        forecast = f"at about {curve['needed']:,}, if it goes on like this"
    return f"not enough: the last doubling gave {curve['gain']:.2%}; {forecast}"


def recommended(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the advice, every candidate with what was predicted and what was measured of it, and
    last the command that follows the advice.
    """
    yield one_line(result["text"])
    yield ""
    yield _candidates(result)
    yield (
        "predicted: share of the outputs' energy lost on text like the goal, without any result "
        "being measured; intervals at 95 %, those of 'worse than' for all sets together"
    )
    if result["predicted_by"]:
        yield (
            f"predicted by what comes near {one_line(result['method'])}: {result['predicted_by']}; "
            "what was measured is the method itself"
        )
    if _any_role(result):
        yield (
            "lost: how far predictions are from the dense model's (KL), in the chat template; "
            "template, question, answer: on the tokens of each alone"
        )
    if _any_divergence(result):
        yield (
            "KL: how far predictions are from the dense model's, in nats a token, on text like the "
            "goal; it decides nothing"
        )
    if result["siblings"]:
        yield (
            "sibling: calibrated on one half of your file and judged by the other, which has other "
            "templates; what is behind is behind there"
        )
    for failure in result["failures"]:
        yield f"failed: {one_line(failure)}"
    yield ""
    seconds = result["seconds"]
    time = f"{sum(seconds.values()):.0f} s of {60 * result['minutes']:.0f} s: "
    time += phases(seconds, _whole_seconds)
    if result["why"] == "time":
        more = _whole_seconds(result["another_draw"])
        time += f"; one more draw of what is still in would take about {more}"
    yield from labelled(
        {
            "measured by": ", ".join(result["measures"]),
            "fitted": result["fitted"],
            "no sibling": result["no_sibling"],
            "model": noted(result["model"], result["note"]),
            "time": time,
            "results": f"{result['folder']}: the same command goes on from there",
        }
    )
    yield ""
    yield f"to {result['verb']} with it:"
    yield one_line(result["command"])
    if result["written"] is not None:
        yield ""
        yield "to use another tool with it:"
        yield one_line(f"python {result['written']['script']}")


def _whole_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s"


def _any_divergence(result: Mapping[str, Any]) -> bool:
    return any(candidate["divergence"] for candidate in result["candidates"])


def _any_role(result: Mapping[str, Any]) -> bool:
    return any(candidate["by_role"] for candidate in result["candidates"])


def _candidates(result: Mapping[str, Any]) -> Table:
    diverging = _any_divergence(result)
    heads = ["predicted", f"lost, {result['unit']}"]
    if result["siblings"]:
        heads.insert(1, "on the sibling")
        heads.append("on the sibling")
    heads.append(f"worse than {one_line(result['baseline'])}")
    if diverging:
        heads.append("KL")
    roles: list[str] = []
    if _any_role(result):
        roles = list(result["candidates"][0]["by_role"])
    heads += roles
    table = table_of("calibrated on", *heads, "draws", "")
    for candidate in result["candidates"]:
        figures = [_share(candidate["predicted"]), _interval(candidate["increase"])]
        if result["siblings"]:
            figures.insert(1, _share(candidate["predicted_sibling"]))
            figures.append(_interval(candidate["sibling"]))
        figures.append(_interval(candidate["against_baseline"]))
        if diverging:
            divergence = candidate["divergence"]
            figure = ""
            if divergence:
                figure = decimals(divergence["value"])
            figures.append(figure)
        for role in roles:
            value = candidate["by_role"].get(role)
            figure = ""
            if value is not None:
                figure = decimals(value)
            figures.append(figure)
        status = candidate["status"]
        if candidate["dropped"]:
            status = f"behind since round {candidate['dropped']}"
        draws = f"{candidate['draws'] or ''}"
        table.add_row(one_line(candidate["name"]), *figures, draws, status)
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _interval(estimate: Mapping[str, Any] | None) -> str:
    """A number, and its interval behind it if it covers draws."""
    if estimate is None:
        return ""
    value = signed(estimate["value"])
    interval = estimate["interval"]
    if not interval or not estimate["over_draws"]:
        return value
    return f"{value} ({signed(interval['low'])} to {signed(interval['high'])})"
