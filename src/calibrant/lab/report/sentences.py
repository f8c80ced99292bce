"""What was found, in sentences made from the numbers, and what ought to make a reader doubt
them. No torch here.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from calibrant.lab.stats import (
    Estimate,
    Ranking,
    RankingEntry,
    describe_target,
    is_rounded,
    join_names,
    label_measured,
)

SEEN: Final = 0.01
"""Share of the smallest divergence from which on its noise floor is told."""
NAMED: Final = 4
"""Of how many measured sets, or of how many sets, each is named; more are counted."""


NOTHING_TO_RANK: Final = (
    "No calibration set has all of its measurements yet, so there is nothing to rank."
)
ONLY_MEASURED: Final = (
    "Nothing was compressed here: models were only measured, so there is nothing to rank."
)


def finding(ranking: Ranking) -> str:
    """Return the answer in one or two sentences: which set kept the model best, how sure that is,
    which cannot be distinguished from it.

    Of a ranking without calibration sets it is what the method cost.
    """
    if any(entry.name == ranking.method for entry in ranking.baselines):
        return " ".join(costs(ranking))
    if not ranking.entries and ranking.method == "none":
        return ONLY_MEASURED
    if not ranking.entries:
        return f"No calibration set has all of its measurements on {ranking.model} with {ranking.method} yet, so there is nothing to rank."
    best, count, over = ranking.best, len(ranking.entries), _averaged(ranking)
    what = f"with {ranking.method} at {describe_target(ranking.target)}"
    if count == 1:
        return f"Only {best.name} was tried on {ranking.model} {what}, so there is nothing to choose between: {over}, {_cost(ranking, best)}."
    tied = [e.name for e in ranking.entries[1:] if e.tied]
    worse = [e for e in ranking.entries[1:] if not e.tied]
    if not worse:
        return (
            f"No difference is significant: {over}, none of the {count} calibration sets did significantly worse than the best one "
            f"on {ranking.model} {what}. The best is {best.name} ({_cost(ranking, best)}), and that may be chance."
        )
    ties = (
        f" {join_names(tied) if len(tied) <= 2 * NAMED else f'{len(tied)} of the others'} cannot be distinguished from it."
        if tied
        else ""
    )
    gaps = [f"{e.to_best.value:.3f} ({e.name})" for e in worse if e.to_best is not None]
    span = gaps[0] if len(gaps) == 1 else f"{gaps[0]} to {gaps[-1]}"
    others = (
        "The other"
        if len(worse) == 1 and tied
        else "The others"
        if tied
        else "The other one"
        if len(worse) == 1
        else "Every other set"
    )
    lead = f"Of {count} calibration sets, {best.name} kept {ranking.model} best {what}: {over}, {_cost(ranking, best)}."
    return f"{lead}{ties} {others} did significantly worse, by {span} {ranking.unit}."


def costs(ranking: Ranking) -> list[str]:
    """Return what a method cost that looks at no data: a sentence for each of a ranking's
    baselines.
    """
    target, over = describe_target(ranking.target), _averaged(ranking)
    return [
        f"{e.name.capitalize()} at {target}, which looks at no data: {over}, {_cost(ranking, e)}."
        for e in ranking.baselines
    ]


def _averaged(ranking: Ranking) -> str:
    """Return over what a ranking's means are: `on wikitext`, `averaged over docs and code`,
    `averaged over 14 measured sets`.
    """
    names = [short(m, ranking.measured) for m in ranking.averaged]
    if len(names) == 1:
        return f"on {names[0]}"
    return f"averaged over {join_names(names) if len(names) <= NAMED else f'{len(names)} measured sets'}"


def _cost(ranking: Ranking, entry: RankingEntry) -> str:
    noun = "loss" if ranking.unit.startswith("nats") else "score"
    value = f"{abs(entry.mean.value) if ranking.dense is not None else entry.mean.value:.3f} {ranking.unit}"
    worse = entry.mean.value >= 0
    if ranking.dense is None:
        change = f"its {noun} is {value}"
    elif noun == "loss":
        change = f"its loss {'rose' if worse else 'fell'} by {value} {'over' if worse else 'below'} the dense model's"
    else:
        change = f"it {'lost' if worse else 'gained'} {value} against the dense model"
    return f"{change}{bracketed(entry.mean, ranking.level, ' (', ')')}"


def bracketed(estimate: Estimate, level: float, before: str, after: str = "") -> str:
    """Return an estimate's interval in words, between `before` and `after`; nothing where there
    is none.
    """
    interval = estimate.interval(level)
    return (
        ""
        if interval is None
        else f"{before}{percent(level)} interval {interval[0]:.3f} to {interval[1]:.3f}{after}"
    )


def caveats(ranking: Ranking) -> list[str]:
    """Return what the intervals do and don't cover."""
    if not ranking.entries:
        return []
    fewest, most = min(e.draws for e in ranking.entries), max(e.draws for e in ranking.entries)
    if most == 1:
        covered = (
            "Each set was drawn once. The intervals say how sure this is for other documents of the same kind; how much another draw of the same "
            "calibration data would change it, one draw cannot say."
        )
    elif ranking.one_draw:
        covered = "Some sets were drawn once: for those the intervals cover other documents, not other draws of the calibration data."
    else:
        many = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        covered = f"The intervals cover other documents and other draws of the calibration data ({many} draws a set)."
    sentences = [covered]
    alike = [e.name for e in ranking.entries if e.overlapping]
    if alike:
        sentences.append(
            f"The draws of {join_names(alike)} share more than a tenth of their rows, so they say little about a fresh draw: "
            "the intervals there cover other documents only."
        )
    if ranking.comparisons > 1:
        sentences.append(
            f"Differences to the best are widened for all {ranking.comparisons} pairs that it could be, so that they hold together at "
            f"{percent(ranking.level)}."
        )
    return [*sentences, *_of_floors(ranking)]


