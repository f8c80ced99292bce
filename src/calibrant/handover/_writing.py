"""Writes a calibration set as a file that other tools read, with a card and, if one is asked for, a
script.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, Chat, TokenBatch
from calibrant.data.expression import missing_fields, written
from calibrant.data.select import resolved
from calibrant.errors import DataError, ModelError, OutputError, SpecError
from calibrant.handover._base import IdsTool, ScriptFacts, Tool
from calibrant.handover._card import CardFacts, card_of
from calibrant.handover._files import ENDINGS, write_files, write_folder
from calibrant.handover._texts import conversations_of, stream_of, texts_of
from calibrant.models import Model, is_object, name_of, only_looks, open_tokenizer, opened_of
from calibrant.options import WriteDataOptions, with_fields_of
from calibrant.spec.foreign import did_you_mean, user_path
from calibrant.spec.registry import Registry

tools: Final = Registry("calibrant.handover", "tool")
"""The tools by name."""
FORMS: Final = ("ids", "texts", "conversations")
"""What a row of a file can be."""
_AS: Final = "--as (in Python form=)"
"""What messages call the setting of the form."""


@final
@dataclass(frozen=True)
class WrittenData:
    """What was written: the file or folder `out`, its `card`, and the `script` that runs a tool
    with it.

    `form` says what each of its `rows` is: the ids of a window, its text, or a conversation.
    `tokens` counts the real tokens of the set, and `fingerprint` is the hash of all of them.
    `notes` say what the file can't carry, and what of a user's data isn't used.
    """

    out: Path
    card: Path
    script: Path | None
    form: str
    rows: int
    tokens: int
    fingerprint: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as texts and numbers."""
        facts = vars(self) | {"out": str(self.out), "card": str(self.card)}
        if self.script is not None:
            facts["script"] = str(self.script)
        return facts


@dataclass(frozen=True)
class _Places:
    """Where everything goes, and what it is."""

    out: Path
    tool: Tool | None
    form: str

    @property
    def ending(self) -> str:
        return self.out.suffix.lower()

    @property
    def card(self) -> Path:
        if not self.ending:
            return self.out / "README.md"
        return self.out.with_name(f"{self.out.name}.md")

    @property
    def script(self) -> Path | None:
        if self.tool is None:
            return None
        # Not called after the tool alone: such a file would be imported in its place.
        return self.out.with_name(f"{self.out.name}.{self.tool.spec_name()}.py")


@with_fields_of(WriteDataOptions)
@only_looks
def write_data(options: WriteDataOptions) -> WrittenData:
    """Write the tokens that a job would calibrate on to a file for other tools, and beside it a
    card that says where they come from.

    `out` ends with `.jsonl` or `.parquet`, or is the name of a folder of `datasets`. A row is a
    window: its `input_ids`, or with `form="texts"` the text that they stand for. With
    `form="conversations"` a row is one of the conversations that the windows were made of. A file
    that ends with `.txt` is one text, which llama.cpp cuts into the windows.

    `tool` is `llm-compressor`, `auto-round`, `gptqmodel`, `modelopt` or `llama.cpp`: then a script
    that runs it on `model` with the file is written too. The script opens the model by its name, so
    what was changed in memory alone it doesn't see.

    A file of ids can be given to `prune` and the others as `data` again.

    Raises an `InputError` for a set or a model that can't be handed over, and for an `out` that
    exists.

    >>> from tempfile import mkdtemp
    >>> from calibrant.testing import tiny_folder
    >>> folder = tiny_folder(mkdtemp())
    >>> out = folder / "windows.jsonl"
    >>> done = write_data(folder, data="python_docs", out=out, samples=2, length=32)
    >>> done.rows, done.tokens
    (2, 64)
    """
    places = _places(options)
    _check_absent(places.out)
    if not places.out.absolute().parent.is_dir():
        message = f"{str(places.out)!r} can't be written; name a place in a folder that exists"
        raise OutputError(message, subject=str(places.out))
    return _write(options, places, over=False)


def write_over(options: WriteDataOptions) -> WrittenData:
    """Write what `write_data` writes, also over files that are there."""
    return _write(options, _places(options), over=True)


