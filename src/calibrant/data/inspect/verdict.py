"""What to fix in a calibration set, and how: rules as data, each a test and the sentence that is
said where it holds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Final

ENOUGH_DRAWS: Final = 5
"""Fewer draws say little about how much of a result is the luck of the draw."""

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """A test of the facts and the sentence to say where it holds. `each` is the list that is
    gone through entry by entry, if not the whole.
    """

    name: str
    each: str
    holds: Callable[[Facts, Facts], bool]
    sentence: Callable[[Facts, Facts], str]

    def sentences(self, facts: Facts) -> Iterator[str]:
        """Yield the sentences that this rule has to say of an inspection."""
        yield from (
            self.sentence(one, facts)
            for one in (facts[self.each] if self.each else [facts])
            if self.holds(one, facts)
        )


def verdict(facts: Facts) -> tuple[str, ...]:
    """Return all that the rules say of an inspection as plain data, in their order, each
    sentence once.
    """
    return tuple(dict.fromkeys(sentence for rule in RULES for sentence in rule.sentences(facts)))


def _percent(share: float) -> str:
    """Whole percents, but never 0 or 100 for what isn't."""
    return f"{share:.0%}" if 0.01 <= share <= 0.99 or share in (0, 1) else f"{share:.1%}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _learnable(part: Facts) -> bool:
    """Controls repeat themselves, and nonsense is what they are for."""
    return part["kind"] != "control"


def _draws(facts: Facts) -> str:
    what = "window" if facts["budget"]["flag"] == "--samples" else "token"
    return f"{_counted(facts['disjoint_draws'], 'disjoint draw')} of {_counted(facts['budget']['amount'], what)}"


def _few_draws(_: Facts, facts: Facts) -> str:
    way = (
        f"lower {facts['budget']['flag']} to {facts['enough']:,} for {ENOUGH_DRAWS} draws"
        if facts["enough"]
        else "use a larger source"
    )
    return f"only {_draws(facts)}, too few to tell a result from the luck of the draw: {way}"


def _remedy(part: Facts, what: str) -> str:
    return f"remove {what} from {part['source']}" if part["own"] else "use another source"


def _specials(part: Facts) -> str:
    return ", ".join(
        f"{token} in {_counted(rows, 'row')}" for token, rows in part["special_texts"].items()
    )


def _energy(facts: Facts, kind: str) -> Facts:
    return ((facts["model"] or {}).get("energy") or {}).get("kinds", {}).get(kind) or {
        "median": 0.0,
        "most": 0.0,
        "where": "",
    }


def _startless(facts: Facts) -> str:
    """Return the set without start tokens, as far as one expression can say it."""
    ways = [part["startless"] for part in facts["parts"] if part["startless"]]
    return (
        ways[0]
        if ways and len(facts["parts"]) == 1
        else "bos='none' in each part" + (f", as in {ways[0]}" if ways else "")
    )


def _loss(facts: Facts) -> float:
    return ((facts["model"] or {}).get("loss") or {}).get("value", 0.0)


def _experts(facts: Facts, which: str) -> Mapping[str, list[int]]:
    """The `unseen` or `starved` experts of each layer that has some."""
    layers = ((facts["model"] or {}).get("experts") or {}).get("layers", {})
    return {name: one[which] for name, one in layers.items() if one[which]}


def _few_tokens(facts: Facts, which: str) -> str:
    """How many experts of all, the first few of the layer that has most of them, and how many
    tokens the model was run on.
    """
    experts, layers = facts["model"]["experts"], _experts(facts, which)
    name = max(layers, key=lambda layer: len(layers[layer]))
    shown = ", ".join(map(str, layers[name][:5])) + (", …" if len(layers[name]) > 5 else "")
    return f"{experts[which]:,} of {experts['experts']:,} experts ({name}: {shown})"


