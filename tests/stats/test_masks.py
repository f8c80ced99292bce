"""Layer by layer and set by set, from made-up records, against loops over single bits and
numbers.
"""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from calibrant.lab.stats import Layers, layers, similarity, summaries
from calibrant.lab.stats.results import read
from calibrant.lab.stats.sets import overlaps
from calibrant.results import Store

from tests.stats.stores import store_of, with_cells
from tests.stats.test_sets import WORDS, by_hand, profile

NAMES = [f"model.layers.{b}.{m}" for b in range(3) for m in ("self_attn.q_proj", "mlp.down_proj")]
LOSSES = {
    "dense": [[3.0, 2.0]],
    "c4": [[3.5, 2.6], [3.6, 2.6]],
    "gsm8k:cot": [[3.9, 2.1], [3.8, 2.2]],
    "svamp:icl": [[3.9, 2.2]],
}


def matrices(seed: int, bits: bool = True, inputs: bool = True) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    made = []
    for name in NAMES:
        told: dict[str, object] = {
            "name": name,
            "shape": [4, 4],
            "zeros": 8,
            "sparsity": 0.5,
            "notes": {},
            "error": float(rng.uniform(0.01, 0.1)),
        }
        told |= {"bits": rng.integers(0, 256, 32, dtype=np.uint8).tobytes().hex()} if bits else {}
        told |= {"inputs": rng.normal(0, 1, 32).astype("<f2").tobytes().hex()} if inputs else {}
        made.append(told)
    return made


WEIGHTS = {
    "c4/0": matrices(1),
    "c4/1": matrices(2),
    "gsm8k:cot/0": matrices(3),
    "gsm8k:cot/1": matrices(4),
    "svamp:icl": matrices(5),
}


