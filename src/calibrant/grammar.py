"""The grammar of calibration data and of targets: `source[:format][@packing]`, a sum `0.3*gsm8k:cot + 0.7*c4`, or a mix of such.

`mix(domain=gsm8k:cot, general=c4, weight=0.5)` is of two such texts, each a set of the whole budget: what the model's matrices see of each, divided
by its own tokens, is added, 0.5 of the first and the rest of the second. It stands alone, and the names are the user's own. Of more than two, each
has its weight in a list, `mix(a=c4, b=pile, c=gsm8k:cot, weights=[0.2, 0.3, 0.5])`; without weights all count alike.

Everywhere a name may carry arguments (`c4@many(separator=' ')`), which are specs: read as literals and never evaluated. A path, quoted or not,
stands where a source's name stands. Only names are read here; whether there is such a source, `data` decides.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Literal, NamedTuple

from calibrant.errors import DataError, InputError, SpecError
from calibrant.families import Family
from calibrant.foreign import share_number, user_text, whole_number
from calibrant.spec import Call, parse, text_of

_NUMBER: Final = re.compile(r"(?:-?[0-9]{0,100}\.?[0-9]{1,100}([eE]-?[0-9]{1,20})?|-?[0-9]{1,100}\.)(?: ?%)?")
"""A weight: `0.3`, or `30%`."""
_HYPHENED: Final = re.compile(r"[A-Za-z_]\w*(-\w+)+", re.ASCII)
"""A name that another package may have given, and Python would take for a difference."""
LARGEST_EXPONENT: Final = 30
"""Weights are exact fractions, so one of 1e999999999 would be a number of a billion digits."""
MOST_DIGITS: Final = 100
"""Of the whole numbers that weights become where they are no short decimals."""
MOST_PARTS: Final = 256
"""Of a sum or a mix."""
_GRID: Final = re.compile(r"w([0-9]+)(?:g([0-9]+))?(a?)")
_EXAMPLE: Final = "write source[:format][@packing], for example gsm8k:cot or 0.3*gsm8k:cot + 0.7*wikitext"
_MIX: Final = re.compile(r"\s*mix\s*\(")
_MIX_EXAMPLE: Final = (
    "write sets, each with a name of your own, and for two the weight of the first, mix(domain=gsm8k:cot, general=c4, weight=0.5), "
    "for more a weight each, mix(a=c4, b=pile, c=gsm8k, weights=[0.2, 0.3, 0.5]), or no weights for equal ones"
)


@dataclass(frozen=True)
class File:
    """A path that stands where a source's name stands, with the arguments in brackets behind it."""

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        return written_path(self.path) + (text_of(Call("", self.arguments)) if self.arguments else "")


@dataclass(frozen=True)
class Part:
    """One part of a set as it is written, and its share of the set; `format` and `packing` are None where the text names none."""

    source: Call | File
    format: Call | None = None
    packing: Call | None = None
    share: Fraction = Fraction(1)


@dataclass(frozen=True)
class Mix:
    """Calibration sets as texts, the names that the user gave them, and the weight of each in the sum of their statistics, all above 0."""

    names: tuple[str, ...]
    parts: tuple[str, ...]
    shares: tuple[Fraction, ...]

    def __str__(self) -> str:
        # Quotes around all of a part are taken for the mix's own, so a path that stands in quotes gets empty brackets behind it.
        texts = [part if part == _unquoted(part) else f"{part}()" for part in self.parts]
        arguments = [f"{name}={text}" for name, text in zip(self.names, texts, strict=True)]
        if len(texts) == 2:
            arguments.append(f"weight={float(self.shares[0])}")
        elif len(set(self.shares)) > 1:
            arguments.append(f"weights=[{', '.join(numbers(self.shares))}]")
        return f"mix({', '.join(arguments)})"


@dataclass(frozen=True)
class SetLabel:
    """What a calibration set is called, in its parts, so that nobody need take the text apart again.

    `source` is the source with its arguments, `name` without (empty for a file), `format` and `packing` are what the text says of them and empty
    where it says nothing, `rest` is all that stands behind the source. A sum or a mix has no parts of its own: its `source` is the whole text.
    """

    text: str
    source: str
    name: str = ""
    format: str = ""
    packing: str = ""
    rest: str = ""
    family: Family = "own"

    @property
    def control(self) -> bool:
        """Whether the set is without content, so that real text ought to beat it."""
        return self.family == "control"

    @property
    def mixed(self) -> bool:
        """Whether it is made of several sets."""
        return self.family == "mixed"