def _of_floors(ranking: Ranking) -> Iterator[str]:
    """Yield for each measured set whose noise floor is known how large a difference has to be,
    and of which sets it isn't.
    """
    for measured, floor in ranking.floors.items():
        best = min((e.losses[measured].value for e in ranking.entries), default=0.0)
        if floor < SEEN * best:
            continue
        near = [e.name for e in ranking.entries if 0 < e.losses[measured].value - best < floor]
        these = f" That is so of the best set and {join_names(near)}." if near else ""
        yield (
            f"Two computations of the same numbers are {floor:.1g} {ranking.units.get(measured, ranking.unit)} apart on "
            f"{short(measured, ranking.measured)}: a smaller difference is none that a runtime would keep.{these}"
        )


def doubts(ranking: Ranking) -> list[str]:
    """Return what shouldn't happen and did: said plainly, so that nobody takes it for a result
    before its reason is known.
    """
    return [*_controls_that_won(ranking), *_better_than_dense(ranking)]


def _controls_that_won(ranking: Ranking) -> Iterator[str]:
    """Yield a warning for each control that did better than a set with content."""
    for place, control in enumerate(ranking.entries):
        beaten = (
            [e for e in ranking.entries[place + 1 :] if not e.control] if control.control else []
        )
        if not beaten:
            continue
        gaps = join_names(
            [f"{e.name} (by {e.mean.value - control.mean.value:.3f})" for e in beaten]
        )
        # Whether two intervals overlap is a rough guide, and decides this sentence's wording only.
        upper = (control.mean.interval(ranking.level) or (0.0, float("inf")))[1]
        chance = any(
            (e.mean.interval(ranking.level) or (float("-inf"), 0.0))[0] <= upper for e in beaten
        )
        lead = f"{control.name} is a control without content, and it did better than {gaps} on average. Find out why before you trust this ranking"
        yield (
            f"{lead}; not all of these differences are significant, so it may be chance."
            if chance
            else f"{lead}."
        )


