"""The study's grid in pictures: what each set kept on each task, and how it changes with sparsity, tokens, format and depth."""

from collections.abc import Iterator

from calibrant.compare import target_noun
from calibrant.report.page.contents import Contents
from calibrant.report.page.pictures import pictures
from calibrant.report.page.tags import Cell, Head, Row, choice, chooser, name, paragraph, table, text
from calibrant.report.plots import against_sparsity, against_tokens, formats, kept, layer_errors, pareto
from calibrant.report.tables.sections import Section, conclusions, without_data


def grid(contents: Contents) -> Iterator[str]:
    """A heat map for each ranking, and beneath it whatever else the study gives material for."""
    rankings = contents.comparison.rankings
    if not rankings:
        return
    layers = {(of.model, of.method, of.target, of.propagate): of for of in contents.layers}
    yield '<section id="grid"><h2>The grid</h2>'
    yield paragraph("What share of the untouched model’s performance each calibration set kept, on everything that was measured.", "note")
    yield chooser("grid", f"Model, method and {target_noun(ranking.target for ranking in rankings)}", list(contents.titles.items()))
    for (key, title), ranking in zip(contents.titles.items(), rankings, strict=True):
        of = layers.get((ranking.model, ranking.method, ranking.target, ranking.propagate))
        drawn = [kept(ranking), pareto(ranking), formats(ranking), against_tokens(ranking, contents.tokens)]
        drawn.append(layer_errors(of) if of is not None else None)
        yield from choice("grid", key, [f"<h3>{text(title)}</h3>", *pictures([plot for plot in drawn if plot is not None], key)])
    if (over := against_sparsity(rankings)) is not None:
        yield from pictures([over], "sparsity")
    yield "</section>"


def said(contents: Contents) -> Iterator[str]:
    """What the study says as a whole: its contrasts, how its rankings agree, what is missing, how far to trust it."""
    yield '<section id="conclusions">'
    for section in (*without_data(contents.comparison), *conclusions(contents.comparison)):
        yield from _section(section)
    yield "</section>"


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{text(section.title)}</h2>"
    yield from map(paragraph, section.sentences)
    if section.items:
        yield f"<ul>{''.join(f'<li>{text(item)}</li>' for item in section.items)}</ul>"
    if (drawn := section.table) is not None:
        heads = [Head(drawn.head, words=True), *(Head(c.head, words=c.words) for c in drawn.columns)]
        rows = (
            Row(
                f"{name(line.name)}<small>{text(line.note)}</small>",
                [Cell(text(f), words=c.words) for f, c in zip(line.figures, drawn.columns, strict=True)],
            )
            for line in drawn.lines
        )
        yield from table(drawn.title, drawn.key, heads, rows)
