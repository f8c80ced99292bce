"""What workers are sent: the same values arrive, and what says something else is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calibrant.allocations import allocations
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet
from calibrant.errors import DataError, SpecError
from calibrant.evaluators import evaluators
from calibrant.lab.study.request import RunRequest, Workload
from calibrant.lab.study.sending import packed, unpacked
from calibrant.methods import methods
from calibrant.targets import kinds, parse_target
from calibrant.testing import tiny_tokenizer
from calibrant.transforms import transforms

from tests.study.own import Counting, Leading
from tests.study.small import asked

SETS = (
    "c4",
    "0.3*gsm8k:cot + 0.7*wikitext@many(separator=' ')",
    "mix(plain=python_docs, figures=arithmetic:icl, weight=0.25)",
    "mix(one=c4, two=0.5*pile + 0.5*c4, three=gsm8k:cot, weights=[0.2, 0.3, 0.5])",
    "cluster(source='0.5*c4 + 0.5*pile')",
    "Counting(first=7)",
)
METHODS = ("refined(start=wanda)", "greedy(tokens=[48, 96])", "sparsegpt(damp=0.02)", "dsnot")
ALLOCATIONS = ("uniform", "owl(times=2.0)", "least_error(method=sparsegpt)", "evolved")
TARGETS = tuple(kind.example for kind in kinds())


def work(file: str) -> Workload:
    """Everything that can be said in a request, though not all of it could be done."""
    CalibrationSet(Counting())
    methods.learn(Leading)
    texts = [*SETS, f"'{file}'(text='words')"]
    sets = [CalibrationSet(text, samples=3, length=32, seed=2) for text in texts]
    sets += [CalibrationSet(SETS[2], tokens=500, length=64)]
    before = (transforms.build("rotate(seed=3)"), transforms.build("permute"))
    requests = [RunRequest("m", None, Recipe.parse("none", 0.0))]
    for number, calibration in enumerate(sets):
        method = methods.build(METHODS[number % len(METHODS)])
        allocation = allocations.build(ALLOCATIONS[number % len(ALLOCATIONS)])
        for text in TARGETS:
            recipe = Recipe(method, parse_target(text), allocation, "reference", before)
            requests.append(RunRequest("m", calibration, recipe))
    requests.append(RunRequest("other", None, Recipe.parse(Leading(scale=0.5), 0.5)))
    asked_of = ("loss(source='python_docs', tokens=10)", "task(name='commonsense_qa', shots=5)")
    return Workload(
        requests=tuple(requests),
        chosen=frozenset({0, 3}),
        evaluators={text: evaluators.build(text) for text in asked_of},
        dtype="float32",
        digests={asked_of[0]: "sha256:d"},
        masks=False,
        leaked={"c4": {asked_of[0]: 3}},
        limit_gb=0.1,
        reading={"baseline": None, "pools": {"pool": ["c4"]}, "primary": [{"compare": "c4"}]},
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a file.jsonl"
    path.write_text('{"words": "one two"}\n{"words": "three four"}')
    return str(path)


def test_the_same_values_arrive(file: str):
    sent = work(file)
    arrived = unpacked(packed(sent))
    assert arrived == sent
    for before, after in zip(sent.requests, arrived.requests, strict=True):
        assert repr(after) == repr(before)
        assert after.labels == before.labels
        assert arrived.provisional(after) == sent.provisional(before)
    first, second = (len({id(q.calibration) for q in each.requests}) for each in (sent, arrived))
    assert second == first, "a set arrives once, however many runs it is for"


def test_a_mix_that_arrived_gives_the_same_tokens():
    calibration = CalibrationSet(SETS[2], samples=3, length=32)
    request = RunRequest("m", calibration, Recipe.parse("wanda", 0.5))
    (arrived,) = unpacked(packed(Workload((request,), frozenset({0}), {}))).requests
    assert arrived.calibration is not None
    tokenizer = tiny_tokenizer()
    tokens = arrived.calibration.redrawn(1).tokens(tokenizer)
    assert tokens.fingerprint == calibration.redrawn(1).tokens(tokenizer).fingerprint


Harm = Callable[[dict[str, Any]], Any]


def _first_method(sent: dict[str, Any], value: Any) -> None:
    sent["recipes"][0]["method"] = value


HARMS: list[Harm] = [
    lambda sent: sent.pop("sets"),
    lambda sent: sent["settings"].pop("masks"),
    lambda sent: sent["settings"].update(masks="yes"),
    lambda sent: sent["settings"].update(leaked={"c4": 3}),
    lambda sent: sent["requests"].append(["m", 99, 0]),
    lambda sent: sent["requests"].append(["m", -1, 0]),
    lambda sent: sent["requests"].append(["m", None]),
    lambda sent: sent["sets"][0].update(samples="3"),
    lambda sent: sent["sets"][0].pop("parts"),
    lambda sent: sent["sets"][0]["parts"][0].update(share="1/3"),
    lambda sent: sent["sets"][0]["parts"][0].update(share={"fraction": "1/0"}),
    lambda sent: sent["sets"][0].update(
        mixed=[{"class": "calibrant.spec:Call", "fields": {"name": "c4"}}]
    ),
    lambda sent: sent["recipes"][0].update(propagate="sideways"),
    lambda sent: _first_method(sent, sent["recipes"][0]["target"]),
    lambda sent: _first_method(sent, "wanda"),
    lambda sent: _first_method(sent, {"class": "os:getcwd", "fields": {}}),
]


@pytest.mark.parametrize("harm", HARMS, ids=range(len(HARMS)))
def test_what_is_of_another_type_is_refused(harm: Harm, given: dict[str, str]):
    sent = msgspec.msgpack.decode(packed(asked(given).workload()))
    harm(sent)
    with pytest.raises(DataError):
        unpacked(msgspec.msgpack.encode(sent))


def test_bytes_that_are_no_message_are_refused(given: dict[str, str]):
    whole = packed(asked(given).workload())
    for message in (
        b"",
        b"junk",
        whole[:-1],
        whole[1:],
        msgspec.msgpack.encode([1]),
        b"\x91" * 100_000,
    ):
        with pytest.raises(DataError):
            unpacked(message)


def test_a_file_that_fails_while_it_is_imported_is_named(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "failing_while_imported.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    sent = msgspec.msgpack.decode(packed(asked(given).workload()))
    name = "failing_while_imported:Method"
    with pytest.raises(SpecError) as raised:
        unpacked(msgspec.msgpack.encode({**sent, "classes": {"calibrant.methods": [name]}}))
    assert raised.value.subject == name


@pytest.mark.parametrize("name", ["tests.study.own:Gone", "nowhere.own:Leading", "no name"])
def test_a_class_that_is_not_there_is_named(name: str, given: dict[str, str]):
    sent = msgspec.msgpack.decode(packed(asked(given).workload()))
    for harmed in (
        {**sent, "classes": {"calibrant.methods": [name]}},
        {**sent, "recipes": [{**sent["recipes"][0], "method": {"class": name, "fields": {}}}]},
    ):
        with pytest.raises(SpecError) as raised:
            unpacked(msgspec.msgpack.encode(harmed))
        assert raised.value.subject == name
