"""Every selector with every kind of source, format and method, of which none knows the other."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from calibrant.compress import prune
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import Context, Picking, Selector, resolved, selectors
from calibrant.models import Opened, open_model
from calibrant.testing import tiny_folder

from tests.usual import usually

LENGTH, TOKENS, CANDIDATES = 24, 72, 8
PLACES = [
    "python_docs",
    "arithmetic:icl",
    "'mine.jsonl'@one",
    "'0.4*mine.jsonl + 0.6*arithmetic:cot'@crop",
]
"""What is picked from, with the format and packing that stand outside."""

MORE = {"similar": "to='arithmetic:question'", "cluster": "k=3", "cola": "k=4"}
"""What a selector can't do without, or has too much of for a few candidates."""

MAKERS = {
    "answers": "answers(source='sums.jsonl', candidates=8, max_tokens=24, batch=8)",
    "selfgen": "selfgen(prefix=python_docs, candidates=8)",
    "selfcal": "selfcal",
}
"""Selectors that pick from nothing, and have more to say than a name."""
LONGER = {"answers": 80}
"""Windows that hold a whole conversation of bytes."""


def expressions(name: str) -> list[str]:
    """How a selector is asked for in each place."""
    if not issubclass(selectors.get(name), Picking):
        return [MAKERS.get(name, name)]
    asked: list[str] = []
    for place in PLACES:
        end = place.rindex("'") + 1 if place.startswith("'") else len(place.partition(":")[0])
        more = "".join(f", {given}" for given in [MORE.get(name)] if given)
        asked.append(f"{name}(source={place[:end]}, candidates={CANDIDATES}{more}){place[end:]}")
    return asked


EXPRESSIONS = [text for name in selectors.names() for text in expressions(name)]
USUAL = [*expressions("longest"), *(expressions(name)[0] for name in selectors.names())]
"""One in every place, and each in one."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's file and a tiny model."""
    folder = tmp_path_factory.mktemp("selectors")
    lines = [
        json.dumps({"text": f"On day {i} the {word} went {i * i} miles and saw {word}s."})
        for i in range(30)
        for word in ("cat", "Ship")
    ]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    sums = [json.dumps({"question": f"{i}+{i}?", "answer": str(2 * i)}) for i in range(60)]
    (folder / "sums.jsonl").write_text("\n".join(sums))
    tiny_folder(folder / "model")
    # A random model would hardly ever end what it writes.
    settings = folder / "model" / "generation_config.json"
    ends = {"eos_token_id": list(range(2, 259, 12))}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | ends))
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("CALIBRANT_CACHE", str(place / "cache"))


@cache
def model(folder: str) -> Opened:
    return open_model(folder, "float32", "cpu")


def length_of(text: str) -> int:
    return max([LENGTH, *(length for name, length in LONGER.items() if f"{name}(" in text)])


def tokens(text: str, seed: int = 0) -> TokenBatch:
    opened = model(str(Path.cwd() / "model"))
    asked = CalibrationSet(text, tokens=TOKENS, length=length_of(text), seed=seed)
    return resolved(asked, opened).tokens(opened.tokenizer)


@pytest.mark.parametrize("text", usually(EXPRESSIONS, USUAL))
def test_the_same_call_gives_the_same_set_and_another_draw_another(text: str) -> None:
    asked, batch = CalibrationSet(text), tokens(text)
    assert CalibrationSet(str(asked)) == asked
    assert tokens(str(asked)).fingerprint == batch.fingerprint
    assert tokens(text, seed=1).fingerprint != batch.fingerprint
    assert int(batch.mask.sum()) == TOKENS
    (part,) = batch.facts["parts"]
    selector = asked.parts[0].source
    assert isinstance(selector, Selector)
    assert selectors.build(str(selector)) == selector
    assert hash(selectors.build(str(selector))) == hash(selector)
    assert part["data"].startswith(str(selector))
    assert part["note"], "nothing is told about how it went"


@pytest.mark.parametrize(
    ("text", "method"),
    [
        *((EXPRESSIONS[0], method) for method in ("magnitude", "sparsegpt")),
        *(
            pytest.param(
                expressions(name)[0], "wanda", marks=() if name == "longest" else pytest.mark.slow
            )
            for name in selectors.names()
        ),
    ],
)
def test_it_serves_every_method(text: str, method: str) -> None:
    record = prune(
        "model",
        data=text,
        method=method,
        target=0.5,
        tokens=TOKENS,
        length=length_of(text),
        dtype="float32",
        device="cpu",
    ).record
    assert all(weight["zeros"] > 0 for weight in record.weights)
    if method == "magnitude":
        assert (record.run.data, record.run.tokens) == ("", "")
        return
    assert record.run.data == str(CalibrationSet(text))
    assert record.run.tokens == tokens(text).fingerprint
    assert (
        record.data_facts["parts"][0]["origin"]
        == f"chosen by {CalibrationSet(text).parts[0].source}"
    )


@pytest.mark.parametrize("name", usually(selectors.names(), ("longest", "selfcal")))
def test_beside_other_data_it_gets_its_share(name: str) -> None:
    text = f"0.25*{expressions(name)[0]} + 0.75*python_docs"
    parts = tokens(text).facts["parts"]
    assert [part["tokens"] for part in parts] == [TOKENS // 4, 3 * TOKENS // 4]
    assert CalibrationSet(str(CalibrationSet(text))) == CalibrationSet(text)
    mixed = tokens(f"mix(a={expressions(name)[0]}, b=python_docs, weight=0.25)")
    assert [part["tokens"] for part in mixed.facts["mix"]] == [TOKENS, TOKENS]


@pytest.mark.parametrize(
    "name",
    usually(
        [name for name in selectors.names() if issubclass(selectors.get(name), Picking)],
        ("cluster", "similar"),
    ),
)
def test_selectors_pick_from_what_selectors_chose(name: str) -> None:
    inner = "longest(source='mine.jsonl', candidates=12)"
    outer = expressions(name)[0].replace("source=python_docs", f"source={inner}")
    opened = model(str(Path.cwd() / "model"))
    given = Context(opened.tokenizer, opened, 0, TOKENS, LENGTH)
    first, second = (
        CalibrationSet(text).parts[0].source.select(given).rows for text in (inner, outer)
    )  # type: ignore[attr-defined]
    assert sorted(row.key for row in second) == sorted(row.key for row in first[:CANDIDATES])
    assert tokens(outer).facts["tokens"] == TOKENS


def test_each_is_a_frozen_dataclass_called_what_its_file_is_called() -> None:
    for name in selectors.names():
        selector: Any = CalibrationSet(expressions(name)[0]).parts[0].source
        assert selector.spec_name() == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            selector.candidates = 3
        assert isinstance(selector.needs_model, bool)
        assert selector.disjoint() is None or selector.disjoint() >= 1
        assert selector.licence
        assert selector.fields
