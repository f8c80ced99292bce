"""The importance matrix of what a method saw: how large the inputs of each matrix were, as
llama.cpp's quantizers read it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from calibrant.activations import FeatureNorms, InputStatistic, Seen
from calibrant.edits import Replace
from calibrant.errors import OutputError
from calibrant.exports._base import CompressedModel, Export
from calibrant.methods import Method
from calibrant.models import ModelView, Opened, Weight
from calibrant.models.gguf_writing import tensor_names
from calibrant.models.imatrix import Imatrix, importance_of
from calibrant.spec import written_form
from calibrant.targets import Target

FORMS: Final = ("gguf", "dat")


@dataclass(frozen=True, repr=False)
class SeenImatrix(Export):
    """Writes `imatrix.gguf` for llama.cpp, or with `form=dat` `imatrix.dat` for ik_llama.cpp: how
    large the inputs were that the method looked at.

    For all methods that look at the inputs of matrices: `ggml` and `llama_cpp`, but `gptq` or
    `wanda` too. In `arrival` they are those of a model that is compressed up to there, and after a
    transform those of the changed model; the file says so. Those of `awq` are of the matrices that
    its scales went into.
    """

    form: str = "gguf"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise OutputError(
                f"form={self.form!r} is no form of an imatrix; choose one of {', '.join(FORMS)}",
                subject=self.form,
            )

    def check(self, method: Method, target: Target, opened: Opened, view: ModelView) -> None:
        if not any(issubclass(kind, InputStatistic) for kind in method.observes):
            raise OutputError(
                f"{self} holds the sizes of the inputs that a method looked at, and {method} looks "
                f"at none; leave the export {self} out, or make one with calibrant imatrix",
                subject=str(method),
            )
        tensor_names(view)

    def write(self, compressed: CompressedModel, folder: Path) -> None:
        seen: dict[Weight, Seen] = {}
        for edit in compressed.edits:
            if isinstance(edit, Replace) and FeatureNorms in edit.seen:
                seen[edit.weight] = edit.seen
        record = compressed.record
        run = record.run
        windows = int(record.data_facts.get("windows", 0))
        length = int(record.data_facts.get("length", 0))
        # The file says of which text it is; here, also of which state of the model.
        described = [run.data, f"{windows}×{length}", f"draw {run.seed}"]
        if run.propagate != "dense":
            described.append(run.propagate)
        described += map(written_form, run.transforms)
        entries = importance_of(compressed.view, seen, tensor_names(compressed.view))
        imatrix = Imatrix(entries, ("; ".join(described),), windows, length)
        imatrix.write(folder / f"imatrix.{self.form}")
