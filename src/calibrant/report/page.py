"""The report as one HTML file: nothing is fetched, nothing runs, and whatever a data set or a model is called is shown as text. No torch here."""

import math
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Final

from calibrant.compare import Comparison, Entry, Estimate, Ranking
from calibrant.report.account import Account, Shown
from calibrant.report.conclusions import Section, conclusions
from calibrant.report.findings import aimed, caveats, doubts, finding, listed, percent, remarks, short
from calibrant.report.forest import Kind, Mark, forest, span_of
from calibrant.report.tables import HOLE

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""What the browser is told to refuse: every request, every script."""

PHASES: Final = {
    "open": "opening the model",
    "tokenize": "making the calibration sets",
    "compress": "pruning",
    "measure": "measuring",
    "store": "writing",
}


def page(comparison: Comparison, account: Account) -> str:
    """The whole page."""
    rankings = comparison.rankings
    models = listed([f"{name} ({note})" if note else name for name, note in account.models.items()] or ["no model"])
    title = f"Which calibration data kept {listed(list(account.models) or ['the model'])} best?"
    css = files("calibrant.report").joinpath("page.css").read_text("utf-8")
    body = [section for i, ranking in enumerate(rankings) for section in _ranking(ranking, account, f"r{i}", len(rankings) > 1)]
    if not rankings:
        body.append('<p class="finding">No calibration set has all of its measurements yet, so there is nothing to rank.</p>')
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>",
            f'<header><p class="over">Calibrant report · {escape(models)}</p><h1>{escape(title)}</h1></header>',
            "<main>",
            *body,
            *(part for section in conclusions(comparison) for part in _section(section)),
            *_measured(account),
            *_sets(account),
            *_time(account),
            *_failures(account),
            *_repeat(account),
            "</main>",
            f"<footer>{escape(account.machine.get('versions', ''))}. Made from the study's own store; this page fetches nothing.</footer>",
            "</body>\n</html>\n",
        ]
    )


def _ranking(ranking: Ranking, account: Account, key: str, several: bool) -> Iterator[str]:
    note = account.models.get(ranking.model, "")
    if several:
        yield f"<h2>{escape(ranking.model)}, {escape(ranking.method)} at {escape(aimed(ranking.target))}</h2>"
    found = doubts(ranking)
    if found:
        yield f'<div class="doubt" role="note">{"".join(f"<p><strong>Doubtful:</strong> {escape(d)}</p>" for d in found)}</div>'
    yield f'<p class="finding">{escape(finding(ranking))}</p>'
    yield "".join(f"<p>{escape(r)}</p>" for r in remarks(ranking))
    yield "".join(f'<p class="note">{escape(c)}</p>' for c in caveats(ranking))
    if ranking.entries:
        yield from _plots(ranking, key)
    yield from _table(ranking, note)


def _plots(ranking: Ranking, key: str) -> Iterator[str]:
    rise = "Loss increase over dense" if ranking.dense is not None else "Loss"
    everyone = [*ranking.entries, *ranking.baselines]
    panels = {short(m, ranking.measured): [_mark(ranking, e, (e.increases or e.losses)[m]) for e in everyone] for m in ranking.measured}
    shared = span_of([mark for m, marks in zip(ranking.measured, panels.values(), strict=True) if m in ranking.averaged for mark in marks])
    yield f"<h2>{rise}, by what was measured</h2>"
    told = f"In {ranking.unit}; further left is better; lines are {percent(ranking.level)} intervals, arrows point to what lies beyond the axis."
    told += " Panels of what was measured share one axis."
    yield f'<p class="note">{escape(told)}</p>'
    yield '<div class="panels">'
    for i, (measured, name) in enumerate(zip(ranking.measured, panels, strict=True)):
        span = shared if measured in ranking.averaged else None
        yield _figure(f"measured on {name}", "", panels[name], rise, "dense" if ranking.dense is not None else "", f"{key}-{i}", span)
    if len(ranking.entries) > 1:
        gaps = [_gap(ranking, e) for e in everyone]
        small = f"averaged over what was measured; hollow: can't be told apart from it; intervals hold together at {percent(ranking.level)}"
        yield _figure(f"worse than {ranking.best.name}", small, gaps, f"Difference to {ranking.best.name}", "the best", f"{key}-best", None)
    yield "</div>"
    yield _legend(ranking)


def _figure(caption: str, small: str, marks: Sequence[Mark], title: str, reference: str, key: str, span: tuple[float, float] | None) -> str:
    told = "; ".join(m.told for m in marks)
    under = f"<small>{escape(small)}</small>" if small else ""
    return f"<figure><figcaption>{escape(caption)}{under}</figcaption>{forest(marks, f'{title}, {caption}', told, reference, span, key)}</figure>"


def _mark(ranking: Ranking, entry: Entry, estimate: Estimate) -> Mark:
    return Mark(entry.name, estimate.value, estimate.interval(ranking.level), _kind(ranking, entry))


def _gap(ranking: Ranking, entry: Entry) -> Mark:
    if entry.to_best is None:
        return Mark(entry.name, 0.0, None, _kind(ranking, entry))
    return Mark(entry.name, entry.to_best.value, entry.to_best.interval(ranking.level, ranking.looks), _kind(ranking, entry), entry.tied)


def _kind(ranking: Ranking, entry: Entry) -> Kind:
    return "baseline" if entry in ranking.baselines else "control" if entry.control else "set"


def _legend(ranking: Ranking) -> str:
    shapes = {
        "set": ('<circle class="mark" cx="6" cy="6" r="5"/>', "calibration set"),
        "control": ('<path class="mark" d="M6 0l6 6l-6 6l-6 -6z"/>', "control without content"),
        "baseline": ('<rect class="mark" x="1" y="1" width="10" height="10"/>', "looks at no data"),
    }
    used = {_kind(ranking, e) for e in (*ranking.entries, *ranking.baselines)}
    items = [
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true"><g class="{kind}">{shape}</g></svg>{text}</li>'
        for kind, (shape, text) in shapes.items()
        if kind in used
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _table(ranking: Ranking, note: str) -> Iterator[str]:
    what = f"{ranking.model}{f' ({note})' if note else ''}, {ranking.method} at {aimed(ranking.target)}; {ranking.unit}"
    rise = "increase over dense" if ranking.dense is not None else "loss"
    average = [f"mean {rise}"] if len(ranking.averaged) > 1 else []
    names = ["calibrated on", *average, *(f"on {short(m, ranking.measured)}" for m in ranking.measured), "worse than the best"]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lettered = "; raised letters: sets that share one can't be told apart" if any(e.letters for e in ranking.entries) else ""
    yield "<h2>Ranking</h2>"
    yield _opened(
        "Ranking of the calibration sets",
        f"{what}; beneath each number its {percent(ranking.level)} interval; shaded: the best and what can't be told apart from it{lettered}",
        heads,
    )
    shared = any(e.tied for e in ranking.entries)
    for place, entry in enumerate(ranking.entries, 1):
        best = place == 1 or (entry.tied and shared)
        tag = '<span class="tag control">control</span>' if entry.control else ""
        yield f'<tr{" class=best" if best else ""}><th scope="row">{place}. {escape(entry.name)}{tag}</th>{_numbers(ranking, entry)}</tr>'
    for tag, entries in (("incomplete", ranking.partial), ("no data", ranking.baselines)):
        for entry in entries:
            yield f'<tr class="aside"><th scope="row">{escape(entry.name)}<span class="tag">{tag}</span></th>{_numbers(ranking, entry)}</tr>'
    if ranking.dense is not None:
        blank = "<td></td>" if len(ranking.averaged) > 1 else ""
        losses = "".join(f"<td>{ranking.dense.losses[m].value:.3f}</td>" for m in ranking.measured)
        yield f'<tr class="aside"><th scope="row">dense: its own loss</th>{blank}{losses}<td></td></tr>'
    yield "</tbody></table></div></div>"


def _section(section: Section) -> Iterator[str]:
    """What the study says as a whole: its contrasts, how its rankings agree, what is missing."""
    yield f"<h2>{escape(section.title)}</h2>"
    yield from (f"<p>{escape(sentence)}</p>" for sentence in section.sentences)
    if section.items:
        yield f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in section.items)}</ul>"
    if (table := section.table) is not None:
        heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in (table.head, *(c.head for c in table.columns)))
        yield _opened(table.title, table.key, heads)
        for line in table.lines:
            cells = "".join(f"<td>{escape(str(figure))}</td>" for figure in line.figures)
            yield f'<tr><th scope="row">{escape(line.name)}<small>{escape(line.note)}</small></th>{cells}</tr>'
        yield "</tbody></table></div></div>"


def _opened(label: str, caption: str, heads: str) -> str:
    """The beginning of a table that scrolls by itself where it is wider than the screen, its caption staying in place."""
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
    return f'<div class="card"><p class="caption">{escape(caption)}</p>{region}<table><thead><tr>{heads}</tr></thead><tbody>'


def _numbers(ranking: Ranking, entry: Entry) -> str:
    each = entry.increases or entry.losses
    signed = bool(entry.increases)
    cells = [_number(entry.mean, entry.mean.interval(ranking.level), signed, raised=entry.letters.get("mean", ""))] * (len(ranking.averaged) > 1)
    for m in ranking.measured:
        known = m in each
        cells.append(_number(each[m], each[m].interval(ranking.level), signed, raised=entry.letters.get(m, "")) if known else f"<td>{HOLE}</td>")
    if entry.to_best is None:
        return "".join([*cells, f"<td>{HOLE if math.isnan(entry.mean.value) else 'the best'}</td>"])
    told = "can't be told apart" if entry.tied else "told apart" if entry not in ranking.baselines else ""
    return "".join([*cells, _number(entry.to_best, entry.to_best.interval(ranking.level, ranking.looks), True, told)])


def _number(estimate: Estimate, interval: tuple[float, float] | None, signed: bool, told: str = "", raised: str = "") -> str:
    if math.isnan(estimate.value):
        return f"<td>{HOLE}</td>"
    value = f"{estimate.value:+.3f}" if signed else f"{estimate.value:.3f}"
    value += f"<sup>{escape(raised)}</sup>" if raised else ""
    spread = "no interval (one item)" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
    return f"<td>{value}<small>{spread}</small>{f'<small>{told}</small>' if told else ''}</td>"


def _measured(account: Account) -> Iterator[str]:
    if not account.dense:
        return
    heads = "".join(
        f'<th scope="col">{h}</th>'
        for h in ("measured on", "documents", "tokens", "context length", "dense loss", "dense perplexity", "bits per byte")
    )
    yield "<h2>What was measured</h2>"
    yield _opened("What was measured", "Held-out parts, which no calibration set can hold", heads)
    for score in account.dense:
        facts = score.facts
        numbers = [score.n, facts.get("tokens"), facts.get("length"), score.value, facts.get("perplexity"), facts.get("bits_per_byte")]
        yield f'<tr><th scope="row">{escape(score.measured)}</th>{"".join(f"<td>{_plain(n)}</td>" for n in numbers)}</tr>'
    yield "</tbody></table></div></div>"


def _plain(number: object) -> str:
    if isinstance(number, float):
        return f"{number:,.3f}"
    return f"{number:,}" if isinstance(number, int) else escape(str(number)) if number is not None else ""


def _sets(account: Account) -> Iterator[str]:
    if not account.sets:
        return
    heads = "".join(
        f'<th scope="col">{h}</th>'
        for h in ("calibration set", "draw", "windows", "length", "real tokens", "rows", "shared with earlier draws", "licence", "fingerprint")
    )
    yield "<h2>What the model was shown</h2>"
    yield _opened("What the model was shown", "Facts of the calibration sets; no row of them is kept", heads)
    seen: set[tuple[str, int]] = set()
    for shown in account.sets:
        if (shown.run.data, shown.run.seed) in seen:
            continue
        seen.add((shown.run.data, shown.run.seed))
        yield _set(shown)
    yield "</tbody></table></div></div>"


def _set(shown: Shown) -> str:
    facts, parts = shown.facts, shown.facts.get("parts", [])
    numbers = [shown.run.seed, facts.get("windows"), facts.get("length"), facts.get("tokens"), sum(p.get("rows", 0) for p in parts)]
    cells = "".join(f"<td>{_plain(n)}</td>" for n in numbers)
    licence = listed(list(dict.fromkeys(str(p.get("licence", "")) for p in parts)) or [""])
    overlap = percent(float(facts.get("overlap", 0.0)))
    fingerprint = shown.run.tokens.partition(":")[2][:12]
    about = f'<td>{overlap}</td><td class="text">{escape(licence)}</td><td><code>{escape(fingerprint)}</code></td>'
    return f'<tr><th scope="row">{escape(shown.run.data)}</th>{cells}{about}</tr>'


def _time(account: Account) -> Iterator[str]:
    total = sum(account.seconds.values())
    if not total:
        return
    yield "<h2>Where the time went</h2>"
    yield _opened(
        "Where the time went",
        f"{total:.0f} seconds over everything in this store",
        '<th scope="col">phase</th><th scope="col">seconds</th><th scope="col"></th>',
    )
    for phase, seconds in sorted(account.seconds.items(), key=lambda item: -item[1]):
        bar = f'<span class="bar" style="width:{100 * seconds / total:.1f}%"></span>'
        yield f'<tr><th scope="row">{escape(PHASES.get(phase, phase))}</th><td>{seconds:.1f}</td><td class="barred">{bar}</td></tr>'
    yield "</tbody></table></div></div>"
    told = [f"{k}: {v}" for k, v in {**account.settings, **account.machine}.items() if v and k != "versions"]
    yield f'<p class="note">{escape(" · ".join(told))}</p>'


def _failures(account: Account) -> Iterator[str]:
    if not account.failures:
        return
    yield "<h2>What failed</h2><ul>"
    yield from (f"<li>{escape(str(f.get('what')))}: {escape(str(f.get('error')))}</li>" for f in account.failures)
    yield "</ul>"


def _repeat(account: Account) -> Iterator[str]:
    yield "<h2>How to repeat it</h2>"
    if account.study:
        yield "<p>The study as asked; in the same folder, asking again computes only what is missing.</p>"
        yield f'<pre tabindex="0"><code>{escape(account.study)}</code></pre>'
    commands = [_command(shown) for shown in account.sets]
    if commands:
        yield "<details><summary>One model at a time, saved to a folder</summary>"
        yield f'<pre tabindex="0"><code>{escape(chr(10).join(commands))}</code></pre></details>'


def _command(shown: Shown) -> str:
    run, facts = shown.run, shown.facts
    method = _spec(run.method)
    given = ["calibrant", "prune", run.model_name, "--data", run.data, "--method", method, "--sparsity", run.target]
    given += ["--samples", str(facts.get("windows", 128)), "--length", str(facts.get("length", 2048)), "--seed", str(run.seed)]
    given += ["--propagate", run.propagate, "--dtype", run.dtype, "--out", "pruned"]
    return shlex.join(given)


def _spec(canonical: object) -> str:
    """A method's canonical form as the text that the command line takes."""
    if not isinstance(canonical, dict):
        return repr(canonical)
    inside = ", ".join(f"{k}={_spec(v)}" for k, v in canonical.items() if k not in ("spec", "revision"))
    return f"{canonical.get('spec')}({inside})" if inside else str(canonical.get("spec"))