def _write(options: WriteDataOptions, places: _Places, over: bool) -> WrittenData:
    """Write the card and the script, and then the data, `over` what is there or not."""
    calibration = options.drawn_from(options.data)
    _check_set(calibration, places)
    name = name_of(options.model)
    if places.tool is not None:
        _check_saved(options.model)
        places.tool.check_model(name)
    needs_model = calibration.per_draw or options.tokenizer is not None
    if needs_model or is_object(options.model):
        opened = opened_of(options.model, options.tokenizer, options.dtype, options.device)
        tokenizer = opened.tokenizer
        # Selectors may ask the model which rows to take.
        calibration = resolved(calibration, opened, options.progress)
    else:
        tokenizer, _ = open_tokenizer(name)
    batch = calibration.tokens(tokenizer)
    rows, about_rows = _rows(calibration, batch, tokenizer, places)
    notes = (*_not_carried(batch), *about_rows)
    # The card says it beside the part.
    lost = [part["lost"] for part in batch.facts["parts"] if "lost" in part]
    done = WrittenData(
        places.out,
        places.card,
        places.script,
        places.form,
        len(rows),
        int(batch.mask.sum()),
        batch.fingerprint,
        (*notes, *lost),
    )
    files: dict[Path, bytes] = {}
    if places.tool is not None and places.script is not None:
        length = batch.ids.shape[1]
        facts = ScriptFacts(_whole_path(name), places.out.name, len(rows), length)
        files[places.script] = places.tool.script(facts).encode()
    card_facts = CardFacts(calibration, batch, name, places.out.name, places.form, places.tool)
    card_text = card_of(card_facts, notes)
    if places.ending:
        files[places.card] = card_text.encode()
    if not over:
        for path, content in files.items():
            # A call that was killed before the data were written left these very files.
            if not path.is_file() or path.read_bytes() != content:
                _check_absent(path)
    if places.ending:
        files[places.out] = ENDINGS[places.ending](rows)
        write_files(files)
    else:
        write_folder(places.out, rows, card_text, files)
    return done


def _check_absent(path: Path) -> None:
    """Raise `OutputError` where there is something already."""
    if os.path.lexists(path):
        message = f"{str(path)!r} exists already; give another out, or remove it"
        raise OutputError(message, subject=str(path))


def as_sum(calibration: CalibrationSet) -> str:
    """Return the expression of the sum that has a mix's parts, each with its share.

    >>> as_sum(CalibrationSet("mix(python_docs=0.25, python_code=0.75)"))
    '0.25*python_docs + 0.75*python_code'
    """
    return written(calibration.parts)


def _places(options: WriteDataOptions) -> _Places:
    """Return where everything goes. Raises an `InputError` for what doesn't go together."""
    tool = None
    if options.tool is not None:
        tool = tool_named(options.tool)
    out = user_path(options.out, OutputError)
    if not out.name:
        message = f"{str(options.out)!r} names no file or folder; give a name, as in windows.jsonl"
        raise OutputError(message, subject=str(options.out))
    ending = out.suffix.lower()
    if ending not in (*ENDINGS, ""):
        message = f"{str(out)!r} ends with {ending!r}; end it with {', '.join(ENDINGS)}, or give a "
        raise OutputError(f"{message}name without an ending for a folder", subject=str(out))
    if tool is not None and ending not in tool.endings:
        readable = [f"a {known} file" if known else "a folder" for known in tool.endings]
        message = f"the script for {tool} reads {' or '.join(readable)}, and {str(out)!r} is none"
        raise OutputError(f"{message}; give such a name", subject=str(out))
    return _Places(out, tool, _form_of(options.form, ending, tool))


def _form_of(form: str | None, ending: str, tool: Tool | None) -> str:
    """Return the form of the rows: the one that was asked for, or the usual one of the ending.

    Raises `SpecError` for one that isn't known, or that the file or the tool can't have.
    """
    if form is None:
        form = "texts" if ending == ".txt" else "ids"
    if form not in FORMS:
        near = did_you_mean(form, FORMS)
        message = f"there is no form {form!r}{near} (known: {', '.join(FORMS)})"
        raise SpecError(message, subject=form)
    if ending == ".txt" and form != "texts":
        message = f"a .txt file holds a text and no {form}; give a .jsonl file for {form}"
        raise SpecError(message, subject=form)
    if isinstance(tool, IdsTool) and form != "ids":
        message = f"the script for {tool} reads ids and no {form}; leave {_AS} out"
        raise SpecError(message, subject=form)
    return form


