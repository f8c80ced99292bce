"""The questions of "Is C4 Dataset Optimal for Pruning?" (Bandari et al. 2024, arXiv 2410.07461), asked of one study.

Each is answered from differences between sets, one for each ranking (and source, or measured set) that has what it takes. All differences
behind one question are held together at the ranking's level, by Bonferroni. What is said is about this study's models and nothing else, and it
is a description: a question to be tested belongs among a study's primary contrasts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal, get_args

from calibrant.compare.estimate import Estimate
from calibrant.compare.field import Field
from calibrant.compare.ranking import MEAN, describe_target, join_names, target_noun
from calibrant.grammar import read_measured

Answer = Literal["yes", "no", "it depends", "undecided", "not covered"]
Verdict = Literal["better", "worse", "not significant"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

IN_A_ROW: Final = ("Questions with answers in a row", "lone ones")
WORKED: Final = ("Worked solutions", "answers alone")
"""The two sides of a question about formats, in words."""


@dataclass(frozen=True)
class Evidence:
    """One difference behind an answer: how much *worse* the first side of `label` did than the second, `where` and `on` which measured set.

    `interval` holds together with those of all other evidence of its question; None where there is no error to make one from.
    """

    label: str
    where: str
    on: str
    difference: Estimate
    interval: tuple[float, float] | None
    verdict: Verdict
    unit: str = ""


@dataclass(frozen=True)
class PaperQuestion:
    """A question, its answer, the answer in a sentence, and what it rests on."""

    name: str
    question: str
    answer: Answer
    explanation: str
    evidence: tuple[Evidence, ...] = ()

    @property
    def over_draws(self) -> bool:
        """Whether the evidence covers other draws of the calibration sets; if not, the answer is about these draws alone."""
        return all(e.difference.over_draws for e in self.evidence)


@dataclass(frozen=True)
class _Side:
    """A difference before it is judged: two pools of sets of one field, and what they are compared on."""

    field: Field
    first: tuple[str, ...]
    second: tuple[str, ...]
    measured: tuple[str, ...]
    label: str

    def judged(self, comparisons: int) -> Evidence:
        """As evidence, its interval widened for so many looks."""
        difference, level = self.field.difference(self.first, self.second, self.measured), self.field.level
        verdict: Verdict = "not significant" if not difference.significant(level, comparisons) else "worse" if difference.value > 0 else "better"
        on = self.measured[0] if len(self.measured) == 1 else MEAN
        unit = self.field.units[self.measured[0]]
        return Evidence(self.label, where(self.field), on, difference, difference.interval(level, comparisons), verdict, unit)


def where(field: Field) -> str:
    """The group that a field is about, in words."""
    group = field.group
    return f"{group.model}, {group.method} at {describe_target(group.target)}"


def questions(fields: Sequence[Field]) -> Iterator[PaperQuestion]:
    """Every question, also those that this study can't answer: they say what is lacking."""
    yield _best(fields)
    yield _arithmetic(fields)
    yield _own(fields)
    yield _formats(fields, "icl", ("zero", "single"), "Do questions with their answers, one after the other (ICL), help?", IN_A_ROW)
    yield _formats(fields, "cot", ("icl",), "Do worked solutions (CoT) help?", WORKED)


def _best(fields: Sequence[Field]) -> PaperQuestion:
    """Whether the baseline, C4 unless the study names another, is the best set."""
    name = next((field.baseline for field in fields if field.baseline), "")
    asks = f"Is {name or 'c4'} the best calibration set?"
    here = [(field, [s for s in field.sets if s != name and not field.label(s).control]) for field in fields if field.baseline]
    sides = [_Side(field, (name,), (other,), field.averaged, f"{name} against {other}") for field, others in here for other in others]
    if not sides:
        return PaperQuestion("baseline", asks, "not covered", "It takes the baseline and another set with content, both measured.")
    found = _judged(sides)
    worse, open_ = ([e for e in found if e.verdict == verdict] for verdict in ("worse", "not significant"))
    seconds = {verdict: list(dict.fromkeys(s.second[0] for s, e in zip(sides, found, strict=True) if e.verdict == verdict)) for verdict in VERDICTS}
    kind = target_noun(field.group.target for field, _ in here)
    many = f"{len(here)} combinations of method and {kind}" if len(here) > 1 else f"the one combination of method and {kind}"
    if worse:
        beaten, places = seconds["worse"], len({e.where for e in worse})
        scope = f" in {places} of {many}" if len(here) > 1 else ""
        return PaperQuestion("baseline", asks, "no", f"{join_names(beaten)} did better than {name} beyond noise{scope}; most: {_most(worse)}.", found)
    if not open_:
        return PaperQuestion("baseline", asks, "yes", f"It did better than every other set with content, beyond noise, in {many}.", found)
    scope, alike = f"some or all of {many}" if len(here) > 1 else many, join_names(seconds["not significant"])
    told = f"No set did better than {name} beyond noise, but {alike} can't be told apart from it in {scope}."
    return PaperQuestion("baseline", asks, "undecided", told, found)


def _most(evidence: Sequence[Evidence]) -> str:
    return difference(max(evidence, key=lambda e: abs(e.difference.value)))


