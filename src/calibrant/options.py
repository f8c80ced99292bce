"""The options of the verbs: name, type, default and help of each, written once.

`prune` takes one frozen value, its options. `with_fields_of` makes of it the function that people
call, in which each field is a parameter: type checkers, `help()` and the reference see the whole
signature. The commands have the same options with the same help (`cli/declared.py`).

Types in quotes name classes that import torch.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, MISSING, Field, dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    ParamSpec,
    TypeVar,
    dataclass_transform,
    final,
    get_type_hints,
)

from calibrant.errors import SpecError
from calibrant.spec import Spec
from calibrant.system.progress import Progress, silent

if TYPE_CHECKING:
    from calibrant.allocations import Allocation
    from calibrant.data import CalibrationSet, Data
    from calibrant.exports import Export
    from calibrant.methods import Method
    from calibrant.models import Model, Tokenizer
    from calibrant.targets import Target
    from calibrant.transforms import Transform

P = ParamSpec("P")
OptionsT = TypeVar("OptionsT")
ResultT = TypeVar("ResultT")

_COMMAND_LINE: Final = "command line"
"""Where a field's metadata has its `OnCommandLine`."""
SETS: Final = "sets"
"""Stands in `offers` for what completes the expression of a calibration set."""


@final
@dataclass(frozen=True)
class OnCommandLine:
    """How the command line shows an option.

    `offers` completes a word that is half typed: words, or the kind of `calibrant list` whose names
    they are, or `SETS`. Without `flags` the option is called as its field is.
    """

    help: str
    metavar: str = ""
    offers: str | tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    argument: bool = False
    several: bool = False


def option(
    *texts: Any,
    default: Any = MISSING,
    like: OnCommandLine | None = None,
    **settings: Any,
) -> Any:
    """Return a field that the command line has too, shown `like` another or as these say."""
    shown = like or OnCommandLine(*texts, **settings)
    return field(default=default, metadata={_COMMAND_LINE: shown})


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def declaration(cls: type[OptionsT]) -> type[OptionsT]:
    """Make a class of options a frozen dataclass."""
    return dataclass(frozen=True)(cls)


def on_command_line(declared_field: Field[Any]) -> OnCommandLine | None:
    """Return how the command line shows an option; None if only Python has it."""
    return declared_field.metadata.get(_COMMAND_LINE)


MODEL: Final = OnCommandLine(
    "A Hugging Face id, a folder, a .gguf file, or smollm2.", "MODEL", argument=True
)
SET: Final = OnCommandLine(
    "Calibration set: source[:format][@packing], a file, a sum that shares the budget, "
    "0.3*gsm8k:cot + 0.7*wikitext, or a mix in which each source has all of it, "
    "mix(gsm8k:cot=0.3, wikitext=0.7).",
    "EXPR",
    offers=SETS,
)
TOKENS: Final = OnCommandLine("Real tokens to calibrate on, instead of --samples.", "N")
LENGTH: Final = OnCommandLine("Tokens in a window.", "N")
SEED: Final = OnCommandLine(
    "Number of the draw: draws share no row until the source is used up.", "N"
)
CANDIDATE_METHOD: Final = OnCommandLine(
    "wanda, gptq, awq, …: one that looks at data. [default: wanda; gptq(scales=importance) for "
    "grids, llama.cpp's quantizers for its kinds and recipes]",
    "SPEC",
    offers="methods",
)
CANDIDATE_TARGET: Final = OnCommandLine(
    "A share of weights to remove, N:M, a grid (w4g64), a kind of blocks (q4_k) or a recipe "
    "(Q4_K_M) of llama.cpp. [default: 0.6]",
    "TARGET",
    flags=("--target",),
)
RENAMED: Final = {"sparsity": "target", "sparsities": "targets", "measure": "task"}
"""Old words for options, and what each is called now."""


def check_word(word: str) -> None:
    """Raise `SpecError` for an old word, with the new one."""
    if word in RENAMED:
        raise SpecError(f"{word!r} is called {RENAMED[word]!r} now; write that", subject=word)


def check_list(name: str, values: Any) -> None:
    """Raise `SpecError` for one text in the place of a list, whose letters would be its entries."""
    if isinstance(values, str):
        message = f"{name} is the text {values!r}, and it must be a list, with an entry for each"
        raise SpecError(f"{message}; write {name}=[{values!r}]", subject=values)


# Options that several verbs share


