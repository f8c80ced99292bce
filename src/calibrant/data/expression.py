"""What calibration data is asked for, as text: `source[:format][@packing]`, or a sum `0.3*gsm8k:cot + 0.7*c4`.

`mix(domain=gsm8k:cot, general=c4, weight=0.5)` is of two such texts, each a set of the whole budget: what the model's matrices see of each, divided
by its own tokens, is added, 0.5 of the first and the rest of the second. It stands alone, and the names are the user's own. Of more than two, each
has its weight in a list, `mix(a=c4, b=pile, c=gsm8k:cot, weights=[0.2, 0.3, 0.5])`; without weights all count alike.

Everywhere a name may carry arguments (`c4@many(separator=' ')`), read as literals and never evaluated. A path, quoted or not, stands where a
source's name stands. Four names stand for a format with its packing: zero, single, icl, cot.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

from calibrant.data._base import FIELDS, Format, Source
from calibrant.data.formats import formats
from calibrant.data.packing import PACKINGS, Legacy, Many, Packing, packings
from calibrant.data.sources import sources
from calibrant.data.user_file import UserFile, is_path
from calibrant.errors import DataError, SpecError
from calibrant.foreign import user_path, user_text
from calibrant.registry import Registry, did_you_mean
from calibrant.spec import Call, build, parse, text_of

selectors: Final = Registry("calibrant.select", "selector")
"""What chooses or makes rows with a model's help stands where a source's name stands. Only its names are known here; the list is its files."""

PAIRS: Final = {"zero": ("question", "one"), "single": ("qa", "one"), "icl": ("qa", "many"), "cot": ("cot", "many")}
_NUMBER: Final = re.compile(r"-?[0-9]{0,100}\.?[0-9]{1,100}([eE]-?[0-9]{1,20})?|-?[0-9]{1,100}\.")
LARGEST_EXPONENT: Final = 30
"""Weights are exact fractions, so one of 1e999999999 would be a number of a billion digits."""
MOST_DIGITS: Final = 100
"""Of the whole numbers that weights become where they are no short decimals."""
MOST_PARTS: Final = 256
"""Of a sum or a mix."""
_EXAMPLE: Final = "write source[:format][@packing], for example gsm8k:cot or 0.3*gsm8k:cot + 0.7*wikitext"
_MIX: Final = re.compile(r"\s*mix\s*\(")
_MIX_EXAMPLE: Final = (
    "write sets, each with a name of your own, and for two the weight of the first, mix(domain=gsm8k:cot, general=c4, weight=0.5), "
    "for more a weight each, mix(a=c4, b=pile, c=gsm8k, weights=[0.2, 0.3, 0.5]), or no weights for equal ones"
)


@dataclass(frozen=True)
class Term:
    """One part of a set: rows of `source`, rendered by `format`, cut into windows by `packing`; `share` of the budget."""

    source: Source
    format: Format
    packing: Packing
    share: Fraction = Fraction(1)

    def __str__(self) -> str:
        """The text without the share, such as `gsm8k:cot`: what is the default of a corpus is left out, a named pair is called by its name."""
        pair = next((name for name, names in PAIRS.items() if names == (str(self.format), str(self.packing))), None)
        if pair:
            return f"{self.source}:{pair}"
        unsaid = _format_of(self.source) == str(self.format)
        packing = "" if self.packing == _packing_of(self.source, self.format) else f"@{self.packing}"
        return f"{self.source}{'' if unsaid else f':{self.format}'}{packing}"


@dataclass(frozen=True)
class Mix:
    """Calibration sets as texts, the names that the user gave them, and the weight of each in the sum of their statistics, all above 0."""

    names: tuple[str, ...]
    parts: tuple[str, ...]
    shares: tuple[Fraction, ...]

    def __str__(self) -> str:
        # Quotes around all of a part are taken for the mix's own, so a path that stands in quotes gets empty brackets behind it.
        texts = [part if part == _unquoted(part) else f"{part}()" for part in self.parts]
        given = [f"{name}={text}" for name, text in zip(self.names, texts, strict=True)]
        if len(texts) == 2:
            given.append(f"weight={float(self.shares[0])}")
        elif len(set(self.shares)) > 1:
            given.append(f"weights=[{', '.join(_numbers(self.shares))}]")
        return f"mix({', '.join(given)})"


def parse_mix(text: str) -> Mix | None:
    """The mix that `text` asks for; None if it asks for none. Parts of weight 0 are left out, so that one alone may be left.

    `SpecError` for one that can't be read, `DataError` for a weight below 0 or above 1, or none above 0.
    """
    if not _MIX.match(user_text(text, SpecError)) or len(_split(text, "+")) > 1:
        return None
    body, given = text.strip(), dict[str, str]()
    listed = _split(body[body.index("(") + 1 : -1], ",") if body.endswith(")") else []
    _check_count("mix", sum(len(_split(argument, "+")) for argument in listed), text)
    for argument in listed:
        name, *values = (piece.strip() for piece in _split(argument, "="))
        if len(values) != 1 or not name.isidentifier() or name in given:
            raise SpecError(f"{body!r}: {argument.strip()!r} is no name=value of its own; {_MIX_EXAMPLE}", subject=text)
        given[name] = _unquoted(values[0])
    weight, weights = given.pop("weight", None), given.pop("weights", None)
    for part in filter(_MIX.match, given.values()):
        raise _stands_alone(part)
    shares = _shares(body, list(given), weight, weights)
    kept = [(name, part, share) for (name, part), share in zip(given.items(), shares, strict=True) if share]
    names, parts, rest = zip(*kept, strict=True)
    return Mix(names, parts, rest)


def _shares(body: str, names: Sequence[str], weight: str | None, weights: str | None) -> list[Fraction]:
    """The weight of each set of a mix; they sum to one."""
    listed = (weights or "").strip()
    several = [piece.strip() for piece in listed[1:-1].split(",")] if listed[:1] == "[" and listed[-1:] == "]" else [listed]
    told = [weight] if weight is not None else several if weights is not None else []
    fits = len(names) == 2 if weight is not None else len(names) > 1 and len(told) in (0, len(names))
    if (weight is not None and weights is not None) or not fits or not all(map(_NUMBER.fullmatch, told)):
        said = " and ".join(f"{name} {value!r}" for name, value in (("weight", weight), ("weights", weights)) if value is not None)
        sets = f"the sets {', '.join(names)}" if names else "no set"
        raise SpecError(f"{body!r} has {sets} and {said or 'no weights'}; {_MIX_EXAMPLE}", subject=body)
    numbers = [Fraction(repr(float(_exact(number, body)))) for number in told]  # what is written back is what is used
    if weight is not None and not 0 <= numbers[0] <= 1:
        raise DataError(f"{body!r}: the weight {weight} must be between 0 and 1: it is the share of {names[0]}", subject=body)
    if weights is not None and (min(numbers) < 0 or not any(numbers)):
        raise DataError(f"{body!r}: the weights {weights} must be at least 0, and one above it", subject=body)
    whole = [numbers[0], 1 - numbers[0]] if weight is not None else numbers or [Fraction(1)] * len(names)
    shares = [number / sum(whole) for number in whole]
    return shares if len(shares) != 2 else [first := Fraction(repr(float(shares[0]))), 1 - first]


def parse_expression(text: str) -> tuple[Term, ...]:
    """The parts of a set; their shares sum to one. `SpecError` for what can't be read, `DataError` for what doesn't fit together."""
    if not user_text(text, SpecError).strip():
        raise SpecError(f"an empty calibration set {text!r}; {_EXAMPLE}", subject=text)
    summed = _split(text, "+")
    _check_count("sum", len(summed), text)
    weighted = [_weighted(term, text) for term in summed]
    given = [weight for weight, _ in weighted if weight is not None]
    if given and len(given) < len(weighted):
        raise SpecError(f"{text!r}: some parts have a weight and some have none; give each one, or none", subject=text)
    weights = given or [Fraction(1)] * len(weighted)
    if sum(weights) * math.lcm(*(weight.denominator for weight in weights)) >= 10**MOST_DIGITS:
        raise SpecError(f"{text!r}: its weights are of too many digits, or too far apart; leave out what hardly counts", subject=text)
    return tuple(_term(body, weight / sum(weights)) for weight, (_, body) in zip(weights, weighted, strict=True))


def written(terms: Sequence[Term]) -> str:
    """The one text that stands for these parts, with weights that are exact: decimals where they are short, else whole numbers."""
    if len(terms) == 1:
        return str(terms[0])
    return " + ".join(f"{number}*{term}" for number, term in zip(_numbers([term.share for term in terms]), terms, strict=True))


def _numbers(shares: Sequence[Fraction]) -> list[str]:
    """Shares as texts that are exact: decimals where they are short, else whole numbers."""
    if all((share * 10_000).denominator == 1 for share in shares):
        return [str(float(share)) for share in shares]
    common = Fraction(math.lcm(*(share.denominator for share in shares)))
    return [str(int(share * common)) for share in shares]


def parse_source(text: str, columns: Mapping[str, Any] = MappingProxyType({})) -> Source:
    """The source that a name or a path stands for, with its arguments if it has any; `columns` are more of a user's file's."""
    text = user_text(text, SpecError).strip()
    if text[:1] in ("'", '"') and text.find(text[0], 1) > 0:
        end = text.index(text[0], 1)
        return _user_file(text[1:end], text[end + 1 :], columns)
    name, bracket, rest = text.partition("(")
    if is_path(name):
        return _user_file(name.strip(), bracket + rest, columns)
    if name.strip() not in sources.names() and (name.strip() in selectors.names() or did_you_mean(name, selectors.names())):
        call = _call(text)
        # What stands in a selector's brackets may be a set in itself, quoted or not: it is read by the selector.
        return build(selectors.get(call.name), {key: text_of(value) if isinstance(value, Call) else value for key, value in call.arguments.items()})
    return sources.build(text)


def parse_format(text: str) -> tuple[Format, Packing | None]:
    """The format that a name stands for; a named pair brings a packing too. Arguments are the format's, as in `cot(steps=3)`."""
    call = _call(text)
    known = [*formats.names(), *(pair for pair in PAIRS if pair not in formats.names())]
    if call.name not in known:
        raise _unknown("format", call.name, known)
    form, packing = PAIRS.get(call.name, (call.name, None))
    return build(formats.get(form), call.arguments), PACKINGS[packing]() if packing else None


