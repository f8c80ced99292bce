"""The model card: the `README.md` of a saved folder, in the form that the Hugging Face hub reads.

It is made of the record alone. What comes from outside (names, expressions, notes) stands in code
spans, where neither Markdown nor HTML is read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any, Final

from calibrant.errors import OutputError
from calibrant.models import read_manifest
from calibrant.models.rounded_inputs import INPUTS
from calibrant.results import (
    Record,
    cache_in_words,
    condensed_in_words,
    inputs_in_words,
    stored_bits,
)
from calibrant.results.outcomes import Score
from calibrant.spec import written_form
from calibrant.system.durable import put, reason, takes_files
from calibrant.system.markdown import code_span, table_of_facts, without_folders

CARD: Final = "README.md"
"""The model card, where the Hugging Face hub looks for it."""
_BEGIN: Final = "<!-- measured -->"
_END: Final = "<!-- /measured -->"
"""Between these two comments stand the scores."""


def card(record: Record, note: str = "", rounded: Sequence[str] = ()) -> str:
    """Say in Markdown what was done to a model, with which data, and where it came from; `note`
    is what is known of its file, and `rounded` says in words what it rounds beside weights.
    """
    return "\n".join([*_front(record), "", *_body(record, note, rounded)]) + "\n"


def check_card(folder: str | Path) -> None:
    """Raise `OutputError` unless `folder` is a model that we saved, with its card, and may be
    written to. Changes nothing.
    """
    path = Path(folder) / CARD
    text = ""
    if read_manifest(folder) is not None and path.is_file():
        # One in another encoding isn't as it was written either.
        with suppress(UnicodeDecodeError):
            text = path.read_text("utf-8")
    if not _has_place_for_scores(text):
        raise OutputError(
            f"{str(folder)!r} has no model card of calibrant to write scores into; "
            "leave the card out",
            subject=str(folder),
        )
    if not takes_files(path.parent):
        raise OutputError(
            f"{str(path)!r} can't be written; is it yours to write to?", subject=str(folder)
        )


def add_scores(folder: str | Path, scores: Sequence[Score]) -> None:
    """Write what was measured into the card of a saved model, in place of what stood there.
    Raises `OutputError` as `check_card` does.
    """
    check_card(folder)
    path = Path(folder) / CARD
    lines = ["| measured | metric | value | items |", "| --- | --- | --- | --- |"]
    for score in scores:
        measured = code_span(score.measured)
        metric = code_span(score.metric)
        lines.append(f"| {measured} | {metric} | {_value(score)} | {score.n} |")
    before, _, rest = path.read_text("utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    text = "\n".join([before + _BEGIN, "", *lines, "", _END + after])
    try:
        put(path, text.encode())
    except OSError as error:
        raise OutputError(
            f"the card {str(path)!r} can't be written ({reason(error)}); the scores are above",
            subject=str(path),
        ) from error


def _value(score: Score) -> str:
    """Return a score's number with its error, unit and noise floor."""
    text = f"{score.value:.4f}"
    if score.stderr is not None:
        text += f" ± {score.stderr:.4f}"
    text += f" {code_span(score.unit)}"
    if "floor" in score.facts:
        text += f", noise floor {score.facts['floor']:.1e}"
    return text


def _has_place_for_scores(text: str) -> bool:
    return 0 <= text.find(_BEGIN) < text.find(_END)


def _front(record: Record) -> Iterator[str]:
    """Yield the lines of the card's head, which the hub reads: YAML whose values are JSON."""
    run = record.run
    repositories: dict[str, None] = {}
    for part in _parts(record):
        hub = part.get("hub")
        if isinstance(hub, Mapping) and hub.get("id"):
            repositories[hub["id"]] = None
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield f"tags: {_json(['calibrant', _kind(record), str(run.method.get('spec', ''))])}"
    # A folder here may be called like a model of the hub.
    if _is_hub_name(run.model_name) and not Path(run.model_name).exists():
        yield f"base_model: {_json(run.model_name)}"
    if repositories:
        yield f"datasets: {_json(list(repositories))}"
    yield "---"


def _kind(record: Record) -> str:
    if stored_bits(record.weights) is None and not cache_in_words(record.edits):
        return "pruned"
    return "quantized"


