"""A page for each calibration set: what it is, what it says, what it did, and which others are like it. All from facts in the store."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from calibrant.compare import MEAN, MEASURES, Entry, Portrait, Ranking, usual
from calibrant.compare.ranking import aimed, kind_of, listed
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
    if not contents.portraits:
        return
    heads = [Head("calibration set", words=True), Head("kind", words=True), Head("tokens"), Head("rows"), Head("draws"), Head("licence", words=True)]
    best = contents.comparison.rankings[0] if contents.comparison.rankings else None
    heads += [Head("result")] if best else []
    yield '<section id="sets"><h2>Calibration sets</h2>'
    told = f"Each has a page of its own. The result is that with {best.method} at {aimed(best.target)} on {best.model}." if best else ""
    yield paragraph(told or "Each has a page of its own.", "note")
    yield from table("Calibration sets", "", heads, (_line(contents, p, best) for p in contents.portraits), sortable=True)
    yield "</section>"


def _line(contents: Contents, portrait: Portrait, best: Ranking | None) -> Row:
    rows = sum(part.get("rows", 0) for part in portrait.draws[0].facts.get("parts", ()))
    tokens = Cell(HOLE) if portrait.tokens is None else Cell(f"{portrait.tokens:,}", portrait.tokens)
    cells = [Cell(_swatch(portrait.family) + text(WORDS[portrait.family]), words=True), tokens, Cell(f"{rows:,}", rows)]
    cells += [Cell(str(len(portrait.draws)), len(portrait.draws)), Cell(text(licence(portrait)), words=True)]
    if best is not None:
        entry = next((e for e in best.entries if e.name == portrait.name), None)
        cells.append(Cell(HOLE) if entry is None else number(entry.mean, entry.mean.interval(best.level), bool(entry.increases)))
    return Row(link(contents.ids, portrait.name), cells)


def _swatch(family: str) -> str:
    return f'<span class="swatch" style="background:var(--f-{family})"></span>'


def licence(portrait: Portrait) -> str:
    """The licences of all parts."""
    parts = [part for draw in portrait.draws for part in draw.facts.get("parts", ())]
    return listed(list(dict.fromkeys(str(part.get("licence", "")) for part in parts if part.get("licence"))) or [""])


def pages(contents: Contents) -> Iterator[str]:
    """The page of every set, one after the other."""
    around = usual(contents.portraits)
    for portrait in contents.portraits:
        yield f'<article id="{contents.ids[portrait.name]}" class="view set">'
        yield f'<p class="over"><a href="#sets">All calibration sets</a></p><h2 tabindex="-1">{_swatch(portrait.family)}{name(portrait.name)}</h2>'
        yield paragraph(summary(contents, portrait), "finding")
        yield from _facts(portrait)
        yield from _results(contents, portrait)
        yield from _alike(contents, portrait)
        yield from _words(portrait)
        yield from _profile(portrait, around)
        yield from _examples(portrait)
        yield "</article>"


def summary(contents: Contents, portrait: Portrait) -> str:
    """A paragraph made of the set's facts, its first result, and its nearest neighbour."""
    drawn = portrait.draws[0].facts
    windows, length = drawn.get("windows"), drawn.get("length")
    size = f"{windows:,} windows of up to {length:,} tokens, {drawn.get('tokens', 0):,} of them real" if windows and length else "of unknown size"
    many = len(portrait.draws)
    told = [f"{portrait.name} is {WORDS[portrait.family]}: {size}, drawn {'once' if many == 1 else f'{many} times'}."]
    if portrait.terms:
        told.append(f"Its own words: {', '.join(word for word, _ in portrait.terms[:6])}.")
    told += _placed(contents, portrait)
    nearest = [(MEASURES[m], near[0]) for m in MEASURES if contents.knows(m) and (near := contents.likeness.nearest(portrait.name, m, 1))]
    if nearest:
        told.append(f"Most like it {'; '.join(f'by {what}: {other}' for what, (other, _) in nearest)}.")
    return " ".join(told)


def _placed(contents: Contents, portrait: Portrait) -> Iterator[str]:
    for ranking, entry in contents.places.get(portrait.name, ())[:1]:
        if math.isnan(entry.mean.value):
            yield f"With {ranking.method} at {aimed(ranking.target)} it lacks measurements, so it has no place."
            continue
        low, high = entry.ranks
        place = f"is in place {low}" if low == high else f"shares places {low} to {high}"
        change = f"{entry.mean.value:+.3f} {ranking.unit}" + (f" {rise(ranking).removeprefix('increase ')}" if entry.increases else "")
        yield f"With {ranking.method} at {aimed(ranking.target)} it {place} of {len(ranking.entries)} ({change}{_within(entry, ranking)})."


def _within(entry: Entry, ranking: Ranking) -> str:
    interval = entry.mean.interval(ranking.level)
    return "" if interval is None else f", {percent(ranking.level)} interval {interval[0]:.3f} to {interval[1]:.3f}"