def parse_packing(text: str) -> Packing:
    """The packing that `one`, `many(separator=' ')`, … stands for."""
    call = _call(text)
    if call.name not in packings.names():
        raise _unknown("packing", call.name, packings.names())
    return build(packings.get(call.name), call.arguments)


def held_out(source: str, form: str | None = None) -> tuple[Source, Format]:
    """A source to measure on and how its rows are rendered; the default is that of calibration. `DataError` for a control."""
    found = parse_source(source)
    if found.kind == "control":
        raise DataError(f"{source!r} is a control: there is nothing in it to predict; measure on a corpus or a question set", subject=source)
    chosen, _ = parse_format(form or _format_of(found))
    _check_fields(found, chosen)
    return found, chosen


def _term(body: str, share: Fraction) -> Term:
    if _MIX.match(body):
        raise _stands_alone(body)
    named, *packed = _split(body, "@")
    name, *formatted = _split(named, ":")
    if len(packed) > 1 or len(formatted) > 1 or not name.strip():
        raise SpecError(f"{body.strip()!r} is no calibration set; {_EXAMPLE}, and quote a path that has : @ + or * in it", subject=body)
    columns, asked = _columns_in(formatted[0]) if formatted else ({}, "")
    source = parse_source(name, columns)
    if isinstance(source, UserFile):
        source.check_calibrates()
    if formatted and not isinstance(source, UserFile):
        asked = formatted[0]
    form, packing = parse_format(asked or _format_of(source))
    _check_fields(source, form)
    if packed:
        packing = parse_packing(packed[0])
        if isinstance(packing, Legacy) and packed[0].strip() == packing.spec_name():
            packing = Legacy({"text": "crop", "question": "one"}.get(form.spec_name(), packing.of))
    return Term(source, form, packing or _packing_of(source, form), share)


