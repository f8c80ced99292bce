"""How results look."""

from typing import Any

import pytest
from rich.console import Console

from calibrant import screen


def shown(lines: Any, width: int = 80) -> str:
    console = Console(width=width, markup=False, highlight=False, color_system=None)
    with console.capture() as caught:
        for line in lines:
            console.print(line)
    return caught.get()


RUN = {"model_name": "m", "data": "", "tokens": "", "method": {"spec": "magnitude", "revision": 1}}
RUN |= {"target": "0.5", "propagate": "", "dtype": "float32", "seed": 0}
DENSE = [{"name": "head", "reason": "head"}, {"name": "a.norm", "reason": "norm"}, {"name": "b.norm", "reason": "norm"}]
FOUND = {"run": RUN, "sparsity": 0.5, "weights": [{"shape": [4, 6]}, {"shape": [2, 3]}], "dense": DENSE, "data_facts": {}}
FOUND |= {"provenance": {}, "out": "there", "continued_from": 0, "already_done": False}


def record(**changes: Any) -> dict[str, Any]:
    return {**FOUND, **changes}


def test_a_fact_without_content_takes_no_line():
    said = shown(screen.pruned(record()))
    assert "calibrated on" not in said
    assert "fingerprint" not in said
    assert "magnitude to 0.5, float32\n" in said


def test_what_is_dense_is_named_or_counted():
    assert "left dense     head (head); 2 × norm\n" in shown(screen.pruned(record()))


def test_sizes_are_counted():
    assert "50.0000% of 30 weights in 2 matrices" in shown(screen.pruned(record()))


def test_what_is_stored_in_few_bits_says_how_many():
    weights = [{"shape": [4, 6], "bits_a_weight": 4.5, "bytes": 14}, {"shape": [2, 3], "bits_a_weight": 6.0, "bytes": 5}]
    said = shown(screen.pruned(record(weights=weights)), 120)
    assert "stored         4.800 bits a weight, scales and all: 19 bytes for 30 weights in 2 matrices\n" in said
    assert "sparsity" not in said


def test_what_zeros_of_halves_take_is_said():
    weights = [{"shape": [1000, 600], "notes": {"part": part}} for part in ("attention", "feed_forward")] + [{"shape": [4, 6], "notes": {}}]
    said = " ".join(shown(screen.pruned(record(weights=weights))).split())
    assert "2 matrices of attention or feed-forward networks that went are zeros: 4.8 MB in the Hugging Face folder, nothing in" in said
    assert "are zeros" not in shown(screen.pruned(record()))


def test_forms_say_their_bytes():
    said = shown(screen.pruned(record(sizes={"hf": 2_000_000, "sparse": 1_130_000})))
    assert "files          hf 2.0 MB, sparse 1.1 MB (56% of it)\n" in said
    assert "files" not in shown(screen.pruned(record()))
    told = {"model": "m", "form": "sparse", "before": 2_000_000, "after": 1_130_000, "out": "there"}
    assert "files          2.0 MB before, 1.1 MB now (56%)\n" in shown(screen.exported(told))


def test_a_method_is_written_as_it_is_typed():
    method = {"spec": "dsnot", "revision": 1, "start": {"spec": "wanda", "revision": 2}, "steps": 3}
    said = shown(screen.pruned(record(run={**RUN, "method": method})))
    assert "dsnot(start=wanda, steps=3) to 0.5" in said
    foreign = {"spec": "mine", "class": "package:Mine", "revision": 1, "start": {"spec": "pow", "class": "package:Pow", "revision": 2}}
    assert "mine(start=pow) to 0.5" in shown(screen.pruned(record(run={**RUN, "method": foreign})))


FACTS = {"perplexity": 20.0855, "bits_per_byte": 1.25, "tokens": 65536, "documents": 128, "length": 2048}
SCORE = {"measured": "[b]odd[/b].jsonl:text", "metric": "loss", "value": 3.0, "stderr": 0.25, "unit": "nats/token", "facts": FACTS}
SCORE |= {"n": 128, "chance": None, "provenance": {"model": "m", "note": "dequantized from Q4_1"}}


def score(**changes: Any) -> dict[str, Any]:
    return {**SCORE, **changes}


def test_a_loss_stands_with_all_that_belongs_to_it():
    said = shown(screen.scores([score(measured="python_docs:text")]), width=160)
    row = " ".join(said.splitlines()[2].split())
    assert row == "python_docs:text loss (nats/token) 3.0000 ± 0.2500 128 perplexity 20.085, 1.2500 bits/byte, 65,536 tokens, context 2,048"
    assert "m (dequantized from Q4_1)" in said


