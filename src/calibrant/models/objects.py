"""A model as the verbs are given it: a name or a path, an `Opened`, or a model of transformers with
its tokenizer, which is looked at or changed where it is.
"""

import copy as copying
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from transformers import PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models.changing import overwrite
from calibrant.models.configuring import (
    causal_classes,
    check_ids,
    check_outputs,
    check_template,
)
from calibrant.models.devices import resolve_device, resolve_dtype
from calibrant.models.hashing import digest_of
from calibrant.models.on_disk import read_when_run
from calibrant.models.opening import open_model, ref_of
from calibrant.models.origin import is_as_remembered, origin_of, remember_copy
from calibrant.models.saving import Opened, manifest_folder, read_manifest
from calibrant.models.viewing import IN_MEMORY, Residence, refuse
from calibrant.numerics import type_name
from calibrant.spec.foreign import brief
from calibrant.system.wide_products import wide_products

_GIVE: Final = "give a name, a folder, a .gguf file, or a model of transformers with its tokenizer"

OptionsT = TypeVar("OptionsT")
ResultT = TypeVar("ResultT")


def opened_of(
    model: object,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str = "auto",
    copy: bool = False,
    on_disk: bool = False,
    beside: bool = False,
) -> Opened:
    """Return `model` opened: a name or a path as `open_model` opens it, an `Opened` itself, and
    around a model of transformers an `Opened` that holds this very object.

    A model of transformers needs its `tokenizer`. Beside a name or an `Opened`, a tokenizer takes
    the place of the model's own, if both have the same vocabulary. With `copy` the object stays as
    it is, and the result holds a copy. `dtype` and `device` are for what is opened here; an object
    has its own. Its digest is found when it is first asked for, and anew for an `Opened` whose
    numbers were changed since. Raises `ModelError`, and changes nothing, for what can't be used.
    """
    if isinstance(model, str | Path):
        opened = open_model(ref_of(model), dtype, device, on_disk=on_disk, beside=beside)
        return _with_tokenizer(opened, tokenizer)
    if isinstance(model, Opened):
        # Whatever runs it needs the numbers of its blocks.
        if model.residence.on_disk:
            read_when_run(model.model, model.residence)
        elif origin_of(model) is not None and not is_as_remembered(model.model):
            will_be_changed(model)
        opened = _with_tokenizer(model, tokenizer)
    else:
        opened = _around(model, tokenizer)
    _check_machine(opened, dtype, device)
    return _copied(opened) if copy else opened


def is_object(model: object) -> bool:
    """Return whether a model was given as an object, and not as a name or a path."""
    return not isinstance(model, str | Path)


def name_of(model: object) -> str:
    """Return what a model is called, before it is opened."""
    if isinstance(model, Opened):
        return model.name
    if isinstance(model, PreTrainedModel):
        origin = origin_of(model)
        name = model.name_or_path if origin is None else origin.name
        return name or type(model).__name__
    return ref_of(model)


def model_in(model: object) -> PreTrainedModel | None:
    """Return the object of transformers that was given; None where a name was."""
    if isinstance(model, Opened):
        return model.model
    return model if isinstance(model, PreTrainedModel) else None


@contextmanager
def evaluating(given: object) -> Iterator[None]:
    """While it lasts, a model that was given as an object is in evaluation mode; afterwards each
    part is in its mode again, and experts run as they did.
    """
    model = model_in(given)
    if model is None:
        yield
        return
    training = [module for module in model.modules() if module.training]
    experts: Any = model.config._experts_implementation
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        # A view has them run one by one.
        if model.config._experts_implementation != experts:
            model.set_experts_implementation(experts)


def only_looks(verb: Callable[[OptionsT], ResultT]) -> Callable[[OptionsT], ResultT]:
    """Have a verb, a function of its options, leave models that it was given in their mode. Its
    products are `wide_products`.
    """

    @wraps(verb)
    def looking(options: OptionsT) -> ResultT:
        with ExitStack() as stack:
            stack.enter_context(wide_products())
            for given in vars(options).values():
                stack.enter_context(evaluating(given))
            return verb(options)

    return looking


def will_be_changed(model: object) -> None:
    """Say that the numbers of a model that was given as an object change: the digest of an `Opened`
    is found anew when it is asked for again. Asking raises `ModelError` where its blocks are on
    disk.
    """
    if not isinstance(model, Opened):
        return
    if model.residence.on_disk:
        model.hashed = partial(_refuse_hashing, model.name)
    else:
        model.hashed = partial(digest_of, model.model)


