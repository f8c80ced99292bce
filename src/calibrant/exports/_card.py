"""The model card: the `README.md` of a saved folder, in the form that the Hugging Face hub reads.

It is made of the record alone. What comes from outside (names, expressions, notes) stands in code
spans, where neither Markdown nor HTML is read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any, Final

from calibrant.errors import OutputError
from calibrant.models import read_manifest
from calibrant.results import Record, stored_bits
from calibrant.results.outcomes import Score
from calibrant.spec import written_form
from calibrant.spec.foreign import visible_name
from calibrant.system.durable import put, reason

CARD: Final = "README.md"
"""The model card, where the Hugging Face hub looks for it."""
_FENCE: Final = "`"
_BEGIN: Final = "<!-- measured -->"
_END: Final = "<!-- /measured -->"


def card(record: Record, note: str = "") -> str:
    """Say in Markdown what was done to a model, with which data, and where it came from; `note`
    is what is known of its file.
    """
    return "\n".join([*_front(record), "", *_body(record, note)]) + "\n"


def check_card(folder: str | Path) -> None:
    """Raise `OutputError` unless `folder` is a model that we saved, with its card. Changes
    nothing.
    """
    path = Path(folder) / CARD
    if (
        read_manifest(folder) is None
        or not path.is_file()
        or not _measured(path.read_text("utf-8"))
    ):
        raise OutputError(
            f"{str(folder)!r} has no model card of calibrant to write scores into; leave --card out",
            subject=str(folder),
        )


def add_scores(folder: str | Path, scores: Sequence[Score]) -> None:
    """Write what was measured into the card of a saved model, in place of what stood there.
    Raises `OutputError` as `check_card` does.
    """
    check_card(folder)
    path = Path(folder) / CARD
    lines = ["| measured | metric | value | items |", "| --- | --- | --- | --- |"]
    for score in scores:
        error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        floor = f", noise floor {score.facts['floor']:.1e}" if "floor" in score.facts else ""
        lines.append(
            f"| {_code(score.measured)} | {_code(score.metric)} | {score.value:.4f}{error} {_code(score.unit)}{floor} | {score.n} |"
        )
    before, _, rest = path.read_text("utf-8").partition(_BEGIN)
    try:
        put(
            path,
            "\n".join([before + _BEGIN, "", *lines, "", _END + rest.partition(_END)[2]]).encode(),
        )
    except OSError as error:
        raise OutputError(
            f"the card {str(path)!r} can't be written ({reason(error)}); the scores are above",
            subject=str(path),
        ) from error


def _measured(text: str) -> bool:
    """Whether a card has a place for scores."""
    return 0 <= text.find(_BEGIN) < text.find(_END)


def _front(record: Record) -> Iterator[str]:
    """The hub's facts, as YAML whose values are JSON."""
    run, parts = record.run, _parts(record)
    repositories = list(
        dict.fromkeys(
            part["hub"]["id"]
            for part in parts
            if isinstance(part.get("hub"), Mapping) and part["hub"].get("id")
        )
    )
    kind = "quantized" if stored_bits(record.weights) is not None else "pruned"
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield f"tags: {_json(['calibrant', kind, str(run.method.get('spec', ''))])}"
    if _is_hub_name(run.model_name):
        yield f"base_model: {_json(run.model_name)}"
    if repositories:
        yield f"datasets: {_json(repositories)}"
    yield "---"


def _body(record: Record, note: str) -> Iterator[str]:
    run, bits = record.run, stored_bits(record.weights)
    what = (
        f"{bits:.3f} bits a weight"
        if bits is not None
        else f"{record.sparsity:.2%} of the weights of its matrices removed"
    )
    yield f"# {_code(PurePath(run.model_name).name or run.model_name)}, {'quantized' if bits is not None else 'pruned'}"
    yield ""
    yield f"Made with calibrant {version('calibrant')}: {what}."
    yield "It opens with plain `transformers`; `calibrant.json` beside this file says what was done to every matrix."
    yield ""
    yield "## What was done"
    yield ""
    rows = {"model": _without_folders(run.model_name), "its weights": run.model, "note": note}
    rows |= {
        "method": written_form(run.method),
        "target": run.target,
        "allocation": written_form(run.allocation) if run.allocation else "",
    }
    rows |= {
        "transforms": ", ".join(map(written_form, run.transforms)),
        "propagation": run.propagate,
        "numbers": run.dtype,
    }
    rows |= {"matrices compressed": len(record.weights), "left as they are": _reasons(record)}
    yield from _table(rows)
    for edit in record.edits:
        if edit["edit"] == "drop_blocks":
            yield f"\nBlocks removed: {', '.join(map(str, edit['blocks']))} of {edit['of']}, as they were numbered then."
        if edit["edit"] == "drop_experts":
            gone = "; ".join(
                f"{', '.join(map(str, experts))} in block {block}"
                for block, experts in edit["experts"].items()
            )
            yield f"\nExperts removed, of {edit['of']} in a layer, as they were numbered then: {gone}."
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
    provenance = dict(record.provenance)
    yield from _table(
        {"made on": provenance.get("processor") or provenance.get("device", ""), "run": run.id}
    )


def _calibrated(record: Record) -> Iterator[str]:
    if not record.run.tokens:
        yield "None: the method looks at no data."
        return
    facts = record.data_facts
    rows = {
        "data": _without_folders(record.run.data),
        "draw": record.run.seed,
        "windows": facts.get("windows", ""),
        "tokens": facts.get("tokens", ""),
    }
    yield from _table({**rows, "fingerprint of the tokens": record.run.tokens})
    licences = Counter(str(part["licence"]) for part in _parts(record) if part.get("licence"))
    if licences:
        yield f"\nLicences of its sources: {', '.join(_code(name) for name in licences)}."


def _parts(record: Record) -> list[Mapping[str, Any]]:
    return [part for part in record.data_facts.get("parts", ()) if isinstance(part, Mapping)]


def _reasons(record: Record) -> str:
    counts = Counter(str(entry["reason"]) for entry in record.dense)
    return "; ".join(f"{count} {reason}" for reason, count in counts.most_common(4))


def _table(rows: Mapping[str, Any]) -> Iterator[str]:
    yield "| | |"
    yield "| --- | --- |"
    yield from (
        f"| {name} | {_code(value)} |" for name, value in rows.items() if value not in ("", None)
    )


def _code(value: Any) -> str:
    """A code span: nothing in it is read as Markdown or HTML, and a table's columns stay apart."""
    text = visible_name(str(value)).replace("|", "¦")
    fence = _FENCE * (max((len(run) for run in re.findall(f"{_FENCE}+", text)), default=0) + 1)
    pad = " " if text.startswith(_FENCE) or text.endswith(_FENCE) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _is_hub_name(name: str) -> bool:
    """Whether it is written as a model of the hub is, ORGANISATION/NAME, and not as a path."""
    owner, slash, rest = name.partition("/")
    plain = all(
        part
        and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
        and part.isascii()
        for part in (owner, rest)
    )
    return bool(slash) and plain and not owner.startswith(".")


def _without_folders(text: str) -> str:
    """A text in which the folders of absolute paths are left out: a card is made to be shown to
    others.
    """
    return re.sub(r"(^|['\"\s(])(?:[A-Za-z]:)?[\\/](?:[^\\/'\"]+[\\/])+", r"\1…/", text)