@declaration
class ModelOptions:
    """The model. One that is open in transformers comes with its tokenizer; with `copy` it stays
    as it is, and the work is done on a copy.
    """

    model: "Model" = option(like=MODEL)
    tokenizer: "Tokenizer | None" = None

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, str | list | tuple | dict | Spec):
            given = type(self.tokenizer).__name__
            message = f"the tokenizer is of type {given}, and the place behind the model is its own"
            advice = "name everything else, as in data=… or tasks=…"
            raise SpecError(f"{message}; {advice}", subject="tokenizer")


@declaration
class DataOptions:
    """How much of a calibration set is drawn, and which draw it is."""

    _: KW_ONLY
    samples: int | None = option("Windows to calibrate on. [default: 128]", "N", default=None)
    tokens: int | None = option(like=TOKENS, default=None)
    length: int = option(like=LENGTH, default=2048)
    seed: int = option(like=SEED, default=0)

    def drawn_from(self, data: "Data") -> "CalibrationSet":
        """Return the calibration set; one that is given as an object has a budget of its own."""
        from calibrant.data import as_set

        return as_set(data, self.samples, self.length, self.tokens, self.seed)


@declaration
class RecipeOptions:
    """What is done beside the method, and to what the model is written."""

    _: KW_ONLY
    propagate: str | None = option(
        "Which inputs a matrix is calibrated on: arrival, reference or dense. [default: the "
        "method's own, mostly arrival]",
        "WAY",
        offers=("arrival", "reference", "dense"),
        default=None,
    )
    allocation: "str | Allocation" = option(
        "How the target is divided among the matrices.",
        "SPEC",
        offers="allocations",
        default="uniform",
    )
    transform: "Sequence[str | Transform]" = option(
        "Change the model first, in this order, without changing what it computes.",
        "SPEC",
        offers="transforms",
        several=True,
        default=(),
    )
    starved: str = option(
        "What experts that get fewer tokens than they have inputs are calibrated on: as_seen "
        "(those), dense (nothing), all_tokens or shared.",
        "WAY",
        offers=("as_seen", "dense", "all_tokens", "shared"),
        default="as_seen",
    )
    export: "Sequence[str | Export]" = option(
        "A form to write it in too, beside the Hugging Face folder; give it once for each.",
        "NAME",
        offers="exports",
        several=True,
        default=(),
    )


@declaration
class MachineOptions:
    """Where the work is done, in which type, and who is told how far it is."""

    _: KW_ONLY
    dtype: str = option(
        "auto, bfloat16, float16, float32 or float64. auto takes bfloat16 where the machine is "
        "faster in it.",
        "TYPE",
        offers=("auto", "bfloat16", "float32"),
        default="auto",
    )
    device: str = option(
        "auto, cpu, cuda, cuda:1 or mps.",
        "DEVICE",
        offers=("auto", "cpu", "cuda", "mps"),
        default="auto",
    )
    progress: Progress = silent


@declaration
class MemoryOptions(MachineOptions):
    """Where the work is done, and how much memory it may take."""

    _: KW_ONLY
    memory: float | None = option(
        "What the process may hold; blocks of a larger model stay on disk. [default: all of the "
        "model]",
        "GB",
        default=None,
    )
    device_memory: float | None = option(
        "What may be held on a GPU; of a larger model each block goes there in turn. [default: "
        "95 % of what is free there]",
        "GB",
        default=None,
    )


# Options of one verb. Fields before KW_ONLY may be positional. Fields of the last base come first.


@declaration
class SharedOptions(MemoryOptions, RecipeOptions, DataOptions, ModelOptions):
    """What `prune` and `quantize` share."""

    _: KW_ONLY
    copy: bool = False
    profile: bool = option(
        "Also say where the time went, and the least that this machine needs.", default=False
    )


@final
@declaration
class PruneOptions(SharedOptions):
    """The options of `prune`."""

    data: "Data | None" = option(like=SET, default=None)
    method: "str | Method" = option(
        "One of those below, with parameters as in sparsegpt(damp=0.02).",
        "SPEC",
        offers="methods",
        default="wanda",
    )
    target: "float | str | Target | None" = option(
        "The share of weights (or blocks, experts) to remove, or N:M with N kept of every M. "
        "[default: 0.5]",
        "TARGET",
        default=None,
    )
    out: str | Path | None = option(
        "Folder for the pruned model; a new one, or an empty one.", "DIR", default=None
    )


