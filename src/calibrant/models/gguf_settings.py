"""What a GGUF file says of how its model computes, beside the numbers of its tensors: how fast
angles turn, how small an epsilon is, how far attention sees.

transformers takes some of it into the configuration and drops the rest in silence, and so would
open another model. Here what this file names is compared with the configuration. What has a place
there is set; for what has none, the GGUF file is refused. A file from which metadata are copied
must say what the model's own configuration says.

One setting, Gemma's query scale, is in no entry: llama.cpp takes it from the number of layers, and
so do we.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import gguf
import numpy as np

from calibrant.spec.foreign import brief

COUNTS: Final[Mapping[str, tuple[str, ...]]] = {
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
}
"""What configurations call the counts of a header, by llama.cpp's name without the architecture."""
EPSILONS: Final[Mapping[str, tuple[str, ...]]] = {
    "attention.layer_norm_rms_epsilon": (
        "rms_norm_eps",
        "norm_eps",
        "norm_epsilon",
        "layer_norm_epsilon",
    ),
    "attention.layer_norm_epsilon": (
        "layer_norm_epsilon",
        "norm_epsilon",
        "layer_norm_eps",
        "norm_eps",
    ),
}
CAPS: Final = ("attn_logit_softcapping", "final_logit_softcapping")
"""Where a logit is bent; 0 in a header is none."""
NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.output_scale": (0, 1),
    "attention.scale": (0,),
    "attention.temperature_scale": (0,),
    "embedding_scale": (0, 1),
    "expert_weights_scale": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "router_logit_softcapping": (0,),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "ssm.dt_b_c_rms": (False,),
}
"""Entries that no configuration of these architectures has, and the values that change nothing."""
WINDOWED: Final = ("gemma2", "gemma3", "phi3", "starcoder2")
"""Architectures whose configurations in transformers have a sliding window that is always used."""
LAYERS_OF_27B: Final[Mapping[str, int]] = {"gemma2": 46, "gemma3": 62}
"""The number of layers by which llama.cpp knows the models of 27 billion numbers. They scale
queries by features / heads, and all others by the size of a head.
"""
NOT_COMPARED: Final = ("gemma4", "gpt-oss")
"""Architectures that aren't compared: their headers mean other entries of the configuration, and
transformers has a reader for each.
"""
BASE: Final = 10_000.0
"""llama.cpp's base of angles where a file names none; also that of Gemma's layers with windows."""
LLAMA3_FACTORS: Final = (8.0, 32.0)
"""The factors that models with the scaling `llama3` were published with: 3.1 and 3.3, and 3.2."""
LLAMA3: Final = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TABLE: Final = "rope_freqs.weight"
LONG_TABLE: Final = "rope_factors_long.weight"
SHORT_TABLE: Final = "rope_factors_short.weight"
TABLES: Final = (TABLE, LONG_TABLE, SHORT_TABLE)
"""Tensors that say by what the frequency of each angle is divided."""
_OF_TABLES: Final[Mapping[str, str]] = {"llama3": TABLE, "longrope": LONG_TABLE}
"""The tables of the scalings that have one."""


@final
class UnreadSettingError(Exception):
    """A file has a setting for which the configuration has no place."""

    def __init__(self, name: str, shown: str) -> None:
        super().__init__(f"has {shown}")
        self.name = name


@final
@dataclass(frozen=True, eq=False)
class FileSetting:
    """What a file says under `name` (an entry or a tensor), and which `entry` of a configuration,
    or of its `rope_parameters`, means it. `absent`: the file has no such entry, and the
    `value` is what llama.cpp takes then.
    """

    name: str
    holder: Any
    entry: str
    value: Any
    absent: bool = False

    @property
    def held(self) -> Any:
        """What the configuration says."""
        if isinstance(self.holder, dict):
            return self.holder.get(self.entry)
        return getattr(self.holder, self.entry, None)

    @property
    def differs(self) -> bool:
        """Whether the configuration says something else."""
        return not _same(self.held, self.value)

    def adopt(self) -> None:
        """Let the configuration say what the file says."""
        if isinstance(self.holder, dict):
            self.holder[self.entry] = self.value
        else:
            setattr(self.holder, self.entry, self.value)


def adopt_settings(config: Any, values: Mapping[str, Any], reader: gguf.GGUFReader) -> None:
    """Let a configuration that transformers made of a header say what the file says. `values` are
    the entries of the header. Raises `UnreadSettingError` for what has no place there.
    """
    # One by one, since what a later setting means depends on those before it.
    for setting in settings_of(config, values, reader):
        if not setting.absent and setting.differs:
            setting.adopt()


