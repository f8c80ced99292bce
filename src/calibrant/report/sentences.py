"""What was found, in sentences made from the numbers, and what ought to make a reader doubt them. No torch here."""

from collections.abc import Sequence

from calibrant.compare import Estimate, Ranking, RankingEntry, describe_target, is_grid, join_names
from calibrant.grammar import read_measured


def finding(ranking: Ranking) -> str:
    """The answer in one or two sentences: which set kept the model best, how sure that is, what can't be told apart; without sets, what it cost."""
    if any(entry.name == ranking.method for entry in ranking.baselines):
        return " ".join(costs(ranking))
    if not ranking.entries:
        return f"No calibration set has all of its measurements on {ranking.model} with {ranking.method} yet, so there is nothing to rank."
    best, count = ranking.best, len(ranking.entries)
    averaged = [short(m, ranking.measured) for m in ranking.averaged]
    over = f"averaged over {join_names(averaged)}" if len(averaged) > 1 else f"on {''.join(averaged)}"
    what = f"with {ranking.method} at {describe_target(ranking.target)}"
    if count == 1:
        return f"Only {best.name} was tried on {ranking.model} {what}, so there is nothing to choose between: {over}, {_cost(ranking, best)}."
    tied = [e.name for e in ranking.entries[1:] if e.tied]
    worse = [e for e in ranking.entries[1:] if not e.tied]
    if not worse:
        return (
            f"Nothing can be told apart: {over}, none of the {count} calibration sets did reliably worse than the best one "
            f"on {ranking.model} {what}. "
            f"The smallest number belongs to {best.name} ({_cost(ranking, best)}), and that may be chance."
        )
    lead = f"Of {count} calibration sets, {best.name} kept {ranking.model} best {what}: {over}, {_cost(ranking, best)}."
    ties = f" {join_names(tied)} can't be told apart from it." if tied else ""
    gaps = [e.to_best.value for e in worse if e.to_best is not None]
    span = f"{gaps[0]:.3f} ({worse[0].name})" if len(gaps) == 1 else f"{gaps[0]:.3f} ({worse[0].name}) to {gaps[-1]:.3f} ({worse[-1].name})"
    others = "The other" if len(worse) == 1 and tied else "The others" if tied else "The other one" if len(worse) == 1 else "Every other set"
    return f"{lead}{ties} {others} did worse, by {span} {ranking.unit}."


def costs(ranking: Ranking) -> list[str]:
    """What a method cost that looks at no data: a sentence for each of a ranking's baselines."""
    averaged = [short(m, ranking.measured) for m in ranking.averaged]
    over = f"averaged over {join_names(averaged)}" if len(averaged) > 1 else f"on {''.join(averaged)}"
    return [
        f"{e.name.capitalize()} at {describe_target(ranking.target)}, which looks at no data: {over}, {_cost(ranking, e)}." for e in ranking.baselines
    ]


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
    return f"{change}{_within(entry.mean, ranking.level)}"


def _within(estimate: Estimate, level: float) -> str:
    interval = estimate.interval(level)
    return "" if interval is None else f" ({percent(level)} interval {interval[0]:.3f} to {interval[1]:.3f})"


def caveats(ranking: Ranking) -> list[str]:
    """What the intervals do and don't cover."""
    if not ranking.entries:
        return []
    said = [_covered(ranking)]
    alike = [e.name for e in ranking.entries if e.overlapping]
    if alike:
        said.append(
            f"The draws of {join_names(alike)} share more than a tenth of their rows, so they say little about a fresh draw: "
            "the intervals there cover other documents only."
        )
    if ranking.comparisons > 1:
        said.append(
            f"Differences to the best are widened for all {ranking.comparisons} pairs that it could be, so that they hold together at "
            f"{percent(ranking.level)}."
        )
    return said


def _covered(ranking: Ranking) -> str:
    fewest, most = min(e.draws for e in ranking.entries), max(e.draws for e in ranking.entries)
    if most == 1:
        return (
            "Each set was drawn once. The intervals say how sure this is for other documents of the same kind; how much another draw of the same "
            "calibration data would change it, one draw cannot say."
        )
    if ranking.one_draw:
        return "Some sets were drawn once: for those the intervals cover other documents, not other draws of the calibration data."
    many = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"The intervals cover other documents and other draws of the calibration data ({many} draws a set)."