@final
@declaration
class QuantizeOptions(SharedOptions):
    """The options of `quantize`."""

    data: "Data | None" = option(like=SET, default=None)
    method: "str | Method" = option(
        "rtn looks at no data; awq, gptq(scales=importance), autoround and others do: calibrant "
        "list methods.",
        "SPEC",
        offers="methods",
        default="rtn",
    )
    target: "str | Target" = option(
        "A grid: w4g64 is 4 bits with a scale for each 64 inputs of a row; NVFP4A16, MXFP4A16 and "
        "FP8A16 are floating-point numbers. A scheme rounds inputs too: W8A8, FP8, NVFP4.",
        "TARGET",
        default="w4g64",
    )
    out: str | Path | None = option(
        "Folder for the quantized model; a new one, or an empty one.", "DIR", default=None
    )
    _: KW_ONLY
    kv: str | None = option(
        "Round the KV cache too: int8 or fp8; fp8(per=head) has a scale for each head. The same as "
        "+kv_fp8 behind the target. --target kv_fp8 rounds the cache alone.",
        "WAY",
        offers=("int8", "fp8"),
        default=None,
    )


CompressOptions = PruneOptions | QuantizeOptions


@final
@declaration
class ImatrixOptions(MemoryOptions, DataOptions, ModelOptions):
    """The options of `imatrix`."""

    data: "Data | None" = option(like=SET, default=None)
    out: str | Path | None = option(
        "File to write: .gguf for llama.cpp, .dat for ik_llama.cpp.", "FILE", default=None
    )
    _: KW_ONLY
    # A window is as long as llama.cpp has it.
    length: int = option(like=LENGTH, default=512)


@final
@declaration
class InspectOptions(MachineOptions):
    """The options of `inspect`."""

    data: "Data" = option(
        "A calibration set, as in prune --data, or an imatrix (.gguf, .dat).",
        "EXPR",
        offers=SETS,
        argument=True,
    )
    model: "Model | None" = option(
        "Also run MODEL on a part of the set: its loss, and which tokens fill its statistics. "
        "[default: the tokenizer of smollm2 alone]",
        "MODEL",
        default=None,
    )
    tokenizer: "Tokenizer | None" = None
    _: KW_ONLY
    against: Sequence[str] = option(
        "Also compare with what SOURCE measures on; give it once for each source. Of an imatrix: "
        "with another one.",
        "SOURCE",
        offers="sources",
        several=True,
        default=(),
    )
    samples: int | None = option(
        "Windows to calibrate on. [default: 128, or as many tokens as the sources hold]",
        "N",
        default=None,
    )
    tokens: int | None = option(like=TOKENS, default=None)
    length: int = option(like=LENGTH, default=2048)
    seed: int = option(like=SEED, default=0)


@declaration
class StoreOptions:
    """Into which folder of results a measurement goes, and what the model is called there."""

    _: KW_ONLY
    store: str | Path | None = option(
        "Also put it into this folder of results, which report shows; a study's folder, or a new "
        "one.",
        "DIR",
        default=None,
    )
    label: str = option(
        "With --store: what the model is called there, such as 'llm-compressor gptq w4g128'.",
        "TEXT",
        default="",
    )


@final
@declaration
class WriteDataOptions(MachineOptions, DataOptions, ModelOptions):
    """The options of `write_data`."""

    model: "Model" = option("Whose tokenizer reads the data.", "MODEL")
    _: KW_ONLY
    data: "Data" = option(
        "A calibration set, as in prune --data.", "EXPR", offers=SETS, argument=True
    )
    out: str | Path = option(
        "What to write: a .jsonl or .parquet file, a folder of datasets, or a .txt file.", "OUT"
    )
    form: str | None = option(
        "What a row is: ids, texts or conversations. [default: ids; texts in .txt]",
        "FORM",
        flags=("--as",),
        offers=("ids", "texts", "conversations"),
        default=None,
    )
    tool: str | None = option(
        "Also write a script that runs TOOL with it on MODEL: llm-compressor, auto-round, "
        "gptqmodel, modelopt or llama.cpp.",
        "TOOL",
        flags=("--tool", "--for"),
        offers="tools",
        default=None,
    )


# Options of verbs above this room, as far as a command has them; what has types of their own is
# added where the verb is.