def _body(record: Record, note: str, rounded: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the card below its head."""
    run = record.run
    bits = stored_bits(record.weights)
    result = f"{record.sparsity:.2%} of the weights of its matrices removed"
    if bits is not None:
        result = f"{bits:.3f} bits a weight"
    elif not record.weights and cache_in_words(record.edits):
        result = "its KV cache is rounded, and its weights are as they were"
    yield f"# {code_span(PurePath(run.model_name).name or run.model_name)}, {_kind(record)}"
    yield ""
    yield f"Made with calibrant {version('calibrant')}: {result}."
    yield (
        "It opens with plain `transformers`; `calibrant.json` beside this file says what was done "
        "to every matrix."
    )
    if rounded:
        yield (
            f"\nTransformers doesn't round {' and '.join(rounded)}, though. Calibrant does, as "
            f"`{INPUTS}` beside this file says, and so it was measured."
        )
    yield ""
    yield "## What was done"
    yield ""
    allocation = ""
    if run.allocation:
        allocation = written_form(run.allocation)
    yield from table_of_facts(
        {
            "model": without_folders(run.model_name),
            "its weights": run.model,
            "note": note,
            "method": written_form(run.method),
            "target": run.target,
            "target not reached": record.shortfall,
            "allocation": allocation,
            "transforms": ", ".join(map(written_form, run.transforms)),
            "propagation": run.propagate,
            "numbers": run.dtype,
            "condensed": condensed_in_words(record.edits),
            "matrices compressed": len(record.weights),
            "left as they are": _reasons(record),
            "inputs": inputs_in_words(record.edits),
            "KV cache": cache_in_words(record.edits),
        }
    )
    for edit in record.edits:
        yield from _removed(edit)
    yield ""
    yield "## Calibration data"
    yield ""
    yield from _calibrated(record)
    yield ""
    yield "## What was measured"
    yield ""
    yield _BEGIN
    yield "Nothing yet; `calibrant evaluate … --card` writes it here."
    yield _END
    yield ""
    yield "## Licence and provenance"
    yield ""
    yield "The licence is that of the model it was made from."
    yield ""
    made_on = record.provenance.get("processor") or record.provenance.get("device", "")
    yield from table_of_facts({"made on": made_on, "run": run.id})


def _removed(edit: Mapping[str, Any]) -> Iterator[str]:
    """Yield which blocks or experts an edit removed."""
    # An empty line comes first, or Markdown would make the sentence a row of the table before it.
    if edit["edit"] == "drop_blocks" and edit["blocks"]:
        blocks = ", ".join(map(str, edit["blocks"]))
        yield f"\nBlocks removed: {blocks} of {edit['of']}, as they were numbered then."
    if edit["edit"] == "drop_experts":
        layers: list[str] = []
        for block, experts in edit["experts"].items():
            layers.append(f"{', '.join(map(str, experts))} in block {block}")
        removed = "; ".join(layers)
        yield (
            f"\nExperts removed, of {edit['of']} in a layer, as they were numbered then: {removed}."
        )


def _calibrated(record: Record) -> Iterator[str]:
    """Yield what the model was calibrated on."""
    run = record.run
    if not run.tokens:
        yield "None: the method looks at no data."
        return
    facts = record.data_facts
    yield from table_of_facts(
        {
            "data": without_folders(run.data),
            "draw": run.seed,
            "windows": facts.get("windows", ""),
            "tokens": facts.get("tokens", ""),
            "fingerprint of the tokens": run.tokens,
        }
    )
    licences = dict.fromkeys(str(part["licence"]) for part in _parts(record) if part.get("licence"))
    if licences:
        yield f"\nLicences of its sources: {', '.join(map(code_span, licences))}."


def _parts(record: Record) -> list[Mapping[str, Any]]:
    return [part for part in record.data_facts.get("parts", ()) if isinstance(part, Mapping)]


def _reasons(record: Record) -> str:
    """Return how many matrices were left as they are, for the four most frequent reasons."""
    counts = Counter(str(entry["reason"]) for entry in record.dense)
    return "; ".join(f"{count} {reason}" for reason, count in counts.most_common(4))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _is_hub_name(name: str) -> bool:
    """Return whether it is written as a model of the hub, ORGANISATION/NAME, and not as a path."""
    owner, _, rest = name.partition("/")
    return not owner.startswith(".") and _is_plain(owner) and _is_plain(rest)


def _is_plain(text: str) -> bool:
    letters = re.sub(r"[-_.]", "", text)
    return letters.isascii() and letters.isalnum()
