"""The top of the page: the answer, the rankings behind it, and the questions that the study answers."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

from calibrant.compare import LEVEL, Estimate, Evidence, PaperQuestion, Ranking, RankingEntry, join_names, target_noun
from calibrant.report.page.contents import Contents
from calibrant.report.page.pictures import picture
from calibrant.report.page.tags import Cell, Head, Row, choice, chooser, details, link, name, paragraph, table, text
from calibrant.report.plots import evidence, forest
from calibrant.report.sentences import caveats, doubts, finding, percent, remarks, short
from calibrant.report.tables.table import HOLE

BADGES: Final = {"yes": "yes", "no": "no", "it depends": "depends", "undecided": "open", "not covered": "unasked"}
"""How each answer is styled."""


LISTED: Final = 6
"""How many findings stand at the top; the rest is with the rankings."""


def answer(contents: Contents) -> Iterator[str]:
    """What was found, in one sentence with its uncertainty, and whatever ought to make a reader doubt it."""
    rankings = contents.comparison.rankings
    yield '<section id="answer" aria-label="The answer">'
    found = [d for ranking in rankings for d in doubts(ranking)]
    if found:
        yield f'<div class="doubt" role="note">{"".join(f"<p><strong>Doubtful:</strong> {text(d)}</p>" for d in dict.fromkeys(found))}</div>'
    if not rankings:
        yield paragraph("No calibration set has all of its measurements yet, so there is nothing to rank.", "finding")
    elif len(rankings) == 1:
        yield paragraph(finding(rankings[0]), "finding")
        yield from map(paragraph, remarks(rankings[0]))
    else:
        yield paragraph(over_all(rankings), "finding")
        yield f"<ul>{''.join(f'<li>{text(finding(ranking))}</li>' for ranking in rankings[:LISTED])}</ul>"
        if len(rankings) > LISTED:
            yield paragraph(f"… and {len(rankings) - LISTED} more combinations, below.")
    yield from (paragraph(c, "note") for c in dict.fromkeys(c for ranking in rankings for c in caveats(ranking)))
    yield "</section>"


def over_all(rankings: "tuple[Ranking, ...]") -> str:
    """Which sets came first over all combinations of model, method and sparsity, and which were really better than every other."""
    ranked = [ranking for ranking in rankings if ranking.entries]
    if not ranked:
        return "No calibration set has all of its measurements yet, so there is nothing to rank."
    first = Counter(ranking.best.name for ranking in ranked)
    sure = Counter(ranking.best.name for ranking in ranked if len(ranking.entries) > 1 and not any(e.tied for e in ranking.entries[1:]))
    told, certain = (join_names([f"{name} in {count}" for name, count in of.most_common()]) for of in (first, sure or Counter({"none": 0})))
    apart = f"told apart from every other set: {certain}" if sure else "in none of them can the first be told apart from every other"
    kind = target_noun(ranking.target for ranking in ranked)
    return f"Over {len(ranked)} combinations of model, method and {kind}, the smallest loss was that of {told}; {apart}."


def rankings(contents: Contents) -> Iterator[str]:
    """Each ranking with its forest plot and its table, one shown at a time."""
    shown = contents.comparison.rankings
    if not shown:
        return
    yield '<section id="ranking"><h2>Ranking</h2>'
    yield chooser("ranking", f"Model, method and {target_noun(ranking.target for ranking in shown)}", list(contents.titles.items()))
    for (key, title), ranking in zip(contents.titles.items(), shown, strict=True):
        yield from choice("ranking", key, _ranking(contents, key, title, ranking))
    yield "</section>"


def _ranking(contents: Contents, key: str, title: str, ranking: Ranking) -> Iterator[str]:
    yield f"<h3>{text(title)}</h3>"
    if len(contents.comparison.rankings) > 1:
        yield paragraph(finding(ranking))
        yield from map(paragraph, remarks(ranking))
    drawn = forest(ranking)
    if drawn is not None:
        yield picture(drawn, f"{key}-forest")
    yield from ranked(contents, ranking)


def rise(ranking: Ranking) -> str:
    """What the numbers of a ranking are: a difference of something that is better when higher counts as how much worse it is."""
    if ranking.dense is None:
        return "number"
    return "worse than dense" if "higher" in ranking.better.values() else "increase over dense"


def ranked(contents: Contents, ranking: Ranking) -> Iterator[str]:
    """The table of a ranking: every number with its interval."""
    average = [Head(f"mean {rise(ranking)}")] if len(ranking.averaged) > 1 else []
    heads = [Head("calibrated on", words=True), *average, *(Head(f"on {short(m, ranking.measured)}") for m in ranking.measured)]
    lettered = "; raised letters: sets that share one can't be told apart" if any(e.letters for e in ranking.entries) else ""
    shaded = "shaded: the best and what can't be told apart from it"
    caption = f"In {ranking.unit}; beneath each number its {percent(ranking.level)} interval; {shaded}{lettered}"
    yield from table("Ranking of the calibration sets", caption, [*heads, Head("worse than the best")], _rows(contents, ranking), sortable=True)


def _rows(contents: Contents, ranking: Ranking) -> Iterator[Row]:
    ids = contents.ids
    for place, entry in enumerate(ranking.entries, 1):
        best = place == 1 or entry.tied
        tag = '<span class="tag control">control</span>' if entry.control else ""
        yield Row(f"{_place(entry, place)} {link(ids, entry.name)}{tag}", list(_numbers(ranking, entry)), "best" if best else "")
    for tag, entries in (("incomplete", ranking.partial), ("no data", ranking.baselines)):
        for entry in entries:
            yield Row(f'{link(ids, entry.name)}<span class="tag">{tag}</span>', list(_numbers(ranking, entry)), "aside")
    if ranking.dense is not None:
        blank = [Cell("")] if len(ranking.averaged) > 1 else []
        losses = [Cell(f"{ranking.dense.losses[m].value:.3f}") for m in ranking.measured]
        noun = "loss" if ranking.unit.startswith("nats") else "score"
        yield Row(f"dense: its own {noun}", [*blank, *losses, Cell("")], "aside")


def _place(entry: RankingEntry, place: int) -> str:
    low, high = entry.ranks
    told = f"{low}" if low == high and low else f"{low}–{high}" if low else f"{place}"
    return f'<span class="place" title="the places that the comparisons leave open">{told}</span>'


def _numbers(ranking: Ranking, entry: RankingEntry) -> Iterator[Cell]:
    each = entry.increases or entry.losses
    signed = bool(entry.increases)
    if len(ranking.averaged) > 1:
        yield number(entry.mean, entry.mean.interval(ranking.level), signed, raised=entry.letters.get("mean", ""))
    for m in ranking.measured:
        yield number(each[m], each[m].interval(ranking.level), signed, raised=entry.letters.get(m, "")) if m in each else Cell(HOLE)
    if entry.to_best is None:
        yield Cell(HOLE if math.isnan(entry.mean.value) else "the best", None if math.isnan(entry.mean.value) else 0.0)
        return
    told = "can't be told apart" if entry.tied else "told apart" if entry not in ranking.baselines else ""
    yield number(entry.to_best, entry.to_best.interval(ranking.level, ranking.comparisons), True, told)


def number(estimate: Estimate, interval: tuple[float, float] | None, signed: bool, told: str = "", raised: str = "") -> Cell:
    """A cell with a number and, beneath it, its interval."""
    if math.isnan(estimate.value):
        return Cell(HOLE)
    value = f"{estimate.value:+.3f}" if signed else f"{estimate.value:.3f}"
    value += f"<sup>{text(raised)}</sup>" if raised else ""
    spread = "no interval (one item)" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
    return Cell(f"{value}<small>{spread}</small>{f'<small>{told}</small>' if told else ''}", estimate.value)


def questions(contents: Contents) -> Iterator[str]:
    """The questions of the study that this project is named after, answered for this one."""
    asked = contents.comparison.questions
    if not asked:
        return
    yield '<section id="questions"><h2>Questions</h2>'
    models = join_names([text(m) for m in contents.facts.models] or ["this model"])
    beforehand = " What the study named beforehand is tested under “Primary contrasts”." if contents.comparison.contrasts else ""
    together = f"The comparisons behind one answer hold together at {percent(LEVEL)}."
    yield f'<p class="note">Answered for {models}, from this study alone. {together}{beforehand}</p>'
    yield '<div class="questions">'
    for question in asked:
        yield from _question(question)
    yield "</div></section>"


def _question(question: PaperQuestion) -> Iterator[str]:
    scope = "" if question.over_draws or not question.evidence else " <small>of these draws: one draw of a set can’t speak for the next</small>"
    yield f'<div class="question"><h3>{text(question.question)}</h3>'
    yield f'<p><strong class="answer {BADGES[question.answer]}">{text(question.answer)}</strong>{scope}</p>'
    yield paragraph(question.explanation)
    if question.evidence:
        plot = evidence(question)
        drawn = [picture(plot, f"q-{question.name}")] if plot is not None else []
        yield from details(f"Evidence: {len(question.evidence)} comparison{'s' * (len(question.evidence) > 1)}", [*drawn, *_evidence(question)])
    yield "</div>"


def _evidence(question: PaperQuestion) -> Iterator[str]:
    heads = [Head("comparison", words=True), Head("where", words=True), Head("on", words=True), Head("difference"), Head("verdict", words=True)]
    rows = (Row(name(e.label), _difference(e)) for e in question.evidence)
    caption = "Below zero the first is better; beneath each difference its interval"
    yield from table(f"Evidence: {question.question}", caption, heads, rows, sortable=True)


def _difference(found: Evidence) -> list[Cell]:
    on = "on average" if found.on == "mean" else text(found.on)
    return [
        Cell(text(found.where), words=True),
        Cell(on, words=True),
        number(found.difference, found.interval, True),
        Cell(found.verdict, words=True),
    ]
