"""What is found in a set with nothing to fix, as near to the lines as can be, and what may be
wrong with it.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch

from calibrant.models import Opened
from calibrant.testing import tiny_model, tiny_tokenizer

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
    "refused": {},
    "unused": "",
    "conversing": "svamp:chat@whole",
    "leaner": ["svamp:cot"],
    "conversations": None,
}
CONVERSATIONS: dict[str, Any] = {
    "count": 40,
    "turns": [2, 2, 4, 6, 8],
    "tools": 12,
    "calls": 10,
    "reasoning": 34,
    "left_out": {},
    "unclear": 0,
    "cut_reasoning": 0,
    "open_reasoning": 0,
    "roles": {"template": 0.25, "answer": 0.75},
    "with_reasoning": "svamp:chat(thinking='keep')",
    "without_tools": "svamp:chat(tools=none)",
    "uncut": "svamp:chat@whole",
}
SOUND: dict[str, Any] = {
    "budget": {"flag": "--tokens", "amount": 8192},
    "windows": 4,
    "length": 128,
    "tokens": 8192,
    "pads": 0,
    "double_starts": 0,
    "repeated_windows": 0,
    "disjoint_draws": 9,
    "enough": None,
    "vocabulary": {"size": 49152, "even": 300.0},
    "near_duplicates": {"examined": 60, "rows": 3, "pairs": []},
    "overlap_checks": [
        {
            "part": "svamp:icl",
            "against": "svamp",
            "same": 0,
            "half": 0,
            "slight": 4,
            "given_away": 0,
            "measured_rows": 300,
        },
        {"part": "svamp:icl", "unchecked": "large"},
    ],
    "model": {
        "loss": {"value": 2.5},
        "energy": {
            "kinds": {
                kind: {"median": 0.1, "most": 0.4, "where": "blocks.1.down"}
                for kind in ("start", "special", "template")
            }
        },
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


def chat(**changes: Any) -> Change:
    return part(conversations={**CONVERSATIONS, **changes})


OWN = part(own=True, source="mine.jsonl")
LEGACY = part(replacement=True, fills=False, packing="legacy(of='one')", startless="")


def tiny(family: str = "llama") -> Opened:
    """A model to look at sets with."""
    return Opened(tiny_model(family), tiny_tokenizer(), family, "sha256:0", "", torch.float32)
