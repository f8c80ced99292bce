"""Looks up the names in expressions for calibration data, which `calibrant.spec.grammar` reads.

Four names stand for a format with its packing: zero, single, icl, cot.
"""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

from calibrant.data._base import Format, PerDraw, Source, family_of
from calibrant.data._columns import USUAL
from calibrant.data._files import short
from calibrant.data.formats import formats
from calibrant.data.given import Given
from calibrant.data.packings import packings
from calibrant.data.packings._base import Packing
from calibrant.data.packings.many import Many
from calibrant.data.packings.one import One
from calibrant.data.sources import sources
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError, InputError, SpecError
from calibrant.spec import Call, build, canonical, text_of, written_form
from calibrant.spec.foreign import did_you_mean, user_path
from calibrant.spec.grammar import (
    File,
    SetLabel,
    WrittenTerm,
    is_path,
    pieces,
    read_call,
    read_source,
    read_sum,
    written_path,
    written_sum,
)
from calibrant.spec.registry import Registry

selectors: Final = Registry("calibrant.data.select", "selector")
"""What chooses or writes rows, with a model or without; it stands where a source's name stands.

Only the names are known here, from the files there are: `select` needs models, which need data.
"""

NAMED_PAIRS: Final = {
    "zero": ("question", "one"),
    "single": ("qa", "one"),
    "icl": ("qa", "many"),
    "cot": ("cot", "many"),
}
"""The names that stand for a format with its packing."""
_MARKS: Final = frozenset("(),:@+*=\"'")
"""What has a meaning in an expression, and may be in the name of a file."""


@dataclass(frozen=True)
class Term:
    """One part of a set: rows of `source`, rendered by `format`, cut into windows by `packing`.

    It gets `share` of the budget.
    """

    source: Source
    format: Format
    packing: Packing
    share: Fraction = Fraction(1)

    def __str__(self) -> str:
        """Return the text without the share, such as `gsm8k:cot`.

        What the source has by default is left out; a named pair is called by its name.
        """
        form, packing = self._written_names
        text = str(self.source)
        if form:
            text += f":{form}"
        if packing:
            text += f"@{packing}"
        return text

    @property
    def content_key(self) -> Hashable:
        """What is read and how. It is the same for two paths of one file."""
        source: Hashable = str(self.source)
        if isinstance(self.source, UserFile):
            path = self.source.file
            # A link may have another ending, and is read as that says.
            ending = os.path.splitext(path)[1]
            source = os.path.realpath(path), ending, self.source.requested
        return source, str(self.format), str(self.packing), self.share

    @property
    def label(self) -> SetLabel:
        """What a set of this part alone is called, in its parts."""
        form, packing = self._written_names
        format_name = form
        if form and form not in NAMED_PAIRS:
            format_name = self.format.spec_name()
        name = ""
        if not isinstance(self.source, UserFile):
            name = self.source.spec_name()
        return SetLabel(
            str(self),
            source=str(self.source),
            name=name,
            format=format_name,
            packing=packing,
            rest="@".join(filter(None, (form, packing))),
            family=family_of(self.source),
        )

    @property
    def _written_names(self) -> tuple[str, str]:
        """What the text says of format and packing; nothing of what goes without saying."""
        form = str(self.format)
        packing = str(self.packing)
        for pair, pair_names in NAMED_PAIRS.items():
            if pair_names == (form, packing):
                return pair, ""
        if form == _default_format(self.source):
            form = ""
        if self.packing == _default_packing(self.source, self.format):
            packing = ""
        elif packing == self.packing.spec_name() and self.packing != self._packing_of_bare_name:
            packing = written_form(canonical(self.packing))
        return form, packing

    @property
    def _packing_of_bare_name(self) -> Packing:
        """What the packing's name alone is read as, which may depend on the format."""
        return type(self.packing).bare(self.format.spec_name())


def parse_expression(text: str) -> tuple[Term, ...]:
    """Return the parts of a sum; their shares sum to one.

    Raises `SpecError` for what can't be read, `DataError` for what doesn't fit together.
    """
    return tuple(map(term_of, read_sum(text)))


def written(terms: Sequence[Term]) -> str:
    """Return the one text that stands for these parts, with weights that are exact."""
    return written_sum(list(map(str, terms)), [term.share for term in terms])


def text_of_source(source: Source) -> str:
    """Return the text of a source, or a selector, which is read back as an equal one from now on.

    Raises `SpecError` where it can't be.
    """
    if isinstance(source, UserFile | Given):
        return str(source)
    registry = selectors if isinstance(source, PerDraw) else sources
    return registry.text(source)


