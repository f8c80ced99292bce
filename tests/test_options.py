"""Options are declared once, and are whole in signatures, help, the reference and for checkers."""

import inspect
import json
import pydoc
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import MISSING, FrozenInstanceError
from pathlib import Path
from typing import Any, get_args, get_type_hints

import griffe
import numpy as np
import pytest
import torch
from tools.signatures import DeclaredSignatures
from typer.main import get_command

import calibrant
from calibrant.allocations import Allocation
from calibrant.cli import app
from calibrant.cli.declared import with_options
from calibrant.compress import PROPAGATIONS, Compression
from calibrant.data import CalibrationSet, Data
from calibrant.errors import SpecError
from calibrant.exports import Export
from calibrant.methods import Method
from calibrant.models import Model, Tokenizer
from calibrant.models.devices import DEVICES, DTYPES
from calibrant.options import (
    RENAMED,
    DataOptions,
    EvaluateCommand,
    ExplainCommand,
    ImatrixOptions,
    InspectOptions,
    MachineOptions,
    MixCommand,
    PruneOptions,
    QuantizeOptions,
    RecipeOptions,
    RecommendCommand,
    in_order,
    on_command_line,
    with_fields_of,
)
from calibrant.system.progress import Progress, silent
from calibrant.targets import Target
from calibrant.transforms import Transform
from calibrant.walk.starving import Starved

from tests.refusing import refused

SOURCES = Path(calibrant.__file__).parents[1]
DECLARED = {
    "prune": PruneOptions,
    "quantize": QuantizeOptions,
    "imatrix": ImatrixOptions,
    "inspect": InspectOptions,
    "evaluate": EvaluateCommand,
    "explain": ExplainCommand,
    "mix": MixCommand,
    "recommend": RecommendCommand,
}
ONLY_PYTHON = ("progress", "tokenizer", "copy")
OF_COMMANDS = {"data_dir", "as_json", "help", "out", "card", "most", "plan"}
UNLESS_PLANNED = {"prune": ("out",), "quantize": ("out",)}
REQUIRED = {
    "imatrix": ("data", "out"),
    "evaluate": ("tasks",),
    "mix": ("sources",),
    "recommend": ("goal",),
}
"""What only the command line requires."""
SHARED = {
    "samples": (int | None, None),
    "tokens": (int | None, None),
    "length": (int, 2048),
    "seed": (int, 0),
    "propagate": (str | None, None),
    "allocation": (str | Allocation, "uniform"),
    "transform": (Sequence[str | Transform], ()),
    "starved": (str, "as_seen"),
    "export": (Sequence[str | Export], ()),
    "dtype": (str, "auto"),
    "device": (str, "auto"),
    "progress": (Progress, silent),
    "memory": (float | None, None),
    "device_memory": (float | None, None),
    "profile": (bool, False),
    "copy": (bool, False),
}
BY_PLACE = {
    "prune": {
        "model": (Model, inspect.Parameter.empty),
        "tokenizer": (Tokenizer | None, None),
        "data": (Data | None, None),
        "method": (str | Method, "wanda"),
        "target": (float | str | Target | None, None),
        "out": (str | Path | None, None),
    },
    "quantize": {
        "model": (Model, inspect.Parameter.empty),
        "tokenizer": (Tokenizer | None, None),
        "data": (Data | None, None),
        "method": (str | Method, "rtn"),
        "target": (str | Target, "w4g64"),
        "out": (str | Path | None, None),
    },
}
BY_NAME = {"prune": SHARED, "quantize": {**SHARED, "kv": (str | None, None)}}


@pytest.mark.parametrize("verb", BY_PLACE)
def test_a_verb_has_every_option_with_its_type_and_default(verb: str):
    signature = inspect.signature(getattr(calibrant, verb))
    found: dict[Any, dict[str, Any]] = {}
    for name, parameter in signature.parameters.items():
        told = parameter.annotation, parameter.default
        found.setdefault(parameter.kind, {})[name] = told
    assert found == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD: BY_PLACE[verb],
        inspect.Parameter.KEYWORD_ONLY: BY_NAME[verb],
    }
    assert list(found[inspect.Parameter.POSITIONAL_OR_KEYWORD]) == list(BY_PLACE[verb])
    assert signature.return_annotation is Compression
    types = get_type_hints(getattr(calibrant, verb))
    assert types.pop("return") is Compression
    assert list(types) == list(signature.parameters)
    assert types["samples"] == int | None


