"""How one result looks: scores, what a calibration set holds, lists, the state of a store."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.padding import Padding
from rich.text import Text

from calibrant.cli.screen._lines import counted, labelled, noted, one_line, table_of
from calibrant.cli.screen.experts import covered
from calibrant.spec.foreign import visible

IN_TABLE: Final[Mapping[str, str]] = {
    "family": "family",
    "accepts": "accepts",
    "looks_at": "looks at",
    "class": "class",
}
"""Facts of a name that stand in the table of names, and their heads; the others are only told at
length.
"""

_PAPER: Final = re.compile(r" \([^()]*arXiv[^()]*\)")
SHOWN: Final = 5
"""How many rows of a finding are listed."""


def scores(result: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """What was measured: each measurement's score and those beside it, and everything that a
    number needs before it can be compared with another.
    """
    table = table_of("task", "metric", "value", "n", "chance", "of")
    for measured in result:
        for score in (measured, *measured.get("beside", ())):
            value = f"{score['value']:.4f}" + (
                "" if score["stderr"] is None else f" ± {score['stderr']:.4f}"
            )
            chance = "" if score["chance"] is None else f"{score['chance']:.4f}"
            table.add_row(
                score["measured"],
                f"{score['metric']} ({score['unit']})",
                value,
                f"{score['n']:,}",
                chance,
                _facts_of_score(score["facts"]),
            )
    yield table
    how = result[0]["provenance"]
    yield f"{noted(how.get('model', ''), how.get('note', ''))}; value ± one standard error over n items"
    yield from (
        f"{score['measured']}: {sentence}" for score in result if (sentence := _of_floor(score))
    )
    for score in result:
        if leaked := score["provenance"].get("leaked"):
            yield f"{score['measured']}: the model was calibrated on {leaked} of the rows that this can measure (--allow-leak)"


def _of_floor(score: Mapping[str, Any]) -> str:
    """What rounding alone does to a divergence, where a digit that is shown could be made of it."""
    floor, facts = score["facts"].get("floor", 0.0), score["facts"]
    if floor < max(SEEN * score["value"], DIGIT):
        return ""
    so_far = f"so far apart are {facts['floor_between']} with the same numbers, over {facts['floor_tokens']:,} tokens"
    # The dense model's own divergence would be about the floor there.
    itself = (
        ""
        if score["value"] - floor > floor
        else "; this model can't be distinguished from the dense one there"
    )
    return (
        f"a difference of KL below {floor:.1e} is none that a runtime would keep: {so_far}{itself}"
    )


SEEN: Final = 0.01
"""Share of a divergence from which on its noise floor is told in words."""
DIGIT: Final = 1e-4
"""The last digit that scores are shown with."""

FACTS: Final[Mapping[str, Callable[[Any], str]]] = {
    "perplexity": lambda value: f"perplexity {value:.3f}",
    "bits_per_byte": lambda value: f"{value:.4f} bits/byte",
    "tokens": lambda value: f"{value:,} tokens",
    "length": lambda value: f"context {value:,}",
    "stride": lambda value: f"stride {value:,}",
    "shots": lambda value: f"{value} shots",
    "style": str,
    "task_version": lambda value: f"version {value}",
    "passed_over": lambda value: f"{value:,} rows passed over" if value else "",
    "floor": lambda value: f"noise floor {value:.1e}",
}
"""How the facts of a score are written; others are for programs."""


def _facts_of_score(facts: Mapping[str, Any]) -> str:
    whole = f" of {facts['rows_of']:,}" if "rows_of" in facts else ""
    rows = f"{facts['rows']:,}{whole} rows" if "rows" in facts else ""
    return ", ".join(
        filter(
            None,
            (
                rows,
                *(
                    write(facts[name])
                    for name, write in FACTS.items()
                    if facts.get(name) is not None
                ),
            ),
        )
    )


def inspected(result: Mapping[str, Any]) -> Iterator[Any]:
    """A calibration set, each of its parts with the beginnings of a few windows, what a model
    made of it, and what to fix.
    """
    vocabulary, budget = result["vocabulary"], result["budget"]
    seen = f"{vocabulary['distinct']:,} of {vocabulary['size']:,} ids ({_percent(vocabulary['share'])})"
    yield from labelled(
        ("set", f"{result['data']} ({budget['flag']} {budget['amount']:,}{_instead(budget)})"),
        ("read by", f"the tokenizer of {result['tokenizer']}" if result["tokenizer"] else ""),
        (
            "windows",
            f"{result['windows']:,} × {result['length']:,}; {result['padding']:.1%} padding; {result['repeated_windows']} repeated",
        ),
        (
            "real tokens",
            f"{result['tokens']:,} of {result['rows']:,} rows"
            + (f", and {result['pads']:,} pads that count" if result["pads"] else ""),
        ),
        ("vocabulary", f"{seen}, as varied as {vocabulary['even']:,.0f} equally frequent ones"),
        ("draws", _draws(result["disjoint_draws"])),
        (
            "overlap",
            f"{result['overlap']:.1%} of the rows are in earlier draws"
            if result["overlap"]
            else "",
        ),
        (
            "two starts",
            f"in {result['double_starts']:,} of {result['windows']:,} windows"
            if result["double_starts"]
            else "",
        ),
        ("nearly alike", _alike(result["near_duplicates"])),
        ("fingerprint", result["fingerprint"]),
    )
    for part in result["parts"]:
        yield ""
        yield from _part(part)
    yield from _checks(result["overlap_checks"])
    yield from _modelled(result["model"])
    yield ""
    yield Text("what to fix", style="bold")
    yield from (
        Text("  • " + one_line(sentence)) for sentence in result["verdict"] or ["nothing to fix"]
    )


def _instead(budget: Mapping[str, Any]) -> str:
    """That the budget is all there is, where that is less than was to be drawn."""
    return (
        f": all that there is, where {budget['instead']} were to be drawn"
        if budget.get("instead")
        else ""
    )


def _part(part: Mapping[str, Any]) -> Iterator[Text]:
    rows = (
        f"{part['rows']:,} of {part['rows_held']:,} rows held"
        if part["rows_held"] is not None
        else f"{part['rows']:,} rows without end"
    )
    special = ", ".join(
        f"{token} in {_rows(rows)}" for token, rows in part["special_texts"].items()
    )
    yield from labelled(
        (
            part["data"],
            f"{part['tokens']:,} tokens, {rows}, share {part['share']:.1%}, weight {part['weight']:.4f}",
        ),
        (
            "source",
            f"{part['origin']}; {part['licence']}; {part['digest']}"
            if part["origin"]
            else f"{part['licence']}; {part['digest']}",
        ),
        ("note", part["note"]),
        ("left out", _left_out(part)),
        ("empty", f"{_rows(part['empty'])} came to no token" if part["empty"] else ""),
        ("cut", _cut(part)),
        ("special tokens", f"written out in the texts: {special}" if special else ""),
        ("padding", f"{part['padding']:.1%}" if part["padding"] else ""),
        (
            "row lengths",
            " ≤ ".join(f"{n:,}" for n in part["row_lengths"]) + " tokens (least, quarters, most)"
            if part["rows"]
            else "",
        ),
    )
    yield from (Text("  " + bar) for bar in _histogram(part["histogram"]))
    yield from labelled(("windows", f"not shown: {part['unshown']}" if part["unshown"] else ""))
    for number, text in enumerate(part["texts"], 1):
        yield Text(
            f"  ╷ window {number}\n  │ " + visible(text).replace("\n", "\n  │ "), style="dim"
        )


def _draws(count: int | None) -> str:
    if count is None:
        return "no end of disjoint ones"
    return f"{count} disjoint {'one' if count == 1 else 'ones'} of this size" + (
        ", or more" if count == 64 else ""
    )


def _left_out(part: Mapping[str, Any]) -> str:
    counts = f"{part['duplicates_dropped']} duplicates, {_rows(part['overlapping_dropped'])} also measured"
    return counts + (
        f", {part['passed_over']} that are no {part['format']}" if part["passed_over"] else ""
    )


def _cut(part: Mapping[str, Any]) -> str:
    """What a window's end does to a text: it depends on the packing whether the rest is lost."""
    if not part["truncated"]:
        return ""
    goes_on = part["packing"].startswith("many") and part["fills"] and part["windows"] > 1
    ends = f"{part['truncated']:,} of {part['windows']:,} windows ({_percent(part['truncated'] / part['windows'])}) end within a row"
    return ends + ("; the next window goes on with it" if goes_on else "")


