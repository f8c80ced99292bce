"""The questions of "Is C4 Dataset Optimal for Pruning?" (Bandari et al. 2024, arXiv 2410.07461),
put to one study.

Each is answered from differences between sets, one for each ranking (and source, or measured set)
that has what it takes. All differences behind one question are held together at the ranking's
level, by Bonferroni. An answer is about this study's models and nothing else, and it is a
description: a question to be tested belongs among a study's primary contrasts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from calibrant.lab.stats.estimate import Estimate
from calibrant.lab.stats.labels import describe_target, join_names, label_measured, target_noun
from calibrant.lab.stats.ranking import MEAN, ComparedGroup

Answer = Literal["yes", "no", "it depends", "undecided", "not covered"]
Judgement = Literal["better", "worse", "not significant"]

IN_A_ROW: Final = ("Questions with answers in a row", "lone ones")
WORKED: Final = ("Worked solutions", "answers alone")
"""The two sides of a question about formats, in words."""


@dataclass(frozen=True)
class Evidence:
    """One difference behind an answer: how much *worse* the first side of `label` did than the
    second, `where` and `on` which measured set.

    `interval` holds together with those of all other evidence of its question; None where there is
    no error to make one from.
    """

    label: str
    where: str
    on: str
    difference: Estimate
    interval: tuple[float, float] | None
    verdict: Judgement
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
        """Whether the evidence covers other draws of the calibration sets; if not, the answer is
        about these draws alone.
        """
        return all(found.difference.over_draws for found in self.evidence)


@dataclass(frozen=True)
class _Pair:
    """A difference before it is judged: two pools of sets of one group, and what they are
    compared on.
    """

    group: ComparedGroup
    first: tuple[str, ...]
    second: tuple[str, ...]
    measured: tuple[str, ...]
    label: str


def _judged(compared: Sequence[_Pair]) -> tuple[Evidence, ...]:
    """Return the pairs as evidence, each interval widened for all of them."""
    evidence: list[Evidence] = []
    for pair in compared:
        group = pair.group
        difference = group.difference(pair.first, pair.second, pair.measured)
        verdict: Judgement = "not significant"
        if difference.significant(group.level, len(compared)):
            verdict = "better"
            if difference.value > 0:
                verdict = "worse"
        target = describe_target(group.setting.target)
        first, *others = pair.measured
        on = first
        if others:
            on = MEAN
        found = Evidence(
            label=pair.label,
            where=f"{group.setting.model}, {group.setting.method} at {target}",
            on=on,
            difference=difference,
            interval=difference.interval(group.level, len(compared)),
            verdict=verdict,
            unit=group.units[first],
        )
        evidence.append(found)
    return tuple(evidence)


def questions(groups: Sequence[ComparedGroup]) -> Iterator[PaperQuestion]:
    """Yield every question, also those that this study can't answer: they say what is missing."""
    yield _best(groups)
    yield _arithmetic(groups)
    yield _own(groups)
    yield _formats(
        groups,
        "icl",
        ("zero", "single"),
        "Do questions with their answers, one after the other (ICL), help?",
        IN_A_ROW,
    )
    yield _formats(groups, "cot", ("icl",), "Do worked solutions (CoT) help?", WORKED)


def _best(groups: Sequence[ComparedGroup]) -> PaperQuestion:
    """Whether the baseline, C4 unless the study names another, is the best set."""
    groups = [group for group in groups if group.baseline]
    name = ""
    if groups:
        name = groups[0].baseline
    question = f"Is {name or 'c4'} the best calibration set?"
    compared = _rivals(groups, name)
    if not compared:
        return PaperQuestion(
            "baseline",
            question,
            "not covered",
            "It takes the baseline and another set with content, both measured.",
        )
    evidence = _judged(compared)
    noun = target_noun(group.setting.target for group in groups)
    several = len(groups) > 1
    places = f"the one combination of method and {noun}"
    if several:
        places = f"{len(groups)} combinations of method and {noun}"
    better = _with_verdict(compared, evidence, "worse")
    undecided = _with_verdict(compared, evidence, "not significant")
    answer: Answer
    if better:
        answer = "no"
        worse = [found for found in evidence if found.verdict == "worse"]
        scope = ""
        if several:
            where = {found.where for found in worse}
            scope = f" in {len(where)} of {places}"
        text = (
            f"{join_names(better)} did significantly better than {name}{scope}; "
            f"most: {_largest(worse)}."
        )
    elif undecided:
        answer = "undecided"
        scope = places
        if several:
            scope = f"some or all of {places}"
        text = (
            f"No set did significantly better than {name}, but {join_names(undecided)} "
            f"cannot be distinguished from it in {scope}."
        )
    else:
        answer = "yes"
        text = f"It did significantly better than every other set with content, in {places}."
    return PaperQuestion("baseline", question, answer, text, evidence)


def _with_verdict(
    compared: Sequence[_Pair], evidence: Sequence[Evidence], verdict: Judgement
) -> list[str]:
    """Return the rivals for which some comparison with the baseline has this verdict."""
    rivals: dict[str, None] = {}
    for pair, found in zip(compared, evidence, strict=True):
        if found.verdict == verdict:
            rivals[pair.second[0]] = None
    return list(rivals)


def _rivals(groups: Sequence[ComparedGroup], baseline: str) -> list[_Pair]:
    """Return the baseline against every other set with content."""
    compared: list[_Pair] = []
    for group in groups:
        for rival in group.sets:
            if rival != baseline and not group.label(rival).control:
                label = f"{baseline} against {rival}"
                compared.append(_Pair(group, (baseline,), (rival,), group.averaged, label))
    return compared


