"""What a study says as a whole: its primary contrasts, whether its rankings agree, what is missing, how far to trust the rest. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from calibrant.compare import LEVEL, Comparison, Contrast, RankAgreement, Ranking, target_noun
from calibrant.report.sentences import caveats, costs, describe_target, doubts, finding, join_names, percent, remarks, short
from calibrant.report.tables.table import HOLE, As, Column, Figure, Table, TableRow, ranked, unranked

HOLES: Final = 100
"""How many holes are join_names; a study that has hardly begun may have thousands."""

NAMED: Final = 4
"""Of how many measured sets a contrast is about are named one by one."""

ALONG: Final = {"method": "method", "target": "target", "measured": "measured set"}


@dataclass(frozen=True)
class Section:
    """A part of a report: a title, a table if it has one, sentences, and things that are join_names one by one."""

    title: str
    table: Table | None = None
    sentences: tuple[str, ...] = ()
    items: tuple[str, ...] = ()


def sections(comparison: Comparison, way: As = "increase", notes: Mapping[str, str] = MappingProxyType({})) -> Iterator[Section]:
    """The report in the order in which it is read: the rankings, what was tested, whether rankings agree, what is missing, how far to trust it."""
    for ranking in comparison.rankings:
        drawn = ranked(ranking, way, notes.get(ranking.model, ""))
        said = [*(f"Doubtful: {d}" for d in doubts(ranking)), finding(ranking), *remarks(ranking), *caveats(ranking)]
        yield Section(drawn.title, drawn, tuple(said))
    if not comparison.rankings:
        yield Section("Nothing to rank yet", sentences=("No calibration set has all of its measurements yet, so there is nothing to rank.",))
    yield from without_data(comparison, way)
    yield from conclusions(comparison)


def without_data(comparison: Comparison, way: As = "increase") -> Iterator[Section]:
    """What methods did that look at no data, for targets that no set was asked for: a table for all that were measured alike."""
    alike: dict[tuple[str, tuple[str, ...]], list[Ranking]] = {}
    for ranking in comparison.unranked:
        alike.setdefault((ranking.model, ranking.measured), []).append(ranking)
    for (model, _), rankings in alike.items():
        said = [*(f"Doubtful: {d}" for r in rankings for d in doubts(r)), *(row for r in rankings for row in costs(r))]
        title = f"Without calibration data: {model}"
        yield Section(title, replace(unranked(rankings, way), title=title), tuple(said))


def conclusions(comparison: Comparison) -> Iterator[Section]:
    """What is said beyond the rankings."""
    if comparison.contrasts:
        yield Section(
            "Primary contrasts", contrasting(comparison.contrasts), (*map(told, comparison.contrasts), *_least_chances(comparison.contrasts))
        )
    if comparison.agreements:
        yield Section("Do the rankings agree?", agreeing(comparison.agreements), tuple(agreed(comparison.agreements)))
    if comparison.missing:
        more = len(comparison.missing) - HOLES
        yield Section(
            "What is missing", items=(*comparison.missing[:HOLES], *([f"… and {more:,} more, which --format json lists"] if more > 0 else []))
        )
    if trusted := list(trust(comparison)):
        yield Section("How far to trust it", sentences=tuple(trusted))


def contrasting(contrasts: Sequence[Contrast]) -> Table:
    """The contrasts that the study named before it ran."""
    columns = (Column("difference"), Column(f"{percent(LEVEL)} interval"), Column("p (Holm)"))
    columns = (*columns, Column("detectable", extra=True), Column("verdict", words=True))
    units = list(dict.fromkeys(c.unit for c in contrasts if c.unit))
    legend = (
        f"difference{f' in {units[0]}' if len(units) == 1 else ''}: below zero the first is better",
        f"p: two-sided, after Holm over {len(contrasts)}",
        "detectable: the difference that four studies of five like this one would find",
    )
    rows = [TableRow(c.name or _sides(c), _figures(c), ", ".join([*([_sides(c)] if _has_own_name(c) else []), _where(c)])) for c in contrasts]
    return Table("Primary contrasts", "contrast", columns, tuple(rows), legend)


def _figures(contrasted: Contrast) -> tuple[Figure, ...]:
    difference = contrasted.difference
    interval = None if difference is None else difference.interval(contrasted.level)
    return (
        Figure(HOLE if difference is None else f"{difference.value:+.3f}"),
        Figure(HOLE if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"),
        Figure(_chance(contrasted.p_holm)),
        Figure(HOLE if contrasted.detectable is None else f"{contrasted.detectable:.3f}"),
        Figure(contrasted.verdict, best=contrasted.verdict in ("better", "worse")),
    )


def _has_own_name(contrasted: Contrast) -> bool:
    return contrasted.name not in ("", _sides(contrasted))


def _sides(contrasted: Contrast) -> str:
    return f"{contrasted.compare} against {contrasted.against}"


def _where(contrasted: Contrast) -> str:
    names = [short(m, contrasted.on) for m in contrasted.on] or ["nothing measured"]
    on = join_names(names) if len(names) <= NAMED else f"the mean of {len(names)}, {names[0]} to {names[-1]}"
    return f"{contrasted.model}, {contrasted.method} at {describe_target(contrasted.target)}, on {on}"


def _chance(p: float | None) -> str:
    return HOLE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def told(contrasted: Contrast) -> str:
    """One contrast in words: what was found, or why nothing was, with what it would take."""
    c, difference, lead = contrasted, contrasted.difference, f"{contrasted.name}: " if _has_own_name(contrasted) else ""
    if difference is not None and c.verdict in ("better", "worse"):
        interval = difference.interval(c.level)
        spread = "" if interval is None else f"{percent(c.level)} interval {interval[0]:+.3f} to {interval[1]:+.3f}"
        chance = "" if c.p_holm is None else f"p {'' if c.p_holm < 0.001 else '= '}{_chance(c.p_holm)} after Holm"
        known = f"{difference.value:+.3f} {c.unit}".rstrip()
        return f"{lead}{c.compare} did {c.verdict} than {c.against} ({_where(c)}): {known} ({', '.join(filter(None, [spread, chance]))})."
    if c.verdict == "not significant":
        return " ".join(filter(None, [f"{lead}{c.compare} and {c.against} can't be told apart ({_where(c)}).", c.needs, c.reason]))
    return " ".join(filter(None, [f"{lead}{_sides(c)} ({_where(c)}): {c.verdict}.", c.reason, c.needs]))


def _least_chances(contrasts: Sequence[Contrast]) -> Iterator[str]:
    """What a test that assumes nothing of the draws' distribution could show at best with as many: beyond it, p leans on the t distribution."""
    for test, p in dict.fromkeys((c.smallest_p_of, c.smallest_p) for c in contrasts if c.smallest_p is not None):
        yield f"The smallest p of {test or 'a permutation of the draws'} is {_chance(p)}; a smaller one leans on Student's t."


