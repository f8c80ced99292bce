"""The grammar of calibration data and of targets: what is typed becomes frozen values here, once.

A part of a set is `source[:format][@packing]`. A sum, `0.3*gsm8k:cot + 0.7*c4`, divides one budget
among its parts. A mix, `mix(gsm8k:cot=0.5, c4=0.5)`, is made of sums, each with the whole budget.
The statistics of each are divided by its own tokens, weighted, and added. A mix is never part of
another expression. Its sets may have names of the user's own, with the weights behind them:
`mix(domain=gsm8k:cot, general=c4, weight=0.5)`, `mix(a=c4, b=pile, c=gsm8k, weights=[1, 2, 3])`.
Without weights all count alike. This is also how a mix is written back.

Everywhere a name may carry arguments (`c4@many(separator=' ')`), which are specs: read as literals
and never evaluated. A path, quoted or not, stands where a source's name stands. Only names are read
here; whether there is such a source, `data` decides.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from calibrant.errors import DataError, InputError, SpecError
from calibrant.spec.families import Family
from calibrant.spec.foreign import share_number, user_text, whole_number
from calibrant.spec.spec import HYPHENED, Call, parse, text_of

LARGEST_EXPONENT: Final = 30
"""Weights are exact fractions, so one of 1e999999999 would be a number of a billion digits."""
MOST_DIGITS: Final = 100
"""The most digits of the whole numbers that weights become where they are no short decimals."""
MOST_PARTS: Final = 256
"""The most parts of a sum or a mix."""
LONGEST_NAME: Final = 40
"""Letters of a name that is made for a set of a mix."""

_NUMBER: Final = re.compile(
    r"(?:-?[0-9]{0,100}\.?[0-9]{1,100}([eE]-?[0-9]{1,20})?|-?[0-9]{1,100}\.)(?: ?%)?",
)
"""A weight: `0.3`, or `30%`."""
_PLAIN_PATH: Final = re.compile(r"[\w./~-]+")
_GRID: Final = re.compile(r"w([0-9]+)(?:g([0-9]+))?(a?)")
_BUDGET: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]+)", re.IGNORECASE)
_UNITS: Final = {"mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}
"""Units of a file's size, in small letters, and how many bytes each is."""
_SCHEMES: Final = {"W4A16": "w4g128", "W4A16_ASYM": "w4g128a", "W8A16": "w8"}
"""Grids by the names that compressed-tensors and vLLM have for them."""
_MIX: Final = re.compile(r"\s*mix\s*\(")
_SETTINGS: Final = ("weight", "weights")
_EXAMPLE: Final = "write source[:format][@packing], as in gsm8k:cot or 0.3*gsm8k:cot + 0.7*wikitext"
_BY_WEIGHT: Final = "mix(gsm8k:cot=0.3, c4=0.7)"
_BY_NAME: Final = "mix(domain=gsm8k:cot, general=c4, weight=0.3)"
_MIX_EXAMPLE: Final = f"write each set with its weight, {_BY_WEIGHT}, or behind a name, {_BY_NAME}"


@dataclass(frozen=True)
class File:
    """A path that stands where a source's name stands, with the arguments in brackets behind it."""

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        path = written_path(self.path)
        if not self.arguments:
            return path
        # A call without a name is written as its brackets.
        return path + text_of(Call("", self.arguments))


@dataclass(frozen=True)
class WrittenTerm:
    """One part of a set as it is written, and its share of the set.

    `format` and `packing` are None where the text names none.
    """

    source: Call | File
    format: Call | None = None
    packing: Call | None = None
    share: Fraction = Fraction(1)

    @property
    def source_text(self) -> str:
        """The source as it is written."""
        if isinstance(self.source, File):
            return str(self.source)
        return text_of(self.source)

    def __str__(self) -> str:
        """Return the text without the share."""
        text = self.source_text
        if self.format:
            text += f":{text_of(self.format)}"
        if self.packing:
            text += f"@{text_of(self.packing)}"
        return text


Sum: TypeAlias = tuple[WrittenTerm, ...]
"""The parts of a set, whose shares sum to one; mostly a single part."""