def first_difference(
    config: Any, values: Mapping[str, Any], reader: gguf.GGUFReader
) -> FileSetting | None:
    """Return the first setting of a file that differs from the configuration of the model that is
    to be written with the file's metadata; None where none does. Raises `UnreadSettingError` for
    what no configuration has a place for.
    """
    config = copy.deepcopy(config)
    _write_out_attention_factor(config.get_text_config(decoder=True))
    for setting in settings_of(config, values, reader):
        if setting.differs:
            return setting
    return None


def _write_out_attention_factor(text: Any) -> None:
    """Let the configuration of a Phi-3 say by what cosines are multiplied, as its file does. It may
    leave that to transformers, which takes it from the two lengths.
    """
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope" or rope.get("attention_factor") is not None:
        return
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or text.max_position_embeddings / original
    rope["attention_factor"] = 1.0
    if factor > 1:
        rope["attention_factor"] = math.sqrt(1 + math.log(factor) / math.log(original))


def settings_of(
    config: Any, values: Mapping[str, Any], reader: gguf.GGUFReader
) -> Iterator[FileSetting]:
    """Yield what a file says of how its model computes, and where a configuration says it. Raises
    `UnreadSettingError` for what the configuration has no place for.
    """
    architecture = str(values.get("general.architecture"))
    if architecture in NOT_COMPARED:
        return
    file = _File(architecture, values, reader)
    text = config.get_text_config(decoder=True)
    for key, neutral in NEUTRAL.items():
        value = file.value(key)
        if value is not None and value not in neutral:
            raise file.unread(key)
    yield from _named(file, text, COUNTS)
    yield from _named(file, text, EPSILONS)
    yield from _caps(file, text)
    yield from _windows(file, text)
    yield from _query_scale(file, text)
    yield from _angles(file, text)


