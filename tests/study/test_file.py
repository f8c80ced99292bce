"""The study file: what its YAML means, what is said of one that is wrong, and that those of the
project's own studies can be run as they stand.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrant.errors import StudyError
from calibrant.lab.study import Study, read_study
from calibrant.lab.study.file import DEEPEST, LARGEST, MOST

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef")
)
"""Little text that stands for a million things."""
HALF = DEEPEST // 2 + 1
TOWER = "".join(
    f"{name}: &{name} {'[' * HALF}{inside}{']' * HALF}\n"
    for name, inside in (("a", "x"), ("b", "*a"))
)
"""Lists whose depth comes from what they repeat."""
SMALL = "model: smollm2\ndata: random_tokens\n"


@pytest.fixture
def read(tmp_path: Path):
    """Read a text as a study file."""

    def reading(text: str | bytes) -> Study:
        path = tmp_path / "study.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_study(path)

    return reading


def said(read: Any, text: str | bytes) -> list[tuple[int, str, str]]:
    with pytest.raises(StudyError) as caught:
        read(text)
    return [(p.line, p.where, p.message) for p in caught.value.problems]


def test_the_file_of_the_design(read: Any):
    study = read("""
model: smollm2                       # or a list
data: [c4, "gsm8k:icl", gsm8k:cot, "0.5*c4 + 0.5*gsm8k:cot", random_tokens]
method: [wanda, sparsegpt, magnitude]
target: [0.5, 0.6, 2:4]
samples: 128
length: 2048
seeds: [0, 1, 2]
evaluate:
  - "loss(source='wikitext', tokens=65536)"
  - "task(name='commonsense_qa', shots=5, limit=500)"
baseline: c4
""")
    assert (study.models, study.targets, study.seeds, study.baseline) == (
        ("smollm2",),
        (0.5, 0.6, "2:4"),
        (0, 1, 2),
        "c4",
    )
    assert len(study.requests()) == 1 + 3 + 3 * 5 * 2 * 3
    assert [str(q.recipe.target) for q in study.requests()[1:4]] == ["0.5", "0.6", "2:4"]


def test_what_is_empty_and_usually_is_not_reads_back_so(read: Any):
    study = Study(
        models="smollm2",
        methods=(),
        evaluate=(),
        data="full_stops",
        groups={"only": {"method": "wanda"}},
    )
    again = read(study.as_yaml())
    assert (again, again.evaluators()) == (study, {})
    assert read("model: smollm2\ndata: full_stops\nevaluate:\n").evaluate == ()


def test_targets_may_be_called_by_the_plural(read: Any):
    text = """
model: smollm2
data: [random_tokens, full_stops]
method: [wanda, magnitude]
KEY: [0.5, 2:4]
evaluate: ["loss(source='python_docs', tokens=10)"]
groups: {all: {}, more: {KEY: 0.7}}
exclude: [{method: magnitude, KEY: 2:4}]
primary: [{compare: random_tokens, with: full_stops, KEY: 0.5}]
"""
    first, *others = [read(text.replace("KEY", key)) for key in ("target", "targets")]
    for other in others:
        assert (other.labels(), other.for_reading(), other.requests()) == (
            first.labels(),
            first.for_reading(),
            first.requests(),
        )
        assert read(other.as_yaml()) == other
    assert said(read, text.replace("KEY", "target").replace("0.7", "w4g64"))[0][:2] == (
        7,
        "groups.more",
    )
    assert said(read, f"{SMALL}target: 0.5\ntargets: 0.6")[0][:2] == (4, "targets")
    (old,) = said(read, f"{SMALL}sparsity: 0.5")
    assert old[:2] == (3, "sparsity")
    assert "called target" in old[2]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0o17", 15),
        ("0x1f", 31),
        ("017", 17),
        ("+3", 3),
        ("!!int 3", None),
        ("'3'", None),
        ("3.0", None),
    ],
)
def test_whole_numbers(read: Any, written: str, meant: int | None):
    if meant is None:
        assert said(read, f"{SMALL}samples: {written}")[0][:2] == (3, "samples")
    else:
        assert read(f"{SMALL}samples: {written}").samples == meant


def test_truths_and_what_other_yamls_take_for_something_else(read: Any):
    for word, meant in {"true": True, "False": False, "TRUE": True}.items():
        assert read(f"{SMALL}masks: {word}").masks is meant
    for word in ("no", "yes", "on", "y", "NO", "1_000", "1:2", "2001-01-01", "0b1", "<<", "="):
        ((line, where, message),) = said(read, f"{SMALL}masks: {word}")
        assert (line, where) == (3, "masks")
        assert repr(word) in message, "it is text"


def test_every_mistake_is_told_at_once_with_its_line(read: Any):
    found = said(
        read,
        """model: smollm2
data:
  - python_docs
  - gsm9k
  - gsm8k:cott
method: [wanda, wnada]
target: 50
sed: [0]
evaluate: [loss(source=wikitext, tokens=10)]
groups:
  a: {seeds: -1}
