"""Expressions for calibration data (`calibrant.grammar` reads them) with their names looked up, so that they can be drawn from.

Four names stand for a format with its packing: zero, single, icl, cot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

from calibrant.data._base import FIELDS, Format, PerDraw, Source, family_of
from calibrant.data.formats import formats
from calibrant.data.packings import packings
from calibrant.data.packings._base import Packing
from calibrant.data.packings.many import Many
from calibrant.data.sources import sources
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError, SpecError
from calibrant.foreign import user_path
from calibrant.grammar import File, Part, SetLabel, is_path, numbers, pieces, read_name, read_source, read_sum
from calibrant.registry import Registry, did_you_mean
from calibrant.spec import Call, build, text_of

selectors: Final = Registry("calibrant.select", "selector")
"""What chooses or makes rows with a model's help stands where a source's name stands. Only its names are known here; the list is its files."""

PAIRS: Final = {"zero": ("question", "one"), "single": ("qa", "one"), "icl": ("qa", "many"), "cot": ("cot", "many")}


@dataclass(frozen=True)
class Term:
    """One part of a set: rows of `source`, rendered by `format`, cut into windows by `packing`; `share` of the budget."""

    source: Source
    format: Format
    packing: Packing
    share: Fraction = Fraction(1)

    def __str__(self) -> str:
        """Return the text without the share, such as `gsm8k:cot`: what is the default of a corpus is left out, a named pair is called by its name."""
        form, packing = self._written_names
        return f"{self.source}{form and f':{form}'}{packing and f'@{packing}'}"

    @property
    def label(self) -> SetLabel:
        """What a set of this part alone is called, in its parts."""
        form, packing = self._written_names
        name = "" if isinstance(self.source, UserFile) else self.source.spec_name()
        plain = form if form in PAIRS else form and self.format.spec_name()
        return SetLabel(str(self), str(self.source), name, plain, packing, "@".join(filter(None, self._written_names)), family_of(self.source))

    @property
    def _written_names(self) -> tuple[str, str]:
        """What the text says of format and packing; nothing of what goes without saying."""
        pair = next((name for name, names in PAIRS.items() if names == (str(self.format), str(self.packing))), None)
        if pair:
            return pair, ""
        unsaid = _format_of(self.source) == str(self.format)
        return "" if unsaid else str(self.format), "" if self.packing == _packing_of(self.source, self.format) else str(self.packing)


def parse_expression(text: str) -> tuple[Term, ...]:
    """Return the parts of a set; their shares sum to one. `SpecError` for what can't be read, `DataError` for what doesn't fit together."""
    return tuple(map(term_of, read_sum(text)))


def written(terms: Sequence[Term]) -> str:
    """Return the one text that stands for these parts, with weights that are exact: decimals where they are short, else whole numbers."""
    if len(terms) == 1:
        return str(terms[0])
    return " + ".join(f"{number}*{term}" for number, term in zip(numbers([term.share for term in terms]), terms, strict=True))


def text_of_source(source: Source) -> str:
    """Return the text of a source, or a selector, which is read back as an equal one from now on. `SpecError` where it can't be."""
    if isinstance(source, UserFile):
        return str(source)
    return (selectors if isinstance(source, PerDraw) else sources).text(source)


def parse_source(text: str | Call | File | Source, columns: Mapping[str, Any] = MappingProxyType({})) -> Source:
    """Return the source that a name or a path stands for, with its arguments if it has any; `columns` are more of a user's file's."""
    if isinstance(text, Source):
        text = text_of_source(text)
    call = read_source(text) if isinstance(text, str) else text
    if isinstance(call, File):
        user_path(call.path, DataError)
        return build(UserFile, {"path": call.path, **call.arguments, **columns})
    name = call.name
    if not sources.knows(name) and not selectors.knows(name) and user_path(name, DataError).exists():
        return build(UserFile, {"path": name, **call.arguments, **columns})  # a file or folder, which needs no ./ where no source is called so
    if not sources.knows(name) and (selectors.knows(name) or did_you_mean(name, selectors.names())):
        # What stands in a selector's brackets may be a set in itself, quoted or not: it is read by the selector.
        inner = {key: text_of(value) if isinstance(value, Call) else value for key, value in call.arguments.items()}
        return build(selectors.get(name), inner)
    return sources.build(call)


