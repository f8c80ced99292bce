"""How forgotten words look: those that lost most, the neurons behind them, the blocks, and what
each calibration set kept; and which neurons answer to one language.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from calibrant.cli.screen.lines import labelled, one_line, table_of
from calibrant.numerics import HOLE, counted, decimals, signed
from calibrant.spec.foreign import visible

SETS: Final = 6
"""Calibration sets that stand side by side."""
BLOCKS: Final = 5
"""Blocks that are listed, those that kept least."""
PASSAGES: Final = 5
"""Words of which passages are shown."""

RELATIONS: Final = {
    "rank_next": "of the next token",
    "rank_documents": "of documents that hold the word",
}
"""With whose loss damage may go, by the fact that says how far it does."""


def explained(result: Mapping[str, Any], most: int) -> Iterator[Any]:
    """Yield what a model forgot: `most` words, the blocks where it happened, passages where they
    may be quoted, and what damage has to do with the loss.
    """
    score = result["score"]
    facts = score["facts"]
    kept = decimals(score["value"])
    if score["stderr"] is not None:
        kept += f" ± {decimals(score['stderr'])}"
    groups = counted(facts["groups"], "group")
    real = f"{facts['responses']:,} of {facts['responses_tested']:,} are real"
    yield from labelled(
        {
            "model": f"{result['model']}, against {result['reference']}",
            "task": str(result["task"]),
            "kept": f"{kept} of the responses to {groups} of words (mean; 1 is the dense model)",
            "responses": f"{real}, at a false discovery rate of 5 %",
        }
    )
    yield ""
    heads = ("count", "damage", "loss behind it", "block")
    table = table_of("word", *heads, "neurons behind it: response then and now")
    for word in result["words"][:most]:
        raised = ""
        if word["raised_next"] is not None:
            raised = signed(word["raised_next"])
        table.add_row(
            one_line(word["word"]),
            f"{word['count']:,}",
            decimals(word["damage"]),
            raised,
            f"{word['block']}",
            _neurons(word["strongest"]),
        )
    yield table
    yield (
        "damage: the share of the dense model's response that is gone; loss behind it: by how many "
        "nats the loss of the next token rose"
    )
    yield ("block: where most was lost; neurons: block.number, responses in standard deviations")
    yield ""
    blocks: list[tuple[float, int]] = []
    for block, share in enumerate(facts["kept_by_block"]):
        if share is not None:
            blocks.append((share, block))
    least = [f"block {block}: {decimals(share)}" for share, block in sorted(blocks)[:BLOCKS]]
    yield from labelled({"least kept in": "; ".join(least), **_relations(facts)})
    for word in result["words"][: min(most, PASSAGES)]:
        for passage in word["passages"]:
            yield f"  {one_line(word['word'])}: … {one_line(passage)} …"
    if result["unquoted"]:
        yield one_line(result["unquoted"])


def _neurons(strongest: Sequence[Mapping[str, Any]]) -> str:
    parts: list[str] = []
    for neuron in strongest:
        place = f"{neuron['block']}.{neuron['neuron']}"
        parts.append(f"{place}: {neuron['dense']:+.2f} {neuron['now']:+.2f}")
    return ", ".join(parts)


def _relations(facts: Mapping[str, Any]) -> dict[str, str]:
    """Whether damage goes with the loss, over groups."""
    relations: dict[str, str] = {}
    for fact, loss in RELATIONS.items():
        if facts.get(fact) is None:
            continue
        sentence = f"{loss}: damage has a rank correlation of {facts[fact]:.2f}"
        low = facts.get(f"{fact}_low")
        high = facts.get(f"{fact}_high")
        if low is not None and high is not None:
            sentence += f" (95 % interval over documents {low:.2f} to {high:.2f})"
        name = "and" if relations else "with the loss"
        relations[name] = sentence
    return relations


def kept_by_sets(tables: Sequence[Mapping[str, Any]], most: int) -> Iterator[Any]:
    """Yield what each calibration set of a study kept of the words that lost most; the best of
    each word stands in bold.
    """
    for found in tables:
        where = f"{found['model']}, {found['method']} at {found['target']}"
        if found["propagate"]:
            where += f", {found['propagate']}"
        measured = found["measured"]
        yield one_line(f"Share kept of the responses to words of {measured}: {where}")
        sets = list(found["draws"])
        for begin in range(0, len(sets), SETS):
            yield _kept(found["words"][:most], sets[begin : begin + SETS])
        draws = sorted(found["draws"].values())
        number = f"{draws[0]}"
        if draws[0] != draws[-1]:
            number += f" to {draws[-1]}"
        yield (
            f"draws of a set: {number}; no difference between two cells is tested here, "
            "calibrant report compares the means over all words"
        )
        yield ""


def _kept(words: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> Any:
    """Words by some of the sets."""
    table = table_of("word", "count", *map(visible, sets))
    for word in words:
        cells: list[Text] = []
        for name in sets:
            style = "bold" if name == word["best"] else ""
            cells.append(Text(_share(word["kept"][name]), style))
        table.add_row(one_line(word["word"]), f"{word['count']:,}", *cells)
    return table


def _share(value: float | None) -> str:
    return HOLE if value is None else decimals(value)


def language_neurons(result: Mapping[str, Any]) -> Iterator[Any]:
    """Yield how many neurons are specific to each language, in which blocks most of them are, and
    how many stay in a compressed model.
    """
    entropy = result["entropy"]
    blocks = counted(len(result["sizes"]), "block")
    neurons = f"{sum(result['sizes']):,} neurons of feed-forward networks in {blocks}"
    share = f"{100 * result['threshold']:.1f} %"
    often = f"if active on more than {share} of the tokens of some language"
    least = decimals(max(0.0, entropy["least"]))
    yield from labelled(
        {
            "model": f"{one_line(result['model'])}, {neurons}",
            "specific": f"{100 * result['lowest']:g} % of all, of the lowest entropies, {often}",
            "entropy": f"{decimals(entropy['mean'])} nats on average, {least} at least",
        }
    )
    yield ""
    heads = ["language", "tokens", "specific", "most of them in"]
    if result["pruned"]:
        heads.append("staying")
    table = table_of(*heads)
    for name, found in result["languages"].items():
        cells = [one_line(name), f"{found['tokens']:,}", f"{found['specific']:,}"]
        cells.append(_most_in(found["by_block"]))
        if result["pruned"]:
            cells.append(_share(result["staying"].get(name)))
        table.add_row(*cells)
    yield table
    if result["pruned"]:
        model = one_line(result["pruned"])
        yield (
            "staying: the share of these neurons that still are specific to the language in "
            f"{model}"
        )


def _most_in(by_block: Sequence[int]) -> str:
    """The blocks that hold most of a language's neurons, with how many."""
    counts = [(count, block) for block, count in enumerate(by_block) if count]
    most = sorted(counts, reverse=True)[:BLOCKS]
    return ", ".join(f"block {block}: {count:,}" for count, block in most)