@pytest.mark.parametrize(
    ("value", "floor", "told", "itself"),
    [(0.2, 0.02, True, False), (0.03, 0.02, True, True), (0.05, 0.02, True, False), (0.2, 1e-3, False, False), (1e-6, 1e-6, False, False)],
)
def test_a_noise_floor_is_told_where_a_digit_hangs_on_it(value: float, floor: float, told: bool, itself: bool):
    facts = {"tokens": 900, "floor": floor, "floor_tokens": 512, "floor_between": "llama.cpp and torch in float32"}
    said = shown(screen.scores([score(measured="docs:text", metric="kl", value=value, stderr=None, facts=facts)]), width=400)
    assert f"900 tokens, noise floor {floor:.1e}" in said
    sentence = "docs:text: a difference of KL below 2.0e-02 is none that a runtime would keep: so far apart are llama.cpp and torch in float32 with"
    assert (sentence in said) == told
    assert ("this model can't be distinguished from the dense one there" in said) == itself


def test_scores_beside_the_first_have_lines_of_their_own():
    hit = {"measured": "race", "metric": "acc", "value": 0.3, "stderr": 0.02, "n": 400, "unit": "share", "chance": 0.25}
    lines = shown(
        screen.scores([score(beside=[{**hit, "facts": {"shots": 5, "style": "cloze", "passed_over": 0, "items": "x"}}])]), width=160
    ).splitlines()
    assert " ".join(lines[3].split()) == "race acc (share) 0.3000 ± 0.0200 400 0.2500 5 shots, cloze"


def test_names_of_the_user_are_no_markup():
    assert "[b]odd[/b].jsonl:text" in shown(screen.scores([score()]), width=120)


def test_a_single_document_has_no_standard_error():
    assert "±" not in shown(screen.scores([score(stderr=None)])).splitlines()[2]


def test_nothing_to_list():
    assert shown(screen.catalogued([])) == "none yet\n"


# What inspect shows.

PART: dict[str, Any] = {"data": "mine.jsonl@one", "format": "text", "packing": "one", "fills": False, "tokens": 30, "rows": 4, "rows_held": 9}
PART |= {"share": 1.0, "weight": 1.0, "windows": 4, "truncated": 0, "padding": 0.0, "row_lengths": [3, 4, 5, 9, 9], "empty": 0, "passed_over": 0}
PART |= {"histogram": [[0, 4, 1], [5, 9, 3]], "origin": "file: mine.jsonl", "note": "", "licence": "the user's own", "digest": "sha256:1"}
PART |= {"duplicates_dropped": 2, "overlapping_dropped": 1, "special_texts": {}, "unshown": "", "texts": []}
SET: dict[str, Any] = {"data": "mine.jsonl@one", "tokenizer": "smollm2", "budget": {"flag": "--samples", "amount": 4}, "windows": 4, "length": 9}
SET |= {"padding": 0.0, "pads": 0, "repeated_windows": 0, "double_starts": 0, "tokens": 30, "rows": 4, "disjoint_draws": 2, "overlap": 0.0}
SET |= {"vocabulary": {"distinct": 12, "size": 1000, "share": 0.012, "entropy": 3.0, "even": 8.0}, "fingerprint": "sha256:0", "parts": [PART]}
SET |= {"near_duplicates": {"examined": 4, "rows": 0, "pairs": []}, "overlap_checks": [], "model": None, "verdict": []}
LEAK = {"number": 3, "row": "0a1b", "measured": "2c3d", "kind": "13-gram", "share": 0.75, "serious": True, "quote": ""}
CHECK = {"part": "mine.jsonl@one", "against": "gsm8k", "measured_rows": 1319, "same": 1, "half": 3, "slight": 2, "given_away": 2, "leaks": [LEAK]}


def inspected(width: int = 100, part: dict[str, Any] | None = None, **changes: Any) -> str:
    return shown(screen.inspected({**SET, "parts": [{**PART, **(part or {})}], **changes}), width)


def test_a_set_with_nothing_to_fix_says_so():
    said = inspected()
    for line in (
        "set            mine.jsonl@one (--samples 4)",
        "read by        the tokenizer of smollm2",
        "windows        4 × 9; 0.0% padding; 0 repeated",
        "real tokens    30 of 4 rows",
        "vocabulary     12 of 1,000 ids (1.2%), as varied as 8 equally frequent ones",
        "draws          2 disjoint ones of this size",
        "mine.jsonl@one 30 tokens, 4 of 9 rows held, share 100.0%, weight 1.0000",
        "left out       2 duplicates, 1 row also measured",
        "row lengths    3 ≤ 4 ≤ 5 ≤ 9 ≤ 9 tokens (least, quarters, most)",
    ):
        assert line in said.splitlines(), line
    assert said.endswith("\nwhat to fix\n  • nothing to fix\n")
    for absent in ("two starts", "nearly alike", "overlap", "note", "empty", "cut  ", "special tokens", "padding  ", "model", "pads that count"):
        assert absent not in said, absent