@dataclass(frozen=True)
class Mix:
    """Two sets or more with their names, and the weight of each in the sum of their statistics.

    Weights are above 0 and sum to one.
    """

    names: tuple[str, ...]
    sets: tuple[Sum, ...]
    shares: tuple[Fraction, ...]

    @property
    def texts(self) -> list[str]:
        """Every set as it is written alone."""
        texts: list[str] = []
        for parts in self.sets:
            part_texts = [str(part) for part in parts]
            shares = [part.share for part in parts]
            texts.append(written_sum(part_texts, shares))
        return texts

    def __str__(self) -> str:
        return written_mix(self.names, self.texts, self.shares)


@dataclass(frozen=True)
class SetLabel:
    """What a calibration set is called, in its parts: nobody need take the text apart again.

    `text` is the whole set. `source` has its arguments; `name` has none, and is empty for a file.
    `format` and `packing` are empty where the text names none. `rest` is all behind the source.
    Of a sum or a mix, `source` is the text.
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
    """What a target says as it is written.

    That is a share (`0.5`), perhaps of other `parts` than weights (`blocks 0.25`), a pattern
    (`2:4`), or a grid: `w4g64a` says bits, inputs of a group, and zero points. Of `gguf 90MB` it is
    a `budget` of bytes.
    """

    text: str
    share: float | None = None
    pattern: tuple[int, int] | None = None
    bits: int | None = None
    group: int | None = None
    zeros: bool = False
    parts: Literal["blocks", "experts", "numbers"] | None = None
    budget: int | None = None

    @property
    def removal(self) -> bool:
        """Whether it says how much goes, and no more."""
        return self.share is not None or self.pattern is not None

    @property
    def sparsity(self) -> bool:
        """Whether what goes are weights."""
        return self.removal and self.parts is None


def read_target(text: str) -> TargetLabel:
    """Read what a target's text says; of what is none of these kinds, the text alone.

    The classes of `targets` are made of what this reads, and decide whether there is such a target.

    >>> read_target("W4A16").text
    'w4g128'
    """
    text = _SCHEMES.get(text.strip().upper(), text)
    grid = _GRID.fullmatch(text.strip())
    if grid:
        bits_text, group_text, zeros = grid.groups()
        bits = whole_number(bits_text)
        group = whole_number(group_text) if group_text else None
        # A number that nobody means is read as None; then it is no grid.
        meant = bits is not None and (group is not None or not group_text)
        if meant:
            return TargetLabel(text, bits=bits, group=group, zeros=bool(zeros))
    kept_text, colon, whole_text = text.partition(":")
    if colon:
        kept = whole_number(kept_text)
        whole = whole_number(whole_text)
        if kept is None or whole is None or min(kept, whole) < 0:
            return TargetLabel(text)
        return TargetLabel(text, pattern=(kept, whole))
    noun, _, share_text = text.strip().partition(" ")
    # Written out, so that its type is one of the three.
    if noun == "blocks" or noun == "experts" or noun == "numbers":
        return TargetLabel(text, share=share_number(share_text), parts=noun)
    if noun.lower() == "gguf":
        return TargetLabel(text, budget=_bytes_of(share_text.strip()))
    return TargetLabel(text, share=share_number(text))


def _bytes_of(size: str) -> int | None:
    """How many whole bytes a size such as `1.5GB` is; None for what is no size."""
    match = _BUDGET.fullmatch(size)
    if match is None:
        return None
    number, unit = match.groups()
    bytes_of_unit = _UNITS.get(unit.lower())
    if bytes_of_unit is None:
        return None
    return int(Fraction(number) * bytes_of_unit)


def read_set(text: str) -> Mix | Sum:
    """Read an expression: the parts of a sum, whose shares sum to one, or a mix of such sums.

    Sets of weight 0 are left out of a mix, and one that is left alone is no mix. Raises `SpecError`
    for a text that can't be read, `DataError` for a weight that can't be had.
    """
    begins_as_mix = _MIX.match(user_text(text, SpecError))
    # A mix with something added to it is read as a sum, which refuses the mix as a part.
    if begins_as_mix and len(pieces(text, "+")) == 1:
        return _read_mix(text.strip())
    return read_sum(text)


def read_sum(text: str) -> Sum:
    """Read the parts of a sum, whose shares sum to one.

    Raises `SpecError` for what can't be read, `DataError` for a weight that isn't above 0.
    """
    terms = read_weighted(text)
    given = [weight for weight, _ in terms if weight is not None]
    if given and len(given) < len(terms):
        message = "some parts have a weight and some have none; give each one, or none"
        raise _refused(text, message)
    weights = given or [Fraction(1)] * len(terms)
    _check_digits(weights, text)
    total = sum(weights)
    parts: list[WrittenTerm] = []
    for (_, part), weight in zip(terms, weights, strict=True):
        parts.append(replace(part, share=weight / total))
    return tuple(parts)


def read_weighted(text: str) -> list[tuple[Fraction | None, WrittenTerm]]:
    """Read the parts of a sum, each with the weight that stands before it, or None.

    Raises `SpecError` for what can't be read, `DataError` for a weight that isn't above 0.
    """
    if not user_text(text, SpecError).strip():
        raise SpecError(f"an empty calibration set {text!r}; {_EXAMPLE}", subject=text)
    terms = pieces(text, "+")
    _check_count("sum", len(terms), text)
    return [_weighted(term, text) for term in terms]


def read_source(text: str) -> Call | File:
    """Read a source's name or the path of a file, with its arguments if it has any.

    Raises `SpecError` for a text that is neither.
    """
    text = user_text(text, SpecError).strip()
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        if end > 0:
            return _file(text[1:end], text[end + 1 :])
    name, bracket, rest = text.partition("(")
    if is_path(name):
        return _file(name.strip(), bracket + rest)
    if HYPHENED.fullmatch(text):
        return Call(text)
    call: Any = parse(text)
    if not isinstance(call, Call):
        message = "is no source; write the name of one, such as wikitext, or the path of a file"
        raise SpecError(f"{text!r} {message}", subject=text)
    return call


def read_call(text: str) -> Call:
    """Read a format's or a packing's name, with its arguments if it has any.

    Raises `SpecError` for anything else.
    """
    call: Any = parse(text)
    if not isinstance(call, Call):
        raise SpecError(f"{text.strip()!r} is no name; {_EXAMPLE}", subject=text)
    return call


def written_sum(texts: Sequence[str], shares: Sequence[Fraction]) -> str:
    """Write a sum of these parts; one part stands alone, without a weight."""
    if len(texts) == 1:
        return texts[0]
    weights = written_shares(shares)
    terms = [f"{weight}*{text}" for weight, text in zip(weights, texts, strict=True)]
    return " + ".join(terms)


def written_mix(names: Sequence[str], texts: Sequence[str], shares: Sequence[Fraction]) -> str:
    """Write a mix of these sets, two at least, by their names.

    >>> written_mix(["a", "b"], ["c4", "gsm8k:cot"], [Fraction(1, 4), Fraction(3, 4)])
    'mix(a=c4, b=gsm8k:cot, weight=0.25)'
    """
    arguments: list[str] = []
    for name, text in zip(names, texts, strict=True):
        arguments.append(f"{name}={_in_mix(text)}")
    if len(texts) == 2:
        arguments.append(f"weight={float(shares[0])}")
    elif len(set(shares)) > 1:
        weights = ", ".join(written_shares(shares))
        arguments.append(f"weights=[{weights}]")
    return f"mix({', '.join(arguments)})"


def names_of(texts: Sequence[str]) -> list[str]:
    """Make a name for each set of a mix, which can stand before an equals sign.

    >>> names_of(["gsm8k:cot", "gsm8k@cot", "2nd"])
    ['gsm8k_cot', 'gsm8k_cot_2', '_2nd']
    """
    names: list[str] = []
    for text in texts:
        bare = re.sub(r"\W+", "_", text).strip("_")[:LONGEST_NAME]
        if bare[:1].isdigit():
            bare = f"_{bare}"
        # In a mix `weight=` is a setting.
        if bare in _SETTINGS:
            bare = f"{bare}_"
        # Nothing is left of a text that is signs alone.
        if not bare.isidentifier():
            bare = "part"
        name = bare
        number = 1
        while name in names:
            number += 1
            name = f"{bare}_{number}"
        names.append(name)
    return names


def pieces(text: str, mark: str) -> list[str]:
    """Cut `text` at each `mark` that stands outside quotes and brackets.

    Raises `SpecError` where one of those isn't closed, or a bracket isn't opened.
    """
    cut_out: list[str] = []
    begin = 0
    depth = 0
    quote = ""
    escaped = False
    for place, letter in enumerate(text):
        if quote:
            closed = letter == quote and not escaped
            # Within brackets quotes are Python's; around a path they are plain, since Windows paths
            # are full of backslashes.
            escaped = letter == "\\" and not escaped and depth > 0
            if closed:
                quote = ""
        elif letter in "'\"":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
            if depth < 0:
                raise _refused(text, "a bracket isn't opened")
        elif letter == mark and not depth:
            cut_out.append(text[begin:place])
            begin = place + 1
    if quote or depth:
        what = "quote" if quote else "bracket"
        raise _refused(text, f"a {what} isn't closed")
    cut_out.append(text[begin:])
    return cut_out


def written_shares(shares: Sequence[Fraction]) -> list[str]:
    """Write shares as texts that are exact: decimals where they are short, else whole numbers."""
    common = _common_denominator(shares)
    # All are short if they have four decimals at most.
    if 10_000 % common == 0:
        return [str(float(share)) for share in shares]
    return [str(int(share * common)) for share in shares]


def is_path(name: str) -> bool:
    """Say whether an unquoted name can only be a path: it has a folder or an ending."""
    return name.startswith("~") or any(mark in name for mark in "/\\.")


def written_path(path: str) -> str:
    """Write a path as it stands in an expression: quoted unless it is plain.

    Raises `SpecError` for one that can't be quoted.
    """
    if _PLAIN_PATH.fullmatch(path) and is_path(path):
        return path
    for quote in "'\"":
        if quote not in path:
            return f"{quote}{path}{quote}"
    message = "has both kinds of quotes in it; rename the file"
    raise SpecError(f"the path {path!r} {message}", subject=path)


def _weighted(term: str, text: str) -> tuple[Fraction | None, WrittenTerm]:
    """A part of the sum `text`, and the number before it."""
    factors = pieces(term, "*")
    if len(factors) == 1:
        return None, _term(term)
    number = factors[0].strip()
    if len(factors) > 2 or not _NUMBER.fullmatch(number):
        message = "is no weight; write a number, as in 0.3*gsm8k:cot + 0.7*wikitext"
        raise _refused(text, f"{number!r} {message}, and quote a path that has * in it")
    weight = _exact(number, text)
    if weight <= 0:
        message = "must be above 0; leave a part out instead of giving it nothing"
        raise _refused(text, f"the weight {number} {message}", DataError)
    return weight, _term(factors[1])


def _term(body: str) -> WrittenTerm:
    if _MIX.match(body):
        raise _no_nested_mix(body)
    # What stands before the first mark, then what stands behind each.
    named, *packings = pieces(body, "@")
    name, *formats = pieces(named, ":")
    if len(packings) > 1 or len(formats) > 1 or not name.strip():
        message = f"is no calibration set; {_EXAMPLE}, and quote a path that has : @ + or * in it"
        raise SpecError(f"{body.strip()!r} {message}", subject=body)
    form = read_call(formats[0]) if formats else None
    packing = read_call(packings[0]) if packings else None
    return WrittenTerm(read_source(name), form, packing)


def _file(path: str, arguments: str) -> File:
    if not path:
        raise _refused(f"''{arguments}", "an empty path; write that of a file or of a folder")
    arguments = arguments.strip()
    if not arguments:
        return File(path)
    if not (arguments.startswith("(") and arguments.endswith(")")):
        message = f"{arguments!r} stands behind a path, where only brackets may stand, as in"
        raise _refused(path, f"{message} '{path}'(text=body)")
    call = read_call(f"file{arguments}")
    if "path" in call.arguments:
        message = "the path stands before the brackets; within them are the columns, as in"
        raise _refused(path, f"{message} {path}(text=body)")
    return File(path, call.arguments)


def _read_mix(text: str) -> Mix | Sum:
    """A mix in either spelling: numbers behind the equals signs are weights, all else is sets."""
    pairs = _sides_by_name(text)
    # `weight=` and `weights=` belong to the spelling with names.
    settings = {name: pairs.pop(name) for name in _SETTINGS if name in pairs}
    weights = {left: right for left, right in pairs.items() if _NUMBER.fullmatch(right)}
    if not weights:
        return _named_mix(text, pairs, settings)
    unlike = [f"{left}={right}" for left, right in pairs.items() if left not in weights]
    unlike += [f"{left}={right}" for left, right in settings.items()]
    if unlike:
        left = min(weights)
        plain = weights[left]
        message = f"{left}={plain} is a set with its weight and {unlike[0]} is not"
        file = f"a file called {plain} is written '{plain}' or ./{plain}"
        advice = f"write all sets so or none; {file}"
        raise _refused(text, f"{message}; {advice}")
    if len(weights) < 2:
        raise _refused(text, f"two sets are the fewest; {_MIX_EXAMPLE}")
    sets = [read_sum(left) for left in weights]
    names = names_of(list(weights))
    return _mix(text, names, sets, _checked_weights(text, weights.values()))


def _sides_by_name(text: str) -> dict[str, str]:
    """What stands right of the equals signs of a mix, by what stands left of them."""
    has_mark = any(len(pieces(text, mark)) > 1 for mark in ":@*")
    if has_mark or not text.endswith(")"):
        message = "nothing may stand behind a mix; give its sets their formats and packings"
        raise _refused(text, message)
    begin = text.index("(") + 1
    arguments = pieces(text[begin:-1], ",")
    part_count = sum(len(pieces(argument, "+")) for argument in arguments)
    _check_count("mix", part_count, text)
    pairs: dict[str, str] = {}
    for argument in arguments:
        sides = [side.strip() for side in pieces(argument, "=")]
        if len(sides) != 2 or sides[0] in pairs:
            raise _no_pair(text, argument)
        left, right = sides
        pairs[left] = right
    return pairs


def _named_mix(text: str, named: Mapping[str, str], settings: Mapping[str, str]) -> Mix | Sum:
    """A mix of sets behind names of their own, `mix(a=c4, b=gsm8k, weight=0.5)`."""
    for name, body in named.items():
        if not name.isidentifier():
            raise _no_pair(text, f"{name}={body}")
        if _MIX.match(body):
            raise _no_nested_mix(body)
    weights = _given_weights(text, list(named), settings)
    sets = [read_sum(_unquoted(body)) for body in named.values()]
    return _mix(text, list(named), sets, weights)


def _mix(
    text: str,
    names: Sequence[str],
    sets: Sequence[Sum],
    weights: Sequence[Fraction],
) -> Mix | Sum:
    """The mix of the sets that have a weight."""
    total = sum(weights)
    used_names: list[str] = []
    used_sets: list[Sum] = []
    shares: list[Fraction] = []
    for name, terms, weight in zip(names, sets, weights, strict=True):
        if weight:
            used_names.append(name)
            used_sets.append(terms)
            shares.append(weight / total)
    if len(used_sets) == 1:
        return used_sets[0]
    if len(shares) == 2:
        # Of two the first is written as a float, and what is written back is what is used.
        first_share = Fraction(repr(float(shares[0])))
        if not Fraction(1, 10**LARGEST_EXPONENT) <= first_share < 1:
            message = "the weights are too far apart; leave out the small one"
            raise _refused(text, message)
        shares = [first_share, 1 - first_share]
    else:
        _check_digits(shares, text)
    return Mix(tuple(used_names), tuple(used_sets), tuple(shares))


def _given_weights(text: str, names: Sequence[str], settings: Mapping[str, str]) -> list[Fraction]:
    """The weights behind the sets of a mix: that of the first of two, one for each, or none."""
    if len(names) < 2 or len(settings) > 1:
        raise _no_weights(text, names, settings)
    if "weight" in settings:
        number = settings["weight"]
        if len(names) > 2 or not _NUMBER.fullmatch(number):
            raise _no_weights(text, names, settings)
        first_weight = _exact(number, text)
        if not 0 <= first_weight <= 1:
            message = f"must be between 0 and 1: it is the share of {names[0]}"
            raise _refused(text, f"the weight {number} {message}", DataError)
        return [first_weight, 1 - first_weight]
    if "weights" in settings:
        listed = settings["weights"]
        if listed.startswith("[") and listed.endswith("]"):
            listed = listed[1:-1]
        numbers = [number.strip() for number in listed.split(",")]
        all_weights = all(_NUMBER.fullmatch(number) for number in numbers)
        if len(numbers) != len(names) or not all_weights:
            raise _no_weights(text, names, settings)
        return _checked_weights(text, numbers)
    return [Fraction(1)] * len(names)


def _checked_weights(text: str, given: Collection[str]) -> list[Fraction]:
    """The weights of all sets of a mix, which needn't sum to one."""
    weights = [_exact(number, text) for number in given]
    if min(weights) < 0 or not any(weights):
        listed = ", ".join(given)
        message = f"the weights {listed} must be at least 0, and one above it"
        raise _refused(text, message, DataError)
    return weights