def _facts(portrait: Portrait) -> Iterator[str]:
    yield facts([("kind", text(WORDS[portrait.family])), ("licence", text(licence(portrait)))])
    heads = ("windows", "length", "real tokens", "rows", "shared with earlier draws")
    rows = []
    for draw in portrait.draws:
        told = draw.facts
        numbers = [told.get("windows"), told.get("length"), told.get("tokens"), sum(p.get("rows", 0) for p in told.get("parts", ()))]
        overlap = Cell(percent(round(float(told.get("overlap") or 0.0), 3)))
        rows.append(
            Row(f"draw {draw.run.seed}", [*(Cell(plain(n)) for n in numbers), overlap, Cell(f"<code>{text(_brief(draw.run.tokens))}</code>")])
        )
    yield from table("Draws", "What was drawn", [Head("", words=True), *map(Head, heads), Head("fingerprint", words=True)], rows)
    yield from _parts(portrait)


def _parts(portrait: Portrait) -> Iterator[str]:
    """The parts that a set is made of, with the lengths of their rows."""
    parts: Sequence[Mapping[str, Any]] = [p for p in portrait.draws[0].facts.get("parts", ()) if "row_lengths" in p]
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


def _results(contents: Contents, portrait: Portrait) -> Iterator[str]:
    places = contents.places.get(portrait.name, ())
    if not places:
        return
    yield "<h3>What it did</h3>"
    measured = list(dict.fromkeys(m for ranking, _ in places for m in ranking.measured))
    kind = kind_of(ranking.target for ranking, _ in places)
    heads = [Head(f"model, method and {kind}", words=True), Head("place"), Head("mean"), *(Head(f"on {short(m, measured)}") for m in measured)]
    caption = "Against the baseline: below zero it did better; in words where that is beyond noise, all sets of a column together"
    rows = (Row(text(_where(ranking)), list(_result(ranking, entry, measured))) for ranking, entry in places)
    baseline = next((ranking.baseline for ranking, _ in places if ranking.baseline), "")
    yield from table("Results", f"{caption}. Baseline: {baseline or 'none'}.", heads, rows, sortable=True)


def _where(ranking: Ranking) -> str:
    return f"{ranking.model}, {ranking.method} at {aimed(ranking.target)}{f', {ranking.propagate}' if ranking.propagate else ''}"


def _result(ranking: Ranking, entry: Entry, measured: Sequence[str]) -> Iterator[Cell]:
    low, high = entry.ranks
    yield Cell(f"{low}" if low == high and low else f"{low}–{high}" if low else HOLE, low or None)
    for m in (MEAN, *measured):
        if entry.name == ranking.baseline:
            yield Cell("the baseline", 0.0)
        elif m in entry.to_baseline:
            gap = entry.to_baseline[m]
            sure = gap.apart(ranking.level, ranking.baseline_looks)
            told = ("hurts" if gap.value > 0 else "helps") if sure else "can't tell"
            yield number(gap, gap.interval(ranking.level, ranking.baseline_looks), True, told)
        else:
            yield Cell(HOLE)


def _alike(contents: Contents, portrait: Portrait) -> Iterator[str]:
    if len(contents.portraits) < 2:
        return
    yield '<h3>Sets that are like it</h3><div class="columns">'
    for measure, what in MEASURES.items():
        yield f"<div><h4>By {text(what)}</h4>"
        near = contents.likeness.nearest(portrait.name, measure) if contents.knows(measure) else []
        if near:
            yield f"<ol>{''.join(f'<li>{link(contents.ids, other)} <span class=value>{value:.3f}</span></li>' for other, value in near)}</ol>"
        else:
            yield paragraph("Not known here.", "note")
        yield "</div>"
    yield "</div>"


def _words(portrait: Portrait) -> Iterator[str]:
    yield "<h3>Key terms</h3>"
    if portrait.profile is None:
        yield paragraph(LACKING.format(what="words were"), "note")
    elif not portrait.terms:
        yield paragraph("No word stands out against the other sets.", "note")
    else:
        most = portrait.terms[0][1]
        terms = "".join(f'<li style="--w:{weight / most:.2f}">{name(word)}</li>' for word, weight in portrait.terms)
        yield f'<ul class="terms">{terms}</ul>'
        yield paragraph(
            "Words by how far their TF-IDF weight is above its mean over the other sets; words of a single window are never kept.", "note"
        )


def _profile(portrait: Portrait, around: Mapping[str, float]) -> Iterator[str]:
    profile = portrait.profile
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


def _examples(portrait: Portrait) -> Iterator[str]:
    if portrait.profile is None:
        return
    yield "<h3>How a window begins</h3>"
    for example in portrait.examples:
        yield f'<figure class="quote"><pre tabindex="0"><code dir="auto">{text(example["text"])}</code></pre>'
        yield f"<figcaption>{name(example['part'])} · {text(example['licence'])}</figcaption></figure>"
    for part, kept in portrait.profile["unquoted"].items():
        yield paragraph(f"No window of {part} is shown: its licence ({kept or 'none known'}) doesn’t plainly allow that.", "note")