def agreeing(agreements: Sequence[RankAgreement]) -> Table:
    """How alike two rankings of the same sets are, those that agree least first."""
    found = sorted(agreements, key=lambda a: (a.tau, a.model, a.along, a.a, a.b))
    rows = [
        TableRow(
            f"{_side(a, a.a)} and {_side(a, a.b)}",
            (Figure(f"{a.tau:+.2f}"), Figure(HOLE if a.interval is None else f"{a.interval[0]:+.2f} to {a.interval[1]:+.2f}"), Figure(f"{a.sets}")),
            ", ".join(filter(None, [a.model, a.within])),
        )
        for a in found
    ]
    heads = ("Kendall's τ", f"{percent(LEVEL)} interval", "sets")
    legend = ("τ-b of two rankings of the same sets: +1 the same order, 0 unrelated, −1 reversed", "those that agree least first")
    return Table("Do the rankings agree?", "rankings", tuple(map(Column, heads)), tuple(rows), legend, most=12)


def _side(agreement: RankAgreement, value: str) -> str:
    return describe_target(value) if agreement.along == "target" else value


def agreed(agreements: Sequence[RankAgreement]) -> Iterator[str]:
    """In one sentence for each axis: whether it matters for the order of the sets."""
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


def trust(comparison: Comparison) -> Iterator[str]:
    """Stale records, and how many comparisons the report shows that nobody asked for beforehand."""
    if comparison.stale:
        many = "1 record is" if comparison.stale == 1 else f"{comparison.stale} records are"
        yield f"{many} from an older revision of what made them, and stand here as they are; ask the study again to have them computed anew."
    if comparison.comparisons:
        planned = f"Beyond its {len(comparison.contrasts)} primary contrasts the report" if comparison.contrasts else "The report"
        yield (
            f"{planned} makes {comparison.comparisons} comparisons. They are held together within a column, not over all of it: "
            "take them as a description, and test what they suggest on fresh draws."
        )