def _columns_in(asked: str) -> tuple[dict[str, Any], str]:
    """`icl(question="Q", answer="A")` names columns of a user's file; what is left are the format's own arguments."""
    call = _call(asked)
    columns = {name: value for name, value in call.arguments.items() if name in FIELDS}
    left = ", ".join(f"{name}={text_of(value)}" for name, value in call.arguments.items() if name not in FIELDS)
    return columns, f"{call.name}({left})" if left else call.name


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


def _weighted(term: str, text: str) -> tuple[Fraction | None, str]:
    pieces = _split(term, "*")
    if len(pieces) == 1:
        return None, term
    number = pieces[0].strip()
    if len(pieces) > 2 or not _NUMBER.fullmatch(number):
        raise SpecError(
            f"{text!r}: {number!r} is no weight; write a number, as in 0.3*gsm8k:cot + 0.7*wikitext, and quote a path that has * in it", subject=text
        )
    weight = _exact(number, text)
    if weight <= 0:
        raise DataError(f"{text!r}: the weight {number} must be above 0; leave a part out instead of giving it nothing", subject=text)
    return weight, pieces[1]


def weight_of(number: str) -> Fraction | None:
    """The exact weight that a text is; None for one that is no number, or has an exponent beyond ±30: that is looked at before anything is built."""
    found = _NUMBER.fullmatch(number)
    if found is None or abs(int((found[1] or "e0")[1:])) > LARGEST_EXPONENT:
        return None
    return Fraction(number.rstrip(".") if number.endswith(".") else number)


