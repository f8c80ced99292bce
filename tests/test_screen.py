"""What a terminal shows of results: every number that belongs to them, nothing that isn't there,
and no text that steers it.
"""

from typing import Any

import pytest
from rich.console import Console

from calibrant.cli import screen


def shown(lines: Any, width: int = 400) -> str:
    console = Console(width=width, markup=False, highlight=False, color_system=None)
    with console.capture() as caught:
        for line in lines:
            console.print(line)
    return caught.get()


RUN = {"model_name": "m", "data": "", "tokens": "", "method": {"spec": "magnitude", "revision": 1}}
RUN |= {"target": "0.5", "propagate": "", "dtype": "float32", "seed": 0}
DENSE = [
    {"name": "head", "reason": "head"},
    {"name": "a.norm", "reason": "norm"},
    {"name": "b.norm", "reason": "norm"},
]
FOUND = {
    "run": RUN,
    "sparsity": 0.5,
    "weights": [{"shape": [4, 6]}, {"shape": [2, 3]}],
    "dense": DENSE,
    "data_facts": {},
}
FOUND |= {"provenance": {}, "out": "there", "continued_from": 0, "already_done": False}


def pruned(**changes: Any) -> str:
    return shown(screen.pruned({**FOUND, **changes}))


def test_a_record_shows_its_numbers_and_nothing_that_it_lacks():
    said = pruned()
    for told in (
        "magnitude to 0.5, float32\n",
        "50.0000% of 30 ",
        " 2 matrices",
        "head (head); 2 × norm\n",
        "there",
    ):
        assert told in said
    for absent in ("calibrated on", "fingerprint", "files", "floor", "are zeros"):
        assert absent not in said


def test_a_target_that_was_not_reached_is_said():
    run = {**RUN, "target": "0.999"}
    said = pruned(run=run, sparsity=0.972222)
    assert "not reached" in said
    assert "97.2222% of the weights went, which is less than 0.999: only whole weights go" in said
    # A weight or so of a row is missing almost everywhere.
    assert "not reached" not in pruned(run={**RUN, "target": "0.6"}, sparsity=0.599)
    assert "0.0000% of the weights went" in pruned(run={**RUN, "target": "0.001"}, sparsity=0.0)
    for target in ("0", "0.5", "2:4", "w4g64", "numbers 0.2"):
        assert "not reached" not in pruned(run={**RUN, "target": target}, sparsity=0.5)


def test_how_many_blocks_and_experts_went_is_said():
    drops = [
        {"edit": "drop_blocks", "blocks": [1], "of": 4},
        {"edit": "drop_blocks", "blocks": [0, 1], "of": 3},
    ]
    said = pruned(run={**RUN, "target": "blocks 0.99"}, weights=[], edits=drops)
    assert "removed        3 of 4 blocks\n" in said
    assert "3 of 4 blocks went, which is less than blocks 0.99: only whole blocks go" in said
    reached = pruned(run={**RUN, "target": "blocks 0.75"}, weights=[], edits=drops)
    assert "3 of 4 blocks" in reached
    assert "not reached" not in reached
    experts = [{"edit": "drop_experts", "experts": {"0": [1, 2], "1": [0, 3]}, "of": 8}]
    said = pruned(run={**RUN, "target": "experts 0.37"}, weights=[], edits=experts)
    assert "removed        2 of 8 experts of each layer\n" in said
    assert "2 of 8 experts of each layer went, which is less than experts 0.37" in said


def test_halves_of_blocks_are_no_blocks_and_condensed_layers_are_told():
    halves = [{"edit": "drop_blocks", "blocks": [], "of": 4}]
    assert "removed" not in pruned(run={**RUN, "target": "blocks 0.25"}, edits=halves)
    layers = {"0": {"experts": [3, 5]}, "2": {"experts": [1, 4]}}
    condensed = [{"edit": "condense", "layers": layers, "of": 8}]
    said = pruned(run={**RUN, "target": "blocks 0.5"}, weights=[], edits=condensed)
    assert "condensed      2 layers of experts, to 2 of 8\n" in said
    layers["1"] = {"experts": [6]}
    said = pruned(run={**RUN, "target": "blocks 0.5"}, weights=[], edits=condensed)
    assert "condensed      3 layers of experts, to 1 to 2 of 8\n" in said
    condensed = [{"edit": "condense", "layers": {"0": {"experts": []}}, "of": 8}]
    said = pruned(run={**RUN, "target": "blocks 0.5"}, weights=[], edits=condensed)
    assert "condensed      1 layer of experts, to no routed expert of 8\n" in said


