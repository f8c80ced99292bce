"""What processes say to each other comes back as it was, and bytes of any other kind are refused
without being run.
"""

import io
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from calibrant.activations import BlockChange, FeatureNorms, Statistic
from calibrant.errors import DataError, NumericsError, Problem, StudyError
from calibrant.lab.study.driver import TOKENS as WORKERS
from calibrant.spec.foreign import brief
from calibrant.system.wire import Kind, Language, fields_of, kind_of, raised
from calibrant.walk.ranks import LANGUAGE as RANKS
from calibrant.walk.ranks import RankFailure, RankMessage


@dataclass(frozen=True)
class Point:
    """Something of a closed list."""

    x: float
    near: tuple[Any, ...] = ()


WORDS = Language(
    fields_of(Point),
    Kind("fraction", complex, lambda z: [z.real, z.imag], lambda parts: complex(*parts)),
)
MANY = [
    None,
    True,
    -7,
    10**30,
    "ü \ud800 \0",
    [],
    (),
    (1, [2, (3,)]),
    {1: "one", "two": (2,), (3, 4): {}},
    frozenset({1, "a"}),
    b"",
    b"\x00\xff",
    Path("a/b"),
    Point(0.1, (Point(-0.0),)),
    1 + 2j,
    {"float": "nan", "map": []},
]


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def message(text: str, **tensors: torch.Tensor) -> bytes:
    return save({"text": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8), **tensors})


def test_it_comes_back_as_it_was():
    for value in MANY:
        back = WORDS.unpack(WORDS.pack(value))
        assert (back, type(back)) == (value, type(value))
        assert repr(back) == repr(value), "the types within are the same too"


def test_floats_come_back_to_the_last_bit():
    numbers = [0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    assert list(map(repr, WORDS.unpack(WORDS.pack(numbers)))) == list(map(repr, numbers))


def test_tensors_come_back_to_the_last_bit():
    whole = torch.tensor([[0.1, -0.0, torch.inf], [torch.nan, 5e-324, 1.0]], dtype=torch.float64)
    kinds = [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.bool,
    ]
    given = [whole.nan_to_num(1, 2, -2).to(kind) for kind in kinds] + [
        whole,
        whole.T,
        whole[:, 1],
        torch.zeros(0, 3),
        torch.tensor(2.5),
    ]
    for one, back in zip(given, WORDS.unpack(WORDS.pack(given)), strict=True):
        assert (back.dtype, back.shape) == (one.dtype, one.shape)
        assert (
            back.contiguous().reshape(-1).view(torch.uint8).tolist()
            == one.contiguous().reshape(-1).view(torch.uint8).tolist()
        )


def test_what_is_none_of_it_cant_be_said():
    for value in (object(), {"deep": [print]}, float, Point(object())):  # pyright: ignore[reportArgumentType]
        with pytest.raises(DataError) as refused:
            WORDS.pack(value)
        assert brief(value) in str(refused.value)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DataError):
        WORDS.pack(deep)


@pytest.mark.parametrize("language", [WORDS, WORKERS, RANKS], ids=["words", "workers", "ranks"])
def test_bytes_of_another_kind_are_refused_and_not_run(language: Language, tmp_path: Path):
    mark, saved = tmp_path / "ran", io.BytesIO()
    torch.save(Bomb(mark), saved)
    others = [
        *(pickle.dumps(Bomb(mark), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        saved.getvalue(),
        b"",
        b"\x00" * 64,
        b"{}",
        save({"0": torch.zeros(3)}),
        save({"text": torch.zeros(3)}),
        message("nonsense"),
        message("NaN"),
        message('{"Bomb": {}}'),
        message('{"os.system": ["touch it"]}'),
        message('{"tensor": "4"}'),
        message('{"tensor": []}'),
        message('{"float": "much"}'),
        message('{"map": [[1]]}'),
        message('{"map": [[[], 1]]}'),
        message('{"tuple": 1, "set": 2}'),
        message("{}"),
        message('{"bytes": "0"}', **{"0": torch.zeros(2)}),
        message("[" * 100_000 + "]" * 100_000),
        message("9" * 10_000),
        message('{"Point": {"y": 1}}'),
        message('{"Point": 1}'),
        message('{"statistic": ["calibrant.errors.DataError", {"map": [["message", "x"]]}]}'),
    ]
    for content in others:
        with pytest.raises(DataError) as refused:
            language.unpack(content)
        assert brief(content) in str(refused.value)
    assert not mark.exists()


def test_ranks_say_statistics_of_any_class_that_they_know():
    class Own(Statistic):
        """Of another package."""

        def __init__(self, total: torch.Tensor, tokens: int, mass: float) -> None:
            self.total, self.tokens, self.mass, self._cache = total, tokens, mass, {}

        def __add__(self, other: "Own") -> "Own":
            return Own(self.total + other.total, self.tokens + other.tokens, self.mass + other.mass)

        def __mul__(self, factor: float) -> "Own":
            return Own(self.total * factor, self.tokens, self.mass * factor)

    squares = torch.tensor([0.1, 1e-300], dtype=torch.float64)
    said = RANKS.unpack(
        RANKS.pack(
            RankMessage(
                "a sum",
                {
                    "it": (
                        FeatureNorms(squares, 3, 2.5),
                        BlockChange(0.1, 3, 2.5),
                        Own(squares, 1, 1.0),
                    )
                },
            )
        )
    )
    norms, change, own = said.value["it"]
    assert (type(norms), norms.squares.tolist(), norms.tokens, norms.mass) == (
        FeatureNorms,
        squares.tolist(),
        3,
        2.5,
    )
    assert (type(change), change.total, type(own), own.total.tolist()) == (
        BlockChange,
        0.1,
        Own,
        squares.tolist(),
    )
    failure = RANKS.unpack(
        RANKS.pack(RankMessage("", None, RankFailure.of(NumericsError("NaN", subject="q"))))
    ).failure
    assert repr(failure.error(1)) == repr(NumericsError("NaN")), "a failure keeps its class"
    assert isinstance(RankFailure.of(KeyboardInterrupt()).error(1), KeyboardInterrupt)
    assert "OSError: no room" in str(RankFailure.of(OSError("no room")).error(1))


def test_a_study_with_mistakes_can_be_pickled():
    error = StudyError(
        [Problem(1, "data[2]", "no source"), Problem(0, "", "no model")], subject="a"
    )
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems, again.subject) == (str(error), error.problems, "a")


def test_an_error_is_called_by_the_nearest_class_that_all_know():
    class Odd(NumericsError):
        """Of another package."""

    assert [
        kind_of(e)
        for e in (Odd("x"), StudyError([Problem(1, "", "x")]), KeyError(1), KeyboardInterrupt())
    ] == [
        "NumericsError",
        "InputError",
        "KeyError",
        "KeyboardInterrupt",
    ]
    assert raised("KeyError", "x") is None
    assert raised("SystemExit", "x") is None