@declaration
class EvaluateCommand(MemoryOptions, StoreOptions, ModelOptions):
    """What `evaluate` and its command share."""

    tasks: Sequence[str | Spec] | str | Spec = option(
        "What to measure, such as loss(source='gsm8k'); give it once for each task.",
        "SPEC",
        offers="tasks",
        flags=("--task",),
        several=True,
        default=(),
    )
    _: KW_ONLY
    limit: int | None = option(
        "Items of each task: questions, documents or windows. [default: its own]", "N", default=None
    )
    tokens: int | None = option(
        "Tokens of each loss or agreement. [default: its own]", "N", default=None
    )
    reference: "Model | None" = option(
        "The dense model, for tasks that compare with it; of a pruned folder it is known.",
        "MODEL",
        default=None,
    )
    engine: str = option(
        "torch; llama_cpp: a GGUF file as llama.cpp runs it; vllm: a folder as vLLM runs it.",
        "NAME",
        default="torch",
    )
    allow_leak: bool = option(
        "Measure even what the model was calibrated on; the result says so.", default=False
    )


@declaration
class ExplainCommand(MachineOptions, StoreOptions, ModelOptions):
    """What `explain` and its command share."""

    model: "Model" = option(
        "A compressed model, or the folder of a study that measured words: which sets kept them.",
        "PRUNED",
        argument=True,
    )
    task: str | Spec | None = option(
        "The measurement in full: words(source='gsm8k', tokens=65536, least=20).",
        "SPEC",
        default=None,
    )
    _: KW_ONLY
    against: "Model | None" = option(
        "The dense model; of a folder that calibrant wrote it is known.", "DENSE", default=None
    )
    source: str | None = option(
        "Whose words. [default: wikitext]", "SOURCE", offers="sources", default=None
    )
    groups: str | None = option(
        "words, lemmas, clusters, or a file with a word in each line, in which [name] begins a "
        "group. [default: words]",
        "KIND",
        default=None,
    )
    tokens: int | None = option("Tokens to read. [default: 16384]", "N", default=None)
    allow_leak: bool = option("Read even what the model was calibrated on.", default=False)


