"""Models whose keys and values are rounded as a quantized KV cache holds them: what attention
computes, against itself written out in float64; scales, cached generation, and what can be done
with such a model.
"""

import copy
import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, MambaConfig, MambaForCausalLM

import calibrant
from calibrant.compress import Recipe, compress, prune_quantize, quantize
from calibrant.data import as_set
from calibrant.edits import Edit, QuantizeCache, read_edit
from calibrant.edits.file import from_bytes, to_bytes
from calibrant.errors import (
    DataError,
    NumericsError,
    OutputError,
    SpecError,
    TargetError,
)
from calibrant.evaluators._dense import state
from calibrant.lab.study import Study
from calibrant.models import Opened, Snapshot, open_model, view
from calibrant.models.rounded_cache import (
    RoundedCache,
    attention_names,
    round_cache,
    rounded_caches,
    watched,
)
from calibrant.models.rounded_inputs import INPUTS
from calibrant.results import Record, Store
from calibrant.targets import CacheGrid, WithCache, parse_target
from calibrant.testing import tiny_folder, tiny_model, tiny_tokenizer

from tests.killed import killed_behind
from tests.models.families import FAMILIES, small_model
from tests.models.refused import REFUSED_BY, refusal_of
from tests.models.test_families import NOT_RUN, REFUSED
from tests.test_inputs import files
from tests.usual import two_hundred_lines, usually

IDS = torch.arange(3, 67).reshape(2, 32)
SMALL: dict[str, Any] = {"samples": 4, "length": 32, "dtype": "float32"}
MAGNITUDES = torch.tensor(
    [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)],
    dtype=torch.float64,
)
"""Those of e4m3, by their codes."""
BY_HAND: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "gemma3": {},
    "gpt2": {},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tiny_folder(tmp_path / "model", "llama"))


def logits_of(opened: Opened) -> Tensor:
    with torch.no_grad():
        return opened.model(IDS).logits


def compressed(
    folder: str,
    texts: str,
    target: str,
    method: str = "rtn",
    propagate: str | None = None,
    length: int = 32,
) -> tuple[Opened, list[Edit], Record]:
    opened = open_model(folder, "float32")
    recipe = Recipe.parse(method, target, propagate)
    batch = as_set(texts, 4, length, None, 0).tokens(opened.tokenizer)
    edits: list[Edit] = []
    record = compress(opened, view(opened.model), batch, recipe, keep=edits.append)
    return opened, edits, record


# Attention written out, head by head


def nearest(number: float, element: str) -> float:
    if element == "int8":
        return float(min(127, max(-128, round(number))))
    distances = (MAGNITUDES - abs(number)).abs().tolist()
    code = min(range(len(distances)), key=lambda code: (distances[code], code % 2))
    return float(MAGNITUDES[code]) * (-1 if number < 0 else 1)


def on_grid(numbers: Tensor, scale: float, element: str) -> Tensor:
    flat = [nearest(number / scale, element) * scale for number in numbers.flatten().tolist()]
    return torch.tensor(flat, dtype=torch.float64).reshape(numbers.shape)


def normed(numbers: Tensor, weight: Tensor) -> Tensor:
    sizes = numbers.square().mean(-1, keepdim=True) + 1e-6
    return numbers / sizes.sqrt() * (1 + weight.double())


