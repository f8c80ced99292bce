"""The model's own answers as vLLM writes them: a pretended one in a process of its own, and the
real one where `make vllm` has made its environment.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from calibrant.data.select.answers import Answers
from calibrant.errors import DataError, MissingPackageError, SpecError
from calibrant.evaluators import evaluate
from calibrant.models import Opened
from calibrant.spec import canonical
from calibrant.testing import tiny_folder, tiny_model
from calibrant.vllm import OpenInVllm, VllmSampling
from calibrant.vllm.process import TOOLS

from tests.select.test_answers import (
    LONG,
    RIGHT,
    SHORT,
    WRONG,
    Script,
    chatting,
    given,
    kept_answers,
    script,
    sums,
)
from tests.vllm_processes import PRETENDED, needs_real_vllm, processes

__all__ = ["script", "sums"]

IN_VLLM = replace(SHORT, engine="vllm")


@pytest.fixture
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended vLLM, as if it were installed beside calibrant."""
    monkeypatch.syspath_prepend(PRETENDED)


pretended = pytest.mark.usefixtures("_vllm")


def drafts(
    selector: Answers, model: Opened, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> list[list[Any]]:
    """All that is written with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    # What random numbers say is hardly ever usable.
    with suppress(DataError):
        selector.select(given(model, tokens=200))
    return kept_answers(cache)


class Scripted:
    """Stands for a model in vLLM: writes texts that are given, one after the other, round and
    round; one that ends with an ellipsis is cut.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.tokenizer = chatting().tokenizer
        self.asked: list[VllmSampling] = []
        self.written = 0

    def continued(
        self, prompts: Sequence[Sequence[int]], most: int, sampling: VllmSampling
    ) -> list[list[int]]:
        self.asked.append(sampling)
        return [self._next() for _ in prompts]

    def _next(self) -> list[int]:
        text = self.texts[self.written % len(self.texts)]
        self.written += 1
        ids = self.tokenizer(text.removesuffix("…"), add_special_tokens=False)["input_ids"]
        if text.endswith("…"):
            return ids
        return [*ids, self.tokenizer.eos_token_id]


def scripted(monkeypatch: pytest.MonkeyPatch, *texts: str, engine: str = "vLLM 1") -> Scripted:
    """Have vLLM write the texts that are given."""
    stand_in = Scripted(texts)

    def opened(model: Opened) -> OpenInVllm:
        in_vllm = object.__new__(OpenInVllm)
        vars(in_vllm).update(engine=engine, run=lambda least_room: stand_in, _stack=ExitStack())
        return in_vllm

    monkeypatch.setattr("calibrant.data.select.answers.OpenInVllm", opened)
    return stand_in


def without_ends() -> Opened:
    """The model whose letters end no answer, so that the scripted texts are whole."""
    model = chatting()
    model = replace(model, model=tiny_model("llama", vocab_size=len(model.tokenizer)))
    return replace(model, hashed="sha256:without ends")


def test_both_engines_count_and_leave_out_alike(
    script: Script, sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (RIGHT, " \n", "ha " * 30, "I think that…", WRONG, LONG)
    script(*texts)
    stand_in = scripted(monkeypatch, *texts)
    asked = Answers(source=sums, n=6, batch=12, candidates=4)
    for keep in ("all", "right", "shortest"):
        ours = replace(asked, keep=keep).select(given(without_ends(), tokens=100))
        theirs = replace(asked, keep=keep, engine="vllm").select(given(without_ends(), tokens=100))
        assert theirs.rows == ours.rows
        assert theirs.note.replace(" in vLLM 1", "") == ours.note != theirs.note
        assert "unfinished" in theirs.note
    seeds = [seed for sampling in stand_in.asked for seed in sampling.seeds]
    assert len(set(seeds)) == len(seeds)
    assert {sampling.temperature for sampling in stand_in.asked} == {0.7}
    ends = without_ends().tokenizer.eos_token_id
    assert all(ends in sampling.ends for sampling in stand_in.asked)
    assert {sampling.vocabulary for sampling in stand_in.asked} == {None}


def test_answers_are_asked_for_once_of_each_version(
    sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scripted(monkeypatch, RIGHT)
    asked = Answers(source=sums, candidates=12, batch=6, engine="vllm")
    found = asked.select(given(without_ends(), tokens=200))
    assert first.asked
    again = scripted(monkeypatch, WRONG)
    assert asked.select(given(without_ends(), tokens=200)) == found
    assert again.asked == []
    newer = scripted(monkeypatch, LONG, engine="vLLM 2")
    assert asked.select(given(without_ends(), tokens=200)) != found
    assert newer.asked[0].seeds != first.asked[0].seeds


def test_only_tokens_that_have_a_text_are_drawn(sums: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = scripted(monkeypatch, RIGHT)
    known = len(chatting().tokenizer)
    larger = replace(without_ends(), model=tiny_model("llama", vocab_size=known + 7))
    asked = Answers(source=sums, temperature=0.0, candidates=12, engine="vllm")
    asked.select(given(larger, tokens=200))
    assert {sampling.vocabulary for sampling in stand_in.asked} == {known}
    assert {sampling.temperature for sampling in stand_in.asked} == {0.0}


@pretended
def test_without_chance_vllm_writes_what_torch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(SHORT, temperature=0.0)
    ours = drafts(asked, chatting(), tmp_path / "torch", monkeypatch)
    asked = replace(asked, engine="vllm")
    assert drafts(asked, chatting(), tmp_path / "vllm", monkeypatch) == ours
    assert {cut for _, cut in ours} == {True, False}


@pretended
def test_the_same_draw_has_the_same_answers_and_nothing_stays(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = IN_VLLM.select(given(tokens=400))
    assert processes() == []
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "elsewhere"))
    assert IN_VLLM.select(given(tokens=400)) == found
    written = [str(ids) for ids, _ in kept_answers(own_cache / "elsewhere")]
    assert len(set(written)) == len(written) > 2


def test_the_engine_is_no_part_of_what_torch_writes() -> None:
    assert "engine" not in canonical(SHORT)
    assert canonical(IN_VLLM) == {**canonical(SHORT), "engine": "vllm"}
    with pytest.raises(SpecError, match="perhaps you mean 'vllm'") as caught:
        Answers(engine="vlm")
    assert caught.value.subject == "vlm"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_that_is_not_there_is_missed_as_by_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOOLS, str(tmp_path))
    with pytest.raises(MissingPackageError, match="not installed") as caught:
        IN_VLLM.select(given())
    with pytest.raises(MissingPackageError) as expected:
        evaluate(str(tiny_folder(tmp_path / "model")), tasks="loss", engine="vllm")
    assert str(caught.value) == str(expected.value)


@pytest.mark.slow
@needs_real_vllm
def test_the_real_one_writes_what_torch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chatting()
    # On a processor it has no kernel for narrower heads. This one's vocabulary is too large.
    larger = tiny_model("llama", head_dim=32, vocab_size=600, initializer_range=0.5)
    larger.generation_config.eos_token_id = model.model.generation_config.eos_token_id
    model = replace(model, model=larger, hashed="sha256:larger")
    asked = replace(SHORT, temperature=0.0)
    ours = drafts(asked, model, tmp_path / "torch", monkeypatch)
    asked = replace(asked, engine="vllm")
    assert drafts(asked, model, tmp_path / "vllm", monkeypatch) == ours
    assert {cut for _, cut in ours} == {True, False}
    drawn = replace(asked, temperature=1.0, n=2)
    once = drafts(drawn, model, tmp_path / "once", monkeypatch)
    assert drafts(drawn, model, tmp_path / "twice", monkeypatch) == once
    assert len({str(ids) for ids, _ in once}) == len(once)
    assert max(token for ids, _ in once for token in ids) < len(model.tokenizer)