def doubts(ranking: Ranking) -> list[str]:
    """What shouldn't happen and did: said plainly, so that nobody takes it for a result before its reason is known."""
    return [*_controls_that_won(ranking), *_better_than_dense(ranking)]


def _controls_that_won(ranking: Ranking) -> list[str]:
    said: list[str] = []
    place = {e.name: i for i, e in enumerate(ranking.entries)}
    for control in (e for e in ranking.entries if e.control):
        beaten = [e for e in ranking.entries if not e.control and place[e.name] > place[control.name]]
        if beaten:
            gaps = join_names([f"{e.name} (by {e.mean.value - control.mean.value:.3f})" for e in beaten])
            said.append(
                f"{control.name} is a control without content, and it did better than {gaps} on average. Find out why before you trust this ranking"
                + ("; they can't all be told apart, so it may be chance." if any(_close(e, control, ranking) for e in beaten) else ".")
            )
    return said


def _close(entry: RankingEntry, control: RankingEntry, ranking: Ranking) -> bool:
    """Whether two sets have overlapping intervals: a rough guide, for a warning's wording only."""
    a, b = entry.mean.interval(ranking.level), control.mean.interval(ranking.level)
    return a is None or b is None or a[0] <= b[1]


def _better_than_dense(ranking: Ranking) -> list[str]:
    said: list[str] = []
    for measured in ranking.measured:
        below = {e.name: e.increases[measured] for e in (*ranking.entries, *ranking.baselines) if e.increases and e.increases[measured].value < 0}
        if below:
            sure = [name for name, increase in below.items() if increase.significant(ranking.level)]
            gaps = join_names([f"{name} (by {-increase.value:.3f})" for name, increase in below.items()])
            told = f"told apart from it: {join_names(sure)}" if sure else "none of them can be told apart from it, so it may be chance"
            done, doing = ("quantized", "Quantizing") if is_grid(ranking.target) else ("pruned", "Pruning")
            said.append(
                f"On {short(measured, ranking.measured)}, {ranking.model} is better than the dense model when {done} with {gaps}; {told}. "
                f"{doing} ought to cost something: find out why before you call it a result."
            )
    return said


def remarks(ranking: Ranking) -> list[str]:
    """What share of the dense model's performance the best set kept, and how the sets compare with pruning that looks at no data."""
    said: list[str] = []
    if ranking.entries and (kept := ranking.best.share_kept):
        shares = [f"{percent(round(kept[m].value, 2))} on {short(m, ranking.measured)}" for m in ranking.measured if m in kept]
        said.append(f"Of the dense model's performance, {ranking.best.name} kept {join_names(shares)}.")
    for baseline in ranking.baselines:
        better = [e.name for e in ranking.entries if e.mean.value < baseline.mean.value]
        worse = [e.name for e in ranking.entries if e.mean.value >= baseline.mean.value]
        if not ranking.entries:
            continue
        verdict = (
            "worse than every set"
            if not worse
            else "better than every set"
            if not better
            else f"better than {join_names(worse)}, worse than the rest"
        )
        said.append(f"{baseline.name.capitalize()}, which looks at no data, did {verdict} (average {baseline.mean.value:+.3f} {ranking.unit}).")
    return said


def percent(share: float) -> str:
    """`95 %`, the space doesn't break."""
    return f"{share * 100:g}\u00a0%"


def short(measured: str, among: Sequence[str]) -> str:
    """`wikitext` for `wikitext:text`, unless that would name two of them."""
    brief = read_measured(measured).brief
    return brief if [read_measured(m).brief for m in among].count(brief) == 1 else measured


def rise(ranking: Ranking) -> str:
    """What the numbers of a ranking are: a difference of something that is better when higher counts as how much worse it is."""
    if ranking.dense is None:
        return "number"
    return "worse than dense" if "higher" in ranking.better.values() else "increase over dense"