def turned(numbers: Tensor, theta: float) -> Tensor:
    """[sample, position, width], turned by its positions."""
    half = numbers.shape[-1] // 2
    powers = torch.arange(half, dtype=torch.float64) / half
    angles = torch.arange(numbers.shape[1], dtype=torch.float64)[:, None] * theta**-powers
    first, second = numbers[..., :half], numbers[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


@torch.no_grad()
def heads_of(family: str, module: Any, hidden: Tensor) -> tuple[list[Tensor], ...]:
    """Queries, keys and values of each head, as the cache gets them."""
    hidden = hidden.double()
    if family == "gpt2":
        joined = hidden @ module.c_attn.weight.double() + module.c_attn.bias.double()
        return tuple(list(part.split(8, -1)) for part in joined.split(32, -1))
    parts: list[list[Tensor]] = []
    for name in "qkv":
        matrix = getattr(module, f"{name}_proj")
        numbers = hidden @ matrix.weight.double().T
        if matrix.bias is not None:
            numbers = numbers + matrix.bias.double()
        heads = list(numbers.split(8, -1))
        if family == "gemma3" and name != "v":
            heads = [normed(head, getattr(module, f"{name}_norm").weight) for head in heads]
        if name != "v":
            is_global = family == "gemma3" and module.layer_idx == 1
            heads = [turned(head, 1e6 if is_global else 1e4) for head in heads]
        parts.append(heads)
    return tuple(parts)


def attention_by_hand(family: str, module: Any, hidden: Tensor, rounding: RoundedCache) -> Tensor:
    queries, keys, values = heads_of(family, module, hidden)
    element = rounding.grid.element
    key_scales = rounding.keys * (len(keys) // len(rounding.keys))
    value_scales = rounding.values * (len(values) // len(rounding.values))
    window = 10**6
    if family == "mistral" or (family == "gemma3" and module.layer_idx != 1):
        window = 4
    factor = 256**-0.5 if family == "gemma3" else 8**-0.5
    position = torch.arange(hidden.shape[1])
    distance = position[:, None] - position
    seen = (distance >= 0) & (distance < window)
    results: list[Tensor] = []
    for number, query in enumerate(queries):
        shared = number // (len(queries) // len(keys))
        key = on_grid(keys[shared], key_scales[shared], element)
        value = on_grid(values[shared], value_scales[shared], element)
        scores = (query @ key.mT * factor).masked_fill(~seen, -torch.inf)
        results.append(scores.softmax(-1) @ value)
    joined = torch.cat(results, -1)
    if family == "gpt2":
        return joined @ module.c_proj.weight.double() + module.c_proj.bias.double()
    return joined @ module.o_proj.weight.double().T


def noted(module: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> Any:
    """Note what an attention is called with, and gives."""

    def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        calls.append((hidden, output[0]))

    return module.register_forward_hook(note, with_kwargs=True)


@pytest.mark.parametrize("way", ["sdpa", "eager"])
@pytest.mark.parametrize("element", ["int8", "e4m3"])
@pytest.mark.parametrize("family", BY_HAND)
def test_attention_is_that_of_rounded_keys_and_values(family: str, element: Any, way: str):
    model = tiny_model(family, torch.float64, **BY_HAND[family])
    model.set_attn_implementation(way)
    names = attention_names(view(model))
    heads = 4 if family == "gpt2" else 2
    per_head = RoundedCache(
        CacheGrid(element, "head"),
        tuple(0.011 * (head + 1) for head in range(heads)),
        tuple(0.013 * (head + 1) for head in range(heads)),
    )
    roundings = [RoundedCache(CacheGrid(element), (0.02,), (0.01,)), per_head, per_head]
    with torch.no_grad():
        untouched = model(IDS).logits
    calls: list[tuple[Tensor, Tensor]] = []
    for name, rounding in zip(names, roundings, strict=True):
        noted(model.get_submodule(name), calls)
        round_cache(model.get_submodule(name), rounding)
    with torch.no_grad():
        assert not torch.equal(model(IDS).logits, untouched)
    for name, rounding, (hidden, output) in zip(names, roundings, calls, strict=True):
        expected = attention_by_hand(family, model.get_submodule(name), hidden, rounding)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("propagate", ["arrival", "reference"])
@pytest.mark.parametrize("packing", ["many", "one"])
@pytest.mark.parametrize("per", ["tensor", "head"])
def test_scales_reach_as_far_as_what_comes_through_rounded_ones(
    per: str, packing: str, propagate: str, folder: str, texts: str
):
    data = f"{texts}@{packing}"
    target = f"w4g16+kv_int8(per={per})"
    opened, edits, _ = compressed(folder, data, target, "rtn", propagate, 96)
    cache = [edit for edit in edits if isinstance(edit, QuantizeCache)]
    assert [edit.block for edit in cache] == [0, 1, 2]
    batch = as_set(data, 4, 96, None, 0).tokens(opened.tokenizer)
    assert bool(batch.mask.all()) == (packing == "many")
    calls: list[tuple[Tensor, Tensor]] = []
    for edit in cache:
        noted(opened.model.get_submodule(edit.attention), calls)
    with torch.no_grad():
        opened.model(batch.ids, attention_mask=batch.mask.long())
    for edit, (hidden, _) in zip(cache, calls, strict=True):
        module = opened.model.get_submodule(edit.attention)
        _, keys, values = heads_of("llama", module, hidden)
        for heads, scales in ((keys, edit.rounding.keys), (values, edit.rounding.values)):
            largest = [float(head[batch.mask].abs().max()) for head in heads]
            expected = largest if per == "head" else [max(largest)]
            assert scales == pytest.approx([size / 127.5 for size in expected], rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3_moe"])
def test_with_a_cache_it_generates_what_it_computes_without(
    family: str, texts: str, tmp_path: Path
):
    folder = str(tiny_folder(tmp_path / "model", family))
    opened, _, _ = compressed(folder, texts, "kv_int8")
    # Last bits of float32 would carry some numbers over the middle between two values.
    nn.Module.double(opened.model)
    with torch.no_grad():
        whole = opened.model(IDS).logits
        cache = DynamicCache(config=opened.model.config)
        steps = [opened.model(IDS[:, :20], cache=cache, use_cache=True).logits]
        for position in range(20, 32):
            ids = IDS[:, position : position + 1]
            steps.append(opened.model(ids, cache=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_every_family_computes_the_same_under_watch(family: str):
    if family in NOT_RUN or family in REFUSED:
        pytest.skip("it isn't run or walked at all")
    model = small_model(family)
    model_view = view(model)
    ids = IDS[:, :8]
    if family in REFUSED_BY["cache"]:
        # Its words say which block and why; other tests look at them.
        refusal_of(attention_names, model_view)
        return
    names = attention_names(model_view)
    seen: list[str] = []

    def note_name(name: str, *_: Tensor) -> None:
        seen.append(name)

    with torch.no_grad():
        plain = model_view.base(input_ids=ids, use_cache=False)[0]
        with ExitStack() as stack:
            for name in names:
                watch = partial(note_name, name)
                stack.enter_context(watched(model.get_submodule(name), watch))
            through = model_view.base(input_ids=ids, use_cache=False)[0]
        after = model_view.base(input_ids=ids, use_cache=False)[0]
    assert torch.equal(plain, through)
    assert torch.equal(plain, after)
    assert set(seen) == set(names)


@pytest.mark.parametrize(("first", "second"), [("sdpa", "eager"), ("eager", "sdpa")])
def test_attention_may_be_computed_in_another_way_afterwards(first: str, second: str):
    rounding = RoundedCache(CacheGrid("int8"), (0.02,), (0.01,))
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    models = [tiny_model("mistral", sliding_window=4) for _ in range(2)]
    models[0].set_attn_implementation(first)
    models[1].set_attn_implementation(second)
    for model in models:
        for name in attention_names(view(model)):
            round_cache(model.get_submodule(name), rounding)
    switched = copy.deepcopy(models[0])
    switched.set_attn_implementation(second)
    with torch.no_grad():
        expected = models[1](IDS, attention_mask=mask).logits
        assert torch.equal(switched(IDS, attention_mask=mask).logits, expected)


def test_scales_for_other_heads_are_refused():
    model = tiny_model("llama")
    (name, *_) = attention_names(view(model))
    rounding = RoundedCache(CacheGrid("int8", "head"), (0.02, 0.02), (0.01, 0.01, 0.01))
    round_cache(model.get_submodule(name), rounding)
    assert "2 heads" in str(refusal_of(model, IDS))


# What can be done with such a model


@pytest.mark.parametrize("target", ["w4g16+kv_int8", "FP8+kv_fp8(per=head)"])
def test_all_is_taken_back_to_the_bit_and_read_again(target: str, folder: str, texts: str):
    opened, edits, record = compressed(folder, texts, target, "gptq")
    made = logits_of(opened)
    lines = [line for line in record.edits if line["edit"] == "quantize_cache"]
    assert len(lines) == 3
    assert json.dumps(record.plain(), allow_nan=False)
    again = open_model(folder, "float32")
    untouched = logits_of(again)
    model_view = view(again.model)
    snapshot = Snapshot.of(model_view)
    undoing: list[Any] = []
    for stored in from_bytes(to_bytes([edit.stored() for edit in edits])):
        edit = read_edit(stored, model_view)
        undoing.append(edit.undo(model_view))
        edit.apply(model_view)
    assert torch.equal(logits_of(again), made)
    copied = copy.deepcopy(again.model)
    with snapshot.as_it_was():
        assert torch.equal(logits_of(again), untouched)
    assert torch.equal(logits_of(again), made)
    for undo in reversed(undoing):
        undo()
    assert torch.equal(logits_of(again), untouched)
    assert not rounded_caches(again.model)
    with torch.no_grad():
        assert torch.equal(copied(IDS).logits, made)


def test_what_was_kept_of_a_dense_model_is_not_that_of_a_rounded_one():
    model = tiny_model("llama")
    before = state(model)
    (name, *_) = attention_names(view(model))
    round_cache(model.get_submodule(name), RoundedCache(CacheGrid("int8"), (0.02,), (0.01,)))
    assert state(model) != before


def test_what_can_not_be_rounded_is_refused_by_name(folder: str, texts: str, tmp_path: Path):
    config = MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tiny_tokenizer().save_pretrained(tmp_path / "mamba")
    options: dict[str, Any] = {"data": texts, "target": "w4", "kv": "int8", **SMALL}
    refused = refusal_of(quantize, str(tmp_path / "mamba"), **options)
    assert str(refused.subject).endswith("layers.0")
    # The cache of such attention holds a compressed form.
    compact = small_model("deepseek_v3")
    assert refusal_of(attention_names, view(compact)).subject == "model.layers.0"
    # Values that are all zero have no scale.
    opened = open_model(folder, "float32")
    with torch.no_grad():
        opened.model.model.layers[1].self_attn.v_proj.weight.zero_()
    refused = refusal_of(quantize, opened.model, opened.tokenizer, **options, kind=NumericsError)
    assert refused.subject == "the values of model.layers.1.self_attn"
    refusal_of(quantize, folder, target="w4g16", kv="int8", dtype="float32", kind=SpecError)


def test_broken_edits_are_refused(folder: str, texts: str):
    opened, edits, _ = compressed(folder, texts, "kv_int8")
    (first, *_) = [edit for edit in edits if isinstance(edit, QuantizeCache)]
    stored = first.stored()
    for scales in ([float("nan")], [float("inf")], [0.0], [-1.0]):
        broken = type(stored)(stored.kind, {**stored.facts, "keys": scales})
        with pytest.raises(NumericsError):
            read_edit(broken, view(opened.model))
    for change in ({"keys": []}, {"keys": [1.0, 2.0]}, {"attention": "model.layers.0.mlp"}):
        broken = type(stored)(stored.kind, {**stored.facts, **change})
        with pytest.raises(DataError):
            read_edit(broken, view(opened.model))


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_killed_at_any_step_it_comes_to_the_same_files(
    step: int,
    on_disk: bool,
    folder: str,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    job: dict[str, Any] = {"data": texts, "target": "FP8", "kv": "fp8", "memory": 1000.0, **SMALL}
    quantize(folder, out=tmp_path / "whole", **job)
    if on_disk:
        monkeypatch.setattr(prune_quantize, "left_on_disk", lambda *_: "its blocks stayed on disk")
    with killed_behind(step):
        quantize(folder, out=tmp_path / "out", **job)
    done = quantize(folder, out=tmp_path / "out", **job)
    assert done.continued_from == step + 1
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_saved_folder_is_opened_as_it_was_made(folder: str, texts: str, tmp_path: Path):
    out = tmp_path / "out"
    job: dict[str, Any] = {"data": texts, "target": "w4g16", "kv": "fp8(per=head)", **SMALL}
    done = quantize(folder, out=out, **job)
    assert done.record.run.target == "w4g16+kv_fp8(per=head)"
    made = logits_of(done.opened)
    assert torch.equal(logits_of(open_model(str(out), "float32")), made)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(out).eval()
        assert not torch.equal(plain(IDS).logits, made)
    assert "the KV cache" in (out / "README.md").read_text("utf-8")
    calibrant.export(out, tmp_path / "again")
    assert torch.equal(logits_of(open_model(str(tmp_path / "again"), "float32")), made)
    refusal_of(calibrant.export, out, tmp_path / "sparse", "sparse", kind=OutputError)
    given = open_model(folder, "float32")
    taken = quantize(given.model, given.tokenizer, out=out, **job)
    assert torch.equal(logits_of(taken.opened), made)
    # What is made of it keeps its cache, unless it gets another.
    second = quantize(str(out), target="w8", out=tmp_path / "second", dtype="float32")
    assert rounded_caches(second.opened.model) == rounded_caches(done.opened.model)
    # Other scales are another model.
    before = open_model(str(tmp_path / "again")).digest
    (tmp_path / "again" / "calibrant.json").unlink()
    place = tmp_path / "again" / INPUTS
    document = json.loads(place.read_text("utf-8"))
    facts = document["modules"]["model.layers.0.self_attn"]
    facts["keys"][0] *= 2
    place.write_text(json.dumps(document), "utf-8")
    assert open_model(str(tmp_path / "again")).digest != before
    for change in ({"keys": 3}, {"keys": ["1"]}, {"grid": {"element": "e5m2"}}, {"keys": [0.0]}):
        document["modules"]["model.layers.0.self_attn"] = {**facts, **change}
        place.write_text(json.dumps(document), "utf-8")
        assert refusal_of(open_model, str(tmp_path / "again")).subject == str(place)


def test_another_cache_comes_in_its_place(folder: str, texts: str, tmp_path: Path):
    options: dict[str, Any] = {"data": texts, **SMALL}
    quantize(folder, target="kv_fp8", out=tmp_path / "first", **options)
    first = str(tmp_path / "first")
    expected = quantize(folder, target="kv_int8(per=head)", **options)
    second = quantize(first, target="kv_int8(per=head)", **options)
    assert rounded_caches(second.model) == rounded_caches(expected.model)
    assert torch.equal(logits_of(second.opened), logits_of(expected.opened))
    # Its scales are those of the keys and values that come now.
    for changing in ({"method": "awq"}, {"transform": "rotate"}):
        refused = refusal_of(quantize, first, target="w4g16", **changing, **options, kind=SpecError)
        assert refused.subject in changing.values()


def test_a_study_has_it_as_a_target_and_old_runs_keep_their_ids(
    folder: str, texts: str, tmp_path: Path
):
    asked: dict[str, Any] = {
        "model": [folder],
        "data": ["random_tokens"],
        "method": ["rtn"],
        "evaluate": [f"loss(source={texts!r}, tokens=200, length=64)"],
        "samples": 4,
        "length": 32,
    }
    assert not Study(**asked, target=["w4g16"]).run(tmp_path / "store").failures
    store = Store(tmp_path / "store")
    before = set(store.ids())
    both = ["w4g16", "w4g16+kv_int8"]
    assert not Study(**asked, target=both).run(tmp_path / "store").failures
    assert before < set(store.ids())
    losses: dict[str, float] = {}
    for run in store.ids():
        record = store.record(run)
        assert record is not None
        for measured in store.scores(run).values():
            losses[record.run.target] = measured.score.value
    assert losses["w4g16"] != losses["w4g16+kv_int8"]


def test_a_plan_knows_its_walk(folder: str, texts: str):
    forwards: dict[str, float] = {}
    for target in ("w4g16", "w4g16+kv_int8", "FP8+kv_int8"):
        planned = calibrant.plan(
            calibrant.quantize, folder, data=texts, method="gptq", target=target, **SMALL
        )
        forwards[target] = planned.parts["forward"]
    once = forwards["w4g16"]
    assert forwards["w4g16+kv_int8"] == pytest.approx(3 * once, rel=0.3)
    assert forwards["FP8+kv_int8"] == pytest.approx(4 * once, rel=0.3)


# How it is written


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("w4g64+kv_int8", WithCache(parse_target("w4g64"), "int8")),
        ("NVFP4+kv_fp8", WithCache(parse_target("W8A8"), "e4m3")),
        (
            "FP8(range=mse)+kv_fp8(per=head)",
            WithCache(parse_target("FP8(range=mse)"), "e4m3", "head"),
        ),
        ("2:4+w4g64+kv_int8", WithCache(parse_target("2:4+w4g64"), "int8")),
        ("kv_int8", WithCache(None, "int8")),
    ],
)
def test_a_text_says_what_becomes_of_it(text: str, meaning: WithCache):
    target = parse_target(text)
    assert isinstance(target, WithCache)
    assert str(target) == text
    assert target.cache == meaning.cache
    if text.startswith("NVFP4"):
        assert str(target.rest) == "NVFP4"
        assert target.inputs is not None
    else:
        assert target == meaning


@pytest.mark.parametrize(
    "text",
    [
        *("w4g64+kv_int4", "w4g64+kv_int8(per=row)", "q4_k+kv_int8", "0.5+kv_int8", "kv_int8(3)"),
        *("kv_", "kv_fp8+kv_fp8", "w4g64+kv_int8+kv_fp8"),
    ],
)
def test_other_texts_are_refused(text: str):
    assert refusal_of(parse_target, text, kind=TargetError).subject


def test_by_itself_it_leaves_weights_alone(folder: str, texts: str):
    options: dict[str, Any] = {"data": texts, "target": "kv_int8", **SMALL}
    for method in ("none", "gptq", "rtn(scales=mse)"):
        refusal_of(quantize, folder, method=method, **options, kind=TargetError)
    refusal_of(calibrant.prune, folder, **options, kind=TargetError)
    alone = quantize(folder, **{**options, "samples": 1})
    # Fewer tokens than inputs are enough for scales.
    assert not alone.record.provenance.get("few_tokens")
    assert len(rounded_caches(alone.model)) == 3
    assert not alone.record.weights
    assert {"kv_int8 leaves weights as they are"} < {line["reason"] for line in alone.record.dense}
    dense = open_model(folder, "float32")
    for name, numbers in dense.model.state_dict().items():
        assert torch.equal(numbers, alone.model.state_dict()[name])
    assert not torch.equal(logits_of(alone.opened), logits_of(dense))