RULES: Final = (
    Rule(
        "draws",
        "",
        lambda _, f: (
            f["disjoint_draws"] is not None
            and f["disjoint_draws"] < ENOUGH_DRAWS
            and not any(p["replacement"] for p in f["parts"])
        ),
        _few_draws,
    ),
    Rule(
        "overlapping draw",
        "parts",
        lambda p, f: p["overlap"] > 0 and _learnable(p) and not p["replacement"],
        lambda p, f: (
            f"{_percent(p['overlap'])} of the rows of {p['data']} were in earlier draws too: use a --seed below {f['disjoint_draws']}"
        ),
    ),
    Rule(
        "padding",
        "parts",
        lambda p, f: p["padding"] > 0.5 and not p["fills"] and not p["replacement"],
        lambda p, f: (
            f"{_percent(p['padding'])} of the positions of {p['data']} are padding, so only {p['tokens']:,} tokens count: use {p['filled']}"
            + (
                ""
                if f["budget"]["flag"] == "--tokens"
                else ", or --tokens for a budget in real tokens"
            )
        ),
    ),
    Rule(
        "pads that count",
        "",
        lambda _, f: f["pads"] > 0,
        lambda _, f: (
            f"{f['pads']:,} pads count as tokens, as in the original study's code: "
            f"use {next(p['filled'] for p in f['parts'] if p['replacement'])} unless that is what you measure"
        ),
    ),
    Rule(
        "measured rows",
        "overlap_checks",
        lambda c, f: c.get("same", 0) > 0,
        lambda c, f: (
            f"{_counted(c['same'], 'row')} of {c['part']} {'is' if c['same'] == 1 else 'are'} also measured by {c['against']}: "
            f"{_apart(c, f)}, or don't measure on {c['against']}"
        ),
    ),
    Rule(
        "half of measured rows",
        "overlap_checks",
        lambda c, f: c.get("half", 0) > 0,
        # Short files under one licence hold half of each other: only who reads them can tell that
        # from a leak.
        lambda c, f: (
            f"{_counted(c['half'], 'row')} of {c['part']} {'holds' if c['half'] == 1 else 'hold'} half or more of what {c['against']} measures in "
            f"{c['given_away']:,} of {_counted(c['measured_rows'], 'row')}: read them, and unless that is a licence or the like, {_apart(c, f)}"
        ),
    ),
    Rule(
        "two starts",
        "",
        lambda _, f: f["double_starts"] > 0,
        lambda _, f: (
            f"two start tokens in {'every window' if f['double_starts'] >= f['windows'] else _counted(f['double_starts'], 'window')}: "
            f"the texts bring their own, so use {_startless(f)}"
        ),
    ),
    Rule(
        "special tokens",
        "parts",
        lambda p, f: bool(p["special_texts"]),
        lambda p, f: (
            f"special tokens stand in the texts of {p['data']} ({_specials(p)}) and are read as such: {_remedy(p, 'them')}"
        ),
    ),
    Rule(
        "empty rows",
        "parts",
        lambda p, f: p["empty"] > 0,
        lambda p, f: (
            f"{_counted(p['empty'], 'row')} of {p['data']} came to no token: {_remedy(p, 'empty rows')}"
        ),
    ),
    Rule(
        "near-duplicates",
        "",
        lambda _, f: f["near_duplicates"]["rows"] > 0.05 * max(1, f["near_duplicates"]["examined"]),
        lambda _, f: (
            f"{_percent(f['near_duplicates']['rows'] / f['near_duplicates']['examined'])} of the rows nearly repeat an earlier one, so the set "
            f"holds less than its {f['tokens']:,} tokens say: {_thinned(f)}"
        ),
    ),
    Rule(
        "cut rows",
        "parts",
        lambda p, f: (
            not p["fills"] and not p["replacement"] and p["truncated"] > 0.1 * p["windows"]
        ),
        lambda p, f: (
            f"{_percent(p['truncated'] / p['windows'])} of the windows of {p['data']} cut off the end of a text: "
            + (
                f"raise --length to {p['fitting_length']:,}, or "
                if p["packing"].startswith("one")
                else ""
            )
            + f"use {p['filled']}"
        ),
    ),
    Rule(
        "repeated windows",
        "",
        lambda _, f: f["repeated_windows"] > 0 and all(map(_learnable, f["parts"])),
        lambda _, f: (
            f"{_counted(f['repeated_windows'], 'window')} {'repeats' if f['repeated_windows'] == 1 else 'repeat'} an earlier one "
            f"word for word: {_thinned(f)}"
        ),
    ),
    Rule(
        "variety",
        "",
        lambda _, f: (
            f["vocabulary"]["even"] < 32
            and f["vocabulary"]["size"] > 1_000
            and all(map(_learnable, f["parts"]))
        ),
        lambda _, f: (
            f"the tokens are no more varied than {f['vocabulary']['even']:.0f} equally frequent ones: "
            f"mix in a corpus, as in 0.5*{f['parts'][0]['data']} + 0.5*wikitext"
        ),
    ),
    Rule(
        "weights",
        "parts",
        lambda p, f: p["weight"] > 4,
        lambda p, f: (
            f"each token of {p['data']} counts {p['weight']:.1f} times to make up its share: use {p['filled']}, or --tokens"
        ),
    ),
    Rule(
        "loss",
        "",
        lambda _, f: _loss(f) >= log(f["vocabulary"]["size"]) and all(map(_learnable, f["parts"])),
        lambda _, f: (
            f"the model's loss of {_loss(f):.2f} nats a token is no better than guessing ({log(f['vocabulary']['size']):.2f}): "
            "check that --model is the model you mean, and that its language is that of the texts"
        ),
    ),
    Rule(
        "energy of starts",
        "",
        lambda _, f: _energy(f, "start")["most"] > 0.5,
        lambda _, f: (
            f"start tokens make up {_percent(_energy(f, 'start')['most'])} of all that {_energy(f, 'start')['where']} is shown (Σx²), "
            f"so they decide what is pruned there: compare with {_startless(f)}"
        ),
    ),
    Rule(
        "unseen experts",
        "",
        lambda _, f: bool(_experts(f, "unseen")),
        lambda _, f: (
            f"none of the {f['model']['experts']['tokens']:,} tokens that the model was run on is sent to {_few_tokens(f, 'unseen')}, "
            "so nothing says which of their inputs matter: mix in other data, or use more of it"
        ),
    ),
    Rule(
        "starved experts",
        "",
        lambda _, f: bool(_experts(f, "starved")),
        lambda _, f: (
            f"{_few_tokens(f, 'starved')} would get fewer of the set's {f['model']['experts']['of']:,} tokens than they have inputs, "
            "too few to fit weights to: mix in other data, or use more of it"
        ),
    ),
    *(
        Rule(
            f"energy of {kind}",
            "",
            lambda _, f, kind=kind: _energy(f, kind)["median"] > 0.5,
            lambda _, f, kind=kind, what=what: (
                f"{what} make up {_percent(_energy(f, kind)['median'])} of what half of the matrices are shown (Σx²): "
                f"use a format with fewer of them, such as text or cot in place of {f['parts'][0]['format']}"
            ),
        )
        for kind, what in (("special", "special tokens"), ("template", "the format's own words"))
    ),
)
"""In the order in which they are said: what spoils a comparison first, what only wastes tokens
after it.
"""


def _apart(check: Facts, facts: Facts) -> str:
    part = next(part for part in facts["parts"] if part["data"] == check["part"])
    them = "it" if (check["same"] or check["half"]) == 1 else "them"
    return f"remove {them} from {part['source']}" if part["own"] else "calibrate on another source"


def _thinned(facts: Facts) -> str:
    files = [part["source"] for part in facts["parts"] if part["own"]]
    return f"remove the copies from {files[0]}" if files else "use another source"