def _exact(number: str, text: str) -> Fraction:
    weight = weight_of(number)
    if weight is None:
        raise SpecError(f"{text!r}: the weight {number} has an exponent beyond ±{LARGEST_EXPONENT}; write one nearer to 1", subject=text)
    return weight


def _check_count(what: str, count: int, text: str) -> None:
    if count > MOST_PARTS:
        raise SpecError(f"{text!r} is a {what} of {count:,} parts; it may have {MOST_PARTS}: put rows into one file instead", subject=text)


def _user_file(path: str, arguments: str, columns: Mapping[str, Any]) -> UserFile:
    call = _call(f"file{arguments}") if arguments.strip() else Call("file")
    if "path" in call.arguments:
        raise SpecError(f"{path!r}: the path stands before the brackets; within them are the columns, as in {path}(text=body)", subject=path)
    user_path(path, DataError)
    return build(UserFile, {"path": path, **call.arguments, **columns})


def _call(text: str) -> Call:
    found: Any = parse(text)
    if not isinstance(found, Call):
        raise SpecError(f"{text.strip()!r} is no name; {_EXAMPLE}", subject=text)
    return found


def _unknown(noun: str, name: str, names: list[str]) -> SpecError:
    return SpecError(f"there is no {noun} called {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})", subject=name)


def _stands_alone(mix: str) -> SpecError:
    return SpecError(f"{mix.strip()!r} can't be part of a sum or of another mix, because it is of whole sets; {_MIX_EXAMPLE}", subject=mix)


def _unquoted(text: str) -> str:
    """What stands in quotes that go around all of `text`; a path that needs quotes of its own stands in two kinds."""
    return text[1:-1] if text[:1] in ("'", '"') and text.find(text[0], 1) == len(text) - 1 else text


def _split(text: str, mark: str) -> list[str]:
    """`text` cut at each `mark` that stands outside quotes and brackets."""
    pieces, begin, depth, quote, escaped = [], 0, 0, "", False
    for at, letter in enumerate(text):
        if quote:
            # Within brackets quotes are Python's; around a path they are plain, since Windows paths are full of backslashes.
            escaped, closed = (letter == "\\" and not escaped and depth > 0), (letter == quote and not escaped)
            quote = "" if closed else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif letter == mark and not depth:
            pieces.append(text[begin:at])
            begin = at + 1
    if quote or depth:
        raise SpecError(f"{text.strip()!r}: a {'quote' if quote else 'bracket'} isn't closed", subject=text)
    return [*pieces, text[begin:]]