def _arithmetic(groups: Sequence[ComparedGroup]) -> PaperQuestion:
    """Whether arithmetic sets, taken together, do as well as the corpora, taken together."""
    question = "Does arithmetic data calibrate as well as corpora do?"
    compared: list[_Pair] = []
    for group in groups:
        families = {name: group.label(name).family for name in group.sets}
        problems = tuple(name for name in group.sets if families[name] == "arithmetic")
        corpora = tuple(name for name in group.sets if families[name] in ("corpus", "code"))
        if problems and corpora:
            first = _named_or_counted(problems, "arithmetic sets")
            second = _named_or_counted(corpora, "corpora")
            label = f"{first} against {second}"
            compared.append(_Pair(group, problems, corpora, group.averaged, label))
    if not compared:
        return PaperQuestion(
            "arithmetic",
            question,
            "not covered",
            "It takes an arithmetic set and a corpus in one study.",
        )
    return _answered("arithmetic", question, _judged(compared), "Arithmetic", "corpora")


def _named_or_counted(sets: Sequence[str], noun: str) -> str:
    """Return the names of up to three sets; more are counted."""
    if len(sets) <= 3:
        return join_names(sets)
    return f"{len(sets)} {noun}"


def _own(groups: Sequence[ComparedGroup]) -> PaperQuestion:
    """Whether what a model is measured on is helped by data of the same source."""
    question = "Does a task's own data help it?"
    compared: list[_Pair] = []
    for group in groups:
        for measured in group.measured:
            source = label_measured(measured).source
            same_source: list[str] = []
            others: list[str] = []
            for name in group.sets:
                label = group.label(name)
                if label.source == source:
                    same_source.append(name)
                elif not label.control:
                    others.append(name)
            if same_source and others:
                sides = f"{join_names(same_source)} against the others"
                pair = _Pair(group, tuple(same_source), tuple(others), (measured,), sides)
                compared.append(pair)
    if not compared:
        text = (
            "It takes a measured set whose own source is among the calibration sets, beside others."
        )
        return PaperQuestion("own", question, "not covered", text)
    return _answered("own", question, _judged(compared), "A task's own data", "the other sets")


def _formats(
    groups: Sequence[ComparedGroup],
    after: str,
    before: Sequence[str],
    question: str,
    nouns: tuple[str, str],
) -> PaperQuestion:
    """Whether rows of one source calibrate better in the format `after` than in those `before`.

    The question is called like the format `after`. `nouns` are the two sides in words.
    """
    compared: list[_Pair] = []
    for group in groups:
        by_source: dict[tuple[str, str], dict[str, str]] = {}
        for name in group.sets:
            label = group.label(name)
            if not label.control and not label.mixed:
                formats = by_source.setdefault((label.source, label.packing), {})
                formats[label.format] = name
        for formats in by_source.values():
            for form in before:
                if form in formats and after in formats:
                    first = formats[after]
                    second = formats[form]
                    sides = f"{first} against {second}"
                    compared.append(_Pair(group, (first,), (second,), group.averaged, sides))
    if not compared:
        return PaperQuestion(
            after,
            question,
            "not covered",
            f"It takes one source in two formats, {' or '.join(before)} and {after}.",
        )
    return _answered(after, question, _judged(compared), *nouns)


def _answered(
    name: str, question: str, evidence: tuple[Evidence, ...], first: str, second: str
) -> PaperQuestion:
    """Answer yes where everything significant is better, no where everything significant is worse,
    and that it depends where both are found.
    """
    verdicts = {found.verdict for found in evidence}
    answer: Answer = "undecided"
    if verdicts >= {"better", "worse"}:
        answer = "it depends"
    elif "better" in verdicts:
        answer = "yes"
    elif "worse" in verdicts:
        answer = "no"
    text = _explained(evidence, first, second)
    return PaperQuestion(name, question, answer, text, evidence)


def _explained(evidence: Sequence[Evidence], first: str, second: str) -> str:
    """Say what all evidence for one answer comes to."""
    better = [found for found in evidence if found.verdict == "better"]
    worse = [found for found in evidence if found.verdict == "worse"]
    significant = [*better, *worse]
    if not significant:
        among = "the one comparison there is"
        if len(evidence) > 1:
            among = f"any of {len(evidence)} comparisons"
        return (
            f"{first} and {second} cannot be distinguished in {among}. "
            f"The largest difference that was seen: {_largest(evidence)}."
        )
    if len(evidence) == 1:
        (found,) = significant
        return (
            f"{first} did significantly {found.verdict} than {second}: "
            f"{describe_difference(found)}."
        )
    counts = {
        "significantly better": len(better),
        "significantly worse": len(worse),
        "not significant": len(evidence) - len(significant),
    }
    numbers = [f"{verdict} in {count}" for verdict, count in counts.items() if count]
    return (
        f"{first}, compared with {second} {len(evidence)} times: {', '.join(numbers)}. "
        f"The largest significant difference: {_largest(significant)}."
    )


def _largest(evidence: Sequence[Evidence]) -> str:
    def size(found: Evidence) -> float:
        return abs(found.difference.value)

    return describe_difference(max(evidence, key=size))


def describe_difference(evidence: Evidence) -> str:
    """Return one difference in words: `gsm8k:icl against c4 on average (smollm2, wanda at 60 %
    sparsity), -0.123 nats/token (-0.150 to -0.096)`.
    """
    interval = ""
    if evidence.interval is not None:
        low, high = evidence.interval
        interval = f" ({low:+.3f} to {high:+.3f})"
    on = f"on {evidence.on}"
    if evidence.on == MEAN:
        on = "on average"
    difference = f"{evidence.difference.value:+.3f} {evidence.unit}{interval}"
    return f"{evidence.label} {on} ({evidence.where}), {difference}"
