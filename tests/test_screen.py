"""How results look."""

from typing import Any

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


def test_a_method_is_written_as_it_is_typed():
    method = {"spec": "dsnot", "revision": 1, "start": {"spec": "wanda", "revision": 2}, "steps": 3}
    said = shown(screen.pruned(record(run={**RUN, "method": method})))
    assert "dsnot(start=wanda, steps=3) to 0.5" in said


FACTS = {"perplexity": 20.0855, "bits_per_byte": 1.25, "tokens": 65536, "documents": 128, "length": 2048}
SCORE = {"measured": "[b]odd[/b].jsonl:text", "metric": "loss", "value": 3.0, "stderr": 0.25, "unit": "nats/token", "facts": FACTS}
SCORE |= {"provenance": {"model": "m", "note": "dequantized from Q4_1"}}


def score(**changes: Any) -> dict[str, Any]:
    return {**SCORE, **changes}


def test_a_loss_fits_eighty_columns_with_all_that_belongs_to_it():
    said = shown(screen.scores([score(measured="python_docs:text")]))
    row = said.splitlines()[2]
    assert row.split() == ["python_docs:text", "3.0000", "±", "0.2500", "20.085", "1.2500", "65,536", "128", "2,048"]
    assert "m (dequantized from Q4_1)" in said


def test_names_of_the_user_are_no_markup():
    assert "[b]odd[/b].jsonl:text" in shown(screen.scores([score()]), width=120)


def test_a_single_document_has_no_standard_error():
    assert "±" not in shown(screen.scores([score(stderr=None)])).splitlines()[2]


def test_nothing_to_list():
    assert shown(screen.catalogued([])) == "none yet\n"


def test_text_of_a_data_set_cannot_steer_the_terminal():
    part = {"data": "mine.jsonl", "tokens": 3, "rows": 1, "share": 1.0, "weight": 1.0, "row_lengths": [3], "origin": "here", "licence": "none"}
    part |= {"digest": "sha256:0", "duplicates_dropped": 0, "overlapping_dropped": 0, "texts": ["first\x1b[2Jsecond\x07\nthird é"]}
    found = {"data": "mine.jsonl", "windows": 1, "length": 3, "padding": 0.0, "repeated_windows": 0, "tokens": 3, "rows": 1, "disjoint_draws": 1}
    said = shown(screen.inspected({**found, "overlap": 0.0, "fingerprint": "sha256:0", "parts": [part]}))
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "first\N{REPLACEMENT CHARACTER}[2Jsecond\N{REPLACEMENT CHARACTER}" in said
    assert "third é" in said
