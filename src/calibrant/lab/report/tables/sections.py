"""What a study says, in the order in which it is read: the answer, each ranking, how much the
choice of set matters, what was tested, whether rankings agree, and how far to trust it. No torch
here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from calibrant.lab.report.sentences import (
    NAMED,
    NOTHING_TO_RANK,
    ONLY_MEASURED,
    caveats,
    costs,
    finding,
    remarks,
    short,
)
from calibrant.lab.report.summary import (
    doubts_of,
    matrices,
    overall,
    p_in_words,
    short_target,
    spelled_out,
    way_names,
)
from calibrant.lab.report.tables.table import (
    As,
    Column,
    Figure,
    Table,
    TableRow,
    ranked,
    unranked,
)
from calibrant.lab.stats import (
    LEVEL,
    Comparison,
    Contrast,
    RankAgreement,
    Ranking,
    Sensitivity,
    describe_target,
    join_names,
    target_noun,
)
from calibrant.numerics import (
    HOLE,
    between,
    counted,
    decimals,
    percent,
    probability,
    signed,
    whole_percent,
)

HOLES: Final = 100
"""How many holes are named; a study that has hardly begun may have thousands."""

TESTED: Final = 6
"""How many contrasts a summary names; the others are counted."""

ALONG: Final = {"method": "method", "target": "target", "measured": "measured set"}


@dataclass(frozen=True)
class Section:
    """A part of a report: a title, a table if it has one, sentences, and items of a list.

    `narrow` is a table with less in it, for a screen that `table` doesn't fit. `warns` says that
    the sentences are warnings.
    """

    title: str
    table: Table | None = None
    sentences: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    narrow: Table | None = None
    warns: bool = False


def sections(
    comparison: Comparison,
    way: As = "increase",
    notes: Mapping[str, str] = MappingProxyType({}),
    study: Mapping[str, Any] = MappingProxyType({}),
    shortfalls: Sequence[str] = (),
) -> Iterator[Section]:
    """Yield the whole report. `study` is what the store knows of its study, `shortfalls` a sentence
    for each target that wasn't reached.
    """
    yield from answer(comparison, study)
    for ranking in comparison.rankings:
        yield _of_ranking(ranking, way, notes)
    yield from without_data(comparison, way)
    if shortfalls:
        yield Section("Targets not reached", sentences=tuple(shortfalls))
    yield from sensitivity(comparison)
    yield from conclusions(comparison)


def _of_ranking(ranking: Ranking, way: As, notes: Mapping[str, str]) -> Section:
    """Return a ranking's table with what it says."""
    table = ranked(ranking, way, notes.get(ranking.model, ""))
    sentences = (finding(ranking), *remarks(ranking), *caveats(ranking))
    return Section(table.title, table, sentences)


def in_short(
    comparison: Comparison,
    study: Mapping[str, Any],
    way: As = "increase",
    notes: Mapping[str, str] = MappingProxyType({}),
    shortfalls: Sequence[str] = (),
) -> Iterator[Section]:
    """Yield what a study of several rankings found, the weightiest first; and finished models,
    which stand in none of its tables.
    """
    yield from answer(comparison, study)
    for ranking in comparison.finished:
        yield _of_ranking(ranking, way, notes)
    sentences: list[str] = []
    odd = doubts_of(comparison).in_short
    if odd:
        sentences.append(f"{odd}.")
    if len(shortfalls) > 1:
        sentences.append(
            f"{len(shortfalls)} targets were not reached; the whole report names them."
        )
    else:
        sentences.extend(shortfalls)
    if comparison.sensitivities:
        sentences.extend(sensitivity_sentences(comparison.sensitivities))
    if comparison.contrasts:
        sentences.append(_tested(comparison))
    if comparison.missing:
        results = counted(len(comparison.missing), "result")
        verb = "is" if len(comparison.missing) == 1 else "are"
        sentences.append(f"{results} of the grid {verb} missing or failed.")
    sentences.extend(trust_sentences(comparison))
    if sentences:
        yield Section("What else was found", sentences=tuple(sentences))