def _histogram(ranges: Sequence[Sequence[int]], columns: int = 60) -> Iterator[str]:
    """One line for each range of lengths; the longest bar fills what `columns` leaves beside its
    numbers.
    """
    names = [f"{least:,}–{most:,}" if most > least else f"{least:,}" for least, most, _ in ranges]
    counts = [f"{count:,}" for _, _, count in ranges]
    room = columns - 5 - max(map(len, names), default=0) - max(map(len, counts), default=0)
    most = max((count for _, _, count in ranges), default=0) or 1
    for name, number, (_, _, count) in zip(names, counts, ranges, strict=True):
        # Blocks of an eighth of a column; a range that has anything shows at least one.
        eighths = max(round(8 * room * count / most), 1 if count else 0)
        bar = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
        yield f"{name:>{max(map(len, names))}}  {bar}{' ' if bar else ''}{number}"


def _alike(near: Mapping[str, Any]) -> str:
    if not near["rows"]:
        return ""
    pair = near["pairs"][0]
    where = " and ".join(
        f"row {number} of {part}"
        for part, number in zip(pair["parts"], pair["numbers"], strict=True)
    )
    return f"{near['rows']:,} of {near['examined']:,} rows repeat an earlier one, as {where} ({_percent(pair['share'])} alike){_quote(pair['quote'])}"