def tool_named(name: str) -> Tool:
    """Return the tool of that name, also where it is written as its makers do: `llama.cpp`,
    `auto-round`. Raises `SpecError` for one that isn't known.
    """
    file = re.sub("[-.]", "_", name.strip().lower())
    tool: Tool = tools.get(file)()
    return tool


def _check_saved(model: Model) -> None:
    """Raise `ModelError` for a model that is in memory alone, where no script finds it."""
    if isinstance(model, PreTrainedModel) and name_of(model) == type(model).__name__:
        raise ModelError(
            f"the {name_of(model)} is in memory alone, and a script opens a model by its name; "
            "save it with save_pretrained, and give that folder",
            subject=name_of(model),
        )


def _check_set(calibration: CalibrationSet, places: _Places) -> None:
    """Raise `DataError` for a set that the file couldn't hold."""
    if calibration.mixed:
        raise DataError(
            "a mix weighs the statistics of its sets, which no file of tokens can say; the sum "
            f"with the same shares can be written: {as_sum(calibration)}",
            subject=calibration.expr,
        )
    if places.form != "conversations":
        return
    for term in calibration.parts:
        if term.format.spec_name() != "chat":
            message = f"{term} is no conversation in the model's template"
            remedy = f"leave {_AS} out"
            if not missing_fields(term.source, Chat()):
                remedy = f"write {term.source}:chat, or {remedy}"
            raise DataError(f"{message}; {remedy}", subject=str(term))


def _rows(
    calibration: CalibrationSet,
    batch: TokenBatch,
    tokenizer: PreTrainedTokenizerBase,
    places: _Places,
) -> tuple[Sequence[Any], list[str]]:
    """Return the rows of the file, and what is to be said about them."""
    windows: list[list[int]] = []
    for ids, mask in zip(batch.ids, batch.mask, strict=True):
        windows.append(ids[mask].tolist())
    if places.ending == ".txt":
        texts, changed = stream_of(windows, tokenizer, batch.ids.shape[1])
        remedy = "calibrant imatrix reads exactly the tokens of the set"
        return texts, _changed(changed, len(windows), remedy)
    if places.form == "texts":
        texts, changed = texts_of(windows, tokenizer)
        rows = [{"text": text} for text in texts]
        return rows, _changed(changed, len(windows), "a file of ids keeps them all")
    if places.form == "conversations":
        rows = conversations_of(calibration.parts, calibration.rows(tokenizer))
        _check_table(rows, places)
        return rows, _about_conversations(calibration)
    return [{"input_ids": window} for window in windows], []


def _check_table(conversations: Sequence[Mapping[str, Any]], places: _Places) -> None:
    """Raise `DataError` for calls of functions that would be written as a table."""
    if places.ending == ".jsonl":
        return
    for conversation in conversations:
        calls = any("tool_calls" in message for message in conversation["messages"])
        if calls or "tools" in conversation:
            raise DataError(
                f"the conversations call functions, and in {places.out.name!r}, a table, each call "
                "would have the arguments of all; write a .jsonl file, or ids",
                subject=places.out.name,
            )


def _about_conversations(calibration: CalibrationSet) -> list[str]:
    """Return what conversations alone don't say."""
    notes = ["these are whole conversations, which windows may cut or join"]
    for term in calibration.parts:
        form = term.format
        if isinstance(form, Chat) and (form.thinking != "template" or form.generation_prompt):
            notes.append(f"left out: what {form} asks of the model's template; ids have it")
    return notes


def _changed(changed: int, windows: int, remedy: str) -> list[str]:
    if not changed:
        return []
    return [f"{changed} of {windows} windows get other tokens from their text; {remedy}"]


def _not_carried(batch: TokenBatch) -> list[str]:
    """Return what the tokens alone don't say."""
    notes: list[str] = []
    weights = batch.weights[batch.mask]
    least = float(weights.min())
    most = float(weights.max())
    if least != most:
        notes.append(
            f"left out: weights of {least:.3f} to {most:.3f}, which say how much each token "
            "counts; no file has a place for them, so calibrate with the set itself in Calibrant "
            "where they matter"
        )
    if batch.pads is not None:
        notes.append(f"{int(batch.pads.sum())} of the tokens are pads that count as tokens")
    return notes


def _whole_path(name: str) -> str:
    """Return a model's name as a script in another folder can use it."""
    path = Path(name).expanduser()
    if path.exists():
        return str(path.resolve())
    return name
