"""Every rule speaks where it should, is silent where all is well, and says what to type."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from calibrant.inspection.verdict import RULES, verdict

PART: dict[str, Any] = {
    "data": "svamp:icl",
    "source": "svamp",
    "kind": "questions",
    "format": "qa",
    "packing": "many",
    "fills": True,
    "replacement": False,
    "filled": "svamp:icl",
    "startless": "svamp:qa@many(bos='none')",
    "own": False,
    "overlap": 0.0,
    "padding": 0.0,
    "tokens": 8192,
    "rows": 60,
    "windows": 4,
    "truncated": 3,
    "fitting_length": 200,
    "weight": 1.0,
    "empty": 0,
    "special_texts": {},
}
SOUND: dict[str, Any] = {
    "budget": {"flag": "--tokens", "amount": 8192},
    "windows": 4,
    "tokens": 8192,
    "pads": 0,
    "double_starts": 0,
    "repeated_windows": 0,
    "disjoint_draws": 9,
    "enough": None,
    "vocabulary": {"size": 49152, "even": 300.0},
    "near_duplicates": {"examined": 60, "rows": 3, "pairs": []},
    "overlap_checks": [
        {"part": "svamp:icl", "against": "svamp", "same": 0, "half": 0, "slight": 4, "given_away": 0, "measured_rows": 300},
        {"part": "svamp:icl", "unchecked": "large"},
    ],
    "model": {
        "loss": {"value": 2.5},
        "energy": {"kinds": {kind: {"median": 0.1, "most": 0.4, "where": "blocks.1.down"} for kind in ("start", "special", "template")}},
        "experts": {
            "tokens": 8192,
            "of": 262144,
            "experts": 128,
            "unseen": 0,
            "starved": 0,
            "layers": {"blocks.1.mlp": {"unseen": [], "starved": []}},
        },
    },
    "parts": [PART],
}
"""A set with nothing to fix, as near to the lines as can be."""

Change = Callable[[dict[str, Any]], Any]


def found(change: Change) -> dict[str, Any]:
    facts = deepcopy(SOUND)
    change(facts)
    return facts


def part(**changes: Any) -> Change:
    return lambda facts: facts["parts"][0].update(changes)


def whole(**changes: Any) -> Change:
    return lambda facts: facts.update(changes)


def both(*changes: Change) -> Change:
    return lambda facts: [change(facts) for change in changes]


def energy(kind: str, **changes: Any) -> Change:
    return lambda facts: facts["model"]["energy"]["kinds"][kind].update(changes)


def experts(which: str, *numbers: int) -> Change:
    def change(facts: dict[str, Any]) -> None:
        facts["model"]["experts"][which] = len(numbers)
        facts["model"]["experts"]["layers"]["blocks.1.mlp"][which] = list(numbers)

    return change


def leaks(number: int) -> Change:
    return lambda facts: facts["overlap_checks"][0].update(same=number, given_away=number)


def halves(number: int) -> Change:
    return lambda facts: facts["overlap_checks"][0].update(half=number, given_away=2)


OWN = part(own=True, source="mine.jsonl")
LEGACY = part(replacement=True, fills=False, packing="legacy(of='one')", startless="")

SPOKEN: list[tuple[str, Change, str]] = [
    (
        "draws",
        whole(disjoint_draws=3, enough=4900),
        "only 3 disjoint draws of 8,192 tokens, too few to tell a result from the luck of the draw: lower --tokens to 4,900 for 5 draws",
    ),
    (
        "draws",
        whole(disjoint_draws=1, enough=None, budget={"flag": "--samples", "amount": 1}),
        "only 1 disjoint draw of 1 window, too few to tell a result from the luck of the draw: use a larger source",
    ),
    ("overlapping draw", part(overlap=0.25), "25% of the rows of svamp:icl were in earlier draws too: use a --seed below 9"),
    (
        "padding",
        part(padding=0.94, fills=False, packing="one", tokens=491, truncated=0),
        "94% of the positions of svamp:icl are padding, so only 491 tokens count: use svamp:icl",
    ),
    (
        "padding",
        both(part(padding=0.998, fills=False, packing="one", tokens=4, truncated=0), whole(budget={"flag": "--samples", "amount": 4})),
        "99.8% of the positions of svamp:icl are padding, so only 4 tokens count: use svamp:icl, or --tokens for a budget in real tokens",
    ),
    (
        "pads that count",
        both(LEGACY, whole(pads=1234)),
        "1,234 pads count as tokens, as in the original study's code: use svamp:icl unless that is what you measure",
    ),
    (
        "measured rows",
        leaks(12),
        "12 rows of svamp:icl are also measured by svamp: calibrate on another source, or don't measure on svamp",
    ),
    (
        "measured rows",
        both(leaks(1), OWN),
        "1 row of svamp:icl is also measured by svamp: remove it from mine.jsonl, or don't measure on svamp",
    ),
    (
        "half of measured rows",
        halves(8),
        "8 rows of svamp:icl hold half or more of what svamp measures in 2 of 300 rows: "
        "read them, and unless that is a licence or the like, calibrate on another source",
    ),
    (
        "half of measured rows",
        both(halves(1), OWN),
        "1 row of svamp:icl holds half or more of what svamp measures in 2 of 300 rows: "
        "read them, and unless that is a licence or the like, remove it from mine.jsonl",
    ),
    (
        "two starts",
        whole(double_starts=4),
        "two start tokens in every window: the texts bring their own, so use svamp:qa@many(bos='none')",
    ),
    (
        "two starts",
        both(whole(double_starts=1), LEGACY),
        "two start tokens in 1 window: the texts bring their own, so use bos='none' in each part",
    ),
    (
        "special tokens",
        both(part(special_texts={"<s>": 1, "</s>": 2}), OWN),
        "special tokens stand in the texts of svamp:icl (<s> in 1 row, </s> in 2 rows) and are read as such: remove them from mine.jsonl",
    ),
    ("empty rows", part(empty=2), "2 rows of svamp:icl came to no token: use another source"),
    (
        "near-duplicates",
        both(whole(near_duplicates={"examined": 60, "rows": 30, "pairs": []}), OWN),
        "50% of the rows nearly repeat an earlier one, so the set holds less than its 8,192 tokens say: remove the copies from mine.jsonl",
    ),
    (
        "cut rows",
        part(fills=False, packing="one", truncated=2),
        "50% of the windows of svamp:icl cut off the end of a text: raise --length to 200, or use svamp:icl",
    ),
    (
        "cut rows",
        part(fills=False, packing="many(shots=3)", truncated=4),
        "100% of the windows of svamp:icl cut off the end of a text: use svamp:icl",
    ),
    ("repeated windows", whole(repeated_windows=1), "1 window repeats an earlier one word for word: use another source"),
    ("repeated windows", whole(repeated_windows=3), "3 windows repeat an earlier one word for word: use another source"),
    (
        "variety",
        whole(vocabulary={"size": 49152, "even": 12.4}),
        "the tokens are no more varied than 12 equally frequent ones: mix in a corpus, as in 0.5*svamp:icl + 0.5*wikitext",
    ),
    ("weights", part(weight=8.3), "each token of svamp:icl counts 8.3 times to make up its share: use svamp:icl, or --tokens"),
    (
        "loss",
        lambda facts: facts["model"]["loss"].update(value=11.2),
        "the model's loss of 11.20 nats a token is no better than guessing (10.80): "
        "check that --model is the model you mean, and that its language is that of the texts",
    ),
    (
        "energy of starts",
        energy("start", most=0.999),
        "start tokens make up 99.9% of all that blocks.1.down is shown (Σx²), so they decide what is pruned there: "
        "compare with svamp:qa@many(bos='none')",
    ),
    (
        "energy of starts",
        both(energy("start", most=0.6), lambda facts: facts["parts"].append({**PART, "data": "wikitext", "startless": "wikitext@many(bos='none')"})),
        "start tokens make up 60% of all that blocks.1.down is shown (Σx²), so they decide what is pruned there: "
        "compare with bos='none' in each part, as in svamp:qa@many(bos='none')",
    ),
    (
        "unseen experts",
        experts("unseen", 3),
        "none of the 8,192 tokens that the model was run on is sent to 1 of 128 experts (blocks.1.mlp: 3), "
        "so nothing says which of their inputs matter: mix in other data, or use more of it",
    ),
    (
        "starved experts",
        experts("starved", 3, 4, 8, 9, 11, 60),
        "6 of 128 experts (blocks.1.mlp: 3, 4, 8, 9, 11, …) would get fewer of the set's 262,144 tokens than they have inputs, "
        "too few to fit weights to: mix in other data, or use more of it",
    ),
    (
        "energy of special",
        energy("special", median=0.7),
        "special tokens make up 70% of what half of the matrices are shown (Σx²): "
        "use a format with fewer of them, such as text or cot in place of qa",
    ),
    (
        "energy of template",
        energy("template", median=0.51),
        "the format's own words make up 51% of what half of the matrices are shown (Σx²): "
        "use a format with fewer of them, such as text or cot in place of qa",
    ),
]


@pytest.mark.parametrize(("name", "change", "sentence"), SPOKEN, ids=[name for name, _, _ in SPOKEN])
def test_a_rule_says_what_is_wrong_and_what_to_type(name: str, change: Change, sentence: str):
    facts = found(change)
    (rule,) = [rule for rule in RULES if rule.name == name]
    assert list(rule.sentences(facts)) == [sentence]
    assert verdict(facts) == (sentence,), "no other rule speaks of this"


def test_every_rule_has_its_test():
    assert {name for name, _, _ in SPOKEN} == {rule.name for rule in RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)


CONTROL = part(kind="control")
SILENT: dict[str, Change] = {
    "nothing to fix": whole(),
    "no model was run": whole(model=None),
    "a model without experts": lambda facts: facts["model"].pop("experts"),
    "no kind of token but content": lambda facts: facts["model"]["energy"].update(kinds={}),
    "a control has no end": whole(disjoint_draws=None),
    "each draw of a control is like the one before": both(CONTROL, part(overlap=1.0), whole(disjoint_draws=None)),
    "a control repeats itself": both(CONTROL, whole(repeated_windows=99, vocabulary={"size": 49152, "even": 1.0})),
    "nonsense is hard to guess": both(CONTROL, lambda facts: facts["model"]["loss"].update(value=11.2)),
    "drawing with replacement shares rows": both(LEGACY, whole(disjoint_draws=1), part(overlap=0.5)),
    "the next window goes on with a text": part(truncated=4),
    "the last window of a budget in tokens is partly empty": part(padding=0.6),
    "a few near-duplicates": whole(near_duplicates={"examined": 1000, "rows": 50, "pairs": []}),
    "no rows to compare": whole(near_duplicates={"examined": 0, "rows": 0, "pairs": []}),
    "a tokenizer of bytes": whole(vocabulary={"size": 259, "even": 12.0}),
    "words in common are no leak": lambda facts: facts["overlap_checks"][0].update(slight=50),
}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
def test_rules_are_silent_where_all_is_well(change: Change):
    assert verdict(found(change)) == ()


def test_what_spoils_a_comparison_is_said_before_what_wastes_tokens():
    said = verdict(found(both(leaks(1), part(weight=5.0), whole(disjoint_draws=2, enough=5))))
    assert [sentence.partition(" ")[0] for sentence in said] == ["only", "1", "each"]


def test_the_same_sentence_is_said_once():
    twice = both(part(weight=5.0), lambda facts: facts["parts"].append(deepcopy(facts["parts"][0])))
    assert len(verdict(found(twice))) == 1
