"""The card beside a file of calibration data: what it is, where it comes from, and how to make it
again.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.given import Given, own_behind
from calibrant.handover._base import Tool
from calibrant.spec.foreign import visible_name
from calibrant.system.markdown import code_span, table_of_facts, without_folders

_ROWS: Final = {
    "ids": "A row has the token ids of a window.",
    "texts": "It holds the text of each window.",
    "conversations": "A row is a conversation.",
}
"""What is in a file of each form."""


@dataclass(frozen=True)
class CardFacts:
    """What a card is about: the set with its tokens, the model whose tokenizer made them, and the
    file that they are in, in what form and for which tool.
    """

    calibration: CalibrationSet
    batch: TokenBatch
    model: str
    file: str
    form: str
    tool: Tool | None


def card_of(facts: CardFacts, notes: Sequence[str]) -> str:
    """Return the card as Markdown, with sentences about what the file can't carry. What comes from
    outside stands in code spans.
    """
    return "\n".join(_lines(facts, notes)) + "\n"


def _lines(facts: CardFacts, notes: Sequence[str]) -> Iterator[str]:
    batch = facts.batch
    calibration = facts.calibration
    expression = without_folders(calibration.expr)
    yield f"# Calibration data {code_span(expression)}"
    yield ""
    yield f"Made with calibrant {version('calibrant')}. {_ROWS[facts.form]}"
    yield ""
    yield from table_of_facts(
        {
            "data": expression,
            "tokenizer": without_folders(facts.model),
            "draw": calibration.seed,
            "windows": f"{len(batch.ids)} of {calibration.length} tokens",
            "tokens": int(batch.mask.sum()),
            "fingerprint of the tokens": batch.fingerprint,
        }
    )
    for note in notes:
        yield ""
        yield f"Mind: {note}."
    yield ""
    yield "## Sources"
    for part in batch.facts["parts"]:
        yield ""
        yield from table_of_facts(_about(part))
    yield ""
    yield "## To make it again"
    yield ""
    if _has_objects(calibration):
        yield "Its data came as objects: hand them over again to `calibrant.write_data`."
    else:
        yield f"    {_command(facts)}"


def _has_objects(calibration: CalibrationSet) -> bool:
    """Whether rows of a set came as objects, perhaps to a selector that chose among them."""
    for term in calibration.parts:
        if any(isinstance(source, Given) for source in own_behind(term.source)):
            return True
    return False


def _about(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card says of one part of a set."""
    about = {
        "data": without_folders(part["data"]),
        "share": f"{part['share']:.4g}",
        "rows used": part["rows"],
        "licence": part["licence"],
        "read from": without_folders(part["origin"]),
        "digest of the rows": part["digest"],
        "note": without_folders(part["note"]),
    }
    hub = part["hub"]
    if hub is not None:
        about["on the hub"] = hub["id"]
        about["revision"] = hub["revision"]
    return about


def _command(facts: CardFacts) -> str:
    """Return the command that writes the same file, quoted for a shell, without folders."""
    calibration = facts.calibration
    words = ["calibrant", "data", without_folders(calibration.expr)]
    words += ["--model", without_folders(facts.model)]
    if calibration.budget is not None:
        words += ["--tokens", str(calibration.budget)]
    elif not calibration.at_most:
        words += ["--samples", str(calibration.samples)]
    words += ["--length", str(calibration.length), "--seed", str(calibration.seed)]
    words += ["--as", facts.form]
    if facts.tool is not None:
        words += ["--tool", str(facts.tool)]
    words += ["--out", facts.file]
    # In one line, whatever is in it.
    return visible_name(shlex.join(words))