def test_what_to_fix_comes_last_one_line_each():
    said = inspected(verdict=["lower --samples", "use mine.jsonl"])
    assert said.endswith("\nwhat to fix\n  • lower --samples\n  • use mine.jsonl\n")


@pytest.mark.parametrize(
    ("count", "said"), [(None, "no end of disjoint ones"), (1, "1 disjoint one of this size"), (64, "64 disjoint ones of this size, or more")]
)
def test_draws(count: int | None, said: str):
    assert f"draws          {said}" in inspected(disjoint_draws=count).splitlines()


def test_what_is_out_of_order_has_a_line():
    near = {"examined": 4, "rows": 2, "pairs": [{"parts": ["a", "b"], "numbers": [1, 2], "share": 0.9, "quote": "so it is"}]}
    said = inspected(160, double_starts=3, pads=7, overlap=0.25, near_duplicates=near)
    for line in (
        "real tokens    30 of 4 rows, and 7 pads that count",
        "overlap        25.0% of the rows are in earlier draws",
        "two starts     in 3 of 4 windows",
        "nearly alike   2 of 4 rows repeat an earlier one, as row 1 of a and row 2 of b (90.0% alike): “so it is”",
    ):
        assert line in said.splitlines(), line
    said = inspected(160, {"empty": 2, "passed_over": 5, "special_texts": {"<s>": 2}, "note": "an excerpt", "padding": 0.94, "rows_held": None})
    for line in (
        "left out       2 duplicates, 1 row also measured, 5 that are no text",
        "empty          2 rows came to no token",
        "special tokens written out in the texts: <s> in 2 rows",
        "note           an excerpt",
        "padding        94.0%",
        "mine.jsonl@one 30 tokens, 4 rows without end, share 100.0%, weight 1.0000",
    ):
        assert line in said.splitlines(), line


def test_shares_of_windows_are_at_most_all_of_them():
    """Three windows of one row end within it: that is no 300 per cent."""
    part = {"packing": "many", "fills": True, "truncated": 3, "rows": 1}
    assert "cut            3 of 4 windows (75.0%) end within a row; the next window goes on with it" in inspected(part=part).splitlines()


@pytest.mark.parametrize(
    ("packing", "fills", "said"),
    [
        ("one", False, "1 of 4 windows (25.0%) end within a row"),
        ("many", True, "1 of 4 windows (25.0%) end within a row; the next window goes on with it"),
        ("many(shots=2)", False, "1 of 4 windows (25.0%) end within a row"),
        ("crop", True, "1 of 4 windows (25.0%) end within a row"),
    ],
)
def test_whether_the_rest_of_a_cut_text_is_lost(packing: str, fills: bool, said: str):
    assert f"cut            {said}" in inspected(part={"packing": packing, "fills": fills, "truncated": 1}).splitlines()


@pytest.mark.parametrize(
    "ranges",
    [[[7, 7, 1]], [[0, 4, 1], [5, 9, 3]], [[i * 100_000, i * 100_000 + 99_999, 10**i] for i in range(12)], [[1, 1, 0], [2, 2, 10_000_000]]],
)
def test_a_histogram_fits_sixty_columns(ranges: list[list[int]]):
    lines = shown(screen.inspected({**SET, "parts": [{**PART, "histogram": ranges}]})).splitlines()
    bars = [line for line in lines if line.startswith("  ") and line.split("  ")[-1].split(" ")[-1].replace(",", "").isdecimal()]
    assert len(bars) == len(ranges)
    assert max(map(len, bars)) <= 60
    most = max(count for _, _, count in ranges)
    for bar, (_, _, count) in zip(bars, ranges, strict=True):
        assert bar.endswith(f"{count:,}")
        assert any(block in bar for block in "█▉▊▋▌▍▎▏") == (count > 0)
        assert bar.count("█") == max(line.count("█") for line in bars) or count < most


def test_rows_in_two_places_are_named():
    said = inspected(
        120, overlap_checks=[{**CHECK, "leaks": [{**LEAK, "quote": "Two trains\x1b[2J"}, {**LEAK, "kind": "same example", "number": 4}]}]
    )
    assert (
        "overlap        mine.jsonl@one and the 1,319 rows that gsm8k measures: 1 row in both, 3 with half in common, 2 with less" in said.splitlines()
    )
    assert "  row 3 (0a1b) and 2c3d: 13-gram, 75.0% of it: “Two trains\\x1b[2J”" in said.splitlines()
    assert "  row 4 (0a1b) and 2c3d: same example" in said.splitlines()
    assert "more" not in said


def test_many_rows_in_two_places_are_counted():
    said = inspected(overlap_checks=[{**CHECK, "leaks": [LEAK] * 12}])
    assert said.count("row 3 (0a1b)") == 5
    assert "  … and 7 more, which --json lists" in said.splitlines()


