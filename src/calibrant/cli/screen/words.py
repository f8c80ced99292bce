"""How forgotten words look in a terminal: those that lost most, the neurons behind them, the
blocks, and what each calibration set kept; and which neurons answer to one language.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from calibrant.cli.screen._lines import counted, labelled, one_line, table_of
from calibrant.spec.foreign import visible

SETS: Final = 6
"""Calibration sets that stand side by side."""
BLOCKS: Final = 5
"""Blocks that are listed, those that kept least."""
PASSAGES: Final = 5
"""Words of which passages are shown."""


def explained(result: Mapping[str, Any], most: int) -> Iterator[Any]:
    """What a model forgot: `most` words, the blocks where it happened, passages where they may
    be quoted, and what damage has to do with the loss.
    """
    score, facts = result["score"], result["score"]["facts"]
    stderr = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
    yield from labelled(
        ("model", f"{result['model']}, against {result['reference']}"),
        ("task", str(result["task"])),
        (
            "kept",
            f"{score['value']:.3f}{stderr} of the responses to {counted(facts['groups'], 'group')} of words (mean; 1 is the dense model)",
        ),
        (
            "responses",
            f"{facts['responses']:,} of {facts['responses_tested']:,} are real, at a false discovery rate of 5 %",
        ),
    )
    yield ""
    table = table_of(
        "word",
        "count",
        "damage",
        "loss behind it",
        "block",
        "neurons behind it: response then and now",
    )
    for word in result["words"][:most]:
        behind = "" if word["raised_next"] is None else f"{word['raised_next']:+.3f}"
        table.add_row(
            one_line(word["word"]),
            f"{word['count']:,}",
            f"{word['damage']:.3f}",
            behind,
            f"{word['block']}",
            _neurons(word["strongest"]),
        )
    yield table
    yield "damage: the share of the dense model's response that is gone; loss behind it: by how many nats the loss of the next token rose"
    yield "block: where most was lost; neurons: block.number, responses in standard deviations"
    yield ""
    by_block = [
        (kept, block) for block, kept in enumerate(facts["kept_by_block"]) if kept is not None
    ]
    yield from labelled(
        (
            "least kept in",
            "; ".join(f"block {block}: {kept:.3f}" for kept, block in sorted(by_block)[:BLOCKS]),
        )
    )
    yield from labelled(*_relations(facts))
    for word in result["words"][: min(most, PASSAGES)]:
        yield from (
            f"  {one_line(word['word'])}: … {one_line(passage)} …" for passage in word["passages"]
        )
    if result["unquoted"]:
        yield one_line(result["unquoted"])


def _neurons(strongest: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{one['block']}.{one['neuron']}: {one['dense']:+.2f} {one['now']:+.2f}"
        for one in strongest
    )


def _relations(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Whether damage goes with the loss, over groups."""
    head = "with the loss"
    for name, of in (
        ("rank_next", "of the next token"),
        ("rank_documents", "of documents that hold the word"),
    ):
        if facts.get(name) is None:
            continue
        low, high = facts.get(f"{name}_low"), facts.get(f"{name}_high")
        interval = (
            ""
            if low is None or high is None
            else f" (95 % interval over documents {low:.2f} to {high:.2f})"
        )
        yield head, f"{of}: damage has a rank correlation of {facts[name]:.2f}{interval}"
        head = "and"


def kept_by_sets(tables: Sequence[Mapping[str, Any]], most: int) -> Iterator[Any]:
    """What each calibration set of a study kept of the words that lost most; the best of each
    word stands in bold.
    """
    from rich.text import Text

    for of in tables:
        sets = list(of["draws"])
        where = f"{of['model']}, {of['method']} at {of['target']}" + (
            f", {of['propagate']}" if of["propagate"] else ""
        )
        yield one_line(f"Share kept of the responses to words of {of['measured']}: {where}")
        for begin in range(0, len(sets), SETS):
            shown = sets[begin : begin + SETS]
            table = table_of("word", "count", *(visible(name) for name in shown))
            for word in of["words"][:most]:
                cells = [
                    Text(_share(word["kept"][name]), "bold" if name == word["best"] else "")
                    for name in shown
                ]
                table.add_row(one_line(word["word"]), f"{word['count']:,}", *cells)
            yield table
        draws = sorted(of["draws"].values())
        number = f"{draws[0]}" if draws[0] == draws[-1] else f"{draws[0]} to {draws[-1]}"
        yield f"draws of a set: {number}; no difference between two cells is tested here, calibrant report compares the means over all words"
        yield ""


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def language_neurons(result: Mapping[str, Any]) -> Iterator[Any]:
    """How many neurons are specific to each language, in which blocks most of them are, and how
    many stay in a compressed model.
    """
    entropy, threshold = result["entropy"], f"{result['threshold']:.3f}"
    neurons = f"{sum(result['sizes']):,} neurons of feed-forward networks in {counted(len(result['sizes']), 'block')}"
    yield from labelled(
        ("model", f"{one_line(result['model'])}, {neurons}"),
        (
            "specific",
            f"{100 * result['lowest']:g} % of all, of the lowest entropies, if some language activates them more often than {threshold}",
        ),
        (
            "entropy",
            f"{entropy['mean']:.3f} nats on average, {max(0.0, entropy['least']):.3f} at least",
        ),
    )
    yield ""
    heads = ("language", "tokens", "specific", "most of them in")
    table = table_of(*heads, *(["staying"] if result["pruned"] else []))
    for name, found in result["languages"].items():
        most = sorted(
            ((count, block) for block, count in enumerate(found["by_block"]) if count), reverse=True
        )[:BLOCKS]
        where = ", ".join(f"block {block}: {count:,}" for count, block in most)
        share = result["staying"].get(name)
        stays = ["—" if share is None else _share(share)] if result["pruned"] else []
        table.add_row(
            one_line(name), f"{found['tokens']:,}", f"{found['specific']:,}", where, *stays
        )
    yield table
    if result["pruned"]:
        yield f"staying: the share of these neurons that still are specific to the language in {one_line(result['pruned'])}"
