"""A model's folder: which files its weights are in, and that all files that are read are plain
files of that folder.

transformers opens whatever an index or a configuration names, wherever it is. Here the names are
read first. The files that are allowed are hashed and opened, all of them and no others.
"""

import json
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from calibrant.errors import ModelError
from calibrant.models.quiet import Refusal, quoted
from calibrant.spec.foreign import brief, visible

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = f"{WEIGHTS}.index.json"
ADAPTER: Final = "adapter_config.json"
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
READ: Final = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")
"""What transformers may open in a folder."""
TEMPLATES: Final = "additional_chat_templates"
"""The one folder in a folder of which it opens files."""
LARGEST: Final = 2**26
"""How many bytes a configuration or an index may have: those of the largest models have a sixth."""
DEEPEST: Final = 64
"""How many levels a configuration may have: transformers copies it, with a few calls for each."""

_EXPECTED: Final = "a model's folder holds config.json, *.safetensors and its tokenizer"


def weight_files(folder: Path, ref: str) -> tuple[Path, ...]:
    """Return the safetensors files of a folder's weights, in the order of their names.

    They are `model.safetensors`, or what `model.safetensors.index.json` names. Raises `ModelError`
    for a folder without them or without a configuration, for a name that isn't that of a plain file
    in the folder, and for a safetensors file that nothing names.
    """
    names = check_plain(folder, ref)
    weights = [name for name in names if name.endswith(".safetensors")]
    _check_kinds(folder, ref, names, weights)
    if ADAPTER in names:
        raise ModelError(
            f"{ref} is an adapter of another model ({ADAPTER}), which would be opened in its "
            "place; merge them and save that",
            subject=ref,
        )
    named = _indexed(folder, ref, names) if INDEX in names else {WEIGHTS}
    if INDEX in names and WEIGHTS in weights and named != {WEIGHTS}:
        raise ModelError(
            f"{ref} holds {WEIGHTS} and {INDEX} too, and both say what its weights are; delete "
            "one of them",
            subject=WEIGHTS,
        )
    if not named & set(weights):
        raise ModelError(
            f"{ref} holds {weights[0]}, but neither {WEIGHTS} nor {INDEX}; call a single file "
            f"{WEIGHTS}",
            subject=weights[0],
        )
    listing = INDEX if INDEX in names else WEIGHTS
    for name in weights:
        if name not in named:
            raise ModelError(
                f"{ref} holds {brief(name)}, which is no part of {listing}; move it elsewhere if "
                "it isn't meant",
                subject=name,
            )
    return tuple(folder / name for name in sorted(named))


def check_plain(folder: Path, ref: str) -> list[str]:
    """Return the names of the files in a folder, sorted. Raises `ModelError` if one that would be
    read is no plain file of this folder.
    """
    with Refusal(f"{ref} can't be read", "; is it yours to read?", ref):
        names = sorted(path.name for path in folder.iterdir())
        for name in names:
            if name.endswith(READ):
                _check_plain(folder / name, folder, ref)
        # A tokenizer reads these too.
        for path in sorted((folder / TEMPLATES).glob("*.jinja")):
            _check_plain(path, folder, ref)
    return names


def reading(path: Path) -> Refusal:
    """Return the context for reading a file: what the system refuses becomes a `ModelError`."""
    return Refusal(f"{path} can't be read", "; is it yours to read?", str(path))


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises `ModelError` for another value, for NaN, and
    for a file that is too large or nested too deep.
    """
    with reading(path):
        # Asked before the file is read, so that no huge file fills memory.
        size = path.stat().st_size
        text = path.read_bytes() if size <= LARGEST else b""
    if size > LARGEST:
        raise _damaged(path, f"has {size:,} bytes, and at most {LARGEST:,} are read")
    try:
        value = json.loads(text, parse_constant=_constant)
    except RecursionError as error:
        raise _damaged(path, "is no JSON (it is nested too deep)") from error
    except ValueError as error:
        raise _damaged(path, f"is no JSON ({quoted(error)})") from error
    if not isinstance(value, dict):
        raise _damaged(path, f"holds {brief(value)}, and no object in braces")
    if _depth(value) > DEEPEST:
        raise _damaged(path, f"is nested more than {DEEPEST} levels deep")
    return value


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} {why}; copy or download it again", subject=str(path))


def _constant(name: str) -> float:
    """The number that a JSON constant stands for. Raises `ValueError` for NaN."""
    # Published configurations have infinities, as limits.
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def _depth(value: Any) -> int:
    """How many levels of objects and lists there are; counting stops at one more than allowed."""
    # Level by level and not by recursion, which a deep file would exhaust.
    level = [value]
    depth = 0
    while level and depth <= DEEPEST:
        depth += 1
        inside: list[Any] = []
        for outer in level:
            inside += [inner for inner in _values(outer) if isinstance(inner, dict | list)]
        level = inside
    return depth


def _values(value: Any) -> list[Any]:
    """The values of an object or a list; none of anything else."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every name in plain data with its value, at any depth."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in _values(value):
        yield from entries(inner)