class TargetLabel(NamedTuple):
    """What a target says as it is written: a share (`0.5`), perhaps of other `parts` than weights (`blocks 0.25`), a pattern (`2:4`), or a grid.

    A grid, `w4g64a`, says bits, inputs of a group, and zero points.
    """

    text: str
    share: float | None = None
    pattern: tuple[int, int] | None = None
    bits: int | None = None
    group: int | None = None
    zeros: bool = False
    parts: Literal["blocks", "experts", "numbers"] | None = None


class MeasuredLabel(NamedTuple):
    """What an evaluator says that it measured, in its parts: the source, and as much as is needed where no other measures the same source."""

    source: str
    brief: str


def read_target(text: str) -> TargetLabel:
    """Read what a target's text says; of what is none of the three kinds, the text alone. Whether there is such a target, `targets` decides."""
    if grid := _GRID.fullmatch(text.strip()):
        bits, group = whole_number(grid[1]), whole_number(grid[2] or "0")
        if bits is not None and group is not None:  # None is a number that nobody means
            return TargetLabel(text, bits=bits, group=group if grid[2] else None, zeros=bool(grid[3]))
    first_number, colon, second_number = text.partition(":")
    n, m = whole_number(first_number), whole_number(second_number)
    if colon:
        return TargetLabel(text, pattern=(n, m) if n is not None and m is not None and min(n, m) >= 0 else None)
    first, _, rest = text.strip().partition(" ")
    if first == "blocks" or first == "experts" or first == "numbers":  # so that its type is one of the three
        return TargetLabel(text, share=share_number(rest), parts=first)
    return TargetLabel(text, share=share_number(text))


def read_set(text: str) -> Mix | tuple[Part, ...]:
    """Read an expression: the parts of a set, whose shares sum to one, or a mix of at least one set.

    Raises `SpecError` for a text that can't be read, `DataError` for a weight that can't be had.
    """
    return read_mix(text) or read_sum(text)


def read_mix(text: str) -> Mix | None:
    """The mix that `text` asks for; None if it asks for none. Parts of weight 0 are left out, so that one alone may be left.

    `SpecError` for one that can't be read, `DataError` for a weight below 0 or above 1, or none above 0.
    """
    if not _MIX.match(user_text(text, SpecError)) or len(pieces(text, "+")) > 1:
        return None
    body, arguments = text.strip(), dict[str, str]()
    listed = pieces(body[body.index("(") + 1 : -1], ",") if body.endswith(")") else []
    _check_count("mix", sum(len(pieces(argument, "+")) for argument in listed), text)
    for argument in listed:
        name, *values = (piece.strip() for piece in pieces(argument, "="))
        if len(values) != 1 or not name.isidentifier() or name in arguments:
            raise SpecError(f"{body!r}: {argument.strip()!r} is no name=value of its own; {_MIX_EXAMPLE}", subject=text)
        arguments[name] = _unquoted(values[0])
    weight, weights = arguments.pop("weight", None), arguments.pop("weights", None)
    for part in filter(_MIX.match, arguments.values()):
        raise _stands_alone(part)
    shares = _shares(body, list(arguments), weight, weights)
    present = [(name, part, share) for (name, part), share in zip(arguments.items(), shares, strict=True) if share]
    names, parts, rest = zip(*present, strict=True)
    return Mix(names, parts, rest)


def read_sum(text: str) -> tuple[Part, ...]:
    """The parts of a set; their shares sum to one. `SpecError` for what can't be read, `DataError` for a weight that isn't above 0."""
    if not user_text(text, SpecError).strip():
        raise SpecError(f"an empty calibration set {text!r}; {_EXAMPLE}", subject=text)
    summed = pieces(text, "+")
    _check_count("sum", len(summed), text)
    weighted = [_weighted(term, text) for term in summed]
    known = [weight for weight, _ in weighted if weight is not None]
    if known and len(known) < len(weighted):
        raise SpecError(f"{text!r}: some parts have a weight and some have none; give each one, or none", subject=text)
    weights = known or [Fraction(1)] * len(weighted)
    if sum(weights) * math.lcm(*(weight.denominator for weight in weights)) >= 10**MOST_DIGITS:
        raise SpecError(f"{text!r}: its weights are of too many digits, or too far apart; leave out what hardly counts", subject=text)
    return tuple(_part(body, weight / sum(weights)) for weight, (_, body) in zip(weights, weighted, strict=True))


