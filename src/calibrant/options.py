"""The options of the verbs: name, type, default and help of each, written once.

`prune` takes one frozen value, its options. `taking` makes of it the function that people call, in
which each field is a parameter: type checkers, `help()` and the reference see the whole signature.
The commands have the same options with the same help (`cli/declared.py`).

Nothing here imports torch. A type in quotes has classes that bring it.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, final, get_type_hints

from calibrant.errors import TargetError
from calibrant.progress import Progress, silent
from calibrant.registry import did_you_mean
from calibrant.spec import Spec

if TYPE_CHECKING:
    from calibrant.allocations import Allocation
    from calibrant.data import CalibrationSet, Source
    from calibrant.exports import Export
    from calibrant.methods import Method
    from calibrant.models import Opened
    from calibrant.targets import Target
    from calibrant.transforms import Transform

P = ParamSpec("P")
OptionsT = TypeVar("OptionsT")
ResultT = TypeVar("ResultT")

_COMMAND_LINE: Final = "command line"
SETS: Final = "sets"
"""What completes the expression of a calibration set."""


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


def shown(
    help: str,  # noqa: A002  # it is called so by everything that has a help
    metavar: str = "",
    offers: str | tuple[str, ...] = (),
    **more: Any,
) -> dict[str, OnCommandLine]:
    """Return the metadata of a field that the command line has too."""
    return {_COMMAND_LINE: OnCommandLine(help, metavar, offers, **more)}


def on_command_line(option: Field[Any]) -> OnCommandLine | None:
    """Return how the command line shows an option; None if only Python has it."""
    return option.metadata.get(_COMMAND_LINE)


MODEL: Final = shown(
    "A Hugging Face id, a folder, a .gguf file, or smollm2.",
    "MODEL",
    argument=True,
)
SET: Final = shown(
    "Calibration set: source[:format][@packing], a file, or a weighted sum 0.3*gsm8k:cot + 0.7*wikitext.",
    "EXPR",
    SETS,
)
TOKENS: Final = shown("Real tokens to calibrate on, instead of --samples.", "N")
LENGTH: Final = shown("Tokens in a window.", "N")
SEED: Final = shown(
    "Number of the draw: draws share no row until the source is used up.",
    "N",
)
CANDIDATE_METHOD: Final = shown(
    "wanda, gptq, awq, …: one that looks at data. [default: wanda; gptq for grids, llama.cpp's quantizers for its kinds and recipes]",
    "SPEC",
    "methods",
)
CANDIDATE_TARGET: Final = shown(
    "A share of weights to remove, N:M, a grid (w4g64), a kind of blocks (q4_k) or a recipe (Q4_K_M) of llama.cpp. [default: 0.6]",
    "TARGET",
    flags=("--target", "--sparsity"),
)


# Options that several verbs share


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How much of a calibration set is drawn, and which draw it is."""

    samples: int = field(default=128, metadata=shown("Windows to calibrate on.", "N"))
    tokens: int | None = field(default=None, metadata=TOKENS)
    length: int = field(default=2048, metadata=LENGTH)
    seed: int = field(default=0, metadata=SEED)

    def drawn_from(self, data: "str | CalibrationSet | Source") -> "CalibrationSet":
        """Return the calibration set; one that is given as an object has a budget of its own."""
        from calibrant.data import CalibrationSet

        if isinstance(data, CalibrationSet):
            return data
        return CalibrationSet(
            data,
            samples=self.samples,
            length=self.length,
            tokens=self.tokens,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What is done beside the method, and to what the model is written."""

    propagate: str | None = field(
        default=None,
        metadata=shown(
            "Which inputs a matrix is calibrated on: arrival, reference or dense. [default: the method's own, mostly arrival]",
            "WAY",
            ("arrival", "reference", "dense"),
        ),
    )
    allocation: "str | Allocation" = field(
        default="uniform",
        metadata=shown("How the target is divided among the matrices.", "SPEC", "allocations"),
    )
    transform: "Sequence[str | Transform]" = field(
        default=(),
        metadata=shown(
            "Change the model first, in this order, without changing what it computes.",
            "SPEC",
            "transforms",
            several=True,
        ),
    )
    starved: str = field(
        default="as_seen",
        metadata=shown(
            "What experts that get fewer tokens than they have inputs are calibrated on: as_seen (those), dense (nothing), all_tokens or shared.",
            "WAY",
            ("as_seen", "dense", "all_tokens", "shared"),
        ),
    )
    export: "Sequence[str | Export]" = field(
        default=(),
        metadata=shown(
            "A form to write it in too, beside the Hugging Face folder; give it once for each.",
            "NAME",
            "exports",
            several=True,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where the work is done, in which type, and who is told how far it is."""

    dtype: str = field(
        default="auto",
        metadata=shown(
            "auto, bfloat16 or float32. auto takes bfloat16 where the machine is faster in it.",
            "TYPE",
            ("auto", "bfloat16", "float32"),
        ),
    )
    device: str = field(
        default="auto",
        metadata=shown("auto, cpu, cuda or mps.", "DEVICE", ("auto", "cpu", "cuda", "mps")),
    )
    progress: Progress = silent


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(MachineOptions):
    """Where the work is done, and how much memory it may take."""

    memory: float | None = field(
        default=None,
        metadata=shown(
            "What the process may hold; blocks of a larger model stay on disk. [default: all of the model]",
            "GB",
        ),
    )


# Options of one verb. What stands before KW_ONLY may be given by place. A dataclass has the options
# of its last base first.


@dataclass(frozen=True)
class SharedOptions(MemoryOptions, RecipeOptions, DataOptions):
    """What `prune` and `quantize` share."""

    model: str = field(metadata=MODEL)
    _: KW_ONLY
    profile: bool = field(
        default=False,
        metadata=shown("Also say where the time went, and the least that this machine needs."),
    )


@final
@dataclass(frozen=True)
class PruneOptions(SharedOptions):
    """The options of `prune`."""

    data: "str | CalibrationSet | Source" = field(metadata=SET)
    method: "str | Method" = field(
        default="wanda",
        metadata=shown(
            "One of those below, with parameters as in sparsegpt(damp=0.02).",
            "SPEC",
            "methods",
        ),
    )
    target: "float | str | Target | None" = field(
        default=None,
        metadata=shown(
            "The share of weights (or blocks, experts) to remove, or N:M with N kept of every M. [default: 0.5]",
            "TARGET",
            flags=("--target", "--sparsity"),
        ),
    )
    out: str | Path | None = field(
        default=None,
        metadata=shown("Folder for the pruned model; it must not exist yet.", "DIR"),
    )
    _: KW_ONLY
    sparsity: "float | str | Target | None" = None


@final
@dataclass(frozen=True)
class QuantizeOptions(SharedOptions):
    """The options of `quantize`."""

    data: "str | CalibrationSet | Source | None" = field(default=None, metadata=SET)
    method: "str | Method" = field(
        default="rtn",
        metadata=shown("rtn: round to nearest, which looks at no data.", "SPEC", "methods"),
    )
    target: "str | Target" = field(
        default="w4g64",
        metadata=shown(
            "A grid: w4g64 is 4 bits with a scale for each 64 inputs of a row.",
            "TARGET",
            flags=("--target", "--sparsity"),
        ),
    )
    out: str | Path | None = field(
        default=None,
        metadata=shown("Folder for the quantized model; it must not exist yet.", "DIR"),
    )


CompressOptions = PruneOptions | QuantizeOptions


@final
@dataclass(frozen=True)
class ImatrixOptions(MemoryOptions, DataOptions):
    """The options of `imatrix`."""

    model: "str | Opened" = field(metadata=MODEL)
    data: "str | CalibrationSet" = field(metadata=SET)
    out: str | Path | None = field(
        default=None,
        metadata=shown("File to write: .gguf for llama.cpp, .dat for ik_llama.cpp.", "FILE"),
    )
    _: KW_ONLY
    # A window is as long as llama.cpp has it.
    length: int = field(default=512, metadata=LENGTH)


@final
@dataclass(frozen=True)
class InspectOptions(MachineOptions):
    """The options of `inspect`."""

    data: "str | Source | CalibrationSet" = field(
        metadata=shown(
            "A calibration set, as in prune --data, or an imatrix (.gguf, .dat).",
            "EXPR",
            SETS,
            argument=True,
        )
    )
    model: "str | Opened | None" = field(
        default=None,
        metadata=shown(
            "Also run MODEL on a part of the set: its loss, and which tokens fill its statistics. [default: the tokenizer of smollm2 alone]",
            "MODEL",
        ),
    )
    _: KW_ONLY
    against: Sequence[str] = field(
        default=(),
        metadata=shown(
            "Also compare with what SOURCE measures on; give it once for each source. Of an imatrix: with another one.",
            "SOURCE",
            "sources",
            several=True,
        ),
    )
    samples: int | None = field(
        default=None,
        metadata=shown(
            "Windows to calibrate on. [default: 128, or as many tokens as the sources hold]",
            "N",
        ),
    )
    tokens: int | None = field(default=None, metadata=TOKENS)
    length: int = field(default=2048, metadata=LENGTH)
    seed: int = field(default=0, metadata=SEED)


# Options of verbs above this room, as far as a command has them; what has types of their own is
# added where the verb is.


@dataclass(frozen=True)
class EvaluateCommand(MemoryOptions):
    """What `evaluate` and its command share."""

    model: "str | Opened" = field(metadata=MODEL)
    tasks: Sequence[str | Spec] | str | Spec = field(
        metadata=shown(
            "What to measure, such as loss(source='gsm8k'); give it once for each task.",
            "SPEC",
            "tasks",
            flags=("--task",),
            several=True,
        )
    )
    _: KW_ONLY
    limit: int | None = field(
        default=None,
        metadata=shown("Items of each task: questions, documents or windows. [default: its own]", "N"),
    )
    tokens: int | None = field(
        default=None,
        metadata=shown("Tokens of each loss or agreement. [default: its own]", "N"),
    )
    reference: "str | Opened | None" = field(
        default=None,
        metadata=shown(
            "The dense model, for tasks that compare with it; of a pruned folder it is known.",
            "MODEL",
        ),
    )
    engine: str = field(
        default="torch",
        metadata=shown("torch, or llama_cpp: a GGUF file as llama.cpp runs it.", "NAME"),
    )
    allow_leak: bool = field(
        default=False,
        metadata=shown("Measure even what the model was calibrated on; the result says so."),
    )


@dataclass(frozen=True)
class ExplainCommand(MachineOptions):
    """What `explain` and its command share."""

    model: "str | Opened" = field(
        metadata=shown(
            "A compressed model, or the folder of a study that measured words: which sets kept them.",
            "PRUNED",
            argument=True,
        )
    )
    task: str | Spec | None = field(
        default=None,
        metadata=shown("The measurement in full: words(source='gsm8k', tokens=65536, least=20).", "SPEC"),
    )
    _: KW_ONLY
    against: "str | Opened | None" = field(
        default=None,
        metadata=shown("The dense model; of a folder that calibrant wrote it is known.", "DENSE"),
    )
    source: str | None = field(
        default=None,
        metadata=shown("Whose words. [default: wikitext]", "SOURCE", "sources"),
    )
    groups: str | None = field(
        default=None,
        metadata=shown(
            "words, lemmas, clusters, or a file with a word in each line, in which [name] begins a group. [default: words]",
            "KIND",
        ),
    )
    tokens: int | None = field(
        default=None,
        metadata=shown("Tokens to read. [default: 16384]", "N"),
    )
    allow_leak: bool = field(
        default=False,
        metadata=shown("Read even what the model was calibrated on."),
    )


@dataclass(frozen=True)
class MixCommand(MachineOptions):
    """What `mix` and its command share."""

    model: "str | Opened" = field(metadata=MODEL)
    sources: Sequence[str] = field(
        metadata=shown(
            "A calibration set to mix, as in prune --data; give it once for each, two or more.",
            "EXPR",
            SETS,
            several=True,
        )
    )
    _: KW_ONLY
    objective: str = field(
        default="mean",
        metadata=shown(
            "mean or worst error over the sources, or target=EXPR: a source, or a file of your own.",
            "WHAT",
        ),
    )
    method: "str | Method | None" = field(default=None, metadata=CANDIDATE_METHOD)
    target: "float | str | Target | None" = field(default=None, metadata=CANDIDATE_TARGET)
    tokens: int = field(default=8192, metadata=shown("Real tokens of each source.", "N"))
    length: int = field(default=512, metadata=LENGTH)
    seed: int = field(default=0, metadata=SEED)
    imatrix: str | Path | None = field(
        default=None,
        metadata=shown("Also write the mixture's imatrix: .gguf for llama.cpp, .dat for ik_llama.cpp.", "FILE"),
    )


@dataclass(frozen=True)
class RecommendCommand(MachineOptions):
    """What `recommend` and its command share."""

    model: str = field(metadata=MODEL)
    target: str | Sequence[str] = field(
        metadata=shown(
            "A source, a file of your own, a measure such as task(name=race), or general; with a weight: 0.3*race.",
            "TARGET",
            flags=("--for",),
            several=True,
        )
    )
    sources: Sequence[str] = field(
        default=(),
        metadata=shown(
            "A candidate; give it once for each. [default: what can be read here]",
            "EXPR",
            SETS,
            several=True,
        ),
    )
    _: KW_ONLY
    method: str | None = field(default=None, metadata=CANDIDATE_METHOD)
    sparsity: "float | str | Target | None" = field(default=None, metadata=CANDIDATE_TARGET)
    minutes: float = field(
        default=30.0,
        metadata=shown(
            "Time for all of it, such as 30 or 2.5; what is measured stays, and a later call goes on.",
            "MINUTES",
            flags=("--budget", "--minutes"),
        ),
    )
    tokens: int | None = field(
        default=None,
        metadata=shown("Real tokens of each source. [default: 8192, or what the files hold]", "N"),
    )
    length: int = field(default=512, metadata=LENGTH)
    sibling: bool = field(
        default=True,
        metadata=shown(
            "Divide your own file by template, calibrate on one half and judge by the other.",
            flags=("--sibling/--no-sibling",),
        ),
    )
    baseline: str = field(
        default="",
        metadata=shown("What others are compared with. [default: c4 where it is]", "EXPR", SETS),
    )
    folder: str | Path = field(
        default="calibrant-recommendation",
        metadata=shown("Folder for all that is measured.", "DIR", flags=("--out",)),
    )


# Values and functions from a declaration


def one_target(target: Any, sparsity: Any) -> Any:
    """Return what is given by either of the two words; None if neither is. `TargetError` if both are."""
    if target is not None and sparsity is not None:
        message = f"target={target} and sparsity={sparsity} are two words for one thing"
        raise TargetError(f"{message}; give one of them", subject=str(sparsity))
    return sparsity if target is None else target


MACHINE: Final = frozenset(option.name for option in fields(MemoryOptions))
"""What stands last: where the work is done."""


def in_order(declared: type[Any]) -> list[Field[Any]]:
    """Return the options as they are shown, those that may be given by place first."""
    by_place: list[Field[Any]] = []
    by_name: list[Field[Any]] = []
    machine: list[Field[Any]] = []
    for option in fields(declared):
        if not option.kw_only:
            by_place.append(option)
        elif option.name in MACHINE:
            machine.append(option)
        else:
            by_name.append(option)
    return by_place + by_name + machine


def signature_of(declared: type[Any]) -> inspect.Signature:
    """Return the signature of a function that has these options as parameters."""
    types = get_type_hints(declared, localns=_classes_in_quotes())
    parameters: list[inspect.Parameter] = []
    for option in in_order(declared):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if option.kw_only:
            kind = inspect.Parameter.KEYWORD_ONLY
        default = option.default
        if default is MISSING:
            default = inspect.Parameter.empty
        annotation = types[option.name]
        parameter = inspect.Parameter(option.name, kind, default=default, annotation=annotation)
        parameters.append(parameter)
    return inspect.Signature(parameters)


def taking(
    declared: Callable[P, OptionsT],
) -> Callable[[Callable[[OptionsT], ResultT]], Callable[P, ResultT]]:
    """Make a function of one value, whose class is `declared`, a function of its fields."""
    signature = signature_of(declared)  # pyright: ignore[reportArgumentType]  # it is a class

    def decorated(function: Callable[[OptionsT], ResultT]) -> Callable[P, ResultT]:
        name = function.__name__

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> ResultT:
            for word in kwargs:
                if word not in signature.parameters:
                    meant = did_you_mean(word, signature.parameters)
                    raise TypeError(f"{name}() has no option {word!r}{meant}")
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}(): {error}") from None
            return function(declared(*args, **kwargs))

        result = function.__annotations__.get("return", inspect.Signature.empty)
        whole = signature.replace(return_annotation=result)
        called.__signature__ = whole  # pyright: ignore[reportAttributeAccessIssue]
        return called

    return decorated


def _classes_in_quotes() -> dict[str, Any]:
    """Return the classes that types in quotes name: whoever calls this has torch already."""
    from calibrant.allocations import Allocation
    from calibrant.data import CalibrationSet, Source
    from calibrant.exports import Export
    from calibrant.methods import Method
    from calibrant.models import Opened
    from calibrant.targets import Target
    from calibrant.transforms import Transform

    return {
        "Allocation": Allocation,
        "CalibrationSet": CalibrationSet,
        "Export": Export,
        "Method": Method,
        "Opened": Opened,
        "Source": Source,
        "Target": Target,
        "Transform": Transform,
    }