@declaration
class MixCommand(MachineOptions, ModelOptions):
    """What `mix` and its command share."""

    sources: "Sequence[Data]" = option(
        "A calibration set to mix, as in prune --data; give it once for each, two or more.",
        "EXPR",
        offers=SETS,
        several=True,
        default=(),
    )
    _: KW_ONLY
    objective: str = option(
        "mean or worst error over the sources, or target=EXPR: a source, or a file of your own.",
        "WHAT",
        default="mean",
    )
    method: "str | Method | None" = option(like=CANDIDATE_METHOD, default=None)
    target: "float | str | Target | None" = option(like=CANDIDATE_TARGET, default=None)
    tokens: int = option("Real tokens of each source.", "N", default=8192)
    length: int = option(like=LENGTH, default=512)
    seed: int = option(like=SEED, default=0)
    imatrix: str | Path | None = option(
        "Also write the mixture's imatrix: .gguf for llama.cpp, .dat for ik_llama.cpp.",
        "FILE",
        default=None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_list("sources", self.sources)


@declaration
class RecommendCommand(MachineOptions, ModelOptions):
    """What `recommend` and its command share."""

    goal: "str | Sequence[str] | Data" = option(
        "A source, a file of your own, a measure such as task(name=race), or general; with a "
        "weight: 0.3*race.",
        "GOAL",
        flags=("--for",),
        several=True,
        default=(),
    )
    sources: "Sequence[Data]" = option(
        "A candidate; give it once for each. [default: what can be read here]",
        "EXPR",
        offers=SETS,
        several=True,
        default=(),
    )
    _: KW_ONLY
    method: str | None = option(like=CANDIDATE_METHOD, default=None)
    target: "float | str | Target | None" = option(like=CANDIDATE_TARGET, default=None)
    minutes: float = option(
        "Time for all of it, such as 30 or 2.5; what is measured stays, and a later call goes on.",
        "MINUTES",
        flags=("--budget", "--minutes"),
        default=30.0,
    )
    tokens: int | None = option(
        "Real tokens of each source. [default: 8192, or what the files hold]", "N", default=None
    )
    length: int = option(like=LENGTH, default=512)
    sibling: bool = option(
        "Divide your own file by template, calibrate on one half and judge by the other.",
        flags=("--sibling/--no-sibling",),
        default=True,
    )
    baseline: str = option(
        "What others are compared with. [default: c4 where it is]", "EXPR", offers=SETS, default=""
    )
    tool: str | None = option(
        "Also write the recommended data into the folder, and a script that runs TOOL with it, as "
        "calibrant data --tool does.",
        "TOOL",
        offers="tools",
        default=None,
    )
    folder: str | Path = option(
        "Folder for all that is measured.",
        "DIR",
        flags=("--out",),
        default="calibrant-recommendation",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_list("sources", self.sources)


# Values and functions from a declaration


MACHINE: Final = frozenset(declared_field.name for declared_field in fields(MemoryOptions))
"""What stands last: where the work is done."""


def in_order(declared: type[Any]) -> list[Field[Any]]:
    """Return the options as they are shown, those that may be given by place first."""
    by_place: list[Field[Any]] = []
    by_name: list[Field[Any]] = []
    machine: list[Field[Any]] = []
    for declared_field in fields(declared):
        if not declared_field.kw_only:
            by_place.append(declared_field)
        elif declared_field.name in MACHINE:
            machine.append(declared_field)
        else:
            by_name.append(declared_field)
    return by_place + by_name + machine


def signature_of(declared: type[Any]) -> inspect.Signature:
    """Return the signature of a function that has these options as parameters."""
    types = get_type_hints(declared, localns=_classes_in_quotes())
    parameters: list[inspect.Parameter] = []
    for declared_field in in_order(declared):
        parameter_kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if declared_field.kw_only:
            parameter_kind = inspect.Parameter.KEYWORD_ONLY
        default = declared_field.default
        if default is MISSING:
            default = inspect.Parameter.empty
        annotation = types[declared_field.name]
        name = declared_field.name
        parameter = inspect.Parameter(name, parameter_kind, default=default, annotation=annotation)
        parameters.append(parameter)
    return inspect.Signature(parameters)


def with_fields_of(
    declared: Callable[P, OptionsT], planned: Callable[[OptionsT], Any] | None = None
) -> Callable[[Callable[[OptionsT], ResultT]], Callable[P, ResultT]]:
    """Make a function that takes one object of the class `declared` a function that takes its
    fields. `calibrant.plan` calls `planned` with that object in the function's place.
    """
    signature = signature_of(declared)  # pyright: ignore[reportArgumentType]  # it is a class

    def decorated(function: Callable[[OptionsT], ResultT]) -> Callable[P, ResultT]:
        name = function.__name__

        def options_of(*args: P.args, **kwargs: P.kwargs) -> OptionsT:
            for keyword in kwargs:
                check_word(keyword)
                if keyword not in signature.parameters:
                    from calibrant.spec.foreign import did_you_mean  # which help doesn't need

                    meant = did_you_mean(keyword, signature.parameters)
                    raise TypeError(f"{name}() has no option {keyword!r}{meant}")
            _make_plain(kwargs)
            # Bound before the class is called, whose own message would name `__init__`.
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}(): {error}") from None
            return declared(*args, **kwargs)

        called = functools.wraps(function)(_with_fields(function, options_of))
        if planned is not None:
            called.planned = _with_fields(planned, options_of)  # pyright: ignore[reportAttributeAccessIssue]
        result_type = function.__annotations__["return"]
        types = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        called.__annotations__ = {**types, "return": result_type}
        whole_signature = signature.replace(return_annotation=result_type)
        called.__signature__ = whole_signature  # pyright: ignore[reportAttributeAccessIssue]
        return called

    return decorated


def _make_plain(options: dict[str, Any]) -> None:
    """Replace whole numbers of numpy by Python's, and torch's own types and devices by their names:
    records and ids hold these.
    """
    for name, value in options.items():
        if isinstance(value, Integral) and not isinstance(value, int):
            options[name] = int(value)
    given = {name: options[name] for name in ("dtype", "device") if name in options}
    if all(isinstance(value, str) for value in given.values()):
        return
    from calibrant.models.devices import device_name, dtype_name  # which help doesn't need

    names = {"dtype": dtype_name, "device": device_name}
    for name, value in given.items():
        options[name] = names[name](value)


def _with_fields(
    function: Callable[[OptionsT], ResultT], options_of: Callable[P, OptionsT]
) -> Callable[P, ResultT]:
    """The function that makes the object of its parameters, and calls `function` with it."""

    def called(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        return function(options_of(*args, **kwargs))

    return called


def _classes_in_quotes() -> dict[str, Any]:
    """Return the classes that types in quotes name: whoever calls this has torch already."""
    from calibrant.allocations import Allocation
    from calibrant.data import CalibrationSet, Data
    from calibrant.exports import Export
    from calibrant.methods import Method
    from calibrant.models import Model, Tokenizer
    from calibrant.targets import Target
    from calibrant.transforms import Transform

    return {
        "Allocation": Allocation,
        "CalibrationSet": CalibrationSet,
        "Data": Data,
        "Export": Export,
        "Method": Method,
        "Model": Model,
        "Target": Target,
        "Tokenizer": Tokenizer,
        "Transform": Transform,
    }