""",
    )
    assert [(line, where) for line, where, _ in found] == [
        (4, "data[1]"),
        (5, "data[2]"),
        (6, "method[1]"),
        (7, "target"),
        (8, "sed"),
        (9, "evaluate[0]"),
        (9, "evaluate[1]"),
        (11, "groups.a.seeds"),
    ]
    for (_, _, message), guess in zip(
        found, ("'gsm8k'", "'cot'", "'wanda'", "0.5", "'seed'"), strict=False
    ):
        assert guess in message


@pytest.mark.parametrize(
    ("text", "line", "given"),
    [
        ("model: smollm2\nmodel: gpt2\ndata: c4", 2, "'model'"),
        ("model: !!python/object:os.system x\ndata: c4", 1, "os.system"),
        ("model: &a [*a]\ndata: c4", 1, "*a"),
        ("model: *b\ndata: c4", 1, "&b"),
        ("model: smollm2\n---\ndata: c4", 2, "document"),
        ("%YAML 1.1\n---\nmodel: smollm2", 2, "1.1"),
        ("model: smollm2\n? [a, b]\n: c4", 2, "key"),
        ("model: smollm2\ndata: [c4", 2, "','"),
        ("model: smollm2\ndata: c4: x", 2, "quotes"),
        ("model: smollm2\ndata: \x01", 2, "'\\x01'"),
        (b"model: smollm2\ndata: \xff", 2, "0xff"),
        ("", 0, "nothing"),
        ("just words", 1, "'just words'"),
        ("a: " + "[" * (DEEPEST + 2), 1, "lists"),
        ("x" * (LARGEST + 1), 0, "256 KiB"),
        (BOMB, 5, f"{MOST:,}"),
        (TOWER, 2, "lists"),
    ],
)
def test_what_is_no_study_file(read: Any, text: str | bytes, line: int, given: str):
    assert any(
        found_line == line and given in found for found_line, _, found in said(read, text)
    ), said(read, text)


@pytest.mark.parametrize("name", ["gone.yaml", ".", "pipe.yaml"])
def test_files_that_cant_be_read(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(StudyError) as caught:
        read_study(tmp_path / name)
    assert caught.value.subject == str(tmp_path / name)


def test_a_part_that_is_repeated_stands_where_it_is_used(read: Any):
    study = read(
        "model: smollm2\ndata: &sets [random_tokens, full_stops]\npools: {controls: *sets}\n"
    )
    assert study.pools == {"controls": ("random_tokens", "full_stops")}
    assert said(
        read, "model: smollm2\ndata: &sets [random_tokens, fullstops]\npools:\n  controls: *sets\n"
    )[-1][:2] == (4, "pools.controls[1]")


@pytest.mark.parametrize(
    "text",
    [
        "model: [smollm2]\ndata: [random_tokens]",
        "models: smollm2\ndata: random_tokens\n",
        "\ufeffmodel: smollm2\r\ndata: random_tokens\r\n",
    ],
)
def test_plurals_a_byte_order_mark_and_windows_line_ends_are_understood(read: Any, text: str):
    assert read(text) == Study("smollm2", "random_tokens")


names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs", "Cn", "Co", "Cf"]),
    min_size=1,
    max_size=8,
)
SETS = [
    "random_tokens",
    "full_stops",
    "python_docs@crop",
    "arithmetic:icl",
    "0.5*python_docs + 0.5*arithmetic",
]
AXES = {"seeds": st.just((0, 3)), "propagate": st.just("reference"), "method": st.just("wanda")}


@st.composite
def studies(draw: st.DrawFn) -> dict[str, Any]:
    data = draw(st.lists(st.sampled_from(SETS), min_size=2, max_size=4, unique=True))
    sparsities = draw(
        st.lists(
            st.sampled_from([0.5, 0.6, "2:4", "0.7", 1e-05]), min_size=1, max_size=3, unique=True
        )
    )
    exclude = [{"data": data[0], "target": (sparsities[0],)}] if len(sparsities) > 1 else []
    primary: list[dict[str, Any]] = [
        {"compare": data[0], "with": data[1], "on": "loss(source='arithmetic')"}
    ]
    return {
        "models": draw(
            st.lists(
                st.text(min_size=1, max_size=12).filter(str.strip),
                min_size=1,
                max_size=2,
                unique=True,
            )
        ),
        "data": data,
        "targets": sparsities,
        "methods": draw(
            st.sampled_from([("wanda",), ("wanda", "sparsegpt(damp=0.02)", "magnitude")])
        ),
        "evaluate": ["loss(source='arithmetic')", "loss(source='python_docs', tokens=10)"],
        "tokens": draw(st.none() | st.integers(1, 9000)),
        "baseline": draw(st.none() | st.sampled_from(data)),
        "groups": draw(
            st.dictionaries(names, st.fixed_dictionaries({}, optional=AXES), max_size=2)
        ),
        "pools": draw(st.sampled_from([{}, {"my pöol \U0001f600": tuple(data[:2])}])),
        "primary": draw(st.sampled_from([[], primary])),
        "exclude": draw(st.sampled_from([[], exclude])),
        "statistics_gb": draw(st.floats(0, 1e6)),
        "masks": draw(st.booleans()),
        "quotes": draw(st.booleans()),
    }


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(studies())
def test_what_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any]
):
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    study = Study(**asked)
    path.write_bytes(study.as_yaml().encode("utf-8", "surrogatepass"))
    again = read_study(path)
    assert again == study
    assert again.labels() == study.labels()
    assert again.for_reading() == study.for_reading()


STUDIES = Path(__file__).parents[2] / "studies"
OURS = [path for path in STUDIES.rglob("*.yaml") if path.name != "study.yaml"]
FILES = sorted(path.relative_to(STUDIES).as_posix() for path in OURS)


@pytest.mark.parametrize("name", FILES)
def test_every_study_of_our_own_is_read_without_a_mistake(name: str) -> None:
    assert read_study(STUDIES / name).requests()