def answer(comparison: Comparison, study: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the answer over all rankings, what every set costs with every method, and doubts.

    A single ranking is its own answer.
    """
    if not comparison.rankings:
        if comparison.only_measured:
            yield Section("Nothing to rank", sentences=(ONLY_MEASURED,))
        else:
            yield Section("Nothing to rank yet", sentences=(NOTHING_TO_RANK,))
    if len(comparison.of_sets) > 1:
        yield Section("Which calibration set is best?", sentences=(overall(comparison),))
        for matrix in matrices(comparison, study):
            yield Section(matrix.title, matrix.table(), narrow=matrix.ends())
    shown = doubts_of(comparison).shown
    if shown:
        yield Section("Doubtful", sentences=tuple(shown), warns=True)


def without_data(comparison: Comparison, way: As = "increase") -> Iterator[Section]:
    """Yield what methods did that look at no data, for targets that no set was compressed to: a
    table for all that were measured alike.
    """
    alike: dict[tuple[str, tuple[str, ...]], list[Ranking]] = {}
    for ranking in comparison.unranked:
        alike.setdefault((ranking.model, ranking.measured), []).append(ranking)
    for (model, _), rankings in alike.items():
        sentences: list[str] = []
        for ranking in rankings:
            sentences.extend(costs(ranking))
        title = f"Without calibration data: {model}"
        table = replace(unranked(rankings, way), title=title)
        yield Section(title, table, tuple(sentences))


def sensitivity(comparison: Comparison) -> Iterator[Section]:
    """Yield how much the choice of calibration set decides for each method, where sets were
    drawn more than once.
    """
    found = comparison.sensitivities
    if found:
        table = sensitivity_table(found)
        sentences = tuple(sensitivity_sentences(found))
        yield Section(table.title, table, sentences)


def conclusions(comparison: Comparison) -> Iterator[Section]:
    """Yield what is said beyond the rankings."""
    contrasts = comparison.contrasts
    if contrasts:
        sentences = [contrast_sentence(contrast) for contrast in contrasts]
        sentences.extend(_limits(contrasts))
        table = contrast_table(contrasts, comparison.tested)
        yield Section(table.title, table, tuple(sentences))
    agreements = comparison.agreements
    if agreements:
        table = agreement_table(agreements)
        sentences = tuple(agreement_sentences(agreements))
        yield Section(table.title, table, sentences)
    if comparison.missing:
        holes = list(comparison.missing[:HOLES])
        more = len(comparison.missing) - HOLES
        if more > 0:
            holes.append(f"… and {more:,} more, which --format json lists")
        yield Section("What is missing", items=tuple(holes))
    odd = doubts_of(comparison)
    if odd.chance:
        yield Section("Odd, and perhaps chance", None, (f"{odd.in_short}.",), tuple(odd.chance))
    trust = tuple(trust_sentences(comparison))
    if trust:
        yield Section("How far to trust it", sentences=trust)


# Contrasts that the study named before it ran.


def _limits(contrasts: Sequence[Contrast]) -> Iterator[str]:
    """Yield the smallest p that each test can give.

    A test that assumes nothing of the draws' distribution has one, given their number: below it,
    p leans on the t distribution.
    """
    smallest: dict[tuple[str, float], None] = {}
    for contrast in contrasts:
        if contrast.smallest_p is not None:
            test = contrast.smallest_p_of or "a permutation of the draws"
            smallest[test, contrast.smallest_p] = None
    for test, p in smallest:
        least = probability(p)
        yield f"The smallest p of {test} is {least}; a smaller one leans on Student's t."


def contrast_table(contrasts: Sequence[Contrast], tested: int) -> Table:
    """Return contrasts that the study named before it ran, `tested` in all."""
    columns = (
        Column("difference"),
        Column(f"{percent(LEVEL)} interval"),
        Column("p (Holm)"),
        Column("detectable", extra=True),
        Column("verdict", words=True),
    )
    ways = way_names(map(_way, contrasts))
    legend = (
        f"difference{_in_unit(contrasts)}: below zero the first is better",
        f"p: two-sided, after Holm over {tested}",
        "detectable: the true difference that this contrast alone, at 5 %, would find in four "
        "studies of five if its error were known; with fewer than five draws a set, in fewer",
        *spelled_out(map(_way, contrasts), {}),
    )
    rows = [_contrast_row(contrast, ways[_way(contrast)]) for contrast in contrasts]
    return Table("Primary contrasts", "contrast", columns, tuple(rows), legend)


def _contrast_row(contrast: Contrast, way: str) -> TableRow:
    difference = contrast.difference
    value = HOLE
    interval = None
    if difference is not None:
        value = signed(difference.value)
        interval = difference.interval(contrast.level)
    detectable = HOLE if contrast.detectable is None else decimals(contrast.detectable)
    figures = (
        Figure(value),
        Figure(between(interval, signed)),
        Figure(probability(contrast.p_holm)),
        Figure(detectable),
        Figure(contrast.verdict, best=contrast.verdict in ("better", "worse")),
    )
    sides = f"{contrast.compare} against {contrast.against}"
    note = f"{contrast.model}, {way}, {_measured(contrast)}"
    if contrast.name not in ("", sides):
        note = f"{sides}, {note}"
    return TableRow(contrast.name or sides, figures, note)


def _in_unit(numbers: Sequence[Contrast | Sensitivity]) -> str:
    """The unit of these numbers, where they have one in common."""
    units = {number.unit for number in numbers if number.unit}
    return f" in {units.pop()}" if len(units) == 1 else ""


def _way(contrast: Contrast | Sensitivity) -> tuple[str, str, str, str]:
    return contrast.model, contrast.method, contrast.target, contrast.propagate


def _measured(contrast: Contrast) -> str:
    """On what a contrast was measured."""
    names = [short(measured, contrast.on) for measured in contrast.on] or ["nothing measured"]
    measured = join_names(names)
    if len(names) > NAMED:
        measured = f"the mean of {len(names)}, {names[0]} to {names[-1]}"
    return f"on {measured}"


def contrast_sentence(contrast: Contrast) -> str:
    """Return one contrast in words: what was found, or why nothing was, with what it would take."""
    difference = contrast.difference
    sides = f"{contrast.compare} against {contrast.against}"
    lead = "" if contrast.name in ("", sides) else f"{contrast.name}: "
    target = describe_target(contrast.target)
    where = f"{contrast.model}, {contrast.method} at {target}, {_measured(contrast)}"
    if difference is not None and contrast.verdict in ("better", "worse"):
        tests: list[str] = []
        interval = difference.interval(contrast.level)
        if interval is not None:
            tests.append(f"{percent(contrast.level)} interval {between(interval, signed)}")
        if contrast.p_holm is not None:
            tests.append(f"{p_in_words(contrast.p_holm)} after Holm")
        found = f"{signed(difference.value)} {contrast.unit}".rstrip()
        return (
            f"{lead}{contrast.compare} did {contrast.verdict} than {contrast.against} "
            f"({where}): {found} ({', '.join(tests)})."
        )
    if contrast.verdict == "not significant":
        undecided = f"{contrast.compare} and {contrast.against} cannot be distinguished"
        parts = [f"{lead}{undecided} ({where}).", contrast.needs, contrast.reason]
    else:
        parts = [f"{lead}{sides} ({where}): {contrast.verdict}.", contrast.reason, contrast.needs]
    return " ".join(part for part in parts if part)


def _tested(comparison: Comparison) -> str:
    """How many contrasts are significant, and which."""
    contrasts = comparison.contrasts
    test = f"Holm over {comparison.tested}"
    sure = [contrast for contrast in contrasts if contrast.verdict in ("better", "worse")]
    untested = sum(contrast.p is None for contrast in contrasts)
    named_contrasts = counted(len(contrasts), "primary contrast")
    if untested == len(contrasts):
        return f"None of {named_contrasts} could be tested; their lines say why."
    lead = f"Of {named_contrasts}"
    rest = ""
    if untested == 1:
        rest = " 1 has no test; its line says why."
    elif untested:
        rest = f" {untested} have no test; their lines say why."
    if not sure:
        return f"{lead} none is significant ({test}).{rest}"
    ways = way_names(map(_way, contrasts))
    named: list[str] = []
    for contrast in sure[:TESTED]:
        name = contrast.name or f"{contrast.compare} against {contrast.against}"
        value = "" if contrast.difference is None else f" {signed(contrast.difference.value)}"
        named.append(f"{name} ({ways[_way(contrast)]}){value}")
    if len(sure) > TESTED:
        named.append(f"{len(sure) - TESTED} more")
    verb = "is" if len(sure) == 1 else "are"
    return (
        f"{lead} {len(sure)} {verb} significant ({test}): {join_names(named)}; "
        f"below zero the first is better.{rest}"
    )


# How much the choice of set decides.


def sensitivity_table(sensitivities: Sequence[Sensitivity]) -> Table:
    """Return what the choice of set is worth by method, the most of the increase first."""

    def order(found: Sensitivity) -> tuple[str, float, str, str]:
        return found.model, -(found.share or 0.0), found.method, found.target

    interval = f"{percent(LEVEL)} interval"
    heads = (
        "worst less best",
        interval,
        "by chance at most",
        "cross-fitted",
        "of the increase",
        "between sets / draws",
        f"its {interval}",
        "p",
    )
    names = way_names(map(_way, sensitivities))
    ordered = sorted(sensitivities, key=order)
    rows = [_sensitivity_row(found, names[_way(found)]) for found in ordered]
    legend = (
        f"worst less best set{_in_unit(sensitivities)}, averaged over what was measured",
        "controls are left out, and sets that were drawn once or whose draws overlap",
        "by chance at most: what worst less best stays below where all sets are alike, "
        f"{percent(LEVEL)}",
        "cross-fitted: each draw is measured with the sets that the other draws choose",
        "of the increase: as a share of how much worse than the dense model they are on average",
        "between sets / draws: variances",
        *spelled_out(map(_way, sensitivities), {}),
    )
    columns = tuple(map(Column, heads))
    title = "How much does the choice of set matter?"
    return Table(title, "method", columns, tuple(rows), legend)


def _sensitivity_row(found: Sensitivity, way: str) -> TableRow:
    share = HOLE if found.share is None else whole_percent(found.share)
    ratio = HOLE if found.ratio is None else _tenths(found.ratio)
    texts = (
        decimals(found.worth),
        between(found.worth_interval),
        decimals(found.by_chance),
        decimals(found.cross_fitted),
        share,
        ratio,
        between(found.ratio_interval, _tenths),
        probability(found.p),
    )
    note = f"{found.model}, {len(found.sets)} sets"
    return TableRow(way, tuple(map(Figure, texts)), note)


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def sensitivity_sentences(sensitivities: Sequence[Sensitivity]) -> Iterator[str]:
    """Yield for how many of the methods the choice of set matters measurably, and where most."""

    def share(found: Sensitivity) -> float:
        return found.share or 0.0

    sure = [found for found in sensitivities if found.worth_interval[0] > 0]
    yield (
        f"Some two sets differ significantly in {len(sure)} of {len(sensitivities)} "
        "combinations of model, method and target."
    )
    if len(sure) < 2:
        return
    most = max(sure, key=share)
    if most.share:
        names = way_names(map(_way, sensitivities))
        yield (
            f"The most is measured with {names[_way(most)]} ({most.model}): "
            f"{whole_percent(most.share)} of the increase over the dense model lie between "
            "the worst and the best set. Methods aren't tested against one another."
        )


# Whether rankings agree.


def agreement_table(agreements: Sequence[RankAgreement]) -> Table:
    """Return how alike two rankings of the same sets are, those that agree least first."""

    def order(agreement: RankAgreement) -> tuple[float, str, str, str, str]:
        return agreement.tau, agreement.model, agreement.along, agreement.a, agreement.b

    rows: list[TableRow] = []
    for agreement in sorted(agreements, key=order):
        sides = [agreement.a, agreement.b]
        if agreement.along == "target":
            sides = list(map(short_target, sides))
        note = agreement.model
        if agreement.within:
            note = f"{note}, {agreement.within}"
        texts = (
            _hundredths(agreement.tau),
            between(agreement.interval, _hundredths),
            f"{agreement.sets}",
        )
        figures = tuple(map(Figure, texts))
        rows.append(TableRow(" and ".join(sides), figures, note))
    heads = ("Kendall's τ", f"{percent(LEVEL)} interval", "sets")
    legend = (
        "τ-b of two rankings of the same sets: +1 the same order, 0 unrelated, −1 reversed",
        "those that agree least first",
    )
    columns = tuple(map(Column, heads))
    title = "Do the rankings agree?"
    return Table(title, "rankings", columns, tuple(rows), legend, most=12)


def _hundredths(tau: float) -> str:
    return f"{tau:+.2f}"


def agreement_sentences(agreements: Sequence[RankAgreement]) -> Iterator[str]:
    """Yield for each axis, in one sentence, whether it matters for the order of the sets."""
    for along, noun in ALONG.items():
        found = [agreement for agreement in agreements if agreement.along == along]
        if not found:
            continue
        if along == "target":
            sides = [agreement.a for agreement in found]
            sides += [agreement.b for agreement in found]
            noun = target_noun(sides)
        taus = [agreement.tau for agreement in found]
        sure = 0
        for agreement in found:
            if agreement.interval is not None and agreement.interval[0] > 0:
                sure += 1
        least = _hundredths(min(taus))
        if len(found) == 1:
            verb = "lies" if sure else "does not lie"
            yield f"By {noun}: τ {least} for the one pair; its interval {verb} above zero."
        else:
            span = f"τ {least} to {_hundredths(max(taus))}"
            yield (
                f"By {noun}: {span} over {len(found)} pairs; "
                f"the interval lies above zero for {sure} of them."
            )


def trust_sentences(comparison: Comparison) -> Iterator[str]:
    """Yield how many results are stale, and how many comparisons the report shows that the study
    didn't name beforehand.
    """
    if comparison.stale:
        verb = "is" if comparison.stale == 1 else "are"
        yield (
            f"{counted(comparison.stale, 'result')} {verb} from an older revision of what made "
            "them, and stand here as they are; ask the study again to have them computed anew."
        )
    if comparison.comparisons:
        planned = "The report"
        if comparison.contrasts:
            contrasts = counted(len(comparison.contrasts), "primary contrast")
            planned = f"Beyond its {contrasts} the report"
        yield (
            f"{planned} makes {counted(comparison.comparisons, 'comparison')}. They are held "
            "together within a column, not over all of it: take them as a description, "
            "and test what they suggest on fresh draws."
        )