def parse_source(
    text: str | Call | File | Source,
    columns: Mapping[str, Any] = MappingProxyType({}),
) -> Source:
    """Return the source that a name or a path stands for, with its arguments if it has any.

    `columns` are more arguments of a user's file.
    """
    if isinstance(text, Source):
        text = text_of_source(text)
    call = text
    if isinstance(call, str):
        try:
            call = read_source(call)
        except SpecError as error:
            refuse_unquoted(call, error)
            raise
    if isinstance(call, File):
        user_path(call.path, DataError)
        return build(UserFile, {"path": call.path, **call.arguments, **columns})
    name = call.name
    if name == Given.spec_name() and call.arguments:  # without, it may be a folder's name
        return build(Given, call.arguments)
    if sources.knows(name):
        return sources.build(call)
    if not selectors.knows(name):
        if os.path.exists(user_path(name, DataError)):  # a file or folder, which needs no ./ here
            return build(UserFile, {"path": name, **call.arguments, **columns})
        # An unknown name is looked up where a near one is, so that the error can propose it.
        if not did_you_mean(name, selectors.names()):
            return sources.build(call)  # which raises
    # What stands in a selector's brackets may be a set, quoted or not: the selector reads it.
    arguments: dict[str, Any] = {}
    for key, value in call.arguments.items():
        if isinstance(value, Call):
            value = text_of(value)
        arguments[key] = value
    return build(selectors.get(name), arguments)


def parse_format(text: str | Call) -> tuple[Format, Packing | None]:
    """Return the format that a name stands for; a named pair brings a packing too.

    Arguments are the format's, as in `cot(steps=3)`.
    """
    call = _call(text)
    known = list(dict.fromkeys([*formats.names(), *NAMED_PAIRS]))
    if call.name not in known:
        raise _unknown("format", call.name, known)
    if call.name not in NAMED_PAIRS:
        return build(formats.get(call.name), call.arguments), None
    form, packing = NAMED_PAIRS[call.name]
    return build(formats.get(form), call.arguments), packings.get(packing)()


def parse_packing(text: str | Call, format_name: str = "") -> Packing:
    """Return the packing that `one`, `many(separator=' ')`, … stands for.

    What a bare name stands for may depend on the format.
    """
    call = _call(text)
    if call.name not in packings.names():
        raise _unknown("packing", call.name, packings.names())
    packing_class: type[Packing] = packings.get(call.name)
    if not call.arguments:
        return packing_class.bare(format_name)
    return build(packing_class, call.arguments)


def _call(text: str | Call) -> Call:
    if isinstance(text, Call):
        return text
    return read_call(text)


def refuse_unquoted(text: str, error: InputError) -> None:
    """Raise `DataError` where a text that can't be used, because of `error`, is the name of a file
    that an expression can't hold without quotes.
    """
    try:
        path = user_path(text)
    except InputError:
        return
    if _MARKS.isdisjoint(text) or not os.path.exists(path):
        return
    try:
        misread = read_sum(text) != (WrittenTerm(File(text)),)
    except InputError:
        misread = True
    if misread:
        advice = f"write its name in quotes of its own, as in {written_path(text)}"
        message = f"there is a file {text!r}, and without quotes it is read as something else"
        raise DataError(f"{message}; {advice}", subject=text) from error


def held_out(source: str, form: str | None = None) -> tuple[Source, Format]:
    """Return a source to measure on and how its rows are rendered, by default as for calibration.

    The format may stand behind the source, as in a set. Raises `DataError` for a control,
    and for data that came as an object.

    >>> held_out("gsm8k"), held_out("gsm8k:cot")
    ((gsm8k, qa), (gsm8k, cot))
    """
    name, behind = _with_format(source)
    if behind is not None and form:
        message = f"names a format where {form!r} is the format already; write {name!r}"
        raise SpecError(f"{source!r} {message}", subject=source)
    measured = parse_source(name)
    if measured.kind == "control":
        message = "is a control: there is nothing in it to predict"
        raise DataError(
            f"{source!r} {message}; measure on a corpus or a question set", subject=source
        )
    if isinstance(measured, Given):
        measured.refuse_measuring()
    rendered, _ = parse_format(behind or form or _default_format(measured))
    _check_fields(measured, rendered)
    return measured, rendered


