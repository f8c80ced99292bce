"""A page for each calibration set: what it is, what it says, what it did, and which others are like it. All from facts in the store."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from calibrant.compare import MEAN, MEASURES, Ranking, RankingEntry, SetSummary, describe_target, join_names, medians, target_noun
from calibrant.families import WORDS
from calibrant.report.page.contents import Contents
from calibrant.report.page.overview import number, rise
from calibrant.report.page.runs import plain
from calibrant.report.page.tags import Cell, Head, Row, bar, facts, link, name, paragraph, table, text
from calibrant.report.sentences import percent, short
from calibrant.report.tables.table import HOLE

LACKING: Final = (
    "This store was made before {what} kept beside each run, so there is nothing of it here; asked again in a new folder, the study keeps it."
)


def index(contents: Contents) -> Iterator[str]:
    """The catalogue: a line for each calibration set."""
    if not contents.summaries:
        return
    heads = [Head("calibration set", words=True), Head("kind", words=True), Head("tokens"), Head("rows"), Head("draws"), Head("licence", words=True)]
    best = contents.comparison.rankings[0] if contents.comparison.rankings else None
    heads += [Head("result")] if best else []
    yield '<section id="sets"><h2>Calibration sets</h2>'
    told = f"Each has a page of its own. The result is that with {best.method} at {describe_target(best.target)} on {best.model}." if best else ""
    yield paragraph(told or "Each has a page of its own.", "note")
    yield from table("Calibration sets", "", heads, (_line(contents, p, best) for p in contents.summaries), sortable=True)
    yield "</section>"


def _line(contents: Contents, summary: SetSummary, best: Ranking | None) -> Row:
    rows = sum(part.get("rows", 0) for part in summary.draws[0].facts.get("parts", ()))
    tokens = Cell(HOLE) if summary.tokens is None else Cell(f"{summary.tokens:,}", summary.tokens)
    cells = [Cell(_swatch(summary.family) + text(WORDS[summary.family]), words=True), tokens, Cell(f"{rows:,}", rows)]
    cells += [Cell(str(len(summary.draws)), len(summary.draws)), Cell(text(licence(summary)), words=True)]
    if best is not None:
        entry = next((e for e in best.entries if e.name == summary.name), None)
        cells.append(Cell(HOLE) if entry is None else number(entry.mean, entry.mean.interval(best.level), bool(entry.increases)))
    return Row(link(contents.ids, summary.name), cells)


def _swatch(family: str) -> str:
    return f'<span class="swatch" style="background:var(--f-{family})"></span>'


def licence(summary: SetSummary) -> str:
    """The licences of all parts."""
    parts = [part for draw in summary.draws for part in draw.facts.get("parts", ())]
    return join_names(list(dict.fromkeys(str(part.get("licence", "")) for part in parts if part.get("licence"))) or [""])


def pages(contents: Contents) -> Iterator[str]:
    """The page of every set, one after the other."""
    around = medians(contents.summaries)
    for summary in contents.summaries:
        yield f'<article id="{contents.ids[summary.name]}" class="view set">'
        yield f'<p class="over"><a href="#sets">All calibration sets</a></p><h2 tabindex="-1">{_swatch(summary.family)}{name(summary.name)}</h2>'
        yield paragraph(in_words(contents, summary), "finding")
        yield from _facts(summary)
        yield from _results(contents, summary)
        yield from _alike(contents, summary)
        yield from _words(summary)
        yield from _profile(summary, around)
        yield from _examples(summary)
        yield "</article>"


def in_words(contents: Contents, summary: SetSummary) -> str:
    """A paragraph made of the set's facts, its first result, and its nearest neighbour."""
    drawn = summary.draws[0].facts
    windows, length = drawn.get("windows"), drawn.get("length")
    size = f"{windows:,} windows of up to {length:,} tokens, {drawn.get('tokens', 0):,} of them real" if windows and length else "of unknown size"
    many = len(summary.draws)
    told = [f"{summary.name} is {WORDS[summary.family]}: {size}, drawn {'once' if many == 1 else f'{many} times'}."]
    if summary.terms:
        told.append(f"Its own words: {', '.join(word for word, _ in summary.terms[:6])}.")
    told += _placed(contents, summary)
    nearest = [(MEASURES[m], near[0]) for m in MEASURES if contents.knows(m) and (near := contents.similarity.nearest(summary.name, m, 1))]
    if nearest:
        told.append(f"Most like it {'; '.join(f'by {what}: {other}' for what, (other, _) in nearest)}.")
    return " ".join(told)


