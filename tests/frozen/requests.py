"""Ids of requests written by hand: what the committed stores have none of, such as a measurement on
a user's own file."""

from collections.abc import Iterator
from typing import Any, Final

from calibrant.results import Run, measurement_id
from calibrant.spec import Call, identity

FORM: Final = {"spec": "wanda", "revision": 1}
PLAIN: Final = Run(
    model="sha256:m",
    model_name="any",
    data="c4",
    tokens="sha256:t",
    method=FORM,
    target="0.5",
    allocation={"spec": "uniform", "revision": 1},
    propagate="arrival",
    dtype="float32",
)
ROTATE: Final = {"spec": "rotate", "revision": 1, "seed": 0, "heads": True}
VALUES: Final[dict[str, Any]] = {
    "nothing": None,
    "a word": "calibrant",
    "signs": "ü “quoted”, \\ and \n",
    "numbers": [0, -1, 1.0, 0.1, 1e-9, 1e22, True],
    "order": {"b": 1, "a": [2, {"d": 3, "c": 4}]},
    "a name": Call("wanda", {"x": 1}),
}


def ids() -> Iterator[tuple[str, Any]]:
    """Yield the id of each request, and the identity of each value."""
    yield "run", PLAIN.id
    yield "run on no data", _run(data="", tokens="", propagate="")
    yield "run with other labels", _run(model_name="other", data="pile", seed=3)
    yield "run with transforms", _run(transforms=(ROTATE,))
    yield "run with starved experts", _run(starved="routed")
    yield "run in bfloat16", _run(dtype="bfloat16")
    yield "measurement", measurement_id(PLAIN.id, FORM)
    yield "measurement on a file", measurement_id(PLAIN.id, FORM, "sha256:d")
    for name, value in VALUES.items():
        yield f"identity of {name}", identity(value)


def _run(**others: Any) -> str:
    return Run(**{**vars(PLAIN), **others}).id
