"""Mask overlaps against loops over single bits."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from calibrant.compare.masks import MaskOverlap, overlaps
from calibrant.compare.results import read

from tests.compare.stores import store_of
from tests.compare.test_layers import LOSSES, NAMES, WEIGHTS, matrices


def one(folder: Path, weights: dict[str, list[dict[str, object]]] = WEIGHTS) -> MaskOverlap:
    store = store_of(folder, LOSSES, weights=weights)
    (found,) = overlaps(store, read(store))
    return found


def shared(a: str, b: str, weights: dict[str, list[dict[str, object]]] = WEIGHTS) -> float:
    kept = [{(w["name"], i) for w in weights[name] for i, bit in enumerate(f"{int(str(w['bits']), 16):0256b}") if bit == "1"} for name in (a, b)]
    return len(kept[0] & kept[1]) / len(kept[0] | kept[1])


def test_overlaps_are_over_all_pairs_of_draws(tmp_path: Path):
    found = one(tmp_path)
    assert (found.sets, found.draws) == (("c4", "gsm8k:cot", "svamp:icl"), (2, 2, 1))
    assert found.within[:2].tolist() == pytest.approx([shared("c4/0", "c4/1"), shared("gsm8k:cot/0", "gsm8k:cot/1")])
    assert np.isnan(found.within[2])
    assert found.jaccard[0, 1] == pytest.approx(np.mean([shared(f"c4/{i}", f"gsm8k:cot/{j}") for i, j in product(range(2), repeat=2)]))
    assert found.jaccard[2, 0] == found.jaccard[0, 2] == pytest.approx(np.mean([shared(f"c4/{i}", "svamp:icl") for i in range(2)]))
    assert found.across[0] == pytest.approx((found.jaccard[0, 1] + found.jaccard[0, 2]) / 2)
    told = found.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["jaccard"][2][2] is None
    assert told["draws"] == {"c4": 2, "gsm8k:cot": 2, "svamp:icl": 1}


def test_masks_that_keep_nothing_are_the_same(tmp_path: Path):
    nothing = [{**weight, "bits": "00" * 32} for weight in WEIGHTS["c4/0"]]
    assert one(tmp_path, {**WEIGHTS, "c4/0": nothing, "c4/1": nothing}).within[0] == 1


def test_records_of_another_size_or_without_bits_are_left_out(tmp_path: Path):
    found = one(tmp_path, {**WEIGHTS, "svamp:icl": WEIGHTS["svamp:icl"][:2]})
    assert np.isnan(found.jaccard[2]).all()
    assert np.isnan(found.across[2])
    assert np.isfinite(found.across[:2]).all()
    found = one(tmp_path / "older", {**WEIGHTS, "svamp:icl": matrices(5, bits=False)})
    assert found.sets == ("c4", "gsm8k:cot")
    store = store_of(tmp_path / "empty", LOSSES)
    assert list(overlaps(store, read(store))) == []
    assert len(NAMES) == 6