def _arithmetic(fields: Sequence[Field]) -> PaperQuestion:
    """Whether arithmetic sets, taken together, do as well as the corpora, taken together."""
    asks = "Does arithmetic data calibrate as well as corpora do?"
    sides: list[_Side] = []
    for field in fields:
        problems = tuple(s for s in field.sets if field.label(s).family == "arithmetic")
        corpora = tuple(s for s in field.sets if field.label(s).family in ("corpus", "code"))
        if problems and corpora:
            sides.append(
                _Side(field, problems, corpora, field.averaged, f"{_pooled(problems, 'arithmetic sets')} against {_pooled(corpora, 'corpora')}")
            )
    if not sides:
        return PaperQuestion("arithmetic", asks, "not covered", "It takes an arithmetic set and a corpus in one study.")
    return _answered("arithmetic", asks, _judged(sides), "Arithmetic", "corpora")


def _pooled(names: Sequence[str], what: str) -> str:
    """Three sets are named, more are counted."""
    return join_names(names) if len(names) <= 3 else f"{len(names)} {what}"


def _own(fields: Sequence[Field]) -> PaperQuestion:
    """Whether what a model is measured on is helped by data of the same source."""
    asks = "Does a task's own data help it?"
    sides: list[_Side] = []
    for field in fields:
        for measured in field.measured:
            own = read_measured(measured).source
            mine = tuple(s for s in field.sets if field.label(s).source == own)
            others = tuple(s for s in field.sets if s not in mine and not field.label(s).control)
            if mine and others:
                sides.append(_Side(field, mine, others, (measured,), f"{join_names(mine)} against the others"))
    if not sides:
        return PaperQuestion("own", asks, "not covered", "It takes a measured set whose own source is among the calibration sets, beside others.")
    return _answered("own", asks, _judged(sides), "A task's own data", "the other sets")


def _formats(fields: Sequence[Field], after: str, before: Sequence[str], asks: str, sides_in_words: tuple[str, str]) -> PaperQuestion:
    """Whether rows of one source calibrate better in the format `after` than in those `before`; the question has its name."""
    sides = list(chain.from_iterable(_reformatted(field, before, after) for field in fields))
    if not sides:
        pair = f"{' or '.join(before)} and {after}"
        return PaperQuestion(after, asks, "not covered", f"It takes one source in two formats, {pair}.")
    return _answered(after, asks, _judged(sides), *sides_in_words)


def _reformatted(field: Field, before: Sequence[str], after: str) -> Iterator[_Side]:
    by_source: dict[tuple[str, str], dict[str, str]] = {}
    for label in field.sets:
        of = field.label(label)
        if not of.control and not of.mixed:
            by_source.setdefault((of.source, of.packing), {})[of.format] = label
    for formats in by_source.values():
        for form in (form for form in before if form in formats and after in formats):
            yield _Side(field, (formats[after],), (formats[form],), field.averaged, f"{formats[after]} against {formats[form]}")


def _judged(sides: Sequence[_Side]) -> tuple[Evidence, ...]:
    return tuple(side.judged(len(sides)) for side in sides)


def _answered(name: str, asks: str, evidence: tuple[Evidence, ...], first: str, second: str) -> PaperQuestion:
    """Yes where all that can be told says so, no where it says the opposite, and that it depends where both are found."""
    better, worse = ([e for e in evidence if e.verdict == verdict] for verdict in ("better", "worse"))
    answer: Answer = "it depends" if better and worse else "yes" if better else "no" if worse else "undecided"
    return PaperQuestion(name, asks, answer, " ".join(_said(evidence, better, worse, first, second)), evidence)


def _said(evidence: Sequence[Evidence], better: Sequence[Evidence], worse: Sequence[Evidence], first: str, second: str) -> Iterator[str]:
    """How often which was found, and the largest difference that is beyond noise."""
    told, open_ = (*better, *worse), len(evidence) - len(better) - len(worse)
    if not told:
        among = "the one comparison there is" if len(evidence) == 1 else f"any of {len(evidence)} comparisons"
        yield f"{first} and {second} can't be told apart in {among}."
        yield f"The largest difference that was seen: {_most(evidence)}."
        return
    if len(evidence) == 1:
        yield f"{first} did {told[0].verdict} than {second}, beyond noise: {difference(told[0])}."
        return
    counts = [f"{word} in {number}" for word, number in (("better", len(better)), ("worse", len(worse)), ("not told apart", open_)) if number]
    yield f"{first}, compared with {second} {len(evidence)} times: {', '.join(counts)}."
    yield f"The largest difference beyond noise: {_most(told)}."


def difference(evidence: Evidence) -> str:
    """One difference in words: `gsm8k:icl against c4 on mean (smollm2, wanda at 60 % sparsity), −0.123 nats/token (−0.150 to −0.096)`."""
    spread = "" if evidence.interval is None else f" ({evidence.interval[0]:+.3f} to {evidence.interval[1]:+.3f})"
    on = "on average" if evidence.on == MEAN else f"on {evidence.on}"
    return f"{evidence.label} {on} ({evidence.where}), {evidence.difference.value:+.3f} {evidence.unit}{spread}"