def test_experts_with_few_tokens_are_counted_and_what_was_done_for_them_is_said():
    weights = [
        {"shape": [4, 6], "name": f"experts[{number}]", "tokens": tokens}
        for number, tokens in enumerate((3, 2, 9))
    ]
    said = pruned(weights=weights, run={**RUN, "starved": "all_tokens"})
    for told in ("2 of experts' matrices", "experts[1]: 2 for 6", "all_tokens"):
        assert told in said
    assert "all_tokens" in pruned(run={**RUN, "starved": "all_tokens"})


def test_zeros_of_halves_and_forms_say_their_bytes():
    weights = [
        {"shape": [1000, 600], "notes": {"part": part}} for part in ("attention", "feed_forward")
    ] + [{"shape": [4, 6], "notes": {}}]
    said = pruned(weights=weights)
    assert "2 matrices of attention or feed-forward" in said
    assert " 4.8 MB" in said
    assert "hf 2.0 MB, sparse 1.1 MB (56% of it)\n" in pruned(
        sizes={"hf": 2_000_000, "sparse": 1_130_000}
    )
    told = shown(
        screen.exported(
            {
                "model": "m",
                "form": "sparse",
                "before": 2_000_000,
                "after": 1_130_000,
                "out": "there",
            }
        )
    )
    assert "2.0 MB before, 1.1 MB now (56%)\n" in told


def test_a_profile_says_where_the_time_went_and_how_far_that_is_above_the_floor():
    phases, parts = {"open": 1.0, "compress": 9.0}, {"forward": 6.0, "method": 3.0}
    costs: dict[str, Any] = {
        "phases": phases,
        "parts": parts,
        "floor": 4.5,
        "peak": 3e11,
        "tokens": 4096,
        "dtype": "float32",
    }
    said = pruned(costs=costs)
    rows = [line.split() for line in said.splitlines()]
    assert ["forward", "6.00", "60%"] in rows
    for told in ("4.50 s", "4,096 tokens", "300 GFLOP/s", "2.00 times the floor"):
        assert told in said
    assert "floor" not in pruned(costs={**costs, "floor": 0.0})


FACTS = {
    "perplexity": 20.0855,
    "bits_per_byte": 1.25,
    "tokens": 65536,
    "documents": 128,
    "length": 2048,
}
SCORE = {
    "measured": "[b]odd[/b].jsonl:text",
    "metric": "loss",
    "value": 3.0,
    "stderr": 0.25,
    "unit": "nats/token",
    "facts": FACTS,
}
SCORE |= {"n": 128, "chance": None, "provenance": {"model": "m", "note": "dequantized from Q4_1"}}


def scored(**changes: Any) -> str:
    return shown(screen.scores([{**SCORE, **changes}]))


def test_a_score_stands_with_all_that_belongs_to_it():
    hit = {
        "measured": "race",
        "metric": "acc",
        "value": 0.3,
        "stderr": 0.02,
        "n": 400,
        "unit": "share",
        "chance": 0.25,
    }
    said = scored(
        beside=[{**hit, "facts": {"shots": 5, "style": "cloze", "passed_over": 0, "items": "x"}}]
    )
    first, second = (" ".join(line.split()) for line in said.splitlines()[2:4])
    assert first.startswith("[b]odd[/b].jsonl:text loss (nats/token) 3.0000 ± 0.2500 128 "), (
        "a name is no markup"
    )
    assert first.endswith("perplexity 20.085, 1.2500 bits/byte, 65,536 tokens, context 2,048")
    assert second == "race acc (share) 0.3000 ± 0.0200 400 0.2500 5 shots, cloze"
    assert "m (dequantized from Q4_1)" in said
    assert " ± " not in scored(stderr=None).splitlines()[2], (
        "a single document has no standard error"
    )


@pytest.mark.parametrize(
    ("value", "floor", "told", "itself"),
    [
        (0.2, 0.02, True, False),
        (0.03, 0.02, True, True),
        (0.05, 0.02, True, False),
        (0.2, 1e-3, False, False),
        (1e-6, 1e-6, False, False),
    ],
)
def test_a_noise_floor_is_told_where_a_digit_hangs_on_it(
    value: float, floor: float, told: bool, itself: bool
):
    facts = {
        "tokens": 900,
        "floor": floor,
        "floor_tokens": 512,
        "floor_between": "llama.cpp and torch in float32",
    }
    said = scored(measured="docs:text", metric="kl", value=value, stderr=None, facts=facts)
    assert f"900 tokens, noise floor {floor:.1e}" in said
    assert (f"below {floor:.1e}" in said and "over 512 tokens" in said) == told
    assert ("can't be distinguished from the dense one" in said) == itself


