"""What was found, in sentences made from the numbers. No torch here."""

from collections.abc import Iterator, Sequence
from typing import Final

from calibrant.lab.stats import (
    MEAN,
    Ranking,
    RankingEntry,
    describe_target,
    join_names,
    label_measured,
)
from calibrant.numerics import between, decimals, percent, signed
from calibrant.results.store import UNKNOWN_ORIGIN

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
        return _nothing_to_rank(ranking)
    best = ranking.best
    count = len(ranking.entries)
    rows = "calibration sets"
    way = f"with {ranking.method} at {describe_target(ranking.target)}"
    where = f"on {ranking.model} {way}"
    verdict = f"kept {ranking.model} best {way}"
    if ranking.finished:
        rows = "finished models"
        where = f"among those {made_from(ranking)}"
        verdict = f"is the best {where}"
    cost = f"{_averaged(ranking)}, {_cost(ranking, best)}"
    if count == 1:
        return f"Only {best.name} was tried {where}, so there is nothing to choose between: {cost}."
    tied = [entry.name for entry in ranking.entries[1:] if entry.tied]
    worse = [entry for entry in ranking.entries[1:] if not entry.tied]
    if not worse:
        return (
            f"No difference is significant: {_averaged(ranking)}, none of the {count} {rows} "
            f"did significantly worse than the best one {where}. "
            f"The best is {best.name} ({_cost(ranking, best)}), and that may be chance."
        )
    lead = f"Of {count} {rows}, {best.name} {verdict}: {cost}."
    if tied:
        several = f"{len(tied)} of the others"
        names = join_names(tied) if len(tied) <= 2 * NAMED else several
        lead = f"{lead} {names} cannot be distinguished from it."
    others = _worse(worse, bool(tied), row_noun(ranking))
    return f"{lead} {others} {ranking.unit}."


def _nothing_to_rank(ranking: Ranking) -> str:
    """That no row of a ranking has all of its measurements."""
    rows = "calibration set"
    where = f"on {ranking.model} with {ranking.method}"
    if ranking.finished:
        rows = "finished model"
        where = f"among those {made_from(ranking)}"
    return f"No {rows} has all of its measurements {where} yet, so there is nothing to rank."


def setting_words(ranking: Ranking) -> str:
    """Return what a ranking is of: `smollm2, wanda at 50 % sparsity`, or `smollm2, finished
    models`.
    """
    if ranking.finished:
        return f"{ranking.model}, finished models"
    return f"{ranking.model}, {ranking.method} at {describe_target(ranking.target)}"


def made_from(ranking: Ranking) -> str:
    """Return what finished models were made from, as the end of a sentence about them."""
    if ranking.model == UNKNOWN_ORIGIN:
        return f"of {ranking.model}"
    return f"made from {ranking.model}"


def row_noun(ranking: Ranking) -> str:
    """Return what a row of a ranking is: a `set`, or a finished `model`."""
    return "model" if ranking.finished else "set"


def _worse(worse: Sequence[RankingEntry], some_tied: bool, row: str) -> str:
    """That rows did significantly worse than the best, and by how much."""
    if some_tied:
        others = "The other" if len(worse) == 1 else "The others"
    elif len(worse) == 1:
        others = "The other one"
    else:
        others = f"Every other {row}"
    gaps: list[str] = []
    for entry in worse:
        if entry.to_best is not None:
            gaps.append(f"{decimals(entry.to_best.value)} ({entry.name})")
    span = gaps[0] if len(gaps) == 1 else f"{gaps[0]} to {gaps[-1]}"
    return f"{others} did significantly worse, by {span}"


def costs(ranking: Ranking) -> list[str]:
    """Return what a method cost that looks at no data: a sentence for each of a ranking's
    baselines.
    """
    target = describe_target(ranking.target)
    sentences: list[str] = []
    for entry in ranking.baselines:
        cost = f"{_averaged(ranking)}, {_cost(ranking, entry)}"
        sentences.append(f"{entry.name.capitalize()} at {target}, which looks at no data: {cost}.")
    return sentences


def _averaged(ranking: Ranking) -> str:
    """Over what a ranking's means are: `on wikitext`, `averaged over docs and code`, `averaged over
    14 measured sets`.
    """
    names = [short(measured, ranking.measured) for measured in ranking.averaged]
    if len(names) == 1:
        return f"on {names[0]}"
    if len(names) > NAMED:
        return f"averaged over {len(names)} measured sets"
    return f"averaged over {join_names(names)}"


def _cost(ranking: Ranking, entry: RankingEntry) -> str:
    """How much a set's loss rose, with its interval."""
    mean = entry.mean
    noun = noun_of(ranking)
    worse = mean.value >= 0
    change = f"{decimals(abs(mean.value))} {ranking.unit}"
    if ranking.dense is None:
        cost = f"its {noun} is {decimals(mean.value)} {ranking.unit}"
    elif noun == "loss":
        moved = f"rose by {change} over" if worse else f"fell by {change} below"
        cost = f"its loss {moved} the dense model's"
    else:
        verb = "lost" if worse else "gained"
        cost = f"it {verb} {change} against the dense model"
    interval = mean.interval(ranking.level)
    if interval is None:
        return cost
    return f"{cost} ({percent(ranking.level)} interval {between(interval)})"


def noun_of(ranking: Ranking) -> str:
    """Return what the numbers of a ranking are: `loss` or `score`."""
    return "loss" if ranking.unit.startswith("nats") else "score"


def worse_sign(ranking: Ranking) -> float:
    """Return what a mean is multiplied by so that more is worse: without a dense model it is a
    score, of which more may be better.
    """
    higher = ranking.better.get(ranking.averaged[0]) == "higher"
    return -1.0 if ranking.dense is None and higher else 1.0