def _placed(contents: Contents, summary: SetSummary) -> Iterator[str]:
    for ranking, entry in contents.places.get(summary.name, ())[:1]:
        if math.isnan(entry.mean.value):
            yield f"With {ranking.method} at {describe_target(ranking.target)} it lacks measurements, so it has no place."
            continue
        low, high = entry.ranks
        place = f"is in place {low}" if low == high else f"shares places {low} to {high}"
        change = f"{entry.mean.value:+.3f} {ranking.unit}" + (f" {rise(ranking).removeprefix('increase ')}" if entry.increases else "")
        yield f"With {ranking.method} at {describe_target(ranking.target)} it {place} of {len(ranking.entries)} ({change}{_within(entry, ranking)})."


def _within(entry: RankingEntry, ranking: Ranking) -> str:
    interval = entry.mean.interval(ranking.level)
    return "" if interval is None else f", {percent(ranking.level)} interval {interval[0]:.3f} to {interval[1]:.3f}"


def _facts(summary: SetSummary) -> Iterator[str]:
    yield facts([("kind", text(WORDS[summary.family])), ("licence", text(licence(summary)))])
    heads = ("windows", "length", "real tokens", "rows", "shared with earlier draws")
    rows = []
    for draw in summary.draws:
        told = draw.facts
        numbers = [told.get("windows"), told.get("length"), told.get("tokens"), sum(p.get("rows", 0) for p in told.get("parts", ()))]
        overlap = Cell(percent(round(float(told.get("overlap") or 0.0), 3)))
        rows.append(
            Row(f"draw {draw.run.seed}", [*(Cell(plain(n)) for n in numbers), overlap, Cell(f"<code>{text(_brief(draw.run.tokens))}</code>")])
        )
    yield from table("Draws", "What was drawn", [Head("", words=True), *map(Head, heads), Head("fingerprint", words=True)], rows)
    yield from _parts(summary)


def _parts(summary: SetSummary) -> Iterator[str]:
    """The parts that a set is made of, with the lengths of their rows."""
    parts: Sequence[Mapping[str, Any]] = [p for p in summary.draws[0].facts.get("parts", ()) if "row_lengths" in p]
    if not parts:
        return
    heads = ("share", "rows held", "shortest row", "a quarter below", "median", "three quarters below", "longest row")
    rows = []
    for part in parts:
        lengths = [Cell(plain(n)) for n in part["row_lengths"]]
        origin = "; ".join(filter(None, [str(part.get("origin") or ""), _hub(part.get("hub")), str(part.get("note") or "")]))
        cells = [Cell(percent(round(part.get("share", 1.0), 4))), Cell(plain(part.get("rows_held")) or "without end"), *lengths]
        rows.append(Row(f"{name(str(part.get('data', '')))}<small>{text(origin)}</small>", cells))
    yield from table(
        "Parts and lengths",
        "What it is made of, and how long its rows are, in tokens (first draw)",
        [Head("part", words=True), *map(Head, heads)],
        rows,
    )


def _hub(hub: Mapping[str, Any] | None) -> str:
    if not hub:
        return ""
    return f"on the hub: {hub.get('id')}{f' ({c})' if (c := hub.get('config')) else ''}, revision {hub.get('revision')}"


def _brief(fingerprint: str) -> str:
    return fingerprint.rpartition(":")[2][:16]


def _results(contents: Contents, summary: SetSummary) -> Iterator[str]:
    places = contents.places.get(summary.name, ())
    if not places:
        return
    yield "<h3>What it did</h3>"
    measured = list(dict.fromkeys(m for ranking, _ in places for m in ranking.measured))
    kind = target_noun(ranking.target for ranking, _ in places)
    heads = [Head(f"model, method and {kind}", words=True), Head("place"), Head("mean"), *(Head(f"on {short(m, measured)}") for m in measured)]
    caption = "Against the baseline: below zero it did better; in words where that is beyond noise, all sets of a column together"
    rows = (Row(text(_where(ranking)), list(_result(ranking, entry, measured))) for ranking, entry in places)
    baseline = next((ranking.baseline for ranking, _ in places if ranking.baseline), "")
    yield from table("Results", f"{caption}. Baseline: {baseline or 'none'}.", heads, rows, sortable=True)


