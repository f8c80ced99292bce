"""What a study says as a whole: its primary contrasts, whether its rankings agree, what is
missing, how far to trust the rest. No torch here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from calibrant.lab.report.sentences import (
    NAMED,
    NOTHING_TO_RANK,
    ONLY_MEASURED,
    caveats,
    costs,
    doubts,
    finding,
    percent,
    remarks,
    short,
)
from calibrant.lab.report.tables.table import (
    HOLE,
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

HOLES: Final = 100
"""How many holes are join_names; a study that has hardly begun may have thousands."""

ALONG: Final = {"method": "method", "target": "target", "measured": "measured set"}


@dataclass(frozen=True)
class Section:
    """A part of a report: a title, a table if it has one, sentences, and things that are
    join_names one by one.
    """

    title: str
    table: Table | None = None
    sentences: tuple[str, ...] = ()
    items: tuple[str, ...] = ()


def sections(
    comparison: Comparison, way: As = "increase", notes: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Section]:
    """Yield the report in the order in which it is read: rankings, what was tested, whether
    rankings agree, what is missing, how far to trust it.
    """
    for ranking in comparison.rankings:
        drawn = ranked(ranking, way, notes.get(ranking.model, ""))
        sentences = [
            *(f"Doubtful: {d}" for d in doubts(ranking)),
            finding(ranking),
            *remarks(ranking),
            *caveats(ranking),
        ]
        yield Section(drawn.title, drawn, tuple(sentences))
    if not comparison.rankings:
        title, why = (
            ("Nothing to rank", ONLY_MEASURED)
            if comparison.only_measured
            else ("Nothing to rank yet", NOTHING_TO_RANK)
        )
        yield Section(title, sentences=(why,))
    yield from without_data(comparison, way)
    yield from sensitivity(comparison)
    yield from conclusions(comparison)


def without_data(comparison: Comparison, way: As = "increase") -> Iterator[Section]:
    """Yield what methods did that look at no data, for targets that no set was compressed to: a
    table for all that were measured alike.
    """
    alike: dict[tuple[str, tuple[str, ...]], list[Ranking]] = {}
    for ranking in comparison.unranked:
        alike.setdefault((ranking.model, ranking.measured), []).append(ranking)
    for (model, _), rankings in alike.items():
        sentences = [
            *(f"Doubtful: {d}" for r in rankings for d in doubts(r)),
            *(cost for r in rankings for cost in costs(r)),
        ]
        title = f"Without calibration data: {model}"
        yield Section(title, replace(unranked(rankings, way), title=title), tuple(sentences))


def sensitivity(comparison: Comparison) -> Iterator[Section]:
    """Yield how much the choice of calibration set decides for each method, where sets were
    drawn more than once.
    """
    if found := comparison.sensitivities:
        yield Section(
            "How much does the choice of set matter?",
            sensitivity_table(found),
            tuple(sensitivity_sentences(found)),
        )


def conclusions(comparison: Comparison) -> Iterator[Section]:
    """Yield what is said beyond the rankings."""
    if contrasts := comparison.contrasts:
        # A test that assumes nothing of the draws' distribution has a smallest p, given their
        # number: below it, p leans on the t distribution.
        least = dict.fromkeys(
            (c.smallest_p_of or "a permutation of the draws", c.smallest_p)
            for c in contrasts
            if c.smallest_p is not None
        )
        limits = [
            f"The smallest p of {test} is {_p(p)}; a smaller one leans on Student's t."
            for test, p in least
        ]
        yield Section(
            "Primary contrasts",
            contrast_table(contrasts),
            (*map(contrast_sentence, contrasts), *limits),
        )
    if comparison.agreements:
        yield Section(
            "Do the rankings agree?",
            agreement_table(comparison.agreements),
            tuple(agreement_sentences(comparison.agreements)),
        )
    if comparison.missing:
        more = len(comparison.missing) - HOLES
        rest = [f"… and {more:,} more, which --format json lists"] if more > 0 else []
        yield Section("What is missing", items=(*comparison.missing[:HOLES], *rest))
    if trust := tuple(trust_sentences(comparison)):
        yield Section("How far to trust it", sentences=trust)


def contrast_table(contrasts: Sequence[Contrast]) -> Table:
    """Return the contrasts that the study named before it ran."""
    columns = (Column("difference"), Column(f"{percent(LEVEL)} interval"), Column("p (Holm)"))
    columns = (*columns, Column("detectable", extra=True), Column("verdict", words=True))
    units = list(dict.fromkeys(c.unit for c in contrasts if c.unit))
    legend = (
        f"difference{f' in {units[0]}' if len(units) == 1 else ''}: below zero the first is better",
        f"p: two-sided, after Holm over {len(contrasts)}",
        "detectable: the difference that four studies of five like this one would find",
    )
    rows: list[TableRow] = []
    for c in contrasts:
        interval = None if c.difference is None else c.difference.interval(c.level)
        figures = (
            Figure(HOLE if c.difference is None else f"{c.difference.value:+.3f}"),
            Figure(HOLE if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"),
            Figure(_p(c.p_holm)),
            Figure(HOLE if c.detectable is None else f"{c.detectable:.3f}"),
            Figure(c.verdict, best=c.verdict in ("better", "worse")),
        )
        sides = f"{c.compare} against {c.against}"
        rows.append(
            TableRow(
                c.name or sides,
                figures,
                ", ".join([*([sides] if c.name not in ("", sides) else []), _where(c)]),
            )
        )
    return Table("Primary contrasts", "contrast", columns, tuple(rows), legend)


def _where(contrast: Contrast) -> str:
    """Return the model, method and target of a contrast, and on what it was measured."""
    names = [short(m, contrast.on) for m in contrast.on] or ["nothing measured"]
    on = (
        join_names(names)
        if len(names) <= NAMED
        else f"the mean of {len(names)}, {names[0]} to {names[-1]}"
    )
    return f"{contrast.model}, {contrast.method} at {describe_target(contrast.target)}, on {on}"


def _p(value: float | None) -> str:
    return HOLE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def contrast_sentence(contrast: Contrast) -> str:
    """Return one contrast in words: what was found, or why nothing was, with what it would take."""
    c, difference, sides = (
        contrast,
        contrast.difference,
        f"{contrast.compare} against {contrast.against}",
    )
    lead = f"{c.name}: " if c.name not in ("", sides) else ""
    if difference is not None and c.verdict in ("better", "worse"):
        interval = difference.interval(c.level)
        spread = (
            ""
            if interval is None
            else f"{percent(c.level)} interval {interval[0]:+.3f} to {interval[1]:+.3f}"
        )
        p = (
            ""
            if c.p_holm is None
            else f"p {'' if c.p_holm < 0.001 else '= '}{_p(c.p_holm)} after Holm"
        )
        known = f"{difference.value:+.3f} {c.unit}".rstrip()
        return f"{lead}{c.compare} did {c.verdict} than {c.against} ({_where(c)}): {known} ({', '.join(filter(None, [spread, p]))})."
    if c.verdict == "not significant":
        return " ".join(
            filter(
                None,
                [
                    f"{lead}{c.compare} and {c.against} cannot be distinguished ({_where(c)}).",
                    c.needs,
                    c.reason,
                ],
            )
        )
    return " ".join(filter(None, [f"{lead}{sides} ({_where(c)}): {c.verdict}.", c.reason, c.needs]))


def sensitivity_table(sensitivities: Sequence[Sensitivity]) -> Table:
    """Return what the choice of set is worth by method, the most of the increase first."""
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
    names = named_ways(sensitivities)
    rows: list[TableRow] = []
    for s in sorted(sensitivities, key=lambda s: (s.model, -(s.share or 0.0), s.method, s.target)):
        low, high = s.worth_interval
        ratio = HOLE if s.ratio is None else f"{s.ratio:.1f}"
        around = (
            HOLE
            if s.ratio_interval is None
            else " to ".join(f"{end:.1f}" for end in s.ratio_interval)
        )
        share = HOLE if s.share is None else _rounded(s.share)
        texts = (
            f"{s.worth:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{s.by_chance:.3f}",
            f"{s.cross_fitted:.3f}",
            share,
            ratio,
            around,
            _p(s.p),
        )
        rows.append(
            TableRow(
                f"{names[id(s)]} at {describe_target(s.target)}",
                tuple(map(Figure, texts)),
                f"{s.model}, {len(s.sets)} sets",
            )
        )
    units = list(dict.fromkeys(s.unit for s in sensitivities))
    legend = (
        f"worst less best set{f' in {units[0]}' if len(units) == 1 else ''}, averaged over what was measured",
        "controls are left out, and sets that were drawn once or whose draws overlap",
        f"by chance at most: what worst less best stays below where all sets are alike, {percent(LEVEL)}",
        "cross-fitted: each draw is measured with the sets that the other draws choose",
        "of the increase: as a share of how much worse than the dense model they are on average",
        "between sets / draws: variances",
    )
    return Table(
        "How much does the choice of set matter?",
        "method",
        tuple(map(Column, heads)),
        tuple(rows),
        legend,
    )


def named_ways(sensitivities: Sequence[Sensitivity]) -> Mapping[int, str]:
    """Return what each is called, by its id: its method, with the propagation where one was run
    in several.
    """
    ways: dict[tuple[str, str, str], set[str]] = {}
    for s in sensitivities:
        ways.setdefault((s.model, s.method, s.target), set()).add(s.propagate)
    return {
        id(s): f"{s.method}, {s.propagate},"
        if len(ways[s.model, s.method, s.target]) > 1
        else s.method
        for s in sensitivities
    }


def sensitivity_sentences(sensitivities: Sequence[Sensitivity]) -> Iterator[str]:
    """Yield for how many of the methods the choice of set matters measurably, and where most."""
    sure = [s for s in sensitivities if s.worth_interval[0] > 0]
    yield f"Some two sets differ significantly in {len(sure)} of {len(sensitivities)} combinations of model, method and target."
    if len(sure) > 1 and (most := max(sure, key=lambda s: s.share or 0.0)).share:
        where = f"{most.method} at {describe_target(most.target)} ({most.model})"
        share = f"{_rounded(most.share)} of the increase over the dense model lie between the worst and the best set"
        yield f"The most is measured with {where}: {share}. Methods aren't tested against one another."


def _rounded(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"


def agreement_table(agreements: Sequence[RankAgreement]) -> Table:
    """Return how alike two rankings of the same sets are, those that agree least first."""
    rows: list[TableRow] = []
    for a in sorted(agreements, key=lambda a: (a.tau, a.model, a.along, a.a, a.b)):
        sides = [describe_target(side) if a.along == "target" else side for side in (a.a, a.b)]
        interval = HOLE if a.interval is None else f"{a.interval[0]:+.2f} to {a.interval[1]:+.2f}"
        figures = (Figure(f"{a.tau:+.2f}"), Figure(interval), Figure(f"{a.sets}"))
        rows.append(
            TableRow(" and ".join(sides), figures, ", ".join(filter(None, [a.model, a.within])))
        )
    heads = ("Kendall's τ", f"{percent(LEVEL)} interval", "sets")
    legend = (
        "τ-b of two rankings of the same sets: +1 the same order, 0 unrelated, −1 reversed",
        "those that agree least first",
    )
    return Table(
        "Do the rankings agree?",
        "rankings",
        tuple(map(Column, heads)),
        tuple(rows),
        legend,
        most=12,
    )


def agreement_sentences(agreements: Sequence[RankAgreement]) -> Iterator[str]:
    """Yield for each axis, in one sentence, whether it matters for the order of the sets."""
    for along, noun in ALONG.items():
        taus = [a for a in agreements if a.along == along]
        if not taus:
            continue
        noun = target_noun(side for a in taus for side in (a.a, a.b)) if along == "target" else noun
        least = min(taus, key=lambda a: a.tau)
        sure = sum(a.interval is not None and a.interval[0] > 0 for a in taus)
        if len(taus) == 1:
            yield f"By {noun}: τ {least.tau:+.2f} for the one pair; its interval {'lies' if sure else 'does not lie'} above zero."
        else:
            span = f"τ {least.tau:+.2f} to {max(a.tau for a in taus):+.2f}"
            yield f"By {noun}: {span} over {len(taus)} pairs; the interval lies above zero for {sure} of them."


def trust_sentences(comparison: Comparison) -> Iterator[str]:
    """Yield how many records are stale, and how many comparisons the report shows that the study
    didn't name beforehand.
    """
    if comparison.stale:
        many = "1 record is" if comparison.stale == 1 else f"{comparison.stale} records are"
        yield f"{many} from an older revision of what made them, and stand here as they are; ask the study again to have them computed anew."
    if comparison.comparisons:
        planned = (
            f"Beyond its {len(comparison.contrasts)} primary contrasts the report"
            if comparison.contrasts
            else "The report"
        )
        yield (
            f"{planned} makes {comparison.comparisons} comparisons. They are held together within a column, not over all of it: "
            "take them as a description, and test what they suggest on fresh draws."
        )