def _better_than_dense(ranking: Ranking) -> Iterator[str]:
    """Yield a warning for each measured set on which a compressed model is better than the dense
    one.
    """
    for measured in ranking.measured:
        below = {
            e.name: e.increases[measured]
            for e in (*ranking.entries, *ranking.baselines)
            if e.increases and e.increases[measured].value < 0
        }
        if below:
            sure = [name for name, increase in below.items() if increase.significant(ranking.level)]
            gaps = join_names(
                [f"{name} (by {-increase.value:.3f})" for name, increase in below.items()]
            )
            certainty = (
                f"significantly with {join_names(sure)}"
                if sure
                else "not significantly, so it may be chance"
            )
            done, doing = (
                ("quantized", "Quantizing") if is_rounded(ranking.target) else ("pruned", "Pruning")
            )
            yield (
                f"On {short(measured, ranking.measured)}, {ranking.model} is better than the dense model when {done} with {gaps}; {certainty}. "
                f"{doing} ought to cost something: find out why before you call it a result."
            )


def remarks(ranking: Ranking) -> list[str]:
    """Return what share of the dense model's performance the best set kept, and how the sets
    compare with a method that looks at no data.
    """
    if not ranking.entries:
        return []
    sentences: list[str] = []
    if kept := ranking.best.share_kept:
        shares = [
            f"{percent(round(kept[m].value, 2))} on {short(m, ranking.measured)}"
            for m in ranking.measured
            if m in kept
        ]
        sentences.append(
            f"Of the dense model's performance, {ranking.best.name} kept {join_names(shares)} ({meaning_of_kept(ranking)})."
        )
    for baseline in ranking.baselines:
        better = [e.name for e in ranking.entries if e.mean.value < baseline.mean.value]
        worse = [e.name for e in ranking.entries if e.mean.value >= baseline.mean.value]
        mixed = f"better than {join_names(worse)}, worse than the rest"
        verdict = (
            "worse than every set"
            if not worse
            else "better than every set"
            if not better
            else mixed
        )
        sentences.append(
            f"{baseline.name.capitalize()}, which looks at no data, did {verdict} (average {baseline.mean.value:+.3f} {ranking.unit})."
        )
    return sentences


def meaning_of_kept(ranking: Ranking) -> str:
    """Return what the share of the dense model's performance that is kept is, for what this
    ranking measured.
    """
    kinds: dict[str, list[str]] = {}
    for m in ranking.measured:
        if ranking.better.get(m) == "higher":
            what = "the score above chance as a share of the dense model's"
        elif ranking.units.get(m, ranking.unit).startswith("nats"):
            what = "the dense model's perplexity over the compressed model's, which is e to the minus increase of the loss"
        else:
            what = "the dense model's number over the compressed model's"
        kinds.setdefault(what, []).append(short(m, ranking.measured))
    if len(kinds) == 1:
        return f"kept: {next(iter(kinds))}"
    return f"kept: {'; '.join(f'on {join_names(names)} {what}' for what, names in kinds.items())}"


def percent(share: float) -> str:
    """Return `95 %` for 0.95; the space doesn't break."""
    return f"{share * 100:g}\u00a0%"


def short(measured: str, among: Sequence[str]) -> str:
    """Return `wikitext` for `wikitext:text`, unless that would name two of those that it stands
    among.
    """
    brief = label_measured(measured).brief
    others = [label_measured(other).brief for other in among]
    return brief if others.count(brief) == 1 else measured


def rise(ranking: Ranking) -> str:
    """Return what the numbers of a ranking are: a difference of something that is better when
    higher counts as how much worse it is.
    """
    if ranking.dense is None:
        return "number"
    return "worse than dense" if "higher" in ranking.better.values() else "increase over dense"
