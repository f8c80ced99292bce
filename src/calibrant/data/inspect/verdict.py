"""Says what to fix in a calibration set, and how: rules, each a test of the facts and the sentence
that is said where it holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log
from typing import Any, Final

ENOUGH_DRAWS: Final = 5
"""Fewer draws say little about how much of a result is the luck of the draw."""

Facts = Mapping[str, Any]


def verdict(facts: Facts) -> tuple[str, ...]:
    """Return all that the rules say of an inspection as plain data, in their order, each
    sentence once.
    """
    sentences: list[str] = []
    for rule in RULES.values():
        sentences += rule(facts)
    return tuple(dict.fromkeys(sentences))


def _unused_messages(facts: Facts) -> Iterator[str]:
    for part in facts["parts"]:
        if part["unused"]:
            remedy = "the format chat shows all, for a model with a chat template"
            if part["conversing"]:
                remedy = f"{part['conversing']} shows all"
            yield f"{part['data']}: {part['unused']}: {remedy}"


def _left_out_reasoning(facts: Facts) -> Iterator[str]:
    for part, conversations in _chats(facts):
        count = conversations["left_out"].get("reasoning", 0)
        if count:
            yield (
                f"the model's chat template leaves out reasoning of {_of_all(count, part)}: "
                f"{conversations['with_reasoning']} shows it"
            )


def _left_out_calls(facts: Facts) -> Iterator[str]:
    for part, conversations in _chats(facts):
        left_out = conversations["left_out"]
        count = max(left_out.get(role, 0) for role in ("tools", "call", "result"))
        if count:
            yield (
                "the model's chat template leaves out functions, calls or their results of "
                f"{_of_all(count, part)}: use {conversations['without_tools']}"
            )


def _left_out_words(facts: Facts) -> Iterator[str]:
    for part, conversations in _chats(facts):
        for role in ("system", "question", "answer"):
            count = conversations["left_out"].get(role, 0)
            if count:
                yield (
                    f"the model's chat template leaves out what is said ({role}) in "
                    f"{_of_all(count, part)}: {_row_remedy(part, 'such rows')}"
                )


def _refused_conversations(facts: Facts) -> Iterator[str]:
    for part, conversations in _chats(facts):
        count = sum(part["refused"].values())
        if count:
            reason = max(part["refused"], key=part["refused"].get)
            remedy = _row_remedy(part, "such rows")
            if conversations["tools"]:
                remedy += f", or try {conversations['without_tools']}"
            yield (
                f"the model's chat template doesn't take {_counted(count, 'conversation')} of "
                f"{part['data']} ({reason}): {remedy}"
            )


def _unclear_conversations(facts: Facts) -> Iterator[str]:
    for part, conversations in _chats(facts):
        count = conversations["unclear"]
        if count:
            yield (
                f"the model's chat template writes {_of_all(count, part)} otherwise than as they "
                "are, so it can't be told who says what: read the windows, and don't use weigh, "
                "which leaves such rows out"
            )


def _cut_reasoning(facts: Facts) -> Iterator[str]:
    for part, conversations in _chats(facts):
        if _cuts_reasoning(part, facts):
            share = conversations["cut_reasoning"] / part["windows"]
            remedy = f"use {conversations['uncut']}"
            if part["fitting_length"] > facts["length"]:
                remedy += f" with --length {part['fitting_length']}"
            yield (
                f"{_percent(share)} of the windows of {part['data']} end within reasoning, before "
                f"its answer: {remedy}"
            )


def _few_draws(facts: Facts) -> Iterator[str]:
    draws = facts["disjoint_draws"]
    if draws is None or draws >= ENOUGH_DRAWS:
        return
    if any(part["replacement"] for part in facts["parts"]):
        return
    flag = facts["budget"]["flag"]
    noun = "window" if flag == "--samples" else "token"
    amount = _counted(facts["budget"]["amount"], noun)
    remedy = "use a larger source"
    if facts["enough"]:
        remedy = f"lower {flag} to {facts['enough']:,} for {ENOUGH_DRAWS} draws"
    yield (
        f"only {_counted(draws, 'disjoint draw')} of {amount}, too few to tell a result from the "
        f"luck of the draw: {remedy}"
    )


def _overlapping_draws(facts: Facts) -> Iterator[str]:
    for part in facts["parts"]:
        if part["overlap"] > 0 and _has_content(part) and not part["replacement"]:
            yield (
                f"{_percent(part['overlap'])} of the rows of {part['data']} were in earlier draws "
                f"too: use a --seed below {facts['disjoint_draws']}"
            )


def _padding(facts: Facts) -> Iterator[str]:
    for part in facts["parts"]:
        if part["padding"] <= 0.5 or part["fills"] or part["replacement"]:
            continue
        remedies: list[str] = []
        if not part["conversations"]:
            remedies.append(part["filled"])
        # Full windows would cut conversations.
        elif not part["packing"].startswith("whole"):
            remedies.append(part["conversations"]["uncut"])
        if facts["budget"]["flag"] != "--tokens":
            remedies.append("--tokens for a budget in real tokens")
        if remedies:
            yield (
                f"{_percent(part['padding'])} of the positions of {part['data']} are padding, so "
                f"only {part['tokens']:,} tokens count: use {', or '.join(remedies)}"
            )


def _counted_pads(facts: Facts) -> Iterator[str]:
    if facts["pads"] > 0:
        filled = [part["filled"] for part in facts["parts"] if part["replacement"]]
        yield (
            f"{facts['pads']:,} pads count as tokens, as in the original study's code: "
            f"use {filled[0]} unless that is what you measure"
        )


def _measured_rows(facts: Facts) -> Iterator[str]:
    for check in facts["overlap_checks"]:
        count = check.get("same", 0)
        if count > 0:
            verb = "is" if count == 1 else "are"
            yield (
                f"{_counted(count, 'row')} of {check['part']} {verb} also measured by "
                f"{check['against']}: {_measured_remedy(check, facts)}, or don't measure on "
                f"{check['against']}"
            )


def _half_measured_rows(facts: Facts) -> Iterator[str]:
    for check in facts["overlap_checks"]:
        count = check.get("half", 0)
        if count > 0:
            verb = "holds" if count == 1 else "hold"
            # Short files under one licence hold half of each other: only who reads them can tell
            # that from a leak.
            yield (
                f"{_counted(count, 'row')} of {check['part']} {verb} half or more of what "
                f"{check['against']} measures in {check['given_away']:,} of "
                f"{_counted(check['measured_rows'], 'row')}: read them, and unless that is a "
                f"licence or the like, {_measured_remedy(check, facts)}"
            )


def _two_starts(facts: Facts) -> Iterator[str]:
    count = facts["double_starts"]
    if count > 0:
        windows = "every window"
        if count < facts["windows"]:
            windows = _counted(count, "window")
        yield (
            f"two start tokens in {windows}: the texts bring their own, so use "
            f"{_startless_set(facts)}"
        )


def _special_tokens(facts: Facts) -> Iterator[str]:
    for part in facts["parts"]:
        tokens = part["special_texts"].items()
        if tokens:
            found = ", ".join(f"{token} in {_counted(rows, 'row')}" for token, rows in tokens)
            yield (
                f"special tokens stand in the texts of {part['data']} ({found}) and are read as "
                f"such: {_row_remedy(part, 'them')}"
            )


def _empty_rows(facts: Facts) -> Iterator[str]:
    for part in facts["parts"]:
        if part["empty"] > 0:
            rows = f"{_counted(part['empty'], 'row')} of {part['data']}"
            yield f"{rows} came to no token: {_row_remedy(part, 'empty rows')}"


def _near_duplicates(facts: Facts) -> Iterator[str]:
    rows = facts["near_duplicates"]["rows"]
    examined = facts["near_duplicates"]["examined"]
    if rows > 0.05 * max(1, examined):
        yield (
            f"{_percent(rows / examined)} of the rows nearly repeat an earlier one, so the set "
            f"holds less than its {facts['tokens']:,} tokens say: {_copy_remedy(facts)}"
        )


def _cut_rows(facts: Facts) -> Iterator[str]:
    for part in facts["parts"]:
        few = part["truncated"] <= 0.1 * part["windows"]
        if part["fills"] or part["replacement"] or few or _cuts_reasoning(part, facts):
            continue
        if _only_budget_cuts(part, facts):
            continue
        longer = f"raise --length to {part['fitting_length']:,}"
        remedy = f"use {part['filled']}"
        if part["conversations"]:
            remedy = longer
        elif part["packing"].startswith("one"):
            remedy = f"{longer}, or {remedy}"
        yield (
            f"{_percent(part['truncated'] / part['windows'])} of the windows of {part['data']} cut "
            f"off the end of a text: {remedy}"
        )


def _repeated_windows(facts: Facts) -> Iterator[str]:
    count = facts["repeated_windows"]
    if count > 0 and _all_have_content(facts):
        verb = "repeats" if count == 1 else "repeat"
        yield (
            f"{_counted(count, 'window')} {verb} an earlier one word for word: "
            f"{_copy_remedy(facts)}"
        )


def _variety(facts: Facts) -> Iterator[str]:
    even = facts["vocabulary"]["even"]
    if even < 32 and facts["vocabulary"]["size"] > 1_000 and _all_have_content(facts):
        yield (
            f"the tokens are no more varied than {even:.0f} equally frequent ones: mix in a "
            f"corpus, as in 0.5*{facts['parts'][0]['data']} + 0.5*wikitext"
        )


def _weights(facts: Facts) -> Iterator[str]:
    for part in facts["parts"]:
        if part["weight"] > 4:
            yield (
                f"each token of {part['data']} counts {part['weight']:.1f} times to make up its "
                f"share: use {part['filled']}, or --tokens"
            )


def _loss(facts: Facts) -> Iterator[str]:
    loss = _model_facts(facts, "loss").get("value")
    if loss is None:
        return
    guessing = log(facts["vocabulary"]["size"])
    if loss >= guessing and _all_have_content(facts):
        yield (
            f"the model's loss of {loss:.2f} nats a token is no better than guessing "
            f"({guessing:.2f}): check that --model is the model you mean, and that its language "
            "is that of the texts"
        )


def _energy_of_starts(facts: Facts) -> Iterator[str]:
    energy = _model_facts(facts, "energy").get("kinds", {}).get("start", {})
    if energy.get("most", 0.0) > 0.5:
        yield (
            f"start tokens make up {_percent(energy['most'])} of all that {energy['where']} is "
            "shown (Σx²), so they decide what is pruned there: compare with "
            f"{_startless_set(facts)}"
        )


def _unseen_experts(facts: Facts) -> Iterator[str]:
    experts = _few_tokens(facts, "unseen")
    if experts:
        tokens = facts["model"]["experts"]["tokens"]
        yield (
            f"none of the {tokens:,} tokens that the model was run on is sent to {experts}, so "
            "nothing says which of their inputs matter: mix in other data, or use more of it"
        )


def _starved_experts(facts: Facts) -> Iterator[str]:
    experts = _few_tokens(facts, "starved")
    if experts:
        tokens = facts["model"]["experts"]["of"]
        yield (
            f"{experts} would get fewer of the set's {tokens:,} tokens than they have inputs, too "
            "few to fit weights to: mix in other data, or use more of it"
        )


def _energy_of_special(facts: Facts) -> Iterator[str]:
    return _energy_of(facts, "special", "special tokens")


def _energy_of_template(facts: Facts) -> Iterator[str]:
    return _energy_of(facts, "template", "the format's own words")


def _energy_of(facts: Facts, kind: str, noun: str) -> Iterator[str]:
    energy = _model_facts(facts, "energy").get("kinds", {}).get(kind, {})
    # A model that chats meets its template in use, so it should see it here too.
    first = facts["parts"][0]
    if energy.get("median", 0.0) > 0.5 and not first["conversations"]:
        remedy = "longer texts have fewer of them"
        if first["leaner"]:
            remedy = f"use a format with fewer of them, such as {' or '.join(first['leaner'])}"
        yield (
            f"{noun} make up {_percent(energy['median'])} of what half of the matrices are shown "
            f"(Σx²): {remedy}"
        )


RULES: Final[Mapping[str, Callable[[Facts], Iterator[str]]]] = {
    "unused messages": _unused_messages,
    "reasoning that is left out": _left_out_reasoning,
    "calls that are left out": _left_out_calls,
    "words that are left out": _left_out_words,
    "refused conversations": _refused_conversations,
    "unclear conversations": _unclear_conversations,
    "cut reasoning": _cut_reasoning,
    "draws": _few_draws,
    "overlapping draw": _overlapping_draws,
    "padding": _padding,
    "pads that count": _counted_pads,
    "measured rows": _measured_rows,
    "half of measured rows": _half_measured_rows,
    "two starts": _two_starts,
    "special tokens": _special_tokens,
    "empty rows": _empty_rows,
    "near-duplicates": _near_duplicates,
    "cut rows": _cut_rows,
    "repeated windows": _repeated_windows,
    "variety": _variety,
    "weights": _weights,
    "loss": _loss,
    "energy of starts": _energy_of_starts,
    "unseen experts": _unseen_experts,
    "starved experts": _starved_experts,
    "energy of special": _energy_of_special,
    "energy of template": _energy_of_template,
}
"""In the order in which they are said: what the model isn't shown, what spoils a comparison, and
what only wastes tokens.
"""


def _percent(share: float) -> str:
    """Return whole percents, but never 0 or 100 for what isn't."""
    if 0.01 <= share <= 0.99 or share in (0, 1):
        return f"{share:.0%}"
    return f"{share:.1%}"