@pytest.mark.parametrize("verb", DECLARED)
def test_help_has_every_option_and_the_explanation(verb: str):
    text = pydoc.plain(pydoc.render_doc(getattr(calibrant, verb)))
    for option in in_order(DECLARED[verb]):
        assert f"{option.name}:" in text
    assert "dtype: str = 'auto'" in text
    assert text.count("(*args") == 0
    assert "`" in text, "the explanation stands there too"


WRONG_CALLS = [
    (("smollm2", None, "c4"), {"sampels": 3}, "'sampels', perhaps you mean 'samples'"),
    (("smollm2", None, "c4"), {"zzz": 3}, "'zzz'"),
    ((), {}, "'model'"),
    (("smollm2", None, "c4"), {"model": "gemma3-270m"}, "'model'"),
    (("smollm2", None, "c4", "wanda", 0.5, None, 128), {}, "too many"),
]


@pytest.mark.parametrize(("given", "named", "said"), WRONG_CALLS)
def test_a_wrong_call_is_a_type_error_that_names_the_verb(
    given: tuple[Any, ...], named: dict[str, Any], said: str
):
    with pytest.raises(TypeError) as caught:
        calibrant.prune(*given, **named)
    assert str(caught.value).startswith("prune()")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_that_looks_at_data_is_refused_without():
    with refused(SpecError, "wanda"):
        calibrant.prune("smollm2")


def test_data_in_the_place_of_the_tokenizer_is_refused():
    with refused(SpecError, "tokenizer"):
        calibrant.prune("smollm2", "c4")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_word_is_refused_with_the_new_one(old: str, new: str):
    given: dict[str, Any] = {old: 0.5}
    for verb in (calibrant.prune, calibrant.mix):
        with pytest.raises(SpecError, match=f"'{old}' is called '{new}'"):
            verb("smollm2", **given)


def test_values_of_numpy_and_torch_are_plain_ones_in_records():
    @with_fields_of(PruneOptions)
    def given(options: PruneOptions) -> PruneOptions:
        return options

    seed: Any = np.int64(1)
    kind: Any = torch.bfloat16
    place: Any = torch.device("cuda", 1)
    options = given("m", seed=seed, dtype=kind, device=place)
    assert (type(options.seed), options.seed) == (int, 1)
    assert (options.dtype, options.device) == ("bfloat16", "cuda:1")


def test_a_declaration_is_a_frozen_value():
    options = PruneOptions("smollm2", None, "c4", samples=8)
    assert options == PruneOptions(model="smollm2", data="c4", samples=8)
    with pytest.raises(FrozenInstanceError):
        options.samples = 9  # pyright: ignore[reportAttributeAccessIssue]


def test_a_set_given_as_an_object_keeps_its_own_budget():
    own = CalibrationSet("python_docs", samples=3, length=32)
    options = PruneOptions("smollm2", None, own, samples=8, length=64, seed=2)
    assert options.drawn_from(own) is own
    drawn = options.drawn_from("python_docs")
    assert (drawn.samples, drawn.length, drawn.budget, drawn.seed) == (8, 64, None, 2)


def test_what_is_not_shown_cannot_be_required():
    with pytest.raises(LookupError, match="PruneOptions shows no progress"):
        with_options(PruneOptions, required=["progress"])


def test_defaults_that_stand_elsewhere_too_are_the_same():
    """Floors below can't import the declaration, and a study's keys are its own."""
    parameters = inspect.signature(CalibrationSet).parameters
    for name in ("samples", "tokens", "length", "seed"):
        assert parameters[name].default == getattr(DataOptions, name)
    study = inspect.signature(calibrant.Study).parameters
    for name in ("tokens", "length"):
        assert study[name].default == getattr(DataOptions, name)
    for name in ("propagate", "allocation"):
        assert study[name].default == getattr(RecipeOptions, name)


def test_words_that_are_offered_are_those_that_are_understood():
    offered: dict[str, set[str]] = {}
    for declared in (RecipeOptions, MachineOptions):
        for option in in_order(declared):
            there = on_command_line(option)
            if there is not None and isinstance(there.offers, tuple):
                offered[option.name] = set(there.offers)
    assert offered["propagate"] == set(PROPAGATIONS)
    assert offered["starved"] == set(get_args(Starved))
    assert offered["device"] == {"auto", *DEVICES}
    assert offered["dtype"] < {"auto", *DTYPES}