def one(folder: Path, weights: dict[str, list[dict[str, object]]]) -> Layers:
    store = store_of(folder, LOSSES, weights=weights)
    (found,) = layers(store, read(store))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read and never written."""
    profiles = {name: profile(words) for name, words in WORDS.items()}
    return store_of(
        tmp_path_factory.mktemp("masks") / "study", LOSSES, weights=WEIGHTS, profiles=profiles
    )


@pytest.fixture(scope="module")
def found(store: Store) -> Layers:
    (found,) = layers(store, read(store))
    return found


def bits_of(made: list[dict[str, object]], block: int) -> list[str]:
    return [f"{int(str(w['bits']), 16):0256b}" for w in made if f".{block}." in str(w["name"])]


def sizes_of(made: list[dict[str, object]], block: int) -> list[np.ndarray]:
    return [
        np.frombuffer(bytes.fromhex(str(w["inputs"])), "<f2").astype(float)
        for w in made
        if f".{block}." in str(w["name"])
    ]


def agreement(a: str, b: str, block: int) -> float:
    """The share of bits that two draws have alike, one by one."""
    pairs = zip(
        "".join(bits_of(WEIGHTS[a], block)), "".join(bits_of(WEIGHTS[b], block)), strict=True
    )
    return float(np.mean([x == y for x, y in pairs]))


def test_masks_agree_as_their_bits_do(found: Layers):
    assert found.sets == ("c4", "gsm8k:cot", "svamp:icl")
    assert found.blocks == ("model.layers.0", "model.layers.1", "model.layers.2")
    for block in range(3):
        shares = [agreement(f"c4/{draw}", f"gsm8k:cot/{draw}", block) for draw in range(2)]
        assert found.masks[0, 1, block] == pytest.approx(np.mean(shares))
        assert found.masks[0, 2, block] == pytest.approx(agreement("c4/0", "svamp:icl", block))
    assert np.allclose(found.masks, found.masks.transpose(1, 0, 2))
    assert (found.masks[[0, 1, 2], [0, 1, 2]] == 1).all()


def test_what_is_felt_parts_by_the_spread_of_log_sizes(found: Layers, tmp_path: Path):
    for block in range(3):
        squares = []
        for a, b in zip(
            sizes_of(WEIGHTS["c4/0"], block), sizes_of(WEIGHTS["svamp:icl"], block), strict=True
        ):
            difference = a - b
            squares += [(d - difference.mean()) ** 2 for d in difference]
        assert found.statistics[0, 2, block] == pytest.approx(
            math.sqrt(sum(squares) / len(squares))
        )
    assert (found.statistics[[0, 1, 2], [0, 1, 2]] == 0).all()
    louder = [
        {
            **w,
            "inputs": (np.frombuffer(bytes.fromhex(str(w["inputs"])), "<f2") + np.float16(2))
            .tobytes()
            .hex(),
        }
        for w in WEIGHTS["c4/0"]
    ]
    shared = one(tmp_path, {**WEIGHTS, "svamp:icl": louder})
    assert shared.statistics[0, 2] == pytest.approx(0, abs=5e-3), (
        "a factor that a whole matrix shares is not felt"
    )


def test_errors_are_means_over_matrices_and_draws(found: Layers):
    mine = [
        float(str(w["error"]))
        for draw in range(2)
        for w in WEIGHTS[f"c4/{draw}"]
        if ".1." in str(w["name"])
    ]
    assert found.error[0, 1] == pytest.approx(np.mean(mine))
    assert found.error_range[:, 1] == pytest.approx(
        [found.error[:, 1].min(), np.median(found.error[:, 1]), found.error[:, 1].max()]
    )
    assert found.among(["svamp:icl", "c4"]).masks[0, 1, 2] == found.masks[2, 0, 2]
    assert found.among(["svamp:icl"]).error.tolist() == found.error[2:].tolist()


def test_what_older_records_lack_is_not_a_number(tmp_path: Path):
    some = one(tmp_path / "some", {**WEIGHTS, "svamp:icl": matrices(5, bits=False, inputs=False)})
    assert np.isnan(some.masks[2]).all()
    assert np.isnan(some.statistics[2, :2]).all()
    assert np.isfinite(some.masks[0, 1]).all()
    older = one(tmp_path / "older", {name: matrices(1, inputs=False) for name in WEIGHTS})
    assert np.isnan(older.statistics).all()
    assert (older.masks == 1).all()
    oldest = one(
        tmp_path / "oldest", {name: matrices(1, bits=False, inputs=False) for name in WEIGHTS}
    )
    assert np.isnan(oldest.masks).all()
    assert oldest.blocks == some.blocks


def test_likeness_is_told_from_words_activations_and_masks(store: Store, found: Layers):
    alike = similarity(summaries(store, read(store)), [found])
    assert alike.sets == ("c4", "gsm8k:cot", "svamp:icl")
    weights = by_hand(
        {name: {word: 2 * count for word, count in words.items()} for name, words in WORDS.items()}
    )  # two draws of each
    assert alike.by["words"][0, 1] == pytest.approx(
        sum(v * weights["gsm8k:cot"].get(w, 0.0) for w, v in weights["c4"].items())
    )
    assert np.isnan(alike.by["words"][2, :2]).all()
    assert alike.by["masks"][0, 1] == pytest.approx(found.masks[0, 1].mean())
    assert alike.by["statistics"][0, 1] == pytest.approx(
        math.exp(-math.sqrt((found.statistics[0, 1] ** 2).mean()))
    )
    for table in alike.by.values():
        assert (table.diagonal() == 1).all()
    assert [name for name, _ in alike.nearest("c4", "words")] == ["gsm8k:cot"]
    near = alike.nearest("c4", "masks")
    assert sorted(name for name, _ in near) == ["gsm8k:cot", "svamp:icl"]
    assert near[0][1] >= near[1][1]


def shared(a: str, b: str) -> float:
    kept = [
        {
            (w["name"], i)
            for w in WEIGHTS[name]
            for i, bit in enumerate(f"{int(str(w['bits']), 16):0256b}")
            if bit == "1"
        }
        for name in (a, b)
    ]
    return len(kept[0] & kept[1]) / len(kept[0] | kept[1])


def test_overlaps_are_over_all_pairs_of_draws(store: Store):
    (found,) = overlaps(store, read(store))
    assert (found.sets, found.draws) == (("c4", "gsm8k:cot", "svamp:icl"), (2, 2, 1))
    assert found.within[:2].tolist() == pytest.approx(
        [shared("c4/0", "c4/1"), shared("gsm8k:cot/0", "gsm8k:cot/1")]
    )
    assert np.isnan(found.within[2])
    assert found.jaccard[0, 1] == pytest.approx(
        np.mean([shared(f"c4/{i}", f"gsm8k:cot/{j}") for i, j in product(range(2), repeat=2)])
    )
    assert (
        found.jaccard[2, 0]
        == found.jaccard[0, 2]
        == pytest.approx(np.mean([shared(f"c4/{i}", "svamp:icl") for i in range(2)]))
    )
    assert found.across[0] == pytest.approx((found.jaccard[0, 1] + found.jaccard[0, 2]) / 2)
    told = found.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["jaccard"][2][2] is None
    assert told["draws"] == {"c4": 2, "gsm8k:cot": 2, "svamp:icl": 1}


def test_one_run_under_two_seeds_is_one_draw(store: Store):
    results = read(store)
    (once,) = (cell for cell in results.cells if cell.data == "svamp:icl")
    (found,) = overlaps(store, with_cells(results, replace(once, seed=1)))
    assert found.draws == (2, 2, 1)
    assert np.isnan(found.within[2])
