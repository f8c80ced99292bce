"""Where activations overflow, whatever looks at them refuses, or gives numbers that are finite."""

import json
import math
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from calibrant.data import CalibrationSet
from calibrant.data.select import Picking, resolved, selectors
from calibrant.errors import NumericsError
from calibrant.evaluators import evaluators
from calibrant.methods import methods
from calibrant.models import open_model
from calibrant.targets import parse_target
from calibrant.testing import tiny_folder, tiny_model, tiny_tokenizer

from tests.cli.conftest import Ask
from tests.usual import two_hundred_lines, usually

LOUD: Final = {"lengths": 1e14, "numbers": 1e20}
"""What a block's matrices are multiplied with, and what isn't finite then: they themselves are."""
USUAL: Final = {
    *("wanda", "sparsegpt", "rtn", "alps", "fips", "evop", "cd_moe"),
    *(
        "least_perplexity",
        "cluster",
        "similar",
        "loss",
        "words",
        "lape",
        "imatrix",
        "inspect",
        "mix",
        "recommend",
    ),
}
"""One of each kind of looking, gone through every time."""
BUDGET: Final = ("--tokens", 96, "--length", 24)
OPENED: Final = ("--dtype", "float32", "--device", "cpu")
SOURCES: Final = ("--sources", "python_code", "--sources", "python_docs")
OF_EXPERTS: Final = ("cd_moe", "mc_suite")
LLAMA_CPP: Final = ("ggml", "llama_cpp")
"""Methods of another program, which reads files of its own."""

METHODS: Final = {"evopress": "evopress(generations=2)", "evop": "evop(generations=2)"}
"""Methods that take long as they are."""
SELECTORS: Final = {
    "similar": "similar(source='mine.jsonl', to='mine.jsonl', candidates=8, embed=model)",
    "cluster": "cluster(source='mine.jsonl', candidates=8, k=3)",
    "cola": "cola(source='mine.jsonl', candidates=8, k=4)",
    "answers": "answers(source=arithmetic, candidates=8, max_tokens=4)",
    "selfgen": "selfgen(prefix='mine.jsonl', candidates=64, prefix_tokens=8)",
    "selfcal": "selfcal",
}
"""Selectors that need more than a source and a number of candidates. Prefixes of eight tokens are
different ones: so loud a model copies itself behind two prefixes that are alike.
"""
TASKS: Final = {
    "agreement": "agreement(source='mine.jsonl', tokens=300, length=64)",
    "chat_form": "chat_form(source='arithmetic', limit=2, max_tokens=4)",
    "loss": "loss(source='mine.jsonl', tokens=300, length=64)",
    "perplexity": "perplexity(source='mine.jsonl', tokens=300, length=64)",
    "words": "words(source='mine.jsonl', tokens=900, length=64, least=2)",
    "lape": "lape(sources=['mine.jsonl', 'python_docs'], tokens=300, length=64)",
    "generation": "generation(name='arithmetic', limit=3, max_tokens=4)",
    "influence": "influence(name='arithmetic', limit=3)",
    "task": "task(name='arithmetic', limit=3)",
}
"""How each evaluator is asked for; the harness is a package of others, and asks the same engine."""
SAYS: Final = r"\b(NaN|nan|inf|infinity|finite|too large)\b"
PARTIAL: Final = ".out.calibrant-partial"
"""Finished blocks, which stay."""
HERE: Final = (*BUDGET, *OPENED)
TEXTS: Final = ("--language", "mine.jsonl", "--language", "python_docs")
ADVICE: Final = ("--budget", "0.2", "--out", "out", "--tokens", 512, "--length", 64)
"""A recommendation's candidates have this many tokens at least."""
COMMANDS: Final = {
    "imatrix": ("imatrix", "llama", "--data", "mine.jsonl", "--out", "out.gguf", *HERE),
    "inspect": ("inspect", "mine.jsonl", "--model", "llama", *HERE),
    "inspect experts": ("inspect", "mine.jsonl", "--model", "qwen3_moe", *HERE),
    "lape": ("lape", "llama", *TEXTS, *HERE),
    "mix": ("mix", "llama", *SOURCES, "--out", "out", *HERE),
    "mix for gptq": ("mix", "llama", *SOURCES, "--method", "gptq", "--target", "w4g16", *HERE),
    "recommend": ("recommend", "llama", "--for", "mine.jsonl", *SOURCES, *ADVICE, *OPENED),
    "explain": ("explain", "llama", "--against", "sound", "--task", TASKS["words"], *OPENED),
    "of dense": ("explain", "sound", "--against", "llama", "--task", TASKS["words"], *OPENED),
}