def leaves(value: Any) -> Iterator[Any]:
    """Yield the values in plain data that are neither objects nor lists."""
    if not isinstance(value, dict | list):
        yield value
    for inner in _values(value):
        yield from leaves(inner)


def _check_plain(path: Path, folder: Path, ref: str) -> None:
    """Raise `ModelError` unless `path` is a regular file in `folder`, or a link to one there or in
    the hub's cache that the folder belongs to.
    """
    name = visible(str(path))
    real = path.resolve()
    home = folder.resolve()
    if not real.exists():
        raise ModelError(
            f"{name} is a link to nothing; copy or download it again", subject=path.name
        )
    if not stat.S_ISREG(real.stat().st_mode):
        raise ModelError(
            f"{name} is no plain file but a folder, pipe or device; {_EXPECTED}", subject=path.name
        )
    places = [home]
    if home.parent.name == "snapshots" and len(home.parents) > 2:
        # models--x--y/snapshots/REVISION links into models--x--y/blobs. Where repositories share
        # files, these are links into a folder blobs beside models--x--y.
        places += [home.parents[1] / "blobs", home.parents[2] / "blobs"]
    if not any(real.is_relative_to(place) for place in places):
        raise ModelError(
            f"{name} is a link that leads out of {ref}; put the file itself there",
            subject=path.name,
        )


def _check_kinds(folder: Path, ref: str, names: Sequence[str], weights: Sequence[str]) -> None:
    """Raise `ModelError` for a folder without a configuration or without safetensors; the message
    says what is there instead.
    """
    if not names:
        raise ModelError(f"{ref} is an empty folder; {_EXPECTED}", subject=ref)
    if not weights:
        pickles = [name for name in names if name.endswith(PICKLES)]
        ggufs = [name for name in names if name.endswith(".gguf")]
        if ggufs:
            raise ModelError(
                f"{ref} holds no safetensors but GGUF; name the file itself, {folder / ggufs[0]}",
                subject=ref,
            )
        if pickles:
            raise ModelError(
                f"{ref} holds its weights only as pickle ({pickles[0]}), which can run code when "
                "opened; convert them to safetensors first",
                subject=ref,
            )
        raise ModelError(f"{ref} holds no *.safetensors; {_EXPECTED}", subject=ref)
    if CONFIG not in names:
        raise ModelError(f"{ref} holds no {CONFIG}; {_EXPECTED}", subject=ref)


def _indexed(folder: Path, ref: str, names: Sequence[str]) -> set[str]:
    """The names of the files in the index. Raises `ModelError` for one that isn't in the folder."""
    path = folder / INDEX
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(
            f"{path} has no weight_map that says which tensor is in which file ({brief(places)}); "
            "download it again",
            subject=INDEX,
        )
    for tensor, name in places.items():
        if not _is_file_name(name):
            raise ModelError(
                f"{path} says that {brief(tensor)} is in {brief(name)}, but weights are read from "
                "safetensors files of this folder only; put the file there and name it without a "
                "path",
                subject=str(name),
            )
        if name not in names:
            raise ModelError(
                f"{path} names {brief(name)}, which isn't there; copy or download it to {ref}",
                subject=name,
            )
    return set(places.values())


def _is_file_name(name: Any) -> bool:
    if not isinstance(name, str) or not name.endswith(".safetensors"):
        return False
    return name == Path(name).name and "\\" not in name