def parse_format(text: str | Call) -> tuple[Format, Packing | None]:
    """Return the format that a name stands for; a named pair brings a packing too. Arguments are the format's, as in `cot(steps=3)`."""
    call = read_name(text) if isinstance(text, str) else text
    known = [*formats.names(), *(pair for pair in PAIRS if pair not in formats.names())]
    if call.name not in known:
        raise _unknown("format", call.name, known)
    form, packing = PAIRS.get(call.name, (call.name, None))
    return build(formats.get(form), call.arguments), packings.get(packing)() if packing else None


def parse_packing(text: str | Call, format_name: str = "") -> Packing:
    """Return the packing that `one`, `many(separator=' ')`, … stands for; what a bare name stands for may depend on the format."""
    call = read_name(text) if isinstance(text, str) else text
    if call.name not in packings.names():
        raise _unknown("packing", call.name, packings.names())
    cls: type[Packing] = packings.get(call.name)
    return build(cls, call.arguments) if call.arguments else cls.bare(format_name)


def held_out(source: str, form: str | None = None) -> tuple[Source, Format]:
    """Return a source to measure on and how its rows are rendered; the default is that of calibration. `DataError` for a control.

    The format may stand behind the source, as in a calibration set.

    >>> held_out("gsm8k"), held_out("gsm8k:cot")
    ((gsm8k, qa), (gsm8k, cot))
    """
    name, colon, behind = _with_format(source)
    if colon and form:
        raise SpecError(f"{source!r} names a format where {form!r} is the format already; write {name!r}", subject=source)
    read, form = parse_source(name), behind or form
    if read.kind == "control":
        raise DataError(f"{source!r} is a control: there is nothing in it to predict; measure on a corpus or a question set", subject=source)
    rendered, _ = parse_format(form or _format_of(read))
    _check_fields(read, rendered)
    return read, rendered


def _with_format(source: str) -> tuple[str, str, str]:
    """Return the source, the colon and the format of `gsm8k:cot`; no colon and no format where the text is all source, as a path may be."""
    names = pieces(source, ":")
    if len(names) != 2 or is_path(names[1]) or user_path(source, DataError).exists():
        return source, "", ""
    return names[0].strip(), ":", names[1].strip()


def term_of(part: Part) -> Term:
    """Return the part with its names looked up. `SpecError` for one that there isn't, `DataError` for what doesn't fit together."""
    columns, form = _columns_in(part.format) if part.format and isinstance(part.source, File) else ({}, part.format)
    source = parse_source(part.source, columns)
    if isinstance(source, UserFile):
        source.check_calibrates()
    rendered, packing = parse_format(form or _format_of(source))
    _check_fields(source, rendered)
    if part.packing:
        packing = parse_packing(part.packing, rendered.spec_name())
    return Term(source, rendered, packing or _packing_of(source, rendered), part.share)


def _columns_in(call: Call) -> tuple[dict[str, Any], Call]:
    """Return the columns of a user's file that `icl(question="Q", answer="A")` names, and the format with its own arguments."""
    columns = {name: value for name, value in call.arguments.items() if name in FIELDS}
    return columns, Call(call.name, {name: value for name, value in call.arguments.items() if name not in FIELDS})


def _format_of(source: Source) -> str:
    return source.default or ("icl" if source.kind == "questions" else "text")


def _packing_of(source: Source, form: Format) -> Packing:
    return Many(separator="") if source.kind == "control" or form.spec_name() == "chat" else Many()


def _check_fields(source: Source, form: Format) -> None:
    fields = {*source.fields, *source.sometimes, *(["text"] if "integers" in source.fields else [])}
    if "turns" in fields and form.spec_name() == "chat":
        return
    missing = [name for name in form.needs if name not in fields]
    if missing:
        others = [name for name in sources.names() if set(form.needs) <= {*_declared(name, "fields"), *_declared(name, "sometimes")}]
        raise DataError(
            f"{source} can't be rendered as {form}: that needs {', '.join(missing)}, and {source} has {', '.join(source.fields)}; "
            f"sets that have it: {', '.join(others)}",
            subject=str(source),
        )


def _declared(name: str, which: str) -> tuple[str, ...]:
    return getattr(sources.get(name), which, ())


def _unknown(noun: str, name: str, names: list[str]) -> SpecError:
    return SpecError(f"there is no {noun} called {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})", subject=name)