def _counted(number: int, noun: str) -> str:
    if number != 1:
        noun += "s"
    return f"{number:,} {noun}"


def _chats(facts: Facts) -> Iterator[tuple[Facts, Facts]]:
    """Yield the parts that are conversations, and what there is to tell of those."""
    for part in facts["parts"]:
        if part["conversations"]:
            yield part, part["conversations"]


def _of_all(count: int, part: Facts) -> str:
    whole = _counted(part["conversations"]["count"], "conversation")
    return f"{count:,} of {whole} of {part['data']}"


def _cuts_reasoning(part: Facts, facts: Facts) -> bool:
    """Return whether more than a few windows end within reasoning."""
    conversations = part["conversations"]
    if not conversations or _only_budget_cuts(part, facts):
        return False
    return conversations["cut_reasoning"] > 0.1 * part["windows"]


def _only_budget_cuts(part: Facts, facts: Facts) -> bool:
    """Return whether each text fits a window of its own, so that a budget in tokens alone cuts
    one.
    """
    alone = part["packing"].startswith(("one", "whole"))
    return alone and part["fitting_length"] <= facts["length"]


def _has_content(part: Facts) -> bool:
    """Return whether a part isn't a control: those may repeat themselves, and are nonsense on
    purpose.
    """
    return part["kind"] != "control"


