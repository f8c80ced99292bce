"""What must not change where a model is opened: masks, codes and exports; and the id of every
published result, computed again."""

import pytest
from tools.freeze import EXACT, ROUGHLY, read, same

from calibrant.exports import exports
from calibrant.spec import is_foreign

from tests.frozen import exports as written
from tests.frozen import masks, stores

HOW = "run make generate for what is new, python -m tools.freeze --revision REASON for a change"
REVISION = (
    "other numbers than this revision gave: raise `revision` in the class, run python -m "
    "tools.freeze --revision REASON; or make generate"
)


@pytest.mark.parametrize("name", masks.matrix_methods())
def test_numbers_move_only_with_the_revision(name: str):
    frozen = read("masks.json").get(masks.key_of(name))
    assert frozen == masks.matrix_numbers(name), f"{name}: {REVISION}"


@pytest.mark.parametrize("name", [*masks.other_methods(), *masks.methods_of_both()])
def test_what_a_method_makes_of_a_model_moves_only_with_the_revision(name: str):
    key = masks.key_of(name)
    if name in masks.methods_of_both():
        key = masks.model_key_of(name)
    frozen = read("masks.json").get(key)
    assert same(frozen, masks.model_numbers(name), ROUGHLY), f"{name}: {REVISION}"


def test_every_method_is_frozen_but_for_those_of_llama_cpp():
    """`ggml` stands there without a number: it accepts none of the targets."""
    assert read("masks.json").keys() == masks.keys()
    frozen = {key.partition("@")[0] for key in read("masks.json")}
    assert frozen == {*masks.matrix_methods(), *masks.other_methods()}
    assert frozen >= set(masks.ours()).difference(masks.LLAMA_CPP)


def test_exports_write_what_they_wrote():
    frozen, now = read("exports.json"), dict(written.written())
    for name in frozen:
        assert same(frozen[name], now.get(name), ROUGHLY), f"{name}; {HOW}"
    assert now.keys() == frozen.keys(), "run make generate"
    assert written.names() == {
        name for name in exports.names() if not is_foreign(exports.get(name))
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(read("stores.json")))
def test_every_id_is_that_of_its_content(name: str):
    assert stores.wrong_ids(stores.PROJECT / name) == []
    frozen = read("stores.json")[name]
    runs, measurements = stores.ids_of(stores.PROJECT / name)
    assert same([frozen["runs"], frozen["measurements"]], [len(runs), len(measurements)], EXACT)
