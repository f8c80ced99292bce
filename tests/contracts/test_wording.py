"""What messages say that a user most likely meets: what was given, what is allowed, what to do.
Elsewhere only class and subject count.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

import calibrant
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet
from calibrant.errors import InputError
from calibrant.lab.study import Study
from calibrant.methods import methods
from calibrant.names import catalogue
from calibrant.results.outcomes import Journal
from calibrant.spec import parse
from calibrant.targets import parse_target

Asked = Callable[[Path], object]
SAID: list[tuple[Asked, str]] = [
    (
        lambda _: catalogue("packngs"),
        "there is nothing called 'packngs' to list, perhaps you mean 'packings'",
    ),
    (
        lambda _: methods.build("wnada"),
        "there is no method called 'wnada', perhaps you mean 'wanda'",
    ),
    (
        lambda _: methods.build("short-gpt"),
        "there is no method called 'short-gpt', perhaps you mean 'short_gpt'",
    ),
    (lambda _: methods.build("0.5"), "'0.5' is no method; write one of "),
    (
        lambda _: methods.build("sparsegpt(dmap=1)"),
        "sparsegpt has no parameter 'dmap', perhaps you mean 'damp'",
    ),
    (lambda _: methods.build("sparsegpt(damp='x')"), "sparsegpt(damp='x'): damp must be float"),
    (
        lambda _: methods.build("sparsegpt(damp=1e999)"),
        "a number in it is infinite; write one that is at most 1e308",
    ),
    (
        lambda _: parse("wanda("),
        "'wanda(' can't be read as a spec; write a name or name(key=value)",
    ),
    (
        lambda _: parse("sparsegpt(0.02)"),
        "'sparsegpt(0.02)': '0.02' stands without its parameter; write name=value, as in "
        "sparsegpt(damp=0.02)",
    ),
    (
        lambda _: parse("sparsegpt(1e-3)"),
        "'1e-3' stands without its parameter; write name=value, as in sparsegpt(damp=0.02)",
    ),
    (
        lambda _: parse("longest(d/prose.txt, seed=1)"),
        "'d/prose.txt' stands without its parameter; write name=value, as in "
        "longest(source='d/prose.txt')",
    ),
    (
        lambda _: parse("longest(/tmp/prose.txt)"),
        "and what has other signs stands in quotes, as in source='my/file.jsonl'",
    ),
    (
        lambda _: parse("f(x=0.5, y=1/50)"),
        "'f(x=0.5, y=1/50)': '1/50' is no literal; a spec may hold ",
    ),
    (lambda _: CalibrationSet("1e-31*c4 + 1*pile"), "the weight 1e-31 has an exponent beyond ±30"),
    (
        lambda _: CalibrationSet("c4", samples=10**15),
        "samples is 1000000000000000; it must be at most 1,000,000,000",
    ),
    (lambda _: parse_target("1e999"), "'1e999' is no target"),
    (
        lambda _: Study("m", "c4", seeds=range(5000), targets=[n / 1000 for n in range(400)]),
        "runs, and 100,000 are the most; take fewer draws",
    ),
    (
        lambda _: Recipe.parse("wanda", 0.5, None, starved="hungry"),
        "starved='hungry' is no way to calibrate experts with few tokens; choose one of ",
    ),
    (
        lambda _: Recipe.parse("wanda", 0.5, None, starved="shared"),
        "only where all of it is there before any is changed; add --propagate dense",
    ),
    (
        lambda _: Recipe.parse("magnitude", 0.5, None, starved="dense"),
        "magnitude calibrates no experts, so none of them is starved",
    ),
    (
        lambda folder: Journal(folder / "file" / "a.sqlite", "q").add({"a": 1}),
        "can't write a.sqlite in ",
    ),
    (
        lambda _: calibrant.prune("smollm2", data="c4", memory=0.0),
        "memory=0 is no room to work in; give GB above 0",
    ),
]


@pytest.mark.parametrize(("ask", "said"), SAID, ids=range(len(SAID)))
def test_it_says_what_was_given_and_what_to_do(ask: Asked, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no")
    with pytest.raises(InputError) as refused:
        ask(tmp_path)
    assert said in str(refused.value)
