"""What `prune` and `quantize` return: a compressed model, to be used, saved, pushed and shown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from transformers import PreTrainedModel

from calibrant.compress.costs import FEW_TOKENS, Costs
from calibrant.compress.exporting import forms_of, write_forms
from calibrant.compress.recipe import Recipe
from calibrant.data.inspect.leaks import RowFingerprints
from calibrant.edits import Edit
from calibrant.errors import OutputError
from calibrant.exports import CompressedModel, Export, add_scores
from calibrant.models import (
    Opened,
    check_output,
    check_savable,
    evaluating,
    state_of,
    view,
)
from calibrant.models.origin import State
from calibrant.models.pushing import check_repository, push_folder
from calibrant.numerics import megabytes
from calibrant.results import Record, stored_bits
from calibrant.results.outcomes import Measurement, Score
from calibrant.spec import written_form
from calibrant.spec.foreign import user_path
from calibrant.system.notebook import card, listing
from calibrant.targets import Removal, Share

_HEADS: Final = ("measured", "metric", "dense", "now", "unit", "better")
"""Of the table of scores."""


@dataclass(frozen=True, repr=False)
class Compression:
    """What `prune` and `quantize` return: the `model` in memory with its `tokenizer`, and the
    `record` of what was done to it.

    `out` is the folder where it was saved (None if it wasn't), and `sizes` are bytes of all files
    of each form that was written, tokenizer and all. `recipe`, `rows` and `edits` are what saving
    it later takes. Edits are kept only without `out`: the codes of a quantized model take about a
    byte for each of its weights. `state` tells whether the model was changed since.

    >>> from calibrant import quantize
    >>> from calibrant.testing import tiny_folder
    >>> import tempfile
    >>> done = quantize(str(tiny_folder(tempfile.mkdtemp())), target="w4g16", dtype="float32")
    >>> done.model.num_parameters()
    44448
    >>> sorted(file.name for file in done.save(tempfile.mkdtemp()).iterdir())
    ['README.md', 'calibrant.json', ..., 'model.safetensors', ...]
    """

    opened: Opened
    record: Record
    recipe: Recipe
    rows: RowFingerprints
    out: Path | None = None
    edits: Sequence[Edit] | None = None
    continued_from: int = 0
    already_done: bool = False
    costs: Costs | None = None
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    scores: list[Score] = field(default_factory=list[Score])
    dense_scores: list[Score] = field(default_factory=list[Score])
    state: State = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", state_of(self.opened.model))

    @property
    def model(self) -> PreTrainedModel:
        """The compressed model, as transformers has it."""
        return self.opened.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that belongs to the model."""
        return self.opened.tokenizer

    def save(self, folder: str | Path, exports: str | Export | Sequence[str | Export] = ()) -> Path:
        """Write what the verb writes with `out=`: an ordinary Hugging Face folder, and the forms
        `exports` in it. Return the folder.

        Raises `OutputError` for a folder that can't be written, for an export that can't hold this
        model, and for a model whose numbers were changed since: by an optimizer, say, or by
        `half()`. Changes that are made through a parameter's `.data` aren't noticed. Raises
        `ModelError` for a model whose settings transformers refuses to save.
        """
        place = user_path(folder, OutputError)
        check_output(place)
        forms = forms_of(exports)
        if self.opened.residence.on_disk:
            raise OutputError(
                f"the blocks of this model are on disk, in {self.out}; copy that folder",
                subject=str(self.out),
            )
        if forms[1:] and self.edits is None:
            raise OutputError(
                f"{forms[1]} is made of what compressing leaves behind, and nothing of it was kept "
                f"once the model was in {self.out}; give export= to the verb that writes there, or "
                "leave its out= away",
                subject=str(forms[1]),
            )
        self._check_unchanged()
        with evaluating(self.model):
            model_view = view(self.model, self.opened.residence)
            for form in forms:
                form.check(self.recipe.method, self.recipe.target, self.opened, model_view)
            check_savable(self.opened)
            compressed = CompressedModel(self.opened, model_view, self.record, self.edits or ())
            write_forms(compressed, forms, self.rows, place)
        if self.scores:
            add_scores(place, self.scores)
        return place

    def push(
        self,
        name: str,
        private: bool = True,
        exports: str | Export | Sequence[str | Export] = (),
    ) -> str:
        """Upload the model with its card to the Hugging Face hub, as the repository `name`
        ("user/name"), and return its address.

        The repository is made if it isn't there; `private` says who sees it then. What is uploaded
        is what `save` writes to a folder. Its `calibrant.json` names the model and the data as you
        did: with the paths of your own files. Raises `OutputError` where you aren't logged in, may
        not write there or can't reach the hub, and for a repository that holds another model; this
        very model is uploaded again.
        """
        check_repository(name, self.record.run.id)
        with TemporaryDirectory() as parent:
            folder = self.save(Path(parent) / "model", exports)
            return push_folder(folder, name, private)

    def add_scores(
        self, measured: Sequence[Measurement], dense: Sequence[Measurement] = ()
    ) -> None:
        """Show what `evaluate` measured on this model, in a notebook and in the card of what is
        saved from now on; in the notebook also what was measured on the `dense` model. A score
        that is there already isn't shown twice.
        """
        _add_new(self.scores, measured)
        _add_new(self.dense_scores, dense)

    def _check_unchanged(self) -> None:
        """Raise `OutputError` if the record isn't about the model's numbers any more."""
        state = state_of(self.model)
        if state == self.state:
            return
        names = [*self.state, *state]
        changed = [name for name in names if state.get(name) != self.state.get(name)]
        raise OutputError(
            f"the model was changed after it was compressed ({changed[0]}), so its record is of "
            "another one; save it before, or use model.save_pretrained",
            subject=changed[0],
        )

    @property
    def _is_pruned(self) -> bool:
        return isinstance(self.recipe.target, Removal | Share)

    def __repr__(self) -> str:
        run = self.record.run
        bits = stored_bits(self.record.weights)
        reached = f"{self.record.sparsity:.2%} of the weights of its matrices removed"
        if bits is not None:
            reached = f"{bits:.3f} bits a weight"
        elif not self._is_pruned:
            reached = "no weight of its matrices rounded"
        place = "in memory"
        if self.out is not None:
            place = f"saved in {self.out}"
        how = f"{written_form(run.method)} to {run.target}"
        data = f" on {run.data}" if run.data else ""
        return f"Compression({run.model_name}: {how}{data}; {reached}; {place})"

    def _repr_html_(self) -> str:
        done = "pruned" if self._is_pruned else "quantized"
        count = self.model.num_parameters()
        size = sum(parameter.nbytes for parameter in self.model.parameters())
        facts = {
            "numbers": f"{count:,}, {megabytes(size)} in memory",
            "saved in": self.out,
            "continued from step": self.continued_from or "",
            "few tokens": self.record.provenance.get(FEW_TOKENS),
        }
        for form, form_size in self.sizes.items():
            facts[f"files of {form}"] = megabytes(form_size)
        inside = self.record._repr_html_()
        if self.scores:
            inside += listing(_HEADS, self._lines_of_scores())
        return card(f"{self.record.run.model_name}, {done}", facts, inside=inside)

    def _lines_of_scores(self) -> Iterator[tuple[object, ...]]:
        """Yield a line for each score, with that of the dense model where it was measured."""
        before: dict[tuple[str, str], str] = {}
        for score in self.dense_scores:
            before[score.measured, score.metric] = f"{score.value:.4f}"
        for score in self.scores:
            value = f"{score.value:.4f}"
            dense = before.get((score.measured, score.metric), "")
            yield score.measured, score.metric, dense, value, score.unit, score.better


def _add_new(scores: list[Score], measured: Sequence[Measurement]) -> None:
    """Add the scores of what was measured, but none twice: a cell of a notebook runs again."""
    for measurement in measured:
        for score in (measurement.score, *measurement.beside):
            if score not in scores:
                scores.append(score)