def read_source(text: str) -> Call | File:
    """A source's name or the path of a file, with its arguments if it has any. `SpecError` for a text that is neither."""
    text = user_text(text, SpecError).strip()
    if text[:1] in ("'", '"') and text.find(text[0], 1) > 0:
        end = text.index(text[0], 1)
        return _file(text[1:end], text[end + 1 :])
    name, bracket, rest = text.partition("(")
    if is_path(name):
        return _file(name.strip(), bracket + rest)
    name_or_call: Any = Call(text) if _HYPHENED.fullmatch(text) else parse(text)
    if not isinstance(name_or_call, Call):
        raise SpecError(f"{text!r} is no source; write the name of one, such as wikitext, or the path of a file", subject=text)
    return name_or_call


def read_name(text: str) -> Call:
    """A name, with its arguments if it has any: a format's or a packing's. `SpecError` for anything else."""
    name_or_call: Any = parse(text)
    if not isinstance(name_or_call, Call):
        raise SpecError(f"{text.strip()!r} is no name; {_EXAMPLE}", subject=text)
    return name_or_call


def set_label(text: str) -> SetLabel:
    """What a set is called, of its text alone, which says nothing of a single source's family. One that can't be read has no parts but a source."""
    try:
        parts = read_set(text)
    except InputError:
        return SetLabel(text, read_measured(text).source)
    if isinstance(parts, Mix) or len(parts) != 1:
        return SetLabel(text, text, family="mixed")
    part = parts[0]
    form, packing = ("" if of is None else text_of(of) for of in (part.format, part.packing))
    source, name = (str(part.source), "") if isinstance(part.source, File) else (text_of(part.source), part.source.name)
    return SetLabel(text, source, name, part.format.name if part.format else "", packing, "@".join(filter(None, [form, packing])))


def read_measured(text: str) -> MeasuredLabel:
    """Read what an evaluator says that it measured: `wikitext:text` is of `wikitext`, and so is `wikitext (3-shot)`, which has no briefer name."""
    try:
        before_colon, before_comma = pieces(text, ":")[0], pieces(text, ",")[0]
    except SpecError:
        return MeasuredLabel(text, text)
    source = min(before_colon, before_comma, key=len)
    return MeasuredLabel(source[: source.index(" (")] if " (" in source else source, before_colon)


def pieces(text: str, mark: str) -> list[str]:
    """`text` cut at each `mark` that stands outside quotes and brackets. `SpecError` where one of those isn't closed."""
    cut, begin, depth, quote, escaped = list[str](), 0, 0, "", False
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
            cut.append(text[begin:at])
            begin = at + 1
    if quote or depth:
        raise SpecError(f"{text.strip()!r}: a {'quote' if quote else 'bracket'} isn't closed", subject=text)
    return [*cut, text[begin:]]


def weight_of(number: str) -> Fraction | None:
    """The exact weight that a text is, `0.3` or `30%`; None for no number, or an exponent beyond ±30: that is seen before anything is built."""
    match = _NUMBER.fullmatch(number)
    if match is None or abs(int((match[1] or "e0")[1:])) > LARGEST_EXPONENT:
        return None
    plain = number.rstrip("%").strip()
    return Fraction(plain.rstrip(".")) / (100 if number.endswith("%") else 1)


def numbers(shares: Sequence[Fraction]) -> list[str]:
    """Shares as texts that are exact: decimals where they are short, else whole numbers."""
    if all((share * 10_000).denominator == 1 for share in shares):
        return [str(float(share)) for share in shares]
    common = Fraction(math.lcm(*(share.denominator for share in shares)))
    return [str(int(share * common)) for share in shares]


def is_path(name: str) -> bool:
    """Whether an unquoted name can only be a path: it has a folder or an ending."""
    return name.startswith("~") or any(mark in name for mark in "/\\.")


def written_path(path: str) -> str:
    """How a path stands in an expression: quoted unless it is plain. `SpecError` for one that can't be quoted."""
    if re.fullmatch(r"[\w./~-]+", path) and is_path(path):
        return path
    quote = next((q for q in "'\"" if q not in path), None)
    if quote is None:
        raise SpecError(f"the path {path!r} has both kinds of quotes in it; rename the file", subject=path)
    return quote + path + quote