def caveats(ranking: Ranking) -> list[str]:
    """Return what the intervals do and don't cover."""
    if not ranking.entries:
        return []
    sentences = [_covered(ranking)]
    alike = [entry.name for entry in ranking.entries if entry.overlapping]
    if alike:
        sentences.append(
            f"The draws of {join_names(alike)} share more than a tenth of their rows, so they say "
            "little about a fresh draw: the intervals there cover other documents only."
        )
    if ranking.comparisons > 1:
        sentences.append(
            f"Differences to the best are widened for all {ranking.comparisons} pairs that it "
            f"could be, so that they hold together at {percent(ranking.level)}."
        )
    return [*sentences, *_noise_floors(ranking)]


def _covered(ranking: Ranking) -> str:
    """What the intervals cover: other documents, and other draws where there are several."""
    draws = [entry.draws for entry in ranking.entries]
    fewest = min(draws)
    most = max(draws)
    if ranking.finished:
        return (
            "Each model was measured as it is. The intervals say how sure this is for other "
            "documents of the same kind; there are no draws, so nothing says how another model "
            "would do that was made in the same way."
        )
    if most == 1:
        return (
            "Each set was drawn once. The intervals say how sure this is for other documents of "
            "the same kind; how much another draw of the same calibration data would change it, "
            "one draw cannot say."
        )
    if ranking.one_draw:
        return (
            "Some sets were drawn once: for those the intervals cover other documents, "
            "not other draws of the calibration data."
        )
    several = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return (
        "The intervals cover other documents and other draws of the calibration data "
        f"({several} draws a set)."
    )


def _noise_floors(ranking: Ranking) -> Iterator[str]:
    """Yield for each measured set whose noise floor is known how large a difference has to be,
    and of which sets it isn't.
    """
    for measured, floor in ranking.floors.items():
        losses = {entry.name: entry.losses[measured].value for entry in ranking.entries}
        best = min(losses.values(), default=0.0)
        if floor < SEEN * best:
            continue
        near = [name for name, loss in losses.items() if 0 < loss - best < floor]
        unit = ranking.units.get(measured, ranking.unit)
        sentence = (
            f"Two computations of the same numbers are {floor:.1g} {unit} apart on "
            f"{short(measured, ranking.measured)}: "
            "a smaller difference is none that a runtime would keep."
        )
        if near:
            sentence = f"{sentence} That is so of the best set and {join_names(near)}."
        yield sentence


def remarks(ranking: Ranking) -> list[str]:
    """Return what share of the dense model's performance the best set kept, and how the sets
    compare with a method that looks at no data.
    """
    if not ranking.entries:
        return []
    sentences: list[str] = []
    kept = ranking.best.share_kept
    if kept:
        shares: list[str] = []
        for measured in ranking.measured:
            if measured in kept:
                share = percent(round(kept[measured].value, 2))
                shares.append(f"{share} on {short(measured, ranking.measured)}")
        sentences.append(
            f"Of the dense model's performance, {ranking.best.name} kept {join_names(shares)} "
            f"({meaning_of_kept(ranking)})."
        )
    for baseline in ranking.baselines:
        mean = baseline.mean.value
        sentences.append(
            f"{baseline.name.capitalize()}, which looks at no data, did "
            f"{_against_sets(mean, ranking)} (average {signed(mean)} {ranking.unit})."
        )
    return sentences


def _against_sets(mean: float, ranking: Ranking) -> str:
    """How what has this mean compares with the sets, in words."""
    sign = worse_sign(ranking)
    better: list[str] = []
    worse: list[str] = []
    for entry in ranking.entries:
        if sign * entry.mean.value < sign * mean:
            better.append(entry.name)
        else:
            worse.append(entry.name)
    if not worse:
        return "worse than every set"
    if not better:
        return "better than every set"
    return f"better than {join_names(worse)}, worse than the rest"


def meaning_of_kept(ranking: Ranking) -> str:
    """Return what the share of the dense model's performance that is kept is, for what this
    ranking measured.
    """
    kinds: dict[str, list[str]] = {}
    for measured in ranking.measured:
        if ranking.better.get(measured) == "higher":
            meaning = "the score above chance as a share of the dense model's"
        elif ranking.units.get(measured, ranking.unit).startswith("nats"):
            meaning = (
                "the dense model's perplexity over the compressed model's, "
                "which is e to the minus increase of the loss"
            )
        else:
            meaning = "the dense model's number over the compressed model's"
        kinds.setdefault(meaning, []).append(short(measured, ranking.measured))
    if len(kinds) == 1:
        return f"kept: {''.join(kinds)}"
    parts = [f"on {join_names(names)} {meaning}" for meaning, names in kinds.items()]
    return f"kept: {'; '.join(parts)}"


def short(measured: str, among: Sequence[str]) -> str:
    """Return `wikitext` for `wikitext:text`, unless that would name two of those that it stands
    among.
    """
    brief = label_measured(measured).brief
    others = [label_measured(other).brief for other in among]
    if others.count(brief) == 1:
        return brief
    return measured


def panel_name(measured: str, ranking: Ranking) -> str:
    """Return what stands above a panel or column: `mean`, or a measured set in short."""
    if measured == MEAN:
        return "mean"
    return short(measured, ranking.measured)


def rise(ranking: Ranking) -> str:
    """Return what the numbers of a ranking are: a difference of something that is better when
    higher counts as how much worse it is.
    """
    if ranking.dense is None:
        return "number"
    if "higher" in ranking.better.values():
        return "worse than dense"
    return "increase over dense"
