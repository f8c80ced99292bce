"""What the verdict on a set says is wrong and to type instead, and what is said to those who ask
for what can't be looked at.
"""

from typing import Any

import pytest

from calibrant.data.inspect import inspect
from calibrant.data.inspect.verdict import RULES, verdict
from calibrant.errors import DataError, InputError, ModelError, SpecError

from tests.data.inspect.sound import (
    LEGACY,
    OWN,
    Change,
    both,
    chat,
    energy,
    experts,
    found,
    halves,
    leaks,
    part,
    tiny,
    whole,
)

SPOKEN: list[tuple[str, Change, str]] = [
    (
        "unused messages",
        part(unused="these conversations have 90 messages and 40 are used"),
        "svamp:icl: these … have 90 messages and 40 are used: svamp:chat@whole shows all",
    ),
    (
        "unused messages",
        part(unused="these conversations have 90 messages and 40 are used", conversing=""),
        "svamp:icl: these … are used: the format chat shows all, for a model with a chat template",
    ),
    (
        "reasoning that is left out",
        chat(left_out={"reasoning": 34}),
        "leaves out reasoning of 34 of 40 conversations of svamp:icl: svamp:chat(thinking='keep')",
    ),
    (
        "calls that are left out",
        chat(left_out={"call": 10, "tools": 12}),
        "functions, calls or their results of 12 of 40 …: use svamp:chat(tools=none)",
    ),
    (
        "words that are left out",
        chat(left_out={"system": 5}),
        "(system) in 5 of 40 conversations of svamp:icl: use another source",
    ),
    (
        "refused conversations",
        both(chat(), part(refused={"no system prompt": 1, "one call at a time": 11}), OWN),
        "doesn't take 12 conversations of svamp:icl (one call at a time): remove such rows from "
        "mine.jsonl, or try svamp:chat(tools=none)",
    ),
    (
        "unclear conversations",
        chat(unclear=3),
        "writes 3 of 40 conversations of svamp:icl otherwise …: read the windows",
    ),
    (
        "cut reasoning",
        both(chat(cut_reasoning=2), part(truncated=4, fills=False)),
        "50% of the windows of svamp:icl end within reasoning, …: use svamp:chat@whole with "
        "--length 200",
    ),
    (
        "cut reasoning",
        both(chat(cut_reasoning=2), part(fitting_length=100)),
        "50% of the windows of svamp:icl end within reasoning, …: use svamp:chat@whole",
    ),
    (
        "draws",
        whole(disjoint_draws=3, enough=4900),
        "only 3 disjoint draws of 8,192 tokens, …: lower --tokens to 4,900 for 5 draws",
    ),
    (
        "overlapping draw",
        part(overlap=0.25),
        "25% of the rows of svamp:icl were in earlier draws too: use a --seed below 9",
    ),
    (
        "padding",
        part(padding=0.94, fills=False, packing="one", tokens=491, truncated=0),
        "94% of …, so only 491 tokens count: use svamp:icl",
    ),
    (
        "padding",
        both(chat(), part(padding=0.6, fills=False, packing="one", truncated=0)),
        "60% of …, so only 8,192 tokens count: use svamp:chat@whole",
    ),
    (
        "pads that count",
        both(LEGACY, whole(pads=1234)),
        "1,234 pads count as tokens, …: use svamp:icl unless",
    ),
    (
        "measured rows",
        leaks(12),
        "12 rows of svamp:icl are also measured by svamp: calibrate on another source, or don't "
        "measure on svamp",
    ),
    (
        "half of measured rows",
        halves(8),
        "8 rows of svamp:icl hold half or more of what svamp measures in 2 of 300 rows: …, "
        "calibrate on another source",
    ),
    (
        "two starts",
        whole(double_starts=4),
        "two start tokens in every window: …, so use svamp:qa@many(bos='none')",
    ),
    (
        "special tokens",
        both(part(special_texts={"<s>": 1, "</s>": 2}), OWN),
        "(<s> in 1 row, </s> in 2 rows) …: remove them from mine.jsonl",
    ),
    ("empty rows", part(empty=2), "2 rows of svamp:icl came to no token: use another source"),
    (
        "near-duplicates",
        both(whole(near_duplicates={"examined": 60, "rows": 30, "pairs": []}), OWN),
        "50% of the rows nearly repeat an earlier one, …: remove the copies from mine.jsonl",
    ),
    (
        "cut rows",
        part(fills=False, packing="one", truncated=2),
        "50% of the windows of svamp:icl …: raise --length to 200, or use svamp:icl",
    ),
    (
        "cut rows",
        part(fills=False, packing="many(shots=6)", truncated=2, fitting_length=40),
        "50% of the windows of svamp:icl …: use svamp:icl",
    ),
    (
        "cut rows",
        both(chat(), part(fills=False, packing="whole", truncated=2)),
        "50% of the windows of svamp:icl …: raise --length to 200",
    ),
    (
        "repeated windows",
        whole(repeated_windows=3),
        "3 windows repeat an earlier one word for word: use another source",
    ),
    (
        "variety",
        whole(vocabulary={"size": 49152, "even": 12.4}),
        "12 equally frequent ones: mix in a corpus, as in 0.5*svamp:icl + 0.5*wikitext",
    ),
    (
        "weights",
        part(weight=8.3),
        "each token of svamp:icl counts 8.3 times to make up its share: use svamp:icl, or --tokens",
    ),
    (
        "loss",
        lambda facts: facts["model"]["loss"].update(value=11.2),
        "loss of 11.20 … no better than guessing (10.80): check that --model",
    ),
    (
        "energy of starts",
        energy("start", most=0.999),
        "start tokens make up 99.9% … blocks.1.down …: compare with svamp:qa@many(bos='none')",
    ),
    (
        "unseen experts",
        experts("unseen", 3),
        "none of the 8,192 tokens … 1 of 128 experts (blocks.1.mlp: 3), …: mix in other data, or "
        "use more of it",
    ),
    (
        "starved experts",
        experts("starved", 3, 4, 8, 9, 11, 60),
        "6 of 128 experts (blocks.1.mlp: 3, 4, 8, 9, 11, …) … 262,144 tokens",
    ),
    (
        "energy of special",
        energy("special", median=0.7),
        "special tokens make up 70% …: use a format with fewer of them, such as svamp:cot",
    ),
    (
        "energy of template",
        both(energy("template", median=0.51), part(leaner=[])),
        "own words make up 51% …: longer texts have fewer of them",
    ),
]


@pytest.mark.parametrize(("name", "change", "telling"), SPOKEN)
def test_a_rule_says_what_is_wrong_and_what_to_type(
    name: str, change: Change, telling: str
) -> None:
    (sentence,) = verdict(found(change))
    assert [sentence] == list(RULES[name](found(change))), "no other rule speaks of this"
    rest = sentence
    for piece in telling.split("…"):
        assert piece.strip() in rest
        rest = rest.partition(piece.strip())[2]


@pytest.mark.parametrize(
    ("asked", "error", "subject", "sentence"),
    [
        (
            {"against": ["full_stops"]},
            DataError,
            "full_stops",
            "'full_stops' is a control: nothing is measured on it",
        ),
        ({"against": ["gsm9k"]}, SpecError, "gsm9k", "perhaps you mean 'gsm8k'"),
        ({"model": "./nowhere"}, ModelError, "./nowhere", "'./nowhere'"),
    ],
)
def test_what_cannot_be_looked_at(
    asked: dict[str, Any], error: type[InputError], subject: str, sentence: str
) -> None:
    with pytest.raises(error) as caught:
        inspect("full_stops", **{"model": tiny(), "samples": 1, "length": 8, **asked})
    assert caught.value.subject == subject
    assert sentence in str(caught.value)