def _part(body: str, share: Fraction) -> Part:
    if _MIX.match(body):
        raise _stands_alone(body)
    named, *packed = pieces(body, "@")
    name, *formatted = pieces(named, ":")
    if len(packed) > 1 or len(formatted) > 1 or not name.strip():
        raise SpecError(f"{body.strip()!r} is no calibration set; {_EXAMPLE}, and quote a path that has : @ + or * in it", subject=body)
    form, packing = (read_name(names[0]) if names else None for names in (formatted, packed))
    return Part(read_source(name), form, packing, share)


def _file(path: str, arguments: str) -> File:
    call = read_name(f"file{arguments}") if arguments.strip() else Call("file")
    if "path" in call.arguments:
        raise SpecError(f"{path!r}: the path stands before the brackets; within them are the columns, as in {path}(text=body)", subject=path)
    return File(path, call.arguments)


def _weighted(term: str, text: str) -> tuple[Fraction | None, str]:
    factors = pieces(term, "*")
    if len(factors) == 1:
        return None, term
    number = factors[0].strip()
    if len(factors) > 2 or not _NUMBER.fullmatch(number):
        raise SpecError(
            f"{text!r}: {number!r} is no weight; write a number, as in 0.3*gsm8k:cot + 0.7*wikitext, and quote a path that has * in it", subject=text
        )
    weight = _exact(number, text)
    if weight <= 0:
        raise DataError(f"{text!r}: the weight {number} must be above 0; leave a part out instead of giving it nothing", subject=text)
    return weight, factors[1]


def _shares(body: str, names: Sequence[str], weight: str | None, weights: str | None) -> list[Fraction]:
    """The weight of each set of a mix; they sum to one."""
    listed = (weights or "").strip()
    several = [piece.strip() for piece in listed[1:-1].split(",")] if listed[:1] == "[" and listed[-1:] == "]" else [listed]
    texts = [weight] if weight is not None else several if weights is not None else []
    fits = len(names) == 2 if weight is not None else len(names) > 1 and len(texts) in (0, len(names))
    if (weight is not None and weights is not None) or not fits or not all(map(_NUMBER.fullmatch, texts)):
        weights_text = " and ".join(f"{name} {value!r}" for name, value in (("weight", weight), ("weights", weights)) if value is not None)
        sets = f"the sets {', '.join(names)}" if names else "no set"
        raise SpecError(f"{body!r} has {sets} and {weights_text or 'no weights'}; {_MIX_EXAMPLE}", subject=body)
    exact = [Fraction(repr(float(_exact(number, body)))) for number in texts]  # what is written back is what is used
    if weight is not None and not 0 <= exact[0] <= 1:
        raise DataError(f"{body!r}: the weight {weight} must be between 0 and 1: it is the share of {names[0]}", subject=body)
    if weights is not None and (min(exact) < 0 or not any(exact)):
        raise DataError(f"{body!r}: the weights {weights} must be at least 0, and one above it", subject=body)
    whole = [exact[0], 1 - exact[0]] if weight is not None else exact or [Fraction(1)] * len(names)
    shares = [number / sum(whole) for number in whole]
    return shares if len(shares) != 2 else [first := Fraction(repr(float(shares[0]))), 1 - first]


def _exact(number: str, text: str) -> Fraction:
    weight = weight_of(number)
    if weight is None:
        raise SpecError(f"{text!r}: the weight {number} has an exponent beyond ±{LARGEST_EXPONENT}; write one nearer to 1", subject=text)
    return weight


def _check_count(what: str, count: int, text: str) -> None:
    if count > MOST_PARTS:
        raise SpecError(f"{text!r} is a {what} of {count:,} parts; it may have {MOST_PARTS}: put rows into one file instead", subject=text)


def _stands_alone(mix: str) -> SpecError:
    return SpecError(f"{mix.strip()!r} can't be part of a sum or of another mix, because it is of whole sets; {_MIX_EXAMPLE}", subject=mix)


def _unquoted(text: str) -> str:
    """What stands in quotes that go around all of `text`; a path that needs quotes of its own stands in two kinds."""
    return text[1:-1] if text[:1] in ("'", '"') and text.find(text[0], 1) == len(text) - 1 else text