@pytest.mark.parametrize(("cut", "told"), [(0.0, False), (0.1, False), (0.42, True)])
def test_it_is_told_where_many_answers_were_cut(cut: float, told: bool):
    facts = {"cut": cut, "max_tokens": 1024}
    said = scored(measured="gsm8k, 0-shot", metric="exact_match", stderr=None, facts=facts)
    assert ("42% of the answers were cut at 1,024 tokens" in said) == told


# What inspect shows.

PART: dict[str, Any] = {
    "data": "mine.jsonl@one",
    "format": "text",
    "packing": "one",
    "fills": False,
    "tokens": 30,
    "rows": 4,
    "rows_held": 9,
}
PART |= {
    "share": 1.0,
    "weight": 1.0,
    "windows": 4,
    "truncated": 0,
    "padding": 0.0,
    "row_lengths": [3, 4, 5, 9, 9],
    "empty": 0,
    "passed_over": 0,
    "refused": {},
    "too_short": 0,
}
PART |= {
    "histogram": [[0, 4, 1], [5, 9, 3]],
    "origin": "file: mine.jsonl",
    "note": "",
    "licence": "the user's own",
    "digest": "sha256:1",
}
PART |= {
    "conversations": None,
    "duplicates_dropped": 2,
    "overlapping_dropped": 1,
    "special_texts": {},
    "unshown": "",
    "texts": [],
}
SET: dict[str, Any] = {
    "data": "mine.jsonl@one",
    "tokenizer": "smollm2",
    "budget": {"flag": "--samples", "amount": 4},
    "windows": 4,
    "length": 9,
}
SET |= {
    "padding": 0.0,
    "pads": 0,
    "repeated_windows": 0,
    "double_starts": 0,
    "tokens": 30,
    "rows": 4,
    "disjoint_draws": 2,
    "overlap": 0.0,
}
SET |= {
    "vocabulary": {"distinct": 12, "size": 1000, "share": 0.012, "entropy": 3.0, "even": 8.0},
    "fingerprint": "sha256:0",
    "parts": [PART],
}
SET |= {
    "near_duplicates": {"examined": 4, "rows": 0, "pairs": []},
    "overlap_checks": [],
    "model": None,
    "verdict": [],
}
LEAK = {
    "number": 3,
    "row": "0a1b",
    "measured": "2c3d",
    "kind": "13-gram",
    "share": 0.75,
    "serious": True,
    "quote": "",
}
CHECK = {
    "part": "mine.jsonl@one",
    "against": "gsm8k",
    "measured_rows": 1319,
    "same": 1,
    "half": 3,
    "slight": 2,
    "given_away": 2,
    "leaks": [LEAK],
}


def inspected(part: dict[str, Any] | None = None, **changes: Any) -> str:
    return shown(screen.inspected({**SET, "parts": [{**PART, **(part or {})}], **changes}))


def test_a_set_shows_its_numbers_and_what_is_out_of_order():
    usual = inspected()
    for told in (
        "--samples 4",
        "4 × 9",
        "30 of 4 rows",
        "12 of 1,000 ids (1.2%)",
        "4 of 9 rows",
        "3 ≤ 4 ≤ 5 ≤ 9 ≤ 9",
        "nothing to fix",
    ):
        assert told in usual
    for absent in (
        "two starts",
        "nearly alike",
        "overlap",
        "note",
        "empty",
        "cut  ",
        "special tokens",
        "padding  ",
        "model",
        "pads that count",
    ):
        assert absent not in usual, absent
    near = {
        "examined": 4,
        "rows": 2,
        "pairs": [{"parts": ["a", "b"], "numbers": [1, 2], "share": 0.9, "quote": "so it is"}],
    }
    said = inspected(
        double_starts=3,
        pads=7,
        overlap=0.25,
        near_duplicates=near,
        disjoint_draws=None,
        verdict=["lower --samples", "use mine.jsonl"],
    )
    for told in (
        "7 pads",
        "25.0%",
        "3 of 4 windows",
        "2 of 4 rows",
        "row 1 of a and row 2 of b (90.0% alike): “so it is”",
        "no end",
    ):
        assert told in said
    assert [line.strip(" •") for line in said.splitlines()[-2:]] == [
        "lower --samples",
        "use mine.jsonl",
    ]
    part = {
        "empty": 2,
        "passed_over": 5,
        "too_short": 3,
        "special_texts": {"<s>": 2},
        "note": "an excerpt",
        "padding": 0.94,
        "rows_held": None,
    }
    said = inspected({**part, "unshown": "for research only"}, disjoint_draws=64)
    for told in (
        "5 that are no text",
        "3 that are too short for one",
        "2 rows came",
        "<s> in 2 rows",
        "an excerpt",
        "94.0%",
        "64 disjoint",
        "for research only",
    ):
        assert told in said


