"""How lists of names and calibration sets look: what can be named, what a set holds, which source
works in which format.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.padding import Padding
from rich.text import Text

from calibrant.cli.screen.lines import labelled, listed, noted, one_line, table_of
from calibrant.cli.screen.models import covered_experts
from calibrant.numerics import counted
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

COUNTED: Final = 64
"""Disjoint draws that are counted; there may be more."""

BARS: Final = 60
"""Columns of a histogram with its numbers."""

_EIGHTHS: Final = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
"""The end of a bar, by how many eighths of a column it takes."""


# Files for other tools.


def written(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what was written to where."""
    if result["form"] == "conversations":
        rows = counted(result["rows"], "conversation")
    else:
        rows = f"{counted(result['rows'], 'window')} as {result['form']}"
    yield from labelled(
        {
            "written": f"{rows}, {counted(result['tokens'], 'real token')}",
            "fingerprint": result["fingerprint"],
            "file": result["out"],
            "card": result["card"],
            "script": result["script"] or "",
        }
    )


# Names.


def kinds(names: Mapping[str, Sequence[str]]) -> Iterator[Any]:
    """Yield kinds of things with all that can be named."""
    table = table_of("kind", "names")
    for kind, those in names.items():
        table.add_row(kind, one_line(", ".join(those)))
    yield table


def catalogued(entries: Sequence[Mapping[str, Any]], long: bool = False) -> Iterator[Any]:
    """Yield names with what they are, a line each; `long` with all that is known of them and the
    parameters as they are typed.
    """
    if not entries:
        yield "none yet"
        return
    if long:
        for entry in entries:
            yield from _in_full(entry)
        return
    known: set[str] = set()
    for entry in entries:
        known.update(entry["facts"])
    shown = [fact for fact in IN_TABLE if fact in known]
    heads = [IN_TABLE[fact] for fact in shown]
    table = table_of("name", *heads, "what")
    table.columns[0].no_wrap = True
    for entry in entries:
        facts = [str(entry["facts"].get(fact, "")) for fact in shown]
        table.add_row(entry["name"], *facts, title(entry))
    yield table


def _in_full(entry: Mapping[str, Any]) -> Iterator[Any]:
    arguments: list[str] = []
    for name, default in entry["parameters"].items():
        arguments.append(f"{name}={default}" if default else name)
    call = entry["name"]
    if arguments:
        call += f"({', '.join(arguments)})"
    yield Text(one_line(call), style="bold")
    lines = [entry["title"], entry["summary"]]
    for fact, value in entry["facts"].items():
        lines.append(f"{IN_TABLE.get(fact, fact)}: {value}")
    for line in lines:
        if line:
            yield Padding(Text(one_line(line)), (0, 0, 0, 4), expand=False)


def title(entry: Mapping[str, Any]) -> str:
    """Return what a name is, without the paper that it is from."""
    return one_line(_PAPER.sub("", entry["title"] or entry["summary"]))


# One calibration set.


