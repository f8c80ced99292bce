"""The texts most like those of a target: data like my task."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from calibrant.data import PerDraw
from calibrant.data.select._base import Context, Picking, parsed_terms, rendered_rows
from calibrant.data.select._embedding import ENCODER, check_embedding, embedded
from calibrant.errors import DataError, SpecError


@dataclass(frozen=True, repr=False)
class Similar(Picking):
    """The candidates most like the texts of `to`, an expression such as `gsm8k:cot` or a user's
    file: by cosine to the mean of their embeddings.

    `embed` is `tfidf` (words, no model), `model` (the untouched model's mean-pooled last hidden
    states, less the mean of all candidates: they all point much the same way) or `sentence`. Of the
    target are read as many rows as there are candidates, the first of its calibrate part, the same
    for every draw; its measured part is never looked at. Of equals, the candidate that comes first.
    `SpecError` for an unknown embedding or a target that is a control or a selector, `DataError`
    for one without texts.

    Among the choices that ZipCal compares (arXiv 2603.16105) one is called most-similar, within one
    source; what it does isn't known to us, and this is ours.
    """

    after = "ZipCal's comparison; ours"
    source: str
    to: str
    candidates: int = 1000
    embed: str = "tfidf"
    encoder: str = ENCODER

    def __post_init__(self) -> None:
        super().__post_init__()
        check_embedding(self, self.embed)
        for term in parsed_terms(self.to):
            if isinstance(term.source, PerDraw):
                noun = "selector"
            elif term.source.kind == "control":
                noun = "control"
            else:
                continue
            raise SpecError(
                f"similar(to={self.to!r}): {term.source} is a {noun}; name the source or the file "
                "that the task is like",
                subject=self.to,
            )

    @property
    def needs_model(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # here it depends on the embedding
        """Only where the model embeds."""
        return self.embed == "model"

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        targets = self._target(context)
        # Together, because the rarity of words is that among all texts.
        points = embedded(self, [*texts, *targets], self.embed, self.encoder, context)
        likeness = _cosines(points[: len(texts)], points[len(texts) :], self.embed == "model")
        order = np.argsort(-likeness, kind="stable").tolist()
        note = f"compared with {len(targets)} texts of {self.to}"
        if order:
            note += f"; cosine {likeness.max():.3f} to {likeness.min():.3f}"
        return order, note

    def beside(self, context: Context) -> Sequence[str]:
        return self._target(context)

    def _target(self, context: Context) -> list[str]:
        texts: list[str] = []
        for term in parsed_terms(self.to):
            count = max(1, round(term.share * self.candidates))
            rows = filter(term.format.takes, term.source.rows("calibrate"))
            rendered = rendered_rows(islice(rows, count), term.format, context.tokenizer)
            texts += [text for _, text in rendered.rows]
        if not any(text.strip() for text in texts):
            raise DataError(
                f"{self}: the calibrate part of {self.to!r} has no text to be like; name another "
                "target",
                subject=self.to,
            )
        return texts


def _cosines(points: Any, targets: Any, centred: bool) -> np.ndarray:
    """Return the cosine of each point to the mean of the targets; 0 where one of them has no
    direction. With `centred`, both are taken from the mean of all points.
    """
    tiny = float(np.finfo(np.float64).tiny)  # keeps what has no length from being divided by zero
    middle = np.asarray(targets.mean(axis=0)).ravel()
    if centred and len(points):
        origin = points.mean(axis=0)
        middle = middle - origin
        points = points - origin
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), tiny)
    return np.asarray(points @ middle).ravel() / max(float(np.linalg.norm(middle)), tiny)
