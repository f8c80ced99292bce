"""What a calibration set holds, before it is used."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from calibrant.data.calibration import CalibrationSet


@dataclass(frozen=True)
class Inspection:
    """Plain data about one set.

    `padding` is the share of positions that hold no real token, `repeated_windows` counts windows equal to an earlier one,
    `disjoint_draws` is how many draws of this size the sources hold, counted up to 64; none means that there is no end.
    Each of `parts` has the facts of its batch (rows, tokens, lengths of its rows in tokens as [least, quarter, half, three quarters, most],
    duplicates and overlapping rows that were left out, licence, digest, …) and `texts`, the beginnings of its first windows.
    """

    data: str
    windows: int
    length: int
    rows: int
    tokens: int
    padding: float
    repeated_windows: int
    overlap: float
    disjoint_draws: int | None
    fingerprint: str
    parts: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """The same as dictionaries and lists, ready for `json.dumps`."""
        return {**asdict(self), "parts": [dict(part) for part in self.parts]}


def inspect(data: CalibrationSet, tokenizer: PreTrainedTokenizerBase, show: int = 2, letters: int = 400) -> Inspection:
    """Draw the set and say what is in it; of each part the first `show` windows are shown, up to `letters` letters each."""
    batch = data.tokens(tokenizer)
    windows: list[tuple[int, ...]] = [tuple(ids[mask].tolist()) for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    parts: list[Mapping[str, Any]] = []
    begin = 0
    for fact in batch.facts["parts"]:
        texts = [str(tokenizer.decode(list(ids)))[:letters] for ids in windows[begin : begin + min(show, fact["windows"])]]
        parts.append({**fact, "texts": texts})
        begin += fact["windows"]
    return Inspection(
        data=str(data),
        windows=len(windows),
        length=data.length,
        rows=sum(part["rows"] for part in parts),
        tokens=batch.facts["tokens"],
        padding=1 - batch.facts["tokens"] / batch.mask.numel(),
        repeated_windows=len(windows) - len({*windows}),
        overlap=batch.facts["overlap"],
        disjoint_draws=data.disjoint_draws(tokenizer),
        fingerprint=batch.fingerprint,
        parts=tuple(parts),
    )