def test_conversations_show_what_is_lost_of_them_and_whose_the_tokens_are():
    found = {
        "count": 40,
        "turns": [2, 2, 4, 6, 8],
        "tools": 12,
        "calls": 0,
        "reasoning": 34,
        "left_out": {"reasoning": 31, "call": 2},
        "unclear": 1,
        "cut_reasoning": 3,
        "open_reasoning": 2,
        "date": "2024-07-26",
        "roles": {"template": 0.25, "answer": 0.75},
    }
    said = inspected({"conversations": found})
    for told in (
        "reasoning of 31, call of 2",
        "who says what in 1",
        "the end of 3 windows",
        "never closed in 2",
        "always told 2024-07-26",
        "40; tools in 12; reasoning in 34",
        "2 ≤ 2 ≤ 4 ≤ 6 ≤ 8",
        "25.0%",
        "75.0%",
    ):
        assert told in said
    assert said.index("not written") < said.index("conversations")
    sound = {**found, "left_out": {}, "unclear": 0, "roles": {}}
    sound |= {"cut_reasoning": 0, "open_reasoning": 0, "date": ""}
    said = inspected({"conversations": sound})
    for absent in (
        "not written",
        "unclear",
        "cut reasoning",
        "open reasoning",
        "date",
        "of the tokens",
    ):
        assert absent not in said
    assert "turns" not in inspected()


OF = {
    "tokens": 0.008,
    "median": 0.01,
    "most": 0.99949,
    "where": "layers.1.mlp.down_proj",
    "matrices": {"attn.q": 0.25, "mlp.down_proj": 1.0},
}
MODEL: dict[str, Any] = {
    "name": "m",
    "note": "dequantized from Q4_1",
    "dtype": "float32",
    "loss": {"value": 2.5, "tokens": 30, "unit": "nats/token"},
}
MODEL |= {
    "energy": {"tokens": 32, "matrices": 4, "kinds": {"start": OF, "template": {**OF, "most": 0.5}}}
}


def test_what_a_model_makes_of_it():
    layers = {"a": {"even": 6.0, "experts": 8}, "b": {"even": 4.0, "experts": 8}}
    experts = {
        "tokens": 8192,
        "of": 262144,
        "experts": 16,
        "unseen": 1,
        "starved": 3,
        "why": "",
        "layers": layers,
    }
    said = inspected(model={**MODEL, "experts": experts})
    assert "m (dequantized from Q4_1), float32" in said
    for told in (
        "2.5000 nats/token over 30 ",
        "4 matrices over 32 ",
        "1 of 16 get none of 8,192 tokens, 3 ",
        "262,144",
        "50% to 75%",
    ):
        assert told in said
    rows = [line.split() for line in said.splitlines()]
    assert ["the", "tokens", "0.8%", "0.8%"] in rows
    assert ["Σx²,", "mlp.down_proj", "100.0%", "100.0%"] in rows
    assert ["Σx²,", "most", "in", "a", "matrix", "99.949%", "50.0%"] in rows
    assert "no router" in inspected(model={**MODEL, "experts": {**experts, "why": "no router"}})
    unscored = {**MODEL, "loss": {"value": None, "tokens": 0, "unit": "nats/token"}}
    assert "none: no token of the set has one before it" in inspected(model=unscored)
    assert "median" not in inspected(model={**MODEL, "energy": {**MODEL["energy"], "kinds": {}}}), (
        "a set of content alone needs no table"
    )


def test_text_of_a_data_set_cannot_steer_the_terminal():
    bad = "first\x1b[2Jsecond\x07\nthird é\N{RIGHT-TO-LEFT OVERRIDE}"
    said = inspected({"texts": [bad, "other"]})
    assert "first\\x1b[2Jsecond\\x07\n" in said
    assert "third é\\u202e\n" in said
    facts = ("data", "note", "origin", "licence", "unshown")
    near = {
        "examined": 2,
        "rows": 1,
        "pairs": [{"parts": [bad, bad], "numbers": [1, 2], "share": 1.0, "quote": bad}],
    }
    checks = [
        {**CHECK, "part": bad, "leaks": [{**LEAK, "quote": bad}]},
        {"part": bad, "against": bad, "unchecked": bad},
    ]
    part = {**dict.fromkeys(facts, bad), "special_texts": {bad: 1}, "texts": [bad]}
    everywhere = inspected(
        part,
        data=bad,
        tokenizer=bad,
        verdict=[bad],
        near_duplicates=near,
        overlap_checks=checks,
        model={**MODEL, "name": bad},
    )
    assert not {"\x1b", "\x07", "\N{RIGHT-TO-LEFT OVERRIDE}"} & set(everywhere)