def _exact(number: str, text: str) -> Fraction:
    """The exact weight that a number is, `0.3` or `30%`."""
    match = _NUMBER.fullmatch(number)
    exponent = match[1] if match else None
    # Before anything is built: a large exponent would make a number of as many digits.
    if exponent and abs(int(exponent[1:])) > LARGEST_EXPONENT:
        message = f"has an exponent beyond ±{LARGEST_EXPONENT}; write one nearer to 1"
        raise _refused(text, f"the weight {number} {message}")
    weight = Fraction(number.rstrip("%").strip().rstrip("."))
    if number.endswith("%"):
        weight /= 100
    return weight


def _common_denominator(shares: Sequence[Fraction]) -> int:
    """The smallest whole number whose product with each share is whole."""
    return math.lcm(*(share.denominator for share in shares))


def _check_digits(weights: Sequence[Fraction], text: str) -> None:
    """Raise `SpecError` for weights that would be written as numbers of too many digits."""
    if sum(weights) * _common_denominator(weights) >= 10**MOST_DIGITS:
        message = "weights have too many digits, or are too far apart; leave out what hardly counts"
        raise _refused(text, message)


def _check_count(what: str, count: int, text: str) -> None:
    if count > MOST_PARTS:
        message = f"a {what} of {count:,} parts; it may have {MOST_PARTS}"
        raise _refused(text, f"{message}: put rows into one file instead")