def _with_format(source: str) -> tuple[str, str | None]:
    """Return the source and the format of `gsm8k:cot`.

    The format is None where the text is all source, as a path with a colon may be.
    """
    parts = pieces(source, ":")
    if len(parts) != 2 or is_path(parts[1].partition("(")[0]):
        return source, None
    if os.path.exists(user_path(source, DataError)):  # which is False where it may not be looked at
        return source, None
    form = parts[1].strip()
    if not form:
        raise SpecError(
            f"{source!r} names no format behind the colon; write one, as in gsm8k:cot, or no colon",
            subject=source,
        )
    return parts[0].strip(), form


def term_of(part: WrittenTerm) -> Term:
    """Return the part with its names looked up.

    Raises `SpecError` for one that there isn't, `DataError` for what doesn't fit together.
    """
    columns: dict[str, Any] = {}
    form = part.format
    if form and isinstance(part.source, File):
        columns, form = _columns_in(form)
    source = parse_source(part.source, columns)
    # Here, before rows are read; elsewhere a file that is only measured on is fine.
    if isinstance(source, UserFile):
        source.check_calibrates()
    rendered, packing = parse_format(form or _default_format(source))
    _check_fields(source, rendered)
    if part.packing:
        packing = parse_packing(part.packing, rendered.spec_name())
    return Term(source, rendered, packing or _default_packing(source, rendered), part.share)


def _columns_in(call: Call) -> tuple[dict[str, Any], Call]:
    """Return the columns of a file that `icl(question="Q", answer="A")` names, and the rest."""
    columns = {name: value for name, value in call.arguments.items() if name in USUAL}
    others = {name: value for name, value in call.arguments.items() if name not in USUAL}
    return columns, Call(call.name, others)


def _default_format(source: Source) -> str:
    if source.default:
        return source.default
    return "icl" if source.kind == "questions" else "text"


def _default_packing(source: Source, form: Format) -> Packing:
    # Token ids are windows already, with the start tokens that they are to have.
    if "ids" in source.fields:
        return One(bos="none")
    # No separator: a chat template ends its texts itself, and a control is to have no other tokens.
    if source.kind == "control" or form.spec_name() == "chat":
        return Many(separator="")
    return Many()


def missing_fields(source: Source, form: Format) -> list[str]:
    """Return the fields that a format needs and a source's rows lack; none where it fits."""
    fields = {*source.fields, *source.sometimes}
    if fields & {"integers", "ids"}:
        fields.add("text")
    if "turns" in fields and form.spec_name() == "chat":
        return []
    return [name for name in form.needs if name not in fields]


def _check_fields(source: Source, form: Format) -> None:
    missing = missing_fields(source, form)
    if not missing:
        return
    subject = str(source)
    if isinstance(source, UserFile):
        message = _missing_columns(source, missing)
    else:
        others = [name for name in sources.names() if set(form.needs) <= _declared_fields(name)]
        needed = f"needs {', '.join(missing)}, and {source} has {', '.join(source.fields)}"
        message = f"{needed}; sets that have it: {', '.join(others)}"
    raise DataError(f"{subject} can't be rendered as {form}: that {message}", subject=subject)


def _missing_columns(source: UserFile, missing: Sequence[str]) -> str:
    """Say which columns a file has instead, and what to type."""
    message = f"needs {' and '.join(missing)}"
    remedies: list[str] = []
    if "ids" in source.fields:
        message = f"{message}, and it holds token ids"
    else:
        message = f"{message}, and its columns are {', '.join(map(short, source.columns[:20]))}"
    if len(source.columns) > len(missing):
        columns = [f"{name}={column}" for name, column in source.requested]
        columns += [f"{name}=COLUMN" for name in missing]
        example = f"{written_path(source.path)}({', '.join(columns)})"
        remedies.append(f"say which to read, as in {example}")
    for name in ("text", "qa", "question"):
        if not missing_fields(source, formats.build(name)):
            remedies.append(f"take {source}:{name}")
            break
    if not remedies:
        return message
    return f"{message}; {', or '.join(remedies)}"


def _declared_fields(name: str) -> set[str]:
    source_class = sources.get(name)
    return {*getattr(source_class, "fields", ()), *getattr(source_class, "sometimes", ())}


def _unknown(noun: str, name: str, names: list[str]) -> SpecError:
    known = f"(known: {', '.join(names)})"
    meant = did_you_mean(name, names)
    return SpecError(f"there is no {noun} called {name!r}{meant} {known}", subject=name)