def test_what_was_not_compared_says_why():
    said = inspected(120, overlap_checks=[{"part": "c4", "against": "c4", "unchecked": "it is large"}])
    assert "overlap        c4 isn't compared with c4: it is large" in said.splitlines()


def test_what_may_not_be_shown_says_why():
    assert "windows        not shown: for research only" in inspected(part={"unshown": "for research only"}).splitlines()


OF = {"tokens": 0.008, "median": 0.01, "most": 0.99949, "where": "layers.1.mlp.down_proj", "matrices": {"attn.q": 0.25, "mlp.down_proj": 1.0}}
MODEL: dict[str, Any] = {"name": "m", "note": "dequantized from Q4_1", "dtype": "float32", "loss": {"value": 2.5, "tokens": 30, "unit": "nats/token"}}


def test_what_a_model_makes_of_it():
    said = inspected(model={**MODEL, "energy": {"tokens": 32, "matrices": 4, "kinds": {"start": OF, "template": {**OF, "most": 0.5}}}})
    for line in (
        "model          m (dequantized from Q4_1), float32",
        "loss           2.5000 nats/token over 30 tokens of the set",
        "energy         Σx² of 4 matrices over 32 tokens",
    ):
        assert line in said.splitlines(), line
    cells = [line.split() for line in said.splitlines()]
    assert ["the", "tokens", "0.8%", "0.8%"] in cells
    assert ["Σx²,", "mlp.down_proj", "100.0%", "100.0%"] in cells
    assert ["Σx²,", "most", "in", "a", "matrix", "99.949%", "50.0%"] in cells
    assert max(map(len, said.splitlines())) <= 100


def test_of_experts_it_says_how_many_get_too_little():
    layers = {"a": {"even": 6.0, "experts": 8}, "b": {"even": 4.0, "experts": 8}}
    experts = {"tokens": 8192, "of": 262144, "experts": 16, "unseen": 1, "starved": 3, "why": "", "layers": layers}
    none = {"tokens": 32, "matrices": 4, "kinds": {}}
    said = " ".join(inspected(model={**MODEL, "energy": none, "experts": experts}).split())
    assert "experts 1 of 16 get none of 8,192 tokens, 3 would get fewer of all 262,144 than they have inputs" in said
    assert "the load is as even as if 50% to 75% of a layer's were used alike" in said
    assert "experts no router" in " ".join(inspected(model={**MODEL, "energy": none, "experts": {**experts, "why": "no router"}}).split())


def test_a_set_of_content_alone_needs_no_table():
    said = inspected(model={**MODEL, "energy": {"tokens": 32, "matrices": 4, "kinds": {}}})
    assert "energy         Σx² of 4 matrices over 32 tokens, all of content" in said.splitlines()
    assert "median" not in said


def test_text_of_a_data_set_cannot_steer_the_terminal():
    bad = "first\x1b[2Jsecond\x07\nthird é\N{RIGHT-TO-LEFT OVERRIDE}"
    said = inspected(part={"texts": [bad, "other"]})
    assert "  │ first\\x1b[2Jsecond\\x07\n  │ third é\\u202e\n" in said
    assert "  ╷ window 2\n  │ other\n" in said
    everywhere = inspected(
        part={"data": bad, "note": bad, "origin": bad, "licence": bad, "unshown": bad, "special_texts": {bad: 1}, "texts": [bad]},
        data=bad,
        tokenizer=bad,
        verdict=[bad],
        near_duplicates={"examined": 2, "rows": 1, "pairs": [{"parts": [bad, bad], "numbers": [1, 2], "share": 1.0, "quote": bad}]},
        overlap_checks=[{**CHECK, "part": bad, "leaks": [{**LEAK, "quote": bad}]}, {"part": bad, "against": bad, "unchecked": bad}],
        model={**MODEL, "name": bad, "energy": {"tokens": 1, "matrices": 1, "kinds": {}}},
    )
    assert not {"\x1b", "\x07", "\N{RIGHT-TO-LEFT OVERRIDE}"} & set(everywhere)


def test_a_profile_says_where_the_time_went_and_the_floor():
    costs: dict[str, Any] = {
        "phases": {"open": 1.0, "compress": 9.0},
        "parts": {"forward": 6.0, "method": 3.0},
        "floor": 4.5,
        "peak": 3e11,
        "tokens": 4096,
    }
    costs["dtype"] = "float32"
    said = shown(screen.pruned(record(costs=costs)), 100)
    assert "  forward" in said
    assert "60%" in said
    assert "floor          4.50 s: the blocks' matrix products with 4,096 tokens, once, in float32" in said
    assert "compressing took 2.00 times the floor" in said
    assert "floor" not in shown(screen.pruned(record(costs={**costs, "floor": 0.0})))
