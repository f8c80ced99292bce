"""The loop over the matrices of a model: the edit that comes of what a method that knows tensors
alone is shown of each.
"""

from collections.abc import Iterator, Mapping

from calibrant.edits import Edit, Replace
from calibrant.edits.shared_scales import sharing_scales
from calibrant.errors import SpecError
from calibrant.job import Job
from calibrant.methods import MatrixMethod, Method
from calibrant.methods._arrivals import arrivals
from calibrant.methods._model_method import ModelMethod, check_matrices, failing_at
from calibrant.models import ModelView
from calibrant.system.clock import spent_on
from calibrant.system.products import full_speed
from calibrant.targets import Target


def edits_of(method: Method, job: Job) -> Iterator[Edit]:
    """Yield the edits of a method of either kind; each is applied before the next is asked for.

    Errors name the method and the matrix.
    """
    if isinstance(method, ModelMethod):
        yield from method.edits(job)
        return
    method = _matrix_method(method)
    block: int | None = None
    targets: Mapping[str, Target] = {}
    for weight, seen in arrivals(method, job):
        if weight.block != block:
            # Before its first matrix is rounded: scales are those of the numbers as they were.
            block = weight.block
            targets = sharing_scales(job.view.blocks[block].weights, job.targets)
        with failing_at(method, weight.name), spent_on("method"), full_speed():
            compressed = method.compress(weight.get(), seen, targets[weight.name])
        yield Replace(weight, compressed, method.judged_by(seen))
        # Grams are large: this one is freed before that of the next matrix is gathered.
        del compressed, seen


def check_model(
    method: Method, view: ModelView, target: Target, targets: Mapping[str, Target]
) -> None:
    """Raise `TargetError`, before anything is touched, if a method can't be used with this model,
    or with the `targets` of its matrices, by name.
    """
    if isinstance(method, ModelMethod):
        method.check_model(view, target, targets)
    else:
        _matrix_method(method)
        check_matrices(view, targets)


def _matrix_method(method: Method) -> MatrixMethod:
    if not isinstance(method, MatrixMethod):
        problem = f"{method} is neither a MatrixMethod nor a ModelMethod"
        raise SpecError(f"{problem}; let its class inherit one of them", subject=str(method))
    return method