def _where(ranking: Ranking) -> str:
    return f"{ranking.model}, {ranking.method} at {describe_target(ranking.target)}{f', {ranking.propagate}' if ranking.propagate else ''}"


def _result(ranking: Ranking, entry: RankingEntry, measured: Sequence[str]) -> Iterator[Cell]:
    low, high = entry.ranks
    yield Cell(f"{low}" if low == high and low else f"{low}–{high}" if low else HOLE, low or None)
    for m in (MEAN, *measured):
        if entry.name == ranking.baseline:
            yield Cell("the baseline", 0.0)
        elif m in entry.to_baseline:
            gap = entry.to_baseline[m]
            sure = gap.significant(ranking.level, ranking.baseline_comparisons)
            told = ("hurts" if gap.value > 0 else "helps") if sure else "can't tell"
            yield number(gap, gap.interval(ranking.level, ranking.baseline_comparisons), True, told)
        else:
            yield Cell(HOLE)


def _alike(contents: Contents, summary: SetSummary) -> Iterator[str]:
    if len(contents.summaries) < 2:
        return
    yield '<h3>Sets that are like it</h3><div class="columns">'
    for measure, what in MEASURES.items():
        yield f"<div><h4>By {text(what)}</h4>"
        near = contents.similarity.nearest(summary.name, measure) if contents.knows(measure) else []
        if near:
            yield f"<ol>{''.join(f'<li>{link(contents.ids, other)} <span class=value>{value:.3f}</span></li>' for other, value in near)}</ol>"
        else:
            yield paragraph("Not known here.", "note")
        yield "</div>"
    yield "</div>"


def _words(summary: SetSummary) -> Iterator[str]:
    yield "<h3>Key terms</h3>"
    if summary.profile is None:
        yield paragraph(LACKING.format(what="words were"), "note")
    elif not summary.terms:
        yield paragraph("No word stands out against the other sets.", "note")
    else:
        most = summary.terms[0][1]
        terms = "".join(f'<li style="--w:{weight / most:.2f}">{name(word)}</li>' for word, weight in summary.terms)
        yield f'<ul class="terms">{terms}</ul>'
        yield paragraph(
            "Words by how far their TF-IDF weight is above its mean over the other sets; words of a single window are never kept.", "note"
        )


def _profile(summary: SetSummary, around: Mapping[str, float]) -> Iterator[str]:
    profile = summary.profile
    if profile is None:
        return
    shares = [(f"{kind} among all characters", profile["characters"][kind], around.get(kind, 0.0)) for kind in profile["characters"]]
    rows = [Row(text(what), [Cell(f"{here:.1%}", here), Cell(f"{usually:.1%}", usually), bar(here)]) for what, here, usually in shares]
    numbers = {"numbers": "numbers for a hundred words", "word_length": "letters of a word", "distinct": "different words of a draw"}
    numbers |= {"even": "equally frequent words that would be as varied"}
    rows += [Row(text(what), [Cell(f"{profile[k]:,.1f}"), Cell(f"{around.get(k, 0.0):,.1f}"), Cell("")]) for k, what in numbers.items()]
    scripts = [f"{script} {share:.1%}" for script, share in list(profile["scripts"].items())[:4] if share >= 0.001]
    yield "<h3>What its text is like</h3>"
    heads = [Head("", words=True), Head("here"), Head("median of the sets"), Head("", words=True)]
    yield from table(
        "What its text is like",
        f"{profile['counted']:,} words in {profile['windows']:,} windows; letters by script: {', '.join(scripts) or 'none'}",
        heads,
        rows,
    )


def _examples(summary: SetSummary) -> Iterator[str]:
    if summary.profile is None:
        return
    yield "<h3>How a window begins</h3>"
    for example in summary.examples:
        yield f'<figure class="quote"><pre tabindex="0"><code dir="auto">{text(example["text"])}</code></pre>'
        yield f"<figcaption>{name(example['part'])} · {text(example['licence'])}</figcaption></figure>"
    for part, kept in summary.profile["unquoted"].items():
        yield paragraph(f"No window of {part} is shown: its licence ({kept or 'none known'}) doesn’t plainly allow that.", "note")