def take_numbers(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Overwrite the numbers of `model` with those of another one. Return False, and change nothing,
    where the two don't have the same parameters.
    """
    parameters = dict(model.named_parameters())
    others = dict(other.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if shapes != {name: parameter.shape for name, parameter in others.items()}:
        return False
    for name, parameter in parameters.items():
        overwrite(parameter, others[name])
    return True


def _refuse_hashing(name: str) -> NoReturn:
    """Raise `ModelError` for blocks on disk: the folder of that name has their old numbers."""
    raise ModelError(
        f"the blocks of {name} are on disk, and were changed since it was opened; open the folder "
        "that the compressed model was written to",
        subject=name,
    )


def _around(model: object, tokenizer: Any) -> Opened:
    """An `Opened` that holds this very object. Raises `ModelError` for one that can't be used."""
    origin = origin_of(model)
    residence = IN_MEMORY if origin is None else origin.residence
    checked = _checked(model, residence)
    name = name_of(checked)
    if tokenizer is None:
        raise ModelError(
            f"{name} was given without its tokenizer; give tokenizer= too, such as "
            "AutoTokenizer.from_pretrained(…) of the same name",
            subject="tokenizer",
        )
    _check_tokenizer(tokenizer, checked, name)
    if origin is None:
        manifest = read_manifest(manifest_folder(name)) or {}
        note = str(manifest.get("note", ""))
    else:
        note = origin.note
    hashed = partial(digest_of, checked)
    return Opened(checked, tokenizer, name, hashed, note, checked.dtype, residence)


def _checked(model: object, residence: Residence) -> PreTrainedModel:
    """The model, if it is a plain causal language model whose numbers are all here, or beside the
    device that computes.
    """
    kind = type(model).__name__
    if kind == "OptimizedModule":
        raise ModelError(
            "the model is compiled, so its products can't be followed; give the one that "
            "torch.compile was given",
            subject=kind,
        )
    if _is_of_peft(model):
        raise _with_adapters(kind)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"an object of type {kind} is no model; {_GIVE}", subject=kind)
    if any(_is_of_peft(module) for module in model.modules()):
        raise _with_adapters(kind)
    quantized = getattr(model.config, "quantization_config", None)
    # transformers makes plain numbers of a GGUF file's blocks, and remembers what they were.
    if quantized is not None and getattr(model, "quantization_method", None) != "gguf":
        raise ModelError(
            f"{kind} is quantized already; give the model before its quantization", subject=kind
        )
    refuse(model)
    check_outputs(model.config, kind)
    _check_causal(model)
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1 and not residence.elsewhere:
        raise ModelError(
            f"{kind} is on several devices ({', '.join(sorted(devices))}); load it on one, "
            "without device_map",
            subject=kind,
        )
    return model


def _is_of_peft(module: object) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def _with_adapters(kind: str) -> ModelError:
    return ModelError(
        f"{kind} has adapters beside its weights; merge them first (model.merge_and_unload()), "
        "and give what that returns",
        subject=kind,
    )


def _check_causal(model: PreTrainedModel) -> None:
    """Raise `ModelError` for a model that doesn't predict the next token."""
    classes = causal_classes(model.config)
    names = {kind.__name__ for kind in type(model).__mro__}
    # A model that comes with code of its own is in no list of transformers.
    foreign = not type(model.config).__module__.startswith("transformers.")
    if names & classes or (foreign and model.get_output_embeddings() is not None):
        return
    kind = type(model).__name__
    raise ModelError(
        f"{kind} is no causal language model; give one that predicts the next token, as "
        "AutoModelForCausalLM opens it",
        subject=kind,
    )


def _check_tokenizer(tokenizer: Any, model: PreTrainedModel, name: str) -> None:
    """Raise `ModelError` for a tokenizer that is clearly another model's: some of its ids have no
    row in the embedding, or texts begin and end with other ids than the configuration says.
    """
    for part in ("get_vocab", "decode", "eos_token_id"):
        if not hasattr(tokenizer, part):
            kind = type(tokenizer).__name__
            raise ModelError(
                f"{brief(tokenizer)} is of type {kind} and no tokenizer; give that of {name}, as "
                "AutoTokenizer opens it",
                subject=kind,
            )
    check_ids(tokenizer, model, name)
    check_template(tokenizer, name)
    config: Any = model.config.get_text_config(decoder=True)
    # Either alone differs in sound models too: many that chat end a turn with another token.
    differ: list[str] = []
    for place in ("bos_token_id", "eos_token_id"):
        configured = getattr(config, place, None)
        expected = configured if isinstance(configured, list) else [configured]
        given = getattr(tokenizer, place, None)
        if given is not None and configured is not None and given not in expected:
            differ.append(f"{place} is {given} and not {configured}")
    if len(differ) == 2:
        raise ModelError(
            f"the tokenizer is another model's: {' and '.join(differ)}; give that of {name}",
            subject=name,
        )


def _with_tokenizer(opened: Opened, tokenizer: Any) -> Opened:
    """The same with another tokenizer. Raises `ModelError` for one with another vocabulary."""
    if tokenizer is None or tokenizer is opened.tokenizer:
        return opened
    _check_tokenizer(tokenizer, opened.model, opened.name)
    if tokenizer.get_vocab() != opened.tokenizer.get_vocab():
        raise ModelError(
            f"the tokenizer has another vocabulary than that of {opened.name}; leave it out, or "
            "give the model as an object",
            subject=opened.name,
        )
    return replace(opened, tokenizer=tokenizer)


def _check_machine(opened: Opened, dtype: str, device: str) -> None:
    """Raise `ModelError` where another type or device is asked for than an object has."""
    name = type_name(opened.dtype)
    if dtype != "auto" and resolve_dtype(dtype) != opened.dtype:
        raise ModelError(
            f"the model is {name}, and dtype is {dtype!r}; leave dtype out, or give "
            f"model.to(torch.{dtype})",
            subject=dtype,
        )
    if device == "auto":
        return
    wanted = resolve_device(device)
    place: Any = opened.model.device
    if wanted.type != place.type or wanted.index not in (None, place.index):
        raise ModelError(
            f"the model is on {place}, and device is {device!r}; leave device out, or give "
            f"model.to({device!r})",
            subject=device,
        )


def _copied(opened: Opened) -> Opened:
    """The same around a copy of the model; where that came from is remembered of the copy too."""
    if opened.residence.elsewhere:
        raise ModelError(
            f"the blocks of {opened.name} aren't where it computes, so it can't be copied; give "
            "its name",
            subject=opened.name,
        )
    model = copying.deepcopy(opened.model)
    remember_copy(model, opened.model)
    hashed = opened.hashed
    if not isinstance(hashed, str):
        hashed = partial(digest_of, model)
    return replace(opened, model=model, hashed=hashed)