@final
@dataclass(frozen=True, eq=False)
class _File:
    """The entries of a header without their architecture, and the tables of angles."""

    architecture: str
    values: Mapping[str, Any]
    reader: gguf.GGUFReader

    def name(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def value(self, key: str) -> Any:
        """An entry; None where there is none."""
        return self.values.get(self.name(key))

    def number(self, key: str) -> float | int | None:
        """A number; None where there is none. Raises `UnreadSettingError` for anything else."""
        value = self.value(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.unread(key)
        return value

    def items(self, key: str) -> list[Any]:
        """What is in a list."""
        field = self.reader.get_field(self.name(key))
        assert field is not None
        return list(field.contents())

    def table(self, name: str) -> list[float] | None:
        """The numbers of a table of angles; None where there is none, or where they are all 1."""
        for tensor in self.reader.tensors:
            if tensor.name == name:
                numbers = gguf.dequantize(tensor.data, tensor.tensor_type).ravel()
                return None if (numbers == 1).all() else numbers.tolist()
        return None

    def unread(self, key: str) -> UnreadSettingError:
        name = self.name(key)
        value = self.value(key)
        shown = f"{name} = {brief(value)}"
        if value is None:
            shown = f"no {name}"
        elif isinstance(value, list):
            # The header has its length alone.
            shown = f"a list {name}"
        return UnreadSettingError(name, shown)


def _named(file: _File, text: Any, names: Mapping[str, Iterable[str]]) -> Iterator[FileSetting]:
    """Settings that a configuration has under one of several names."""
    for key, entries in names.items():
        # A list has a number for each layer, and architectures with such lists are built from them.
        if isinstance(file.value(key), list):
            continue
        value = file.number(key)
        entry = _first_known(text, entries)
        if value is not None and entry is not None:
            yield FileSetting(file.name(key), text, entry, value)


def _first_known(text: Any, entries: Iterable[str]) -> str | None:
    for entry in entries:
        if getattr(text, entry, None) is not None:
            return entry
    return None


def _caps(file: _File, text: Any) -> Iterator[FileSetting]:
    for key in CAPS:
        value = file.number(key)
        if value is None:
            continue
        if hasattr(text, key):
            yield FileSetting(file.name(key), text, key, value or None)
        elif value:
            raise file.unread(key)


def _windows(file: _File, text: Any) -> Iterator[FileSetting]:
    """How many tokens back attention sees. A file without windows isn't compared."""
    key = "attention.sliding_window"
    size = file.number(key)
    # Without windows llama.cpp turns all layers of a Gemma 3 alike, and transformers can't.
    if file.architecture == "gemma3" and not size:
        raise file.unread(key)
    if file.architecture in WINDOWED and size is not None:
        yield FileSetting(file.name(key), text, "sliding_window", size or None)
    elif size and size < getattr(text, "max_position_embeddings", math.inf):
        raise file.unread(key)
    _check_pattern(file, text)


def _check_pattern(file: _File, text: Any) -> None:
    """Raise `UnreadSettingError` where other layers have windows than in the configuration."""
    key = "attention.sliding_window_pattern"
    pattern = file.value(key)
    if pattern is None:
        return
    if isinstance(pattern, list):
        in_windows = [bool(item) for item in file.items(key)]
    else:
        period = file.number(key)
        in_windows = [bool(period and layer % period) for layer in range(1, _layers(text) + 1)]
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * _layers(text)
    if in_windows != [kind == "sliding_attention" for kind in kinds]:
        raise file.unread(key)


def _layers(text: Any) -> int:
    layers: int = text.num_hidden_layers
    return layers


def _query_scale(file: _File, text: Any) -> Iterator[FileSetting]:
    """By what Gemma divides queries: the root of a number that no entry of a file has."""
    if file.architecture not in LAYERS_OF_27B:
        return
    scale = text.head_dim
    if _layers(text) == LAYERS_OF_27B[file.architecture]:
        scale = text.hidden_size // text.num_attention_heads
    yield FileSetting(file.name("block_count"), text, "query_pre_attn_scalar", scale)


def _angles(file: _File, text: Any) -> Iterator[FileSetting]:
    """How fast the angles of positions turn."""
    rope = getattr(text, "rope_parameters", None)
    if not rope:
        return
    # Where layers with windows have angles of their own, scaling is that of the others.
    windowed = rope.get("sliding_attention")
    full = rope.get("full_attention", rope)
    base = file.number("rope.freq_base") or BASE
    yield _base_of_angles(file, "rope.freq_base", full, "rope_theta", BASE)
    if windowed is not None:
        yield _base_of_angles(file, "rope.freq_base_swa", windowed, "rope_theta", BASE)
    elif file.number("rope.freq_base_swa") not in (None, base):
        raise file.unread("rope.freq_base_swa")
    yield from _turned_share(file, text, full)
    yield from _scaling(file, text, full)


def _base_of_angles(file: _File, key: str, holder: Any, entry: str, usual: float) -> FileSetting:
    value = file.number(key)
    if value is None:
        return FileSetting(file.name(key), holder, entry, usual, absent=True)
    return FileSetting(file.name(key), holder, entry, value)


def _turned_share(file: _File, text: Any, rope: dict[str, Any]) -> Iterator[FileSetting]:
    """Which share of a head's features turn."""
    key = "rope.dimension_count"
    size = _head_size(text)
    turned = file.number(key)
    # Only classes that take a share have one among their entries.
    if "partial_rotary_factor" not in rope:
        if turned not in (None, size):
            raise file.unread(key)
        return
    if turned is None:
        yield FileSetting(file.name(key), rope, "partial_rotary_factor", 1.0, absent=True)
        return
    share = turned / size
    # The class multiplies again, and rounds down.
    if not 0 < turned <= size or int(size * share) != turned:
        raise file.unread(key)
    yield FileSetting(file.name(key), rope, "partial_rotary_factor", share)


def _head_size(text: Any) -> int:
    size: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return size


def _scaling(file: _File, text: Any, rope: dict[str, Any]) -> Iterator[FileSetting]:
    """How angles are scaled so that longer texts fit."""
    name, entries = _scaling_of(file, text, rope)
    absent = entries["rope_type"] == "default"
    for entry, value in entries.items():
        yield FileSetting(name, rope, entry, value, absent)
    if entries["rope_type"] == "longrope":
        # This class copies its own entry over that of `rope_parameters`.
        entry = "original_max_position_embeddings"
        yield FileSetting(
            file.name("rope.scaling.original_context_length"), text, entry, entries[entry]
        )


def _scaling_of(file: _File, text: Any, rope: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Under which name a file says how it scales angles, and the entries of a configuration that
    mean it.
    """
    key = "rope.scaling.factor"
    factor = file.number(key)
    if factor is None:
        key = "rope.scale_linear"
        factor = file.number(key)
    # llama.cpp takes a factor without a type for a linear one, and 0 for none.
    kind = file.value("rope.scaling.type")
    kind = "linear" if kind is None else kind
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise file.unread("rope.scaling.type")
    scaled = kind != "none" and factor not in (None, 0, 1)
    _refuse_other_formula(file, kind, scaled)
    table = file.table(TABLE)
    long = file.table(LONG_TABLE)
    short = file.table(SHORT_TABLE)
    if table is not None or long is not None or short is not None:
        if scaled:
            raise file.unread(key)
        if table is None:
            return LONG_TABLE, _long_rope(file, text, rope, long, short)
        return TABLE, _llama3(file, text, rope, table, long, short)
    if not scaled:
        key = "rope.scaling.attn_factor"
        if file.number(key) not in (None, 0, 1):
            raise file.unread(key)
        name = _OF_TABLES.get(str(rope.get("rope_type")), file.name("rope.scaling.type"))
        return name, {"rope_type": "default"}
    # What has sections turns by positions of several kinds, and phi3 by its tables alone.
    if kind == "longrope" or file.architecture == "phi3" or "mrope_section" in rope:
        raise file.unread(key)
    entries: dict[str, Any] = {"rope_type": kind, "factor": float(factor or 1)}
    if kind == "yarn":
        original = file.number("rope.scaling.original_context_length")
        entries["original_max_position_embeddings"] = original or text.max_position_embeddings
        for entry, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            value = file.number(f"rope.scaling.yarn_{entry}")
            if value not in (None, usual) or rope.get(entry) not in (None, usual):
                entries[entry] = usual if value is None else value
        if rope.get("attention_factor") is not None:
            entries["attention_factor"] = 1 + 0.1 * math.log(entries["factor"])
    return file.name("rope.scaling.factor"), entries


def _refuse_other_formula(file: _File, kind: str, scaled: bool) -> None:
    """Raise `UnreadSettingError` where the formula of a scaling is another than transformers'."""
    key = "rope.scaling.yarn_ext_factor"
    usual = (None, -1, 1) if kind == "yarn" and scaled else (None, -1, 0)
    if file.number(key) not in usual:
        raise file.unread(key)
    key = "rope.scaling.attn_factor"
    if file.architecture != "phi3" and file.number(key) not in (None, 0, 1):
        raise file.unread(key)


def _llama3(
    file: _File,
    text: Any,
    rope: dict[str, Any],
    table: list[float],
    long: list[float] | None,
    short: list[float] | None,
) -> dict[str, Any]:
    """The entries of the scaling `llama3` whose table a file has. It is found by trying, since a
    file has the table and not what it was made from. Raises `UnreadSettingError` for any other.
    """
    unread = UnreadSettingError(
        TABLE, f"{TABLE}, a table of angles that isn't one of Llama 3.1, 3.2 or 3.3"
    )
    base = file.number("rope.freq_base")
    if long is not None or short is not None or "mrope_section" in rope:
        raise unread
    candidates = [{"rope_type": "llama3", "factor": factor, **LLAMA3} for factor in LLAMA3_FACTORS]
    if rope.get("rope_type") == "llama3":
        own = {entry: rope[entry] for entry in candidates[0]}
        candidates.insert(0, own)
    for entries in candidates:
        expected = _llama3_table(entries, base or BASE, _head_size(text))
        # Tables are made in float32, where the factor 32 enlarges what is rounded.
        if len(expected) == len(table) and np.allclose(table, expected, rtol=1e-4, atol=0):
            return entries
    raise unread


def _llama3_table(entries: Mapping[str, Any], base: float, size: int) -> np.ndarray:
    """By what `llama3` divides each frequency: 1 where a turn is short, the factor where it is
    long, and between the two, as the share of them says.
    """
    frequencies = base ** -(np.arange(0, size, 2) / size)
    turns = entries["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low = entries["low_freq_factor"]
    high = entries["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - share) / entries["factor"] + share)


def _long_rope(
    file: _File,
    text: Any,
    rope: dict[str, Any],
    long: list[float] | None,
    short: list[float] | None,
) -> dict[str, Any]:
    """The entries of the scaling of Phi-3, which has a table for long texts and one for short
    ones. Raises `UnreadSettingError` where the file has less than that.
    """
    original = file.number("rope.scaling.original_context_length")
    share = file.number("rope.dimension_count")
    size = share or _head_size(text)
    unread = UnreadSettingError(
        LONG_TABLE, f"{LONG_TABLE} or {SHORT_TABLE} for angles of no known kind"
    )
    if file.architecture != "phi3" or not original:
        raise unread
    tables: list[list[float]] = []
    for table in (long, short):
        whole = [1.0] * int(size // 2) if table is None else table
        if len(whole) != size // 2:
            raise unread
        tables.append(whole)
    return {
        "rope_type": "longrope",
        "long_factor": tables[0],
        "short_factor": tables[1],
        "original_max_position_embeddings": original,
        "attention_factor": float(file.number("rope.scaling.attn_factor") or 1),
    }


def _same(held: Any, stated: Any) -> bool:
    """Whether two values are equal, up to what float32 can't say."""
    if isinstance(held, list) and isinstance(stated, list):
        if len(held) != len(stated):
            return False
        return all(_same(one, other) for one, other in zip(held, stated, strict=True))
    if isinstance(held, int | float) and isinstance(stated, int | float):
        return math.isclose(held, stated, rel_tol=1e-6)
    return bool(held == stated)