@pytest.mark.parametrize("verb", DECLARED)
def test_a_command_has_the_declared_options(verb: str):
    command = get_command(app).commands[verb]  # pyright: ignore[reportAttributeAccessIssue]
    made = {parameter.name: parameter for parameter in command.params}
    for option in in_order(DECLARED[verb]):
        there = on_command_line(option)
        if there is None:
            assert option.name in ONLY_PYTHON
            continue
        parameter = made.pop(option.name)
        told = there.help
        if option.name in UNLESS_PLANNED.get(verb, ()):
            told += " [required without --plan]"
        assert parameter.help == told
        assert (parameter.metavar or "") == there.metavar
        if not there.argument:
            assert parameter.multiple == there.several
        needed = option.default is MISSING or option.name in REQUIRED.get(verb, ())
        assert parameter.required == needed
        if not needed:
            assert parameter.default == option.default
    assert set(made) <= OF_COMMANDS


@pytest.mark.parametrize(
    ("verb", "word", "completed"),
    [
        ("prune", "allocation", ["uniform"]),
        ("quantize", "propagate", ["arrival", "reference", "dense"]),
        ("imatrix", "data", ["0.5*c4 + 0.5*gsm8k:cot"]),
    ],
)
def test_a_word_that_is_half_typed_is_completed(verb: str, word: str, completed: list[str]):
    command = get_command(app).commands[verb]  # pyright: ignore[reportAttributeAccessIssue]
    made = {parameter.name: parameter for parameter in command.params}
    half = {"allocation": "uni", "propagate": "", "data": "0.5*c4 + 0.5*gsm8k:co"}[word]
    found = made[word].shell_complete(command.context_class(command), half)
    assert [item.value for item in found] == completed


PROGRAM = """
import calibrant

calibrant.prune("smollm2", data="c4", samples=3, transform=["permute"])
calibrant.prune("smollm2", data="c4", sampels=3)
calibrant.prune("smollm2", data="c4", samples="3")
calibrant.prune()
calibrant.quantize("smollm2", allocation=0.5)
calibrant.imatrix("smollm2", data="c4", length=None)
calibrant.quantize("smollm2").record
calibrant.quantize("smollm2").recrod
calibrant.evaluate("smollm2", tasks=["loss(source=gsm8k)", 3])
calibrant.mix("smollm2", sources=["c4", "pile"], seed="1")
calibrant.recommend("smollm2", goal="gsm8k", say=3)
calibrant.explain("pruned", task=calibrant.CalibrationSet("c4"))
calibrant.inspect("c4", samples="8")
"""


def test_a_type_checker_knows_names_and_types(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    configuration = {"extraPaths": [str(SOURCES)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(configuration))
    checker = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(tmp_path)]
    done = subprocess.run(checker, capture_output=True, text=True, check=False)
    found: list[tuple[int, str]] = []
    for mistake in json.loads(done.stdout)["generalDiagnostics"]:
        found.append((mistake["range"]["start"]["line"], mistake["rule"]))
    assert sorted(found) == [
        (4, "reportCallIssue"),
        (5, "reportArgumentType"),
        (6, "reportCallIssue"),
        (7, "reportArgumentType"),
        (8, "reportArgumentType"),
        (10, "reportAttributeAccessIssue"),
        (11, "reportArgumentType"),
        (12, "reportArgumentType"),
        (13, "reportArgumentType"),
        (14, "reportArgumentType"),
        (15, "reportArgumentType"),
    ]


def test_the_reference_has_the_whole_signature():
    extensions = griffe.load_extensions(DeclaredSignatures)
    package = griffe.load("calibrant", search_paths=[SOURCES], extensions=extensions)
    rooms = {
        "prune": "compress.prune_quantize",
        "imatrix": "compress.importance",
        "inspect": "data.inspect.inspecting",
        "evaluate": "evaluators._measuring",
        "explain": "evaluators._explaining",
        "mix": "lab.mixtures.mixing",
        "recommend": "lab.choose.recommending",
    }
    for verb, room in rooms.items():
        shown = package[f"{room}.{verb}"].parameters
        wanted = inspect.signature(getattr(calibrant, verb)).parameters
        assert [parameter.name for parameter in shown] == list(wanted)
        assert (str(shown["dtype"].annotation), shown["dtype"].default) == ("str", "'auto'")
        assert str(shown["progress"].default) == "silent"
        kinds = [parameter.kind.name for parameter in shown]
        assert kinds == [parameter.kind.name.lower() for parameter in wanted.values()]
    tasks = package["evaluators._measuring.evaluate"].parameters["tasks"]
    assert str(tasks.annotation) == "Sequence[str | Evaluator] | str | Evaluator"
    data = package["compress.prune_quantize.quantize"].parameters["data"]
    assert (str(data.annotation), data.default) == ("Data | None", "None")