def inspected(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield a calibration set, each of its parts with the beginnings of a few windows, what a model
    made of it, and what to fix.
    """
    vocabulary = result["vocabulary"]
    budget = result["budget"]
    windows = f"{result['windows']:,} × {result['length']:,}"
    amount = f"{budget['flag']} {budget['amount']:,}"
    if budget.get("instead"):
        amount += f": all that there is, where {budget['instead']} were to be drawn"
    tokens = f"{result['tokens']:,} of {result['rows']:,} rows"
    if result["pads"]:
        tokens += f", and {result['pads']:,} pads that count"
    seen = f"{vocabulary['distinct']:,} of {vocabulary['size']:,} ids"
    read_by = ""
    if result["tokenizer"]:
        read_by = f"the tokenizer of {result['tokenizer']}"
    facts = {
        "set": f"{result['data']} ({amount})",
        "read by": read_by,
        "windows": f"{windows}; {result['padding']:.1%} padding; "
        f"{result['repeated_windows']} repeated",
        "real tokens": tokens,
        "vocabulary": f"{seen} ({_percent(vocabulary['share'])}), "
        f"as varied as {vocabulary['even']:,.0f} equally frequent ones",
        "draws": _draws(result["disjoint_draws"]),
    }
    if result["overlap"]:
        facts["overlap"] = f"{result['overlap']:.1%} of the rows are in earlier draws"
    if result["double_starts"]:
        starts = f"{result['double_starts']:,} of {result['windows']:,}"
        facts["two starts"] = f"in {starts} windows"
    facts["nearly alike"] = _alike(result["near_duplicates"])
    facts["fingerprint"] = result["fingerprint"]
    yield from labelled(facts)
    for part in result["parts"]:
        yield ""
        yield from _part(part)
    for check in result["overlap_checks"]:
        yield ""
        yield from _check(check)
    if result["model"] is not None:
        yield ""
        yield from _modelled(result["model"])
    yield ""
    yield from listed("what to fix", result["verdict"] or ["nothing to fix"])


def _part(part: Mapping[str, Any]) -> Iterator[Any]:
    rows = f"{part['rows']:,} rows without end"
    if part["rows_held"] is not None:
        rows = f"{part['rows']:,} of {part['rows_held']:,} rows held"
    share = f"share {part['share']:.1%}, weight {part['weight']:.4f}"
    source = f"{part['licence']}; {part['digest']}"
    if part["origin"]:
        source = f"{part['origin']}; {source}"
    facts = {
        part["data"]: f"{part['tokens']:,} tokens, {rows}, {share}",
        "source": source,
        "note": part["note"],
        "left out": _left_out(part),
    }
    if part["empty"]:
        facts["empty"] = f"{_rows(part['empty'])} came to no token"
    if part["truncated"]:
        facts["cut"] = _cut(part)
    if part["special_texts"]:
        places: list[str] = []
        for token, count in part["special_texts"].items():
            places.append(f"{token} in {_rows(count)}")
        facts["special tokens"] = f"written out in the texts: {', '.join(places)}"
    if part["padding"]:
        facts["padding"] = f"{part['padding']:.1%}"
    if part["rows"]:
        lengths = " ≤ ".join(f"{length:,}" for length in part["row_lengths"])
        facts["row lengths"] = f"{lengths} tokens (least, quarters, most)"
    yield from labelled(facts)
    if part["conversations"]:
        yield from _conversations(part["conversations"])
    for line in _histogram(part["histogram"]):
        yield Text(f"  {line}")
    if part["unshown"]:
        yield from labelled({"windows": f"not shown: {part['unshown']}"})
    for number, text in enumerate(part["texts"], 1):
        shown = visible(text).replace("\n", "\n  │ ")
        yield Text(f"  ╷ window {number}\n  │ {shown}", style="dim")


def _conversations(found: Mapping[str, Any]) -> Iterator[Any]:
    """What is lost of conversations, what they hold, and whose the tokens are."""
    facts: dict[str, str] = {}
    if found["left_out"]:
        left_out = [f"{role} of {count:,}" for role, count in found["left_out"].items()]
        facts["not written"] = f"by the template: {', '.join(left_out)}"
    if found["unclear"]:
        facts["unclear"] = f"who says what in {found['unclear']:,}"
    if found["cut_reasoning"]:
        facts["cut reasoning"] = f"at the end of {counted(found['cut_reasoning'], 'window')}"
    if found["open_reasoning"]:
        facts["open reasoning"] = f"never closed in {found['open_reasoning']:,}"
    if found["date"]:
        facts["date"] = f"the template is always told {found['date']}"
    conversations = f"{found['count']:,}"
    for name in ("tools", "calls", "reasoning"):
        if found[name]:
            conversations += f"; {name} in {found[name]:,}"
    facts["conversations"] = conversations
    turns = " ≤ ".join(f"{count:,}" for count in found["turns"])
    facts["turns"] = f"{turns} (least, quarters, most)"
    yield from labelled(facts)
    if found["roles"]:
        table = table_of("role", *found["roles"])
        table.add_row("of the tokens", *map(_percent, found["roles"].values()))
        yield table


def _draws(count: int | None) -> str:
    if count is None:
        return "no end of disjoint ones"
    noun = "one" if count == 1 else "ones"
    draws = f"{count} disjoint {noun} of this size"
    if count == COUNTED:
        draws += ", or more"
    return draws


def _left_out(part: Mapping[str, Any]) -> str:
    measured = _rows(part["overlapping_dropped"])
    counts = f"{part['duplicates_dropped']} duplicates, {measured} also measured"
    if part["passed_over"]:
        counts += f", {part['passed_over']} that are no {part['format']}"
    if part["too_short"]:
        counts += f", {part['too_short']:,} that are too short for {part['packing']}"
    if part["refused"]:
        refused = sum(part["refused"].values())
        counts += f", {refused} that the model's chat template doesn't take"
    return counts


def _cut(part: Mapping[str, Any]) -> str:
    """What a window's end does to a text: it depends on the packing whether the rest is lost."""
    share = _percent(part["truncated"] / part["windows"])
    ends = f"{part['truncated']:,} of {part['windows']:,} windows ({share}) end within a row"
    goes_on = part["packing"].startswith("many") and part["fills"]
    if goes_on and part["windows"] > 1:
        ends += "; the next window goes on with it"
    return ends


def _histogram(ranges: Sequence[Sequence[int]]) -> Iterator[str]:
    """One line for each range of lengths; the longest bar fills what `BARS` leaves beside its
    numbers.
    """
    if not ranges:
        return
    names: list[str] = []
    counts: list[int] = []
    for least, most, count in ranges:
        name = f"{least:,}"
        if most > least:
            name += f"–{most:,}"
        names.append(name)
        counts.append(count)
    numbers = [f"{count:,}" for count in counts]
    name_width = max(map(len, names))
    number_width = max(map(len, numbers))
    # Five spaces: two before the line, two before the bar and one behind it.
    room = BARS - 5 - name_width - number_width
    most_rows = max(counts) or 1
    for name, number, count in zip(names, numbers, counts, strict=True):
        # Blocks of an eighth of a column; a range that has anything shows at least one.
        eighths = round(8 * room * count / most_rows)
        if count:
            eighths = max(eighths, 1)
        columns, rest = divmod(eighths, 8)
        bar = "█" * columns + _EIGHTHS[rest]
        if bar:
            bar += " "
        yield f"{name:>{name_width}}  {bar}{number}"


def _alike(near: Mapping[str, Any]) -> str:
    if not near["rows"]:
        return ""
    pair = near["pairs"][0]
    first_part, second_part = pair["parts"]
    first, second = pair["numbers"]
    rows = f"{near['rows']:,} of {near['examined']:,} rows repeat an earlier one"
    where = f"row {first} of {first_part} and row {second} of {second_part}"
    share = _percent(pair["share"])
    return f"{rows}, as {where} ({share} alike){_quote(pair['quote'])}"


def _check(check: Mapping[str, Any]) -> Iterator[Any]:
    """What is measured too: how many rows, and the first of them."""
    if "unchecked" in check:
        pair = f"{check['part']} isn't compared with {check['against']}"
        yield from labelled({"overlap": f"{pair}: {check['unchecked']}"})
        return
    some = check["measured_rows"]
    measured = f"{some:,}"
    if check.get("rows_of") not in (None, some):
        measured += f" of {check['rows_of']:,}"
    compared = f"{check['part']} and the {measured} rows that {check['against']} measures"
    counts = (
        f"{_rows(check['same'])} in both, {check['half']:,} with half in common, "
        f"{check['slight']:,} with less"
    )
    yield from labelled({"overlap": f"{compared}: {counts}"})
    for leak in check["leaks"][:SHOWN]:
        rows = f"row {leak['number']} ({leak['row']})"
        if leak["serious"]:
            rows += f" and {leak['measured']}"
        kind = leak["kind"]
        if kind != "same example":
            kind += f", {_percent(leak['share'])} of it"
        quote = _quote(leak["quote"])
        yield Text(f"  {rows}: {kind}{quote}")
    unlisted = len(check["leaks"]) - SHOWN
    if unlisted > 0:
        yield Text(f"  … and {unlisted:,} more, which --json lists")


def _modelled(model: Mapping[str, Any]) -> Iterator[Any]:
    """The loss, and a table of whose energy the matrices are shown."""
    loss = model["loss"]
    energy = model["energy"]
    kinds_of = energy["kinds"]
    spread = f"Σx² of {energy['matrices']:,} matrices over {energy['tokens']:,} tokens"
    if not kinds_of:
        spread += ", all of content"
    if loss["tokens"]:
        tokens = f"{loss['tokens']:,} tokens of the set"
        scored = f"{loss['value']:.4f} {loss['unit']} over {tokens}"
    else:
        scored = "none: no token of the set has one before it"
    yield from labelled(
        {
            "model": f"{noted(model['name'], model['note'])}, {model['dtype']}",
            "loss": scored,
            "energy": spread,
            "experts": covered_experts(model.get("experts")),
        }
    )
    if not kinds_of:
        return
    shares = list(kinds_of.values())
    table = table_of("share of", *kinds_of)
    tokens = [_percent(share["tokens"]) for share in shares]
    table.add_row("the tokens", *tokens)
    medians = [_percent(share["median"]) for share in shares]
    table.add_row("Σx², median matrix", *medians)
    for role in shares[0]["matrices"]:
        of_role = [_percent(share["matrices"][role]) for share in shares]
        table.add_row(f"Σx², {role}", *of_role)
    most: list[str] = []
    for share in shares:
        most.append(f"{_percent(share['most'])}\n{share['where']}")
    table.add_row("Σx², most in a matrix", *most)
    yield table


def _rows(count: int) -> str:
    return counted(count, "row")


def _percent(share: float) -> str:
    """A share with as many digits as tell it from nothing and from all."""
    one_digit_tells = 0.001 <= share <= 0.999 or share in (0, 1)
    if one_digit_tells:
        return f"{share:.1%}"
    return f"{share:.3%}"


def _quote(text: str) -> str:
    if not text:
        return ""
    return f": “{one_line(text)}”"


# Every source in every format.


def surveyed(result: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yield which source works in which format, then why the others don't, each reason once."""
    heads = ("rows", "tokens", "disjoint draws", "seconds", "100,000 tokens", "fingerprint")
    table = table_of("data", "", *heads)
    refused: dict[str, list[str]] = {}
    absent: dict[str, list[str]] = {}
    for found in result:
        data = f"{found['source']}:{found['format']}"
        if found["verdict"] == "refused":
            refused.setdefault(found["reason"], []).append(data)
        elif found["verdict"] == "not here":
            absent.setdefault(found["reason"], []).append(found["source"])
        elif found["verdict"] == "works":
            table.add_row(data, "works", *_surveyed(found))
    yield table
    for verdict, reasons in (("refused", refused), ("not here", absent)):
        if reasons:
            yield Text(verdict, style="bold")
        for reason, data in reasons.items():
            distinct = ", ".join(dict.fromkeys(data))
            yield Text(f"  {distinct}: {visible(reason)}")


def _surveyed(found: Mapping[str, Any]) -> Iterator[str]:
    """The numbers of a source that works in a format."""
    draws = "no end"
    if found["draws"] is not None:
        draws = str(found["draws"])
        if found["draws"] >= COUNTED:
            draws += " or more"
    many = "holds less"
    if found["seconds_many"] is not None:
        many = f"{found['seconds_many']:.2f} s"
    yield f"{found['rows']:,}"
    yield f"{found['tokens']:,}"
    yield draws
    yield f"{found['seconds']:.2f}"
    yield many
    yield found["fingerprint"][:19]