@pytest.fixture(scope="module", params=usually(LOUD, ["numbers"]))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: a model of each kind whose second block is far too loud, and a sound one."""
    folder = tmp_path_factory.mktemp(request.param)
    for family in ("llama", "qwen3_moe"):
        model = tiny_model(family, num_hidden_layers=4)
        for name, parameter in model.named_parameters():
            if ".layers.1." in name and parameter.dim() > 1:
                parameter.data *= LOUD[request.param]
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
        model.save_pretrained(folder / family)
        tiny_tokenizer().save_pretrained(folder / family)
    tiny_folder(folder / "sound", num_hidden_layers=4)
    return folder


@pytest.fixture
def nothing_finite(models: Path) -> bool:
    """Whether all that comes after the second block is NaN or infinite."""
    return models.name.startswith("numbers")


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where commands run, with the models, a file of texts and a cache of its own."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    two_hundred_lines(tmp_path)
    monkeypatch.setenv("CALIBRANT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def numbers(data: Any) -> Iterator[float]:
    if isinstance(data, dict):
        for inner in data.values():
            yield from numbers(inner)
    elif isinstance(data, list):
        for inner in data:
            yield from numbers(inner)
    elif isinstance(data, float):
        yield data


def refused(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def with_infinities(pairs: dict[str, Any]) -> Any:
    """What the files of Calibrant write for a number that JSON lacks."""
    return float(pairs["float"]) if pairs.keys() == {"float"} else pairs


def read(text: str) -> Any:
    return json.loads(text, parse_constant=refused, object_hook=with_infinities)


def check(
    ask: Ask,
    place: Path,
    *words: object,
    stays: Collection[str] = (),
    says: str = SAYS,
) -> bool:
    """Return whether a command refuses, and leaves nothing but what it says.

    Where it doesn't its numbers are finite.
    """
    before = set(os.listdir(place))
    answer = ask(*words, "--json")
    new = set(os.listdir(place)) - before - {"cache"}
    if answer.code:
        assert answer.code == 2, answer.err
        last = answer.err.strip().splitlines()[-1]
        assert re.search(says, last), last
        told = [PARTIAL] if f"{PARTIAL}, and the same command goes on" in last else []
        assert not new.difference(stays, told)
        if told:
            assert os.listdir(place / PARTIAL)
        assert read(answer.out)["error"]["message"] == last
        return True
    texts = [answer.out]
    for name in new:
        texts += [path.read_text() for path in (place / name).rglob("*.json")]
        texts += [(place / name).read_text()] if name.endswith(".json") else []
    for text in texts:
        assert all(math.isfinite(number) for number in numbers(read(text)))
    return False


@pytest.mark.parametrize(
    "name", usually([name for name in methods.names() if name not in LLAMA_CPP], USUAL)
)
def test_methods(ask: Ask, place: Path, name: str, nothing_finite: bool) -> None:
    method = methods.build(METHODS.get(name, name))
    prunes = isinstance(parse_target("0.5"), method.accepts)
    verb, target = ("prune", "0.5") if prunes else ("quantize", "w3g16a")
    family = "qwen3_moe" if name in OF_EXPERTS else "llama"
    words = ("--method", method, "--target", target, "--data", "mine.jsonl")
    refuses = check(ask, place, verb, family, *words, "--out", "out", *HERE)
    assert refuses or not (method.looks and nothing_finite)


@pytest.mark.parametrize("name", usually(selectors.names(), USUAL))
def test_selectors(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(place)
    picks = issubclass(selectors.get(name), Picking)
    plain = f"{name}(source='mine.jsonl', candidates=8)" if picks else name
    # A question of arithmetic is longer than other windows.
    length = 1000 if name == "answers" else 24
    drawn = CalibrationSet(SELECTORS.get(name, plain), tokens=48, length=length)
    opened = open_model("llama", "float32", "cpu")
    opened.model.generation_config.eos_token_id = list(range(2, 259, 3))
    with suppress(NumericsError):
        batch = resolved(drawn, opened).tokens(opened.tokenizer)
        assert not re.search(r"\b(nan|inf)\b", str(batch.facts["parts"]))


PAIRS: Final = (("llama", "sound"), ("sound", "llama"))
"""A model and its reference."""
MEASURED: Final = [
    pytest.param(name, *pair, marks=() if name in USUAL else pytest.mark.slow)
    for name in evaluators.names()
    for pair in PAIRS
    # A task has no reference, and the types in making its questions take a minute to check.
    if name != "harness" and (name, pair) != ("task", PAIRS[1])
]


@pytest.mark.parametrize(("name", "model", "reference"), MEASURED)
def test_evaluators(
    ask: Ask,
    place: Path,
    name: str,
    model: str,
    reference: str,
    nothing_finite: bool,
) -> None:
    words = ("--task", TASKS[name], "--reference", reference, "--out", "out.json")
    # A model whose outputs are all the same gives no word any influence.
    says = rf"{SAYS}|\bhas any influence\b" if name == "influence" else SAYS
    refuses = check(ask, place, "evaluate", model, *words, *OPENED, says=says)
    assert refuses or not (model == "llama" and nothing_finite)


@pytest.mark.parametrize("name", usually(COMMANDS, USUAL))
def test_commands(ask: Ask, place: Path, name: str, nothing_finite: bool) -> None:
    # What recommend has gathered stays, as its help says.
    refuses = check(ask, place, *COMMANDS[name], stays=["out"] if name == "recommend" else [])
    assert refuses or not nothing_finite