def _refused(text: str, message: str, error: type[InputError] = SpecError) -> InputError:
    """The error for an expression, with what is wrong with it."""
    return error(f"{text.strip()!r}: {message}", subject=text)


def _no_pair(text: str, argument: str) -> InputError:
    return _refused(text, f"{argument.strip()!r} is no name=value of its own; {_MIX_EXAMPLE}")


def _no_weights(text: str, names: Sequence[str], settings: Mapping[str, str]) -> SpecError:
    sets = "no set"
    if names:
        sets = f"the sets {', '.join(names)}"
    weights = "no weights"
    if settings:
        weights = " and ".join(f"{name} {value!r}" for name, value in settings.items())
    return SpecError(f"{text!r} has {sets} and {weights}; {_MIX_EXAMPLE}", subject=text)


def _no_nested_mix(mix: str) -> SpecError:
    message = "can't be part of a sum or of another mix, because it is of whole sets"
    return SpecError(f"{mix.strip()!r} {message}; {_MIX_EXAMPLE}", subject=mix)


def _unquoted(text: str) -> str:
    """What stands in quotes that go around all of a set: a path in quotes stands in two kinds."""
    quote = text[:1]
    if quote in ("'", '"'):
        closed_at = text.find(quote, 1)
        if closed_at == len(text) - 1:
            return text[1:-1]
    return text


def _in_mix(text: str) -> str:
    """How a set stands behind its name, so that it is read back as it is."""
    if _NUMBER.fullmatch(text):
        return f"'{text}'"  # a file, which would be taken for a weight
    if text != _unquoted(text):
        return f"{text}()"  # a path in quotes, which would be taken for the mix's own
    return text