def _checks(checks: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """What is measured too: counts for each comparison, and the first rows."""
    for check in checks:
        yield ""
        if "unchecked" in check:
            yield from labelled(
                (
                    "overlap",
                    f"{check['part']} isn't compared with {check['against']}: {check['unchecked']}",
                )
            )
            continue
        some, of = check["measured_rows"], check.get("rows_of")
        rows = f"the {some:,}{'' if of in (None, some) else f' of {of:,}'} rows that {check['against']} measures"
        compared = f"{check['part']} and {rows}"
        yield from labelled(
            (
                "overlap",
                f"{compared}: {_rows(check['same'])} in both, {check['half']:,} with half in common, {check['slight']:,} with less",
            )
        )
        for leak in check["leaks"][:SHOWN]:
            share = "" if leak["kind"] == "same example" else f", {_percent(leak['share'])} of it"
            rows = (
                f"row {leak['number']} ({leak['row']}) and {leak['measured']}"
                if leak["serious"]
                else f"row {leak['number']} ({leak['row']})"
            )
            yield Text(f"  {rows}: {leak['kind']}{share}{_quote(leak['quote'])}")
        if len(check["leaks"]) > SHOWN:
            yield Text(f"  … and {len(check['leaks']) - SHOWN:,} more, which --json lists")


def _modelled(model: Mapping[str, Any] | None) -> Iterator[Any]:
    """The loss, and a table of whose energy the matrices are shown."""
    if model is None:
        return
    loss, energy = model["loss"], model["energy"]
    yield ""
    yield from labelled(
        ("model", f"{noted(model['name'], model['note'])}, {model['dtype']}"),
        ("loss", f"{loss['value']:.4f} {loss['unit']} over {loss['tokens']:,} tokens of the set"),
        (
            "energy",
            f"Σx² of {energy['matrices']:,} matrices over {energy['tokens']:,} tokens"
            + ("" if energy["kinds"] else ", all of content"),
        ),
        ("experts", covered(model.get("experts"))),
    )
    kinds = energy["kinds"]
    if kinds:
        table = table_of("share of", *kinds)
        table.add_row("the tokens", *(_percent(of["tokens"]) for of in kinds.values()))
        table.add_row("Σx², median matrix", *(_percent(of["median"]) for of in kinds.values()))
        for role in next(iter(kinds.values()))["matrices"]:
            table.add_row(
                f"Σx², {role}", *(_percent(of["matrices"][role]) for of in kinds.values())
            )
        table.add_row(
            "Σx², most in a matrix",
            *(f"{_percent(of['most'])}\n{of['where']}" for of in kinds.values()),
        )
        yield table


def surveyed(result: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Which source works in which format, then why the others don't, each reason once."""
    table = table_of(
        "data", "", "rows", "tokens", "disjoint draws", "seconds", "100,000 tokens", "fingerprint"
    )
    for one in result:
        if one["verdict"] == "works":
            draws = (
                "no end"
                if one["draws"] is None
                else f"{one['draws']}{' or more' if one['draws'] >= 64 else ''}"
            )
            many = "holds less" if one["seconds_many"] is None else f"{one['seconds_many']:.2f} s"
            numbers = (
                f"{one['rows']:,}",
                f"{one['tokens']:,}",
                draws,
                f"{one['seconds']:.2f}",
                many,
                one["fingerprint"][:19],
            )
            table.add_row(f"{one['source']}:{one['format']}", "works", *numbers)
    yield table
    for verdict in ("refused", "not here"):
        reasons: dict[str, list[str]] = {}
        for one in result:
            if one["verdict"] == verdict:
                reasons.setdefault(one["reason"], []).append(
                    f"{one['source']}:{one['format']}" if verdict == "refused" else one["source"]
                )
        if reasons:
            yield Text(verdict, style="bold")
        for reason, data in reasons.items():
            yield Text(f"  {', '.join(dict.fromkeys(data))}: {visible(reason)}")


def kinds(names: Mapping[str, Sequence[str]]) -> Iterator[Any]:
    """Kinds of things with all that can be named."""
    table = table_of("kind", "names")
    for kind, those in names.items():
        table.add_row(kind, one_line(", ".join(those)))
    yield table


def catalogued(entries: Sequence[Mapping[str, Any]], long: bool = False) -> Iterator[Any]:
    """Names with what they are, a line each; `long` with all that is known of them and the
    parameters as they are typed.
    """
    if not entries:
        yield "none yet"
    elif long:
        yield from (line for entry in entries for line in _in_full(entry))
    else:
        facts = [fact for fact in IN_TABLE if any(fact in entry["facts"] for entry in entries)]
        table = table_of("name", *(IN_TABLE[fact] for fact in facts), "what")
        table.columns[0].no_wrap = True
        for entry in entries:
            table.add_row(
                entry["name"], *(str(entry["facts"].get(fact, "")) for fact in facts), title(entry)
            )
        yield table


def _in_full(entry: Mapping[str, Any]) -> Iterator[Any]:
    arguments = ", ".join(
        f"{name}={default}" if default else name for name, default in entry["parameters"].items()
    )
    name = one_line(f"{entry['name']}({arguments})" if arguments else entry["name"])
    facts = (f"{IN_TABLE.get(fact, fact)}: {value}" for fact, value in entry["facts"].items())
    yield Text(name, style="bold")
    yield from (
        Padding(Text(one_line(line)), (0, 0, 0, 4), expand=False)
        for line in filter(None, [entry["title"], entry["summary"], *facts])
    )


def title(entry: Mapping[str, Any]) -> str:
    """Return what a name is, without the paper that it is from."""
    return one_line(_PAPER.sub("", entry["title"] or entry["summary"]))


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _percent(share: float) -> str:
    """A share with as many digits as tell it from nothing and from all."""
    return f"{share:.1%}" if 0.001 <= share <= 0.999 or share in (0, 1) else f"{share:.3%}"


def _quote(text: str) -> str:
    return f": “{one_line(text)}”" if text else ""


def verified(result: Mapping[str, Any]) -> Iterator[Any]:
    """A store that was checked: one line a problem, or that there is none."""
    yield from _problems(result["problems"])
    counts = f"{counted(result['runs'], 'run')}, {counted(result['measurements'], 'measurement')}"
    verdict = (
        "every hash agrees" if result["whole"] else counted(len(result["problems"]), "problem")
    )
    yield f"{counts}, {verdict}"
    if result["dropped"]:
        yield f"{counted(result['dropped'], 'damaged result')} removed; the same study computes them again"


def merged(result: Mapping[str, Any]) -> Iterator[Any]:
    """What was merged: one line a problem, then what was copied."""
    yield from _problems(result["problems"])
    counts = f"{counted(result['runs'], 'run')} and {counted(result['measurements'], 'measurement')} copied into {result['folder']}"
    yield f"{counts}, {result['kept']} already there" + (
        f", {counted(len(result['problems']), 'problem')}" if result["problems"] else ""
    )


def packed(result: Mapping[str, Any]) -> Iterator[Any]:
    """What was packed, in a line."""
    counts = f"{counted(result['runs'], 'run')}, {counted(result['measurements'], 'measurement')} in {result['folder']}"
    before, now = (
        f"{counted(result[f'files{at}'], 'file')} of {result[f'bytes{at}'] / 1e6:,.1f} MB"
        for at in ("_before", "")
    )
    yield f"{counts}: {now}, before {before}"


def _problems(problems: Sequence[Mapping[str, str]]) -> Iterator[str]:
    yield from (
        one_line(f"{problem['where']}: {problem['what']}; {problem['remedy']}")
        for problem in problems
    )