def _all_have_content(facts: Facts) -> bool:
    return all(map(_has_content, facts["parts"]))


def _model_facts(facts: Facts, name: str) -> Facts:
    """Return what a model made of the set; nothing where none was run."""
    return (facts["model"] or {}).get(name) or {}


def _row_remedy(part: Facts, rows: str) -> str:
    """Return what to do about such rows of a part."""
    if part["own"]:
        return f"remove {rows} from {part['source']}"
    return "use another source"


def _measured_remedy(check: Facts, facts: Facts) -> str:
    """Return what to do about rows of a part that are measured too."""
    parts = {part["data"]: part for part in facts["parts"]}
    part = parts[check["part"]]
    if not part["own"]:
        return "calibrate on another source"
    noun = "it" if (check["same"] or check["half"]) == 1 else "them"
    return f"remove {noun} from {part['source']}"


def _copy_remedy(facts: Facts) -> str:
    """Return what to do about rows or windows that repeat each other."""
    for part in facts["parts"]:
        if part["own"]:
            return f"remove the copies from {part['source']}"
    return "use another source"


def _startless_set(facts: Facts) -> str:
    """Return the set without start tokens, as far as one expression can say it."""
    startless = [part["startless"] for part in facts["parts"] if part["startless"]]
    if not startless:
        return "bos='none' in each part"
    if len(facts["parts"]) == 1:
        return startless[0]
    return f"bos='none' in each part, as in {startless[0]}"


def _few_tokens(facts: Facts, kind: str) -> str:
    """Return how many experts of all are `unseen` or `starved`, with the first few of the layer
    that has most of them; nothing if there are none.
    """
    experts = _model_facts(facts, "experts")
    layer_name = ""
    most: Sequence[int] = ()
    for name, layer in experts.get("layers", {}).items():
        if len(layer[kind]) > len(most):
            layer_name = name
            most = layer[kind]
    if not most:
        return ""
    shown = ", ".join(map(str, most[:5]))
    if len(most) > 5:
        shown += ", …"
    return f"{experts[kind]:,} of {experts['experts']:,} experts ({layer_name}: {shown})"
