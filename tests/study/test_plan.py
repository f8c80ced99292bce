"""The plan: counts by hand, what the store has, what can't be known, and that nothing is written
or asked of the internet.
"""

import importlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import datasets
import huggingface_hub.constants
import pytest
import torch

from calibrant.activations import BlockChange, FeatureNorms, Gram
from calibrant.data import CalibrationSet, Part, Row, Source
from calibrant.data.hub import offline
from calibrant.decoding import Decoder
from calibrant.errors import DataError, ModelError, OutputError
from calibrant.evaluators._base import Subject
from calibrant.evaluators.agreement import Agreement
from calibrant.evaluators.generation import Generation
from calibrant.lab.study import Study, plan
from calibrant.lab.study.timing import (
    AnswerCosts,
    Supply,
    Timings,
    Unfinished,
    _micro_batch,
    answer_costs,
    duration,
    kinds,
    measure_pieces,
    passes,
    supply_of,
)
from calibrant.methods.pruning.wanda import Wanda
from calibrant.models import located, open_model, view
from calibrant.results import MASK, Store
from calibrant.targets import Target
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_tokenizer

from tests.study.small import kept_files, results

LOSS = "loss(source='python_docs', tokens=200, length=64)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


def asked(model: str, **changes: Any) -> Study:
    given: dict[str, Any] = {
        "models": [model],
        "data": ["python_docs", "random_tokens"],
        "methods": ["wanda", "sparsegpt", "magnitude"],
        "targets": [0.5, "2:4"],
        "seeds": [0, 1],
        "evaluate": [LOSS, "loss(source='python_docs', tokens=100, length=32)"],
        "samples": 4,
        "length": 64,
        "dtype": "float32",
    }
    return Study(**{**given, **changes})


def test_a_study_without_data_lacks_no_tokenizer(model: str, tmp_path: Path):
    found = plan(asked(model, data=(), methods=["magnitude"], evaluate=()), tmp_path / "out")
    assert found.unknown == ()


def test_a_method_that_looks_at_no_data_has_no_propagation_whatever_its_allocation(
    model: str, tmp_path: Path
):
    found = plan(
        asked(model, methods=["magnitude", "wanda"], allocation="owl", targets=[0.5]),
        tmp_path / "out",
        probed=False,
    )
    assert [method for method, *_ in found.methods] == ["wanda"]


def test_a_target_that_looks_at_data_has_the_propagation_of_its_second_walk(
    model: str, tmp_path: Path
):
    found = plan(
        asked(model, methods=["rtn"], targets=["FP8", "W8A8"]), tmp_path / "out", probed=False
    )
    ((method, propagate, why),) = found.methods
    assert (method, propagate) == ("rtn", "dense")
    assert "study" not in why
    assert found.shared["looking"] == 4


def test_counts_without_opening_anything(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.import_module("calibrant.lab.study.plan"), "open_model", None)
    found = plan(asked(model), tmp_path / "out", probed=False)
    runs = 1 + 2 + 2 * 2 * 2 * 2
    assert (
        found.runs.asked,
        found.runs.left,
        found.measurements.asked,
        found.measurements.left,
    ) == (runs, runs, 2 * runs, 2 * runs)
    assert found.shared == {
        "drawn": 4,
        "looking": 16,
        "passes": 4,
        "from_passes": 8,
        "baselines": 3,
    }
    assert [m[:2] for m in found.methods] == [("wanda", "dense"), ("sparsegpt", "arrival")]
    assert (found.seconds, len(found.unknown)) == (None, 1)
    assert list(tmp_path.iterdir()) == []

    study = asked(
        model,
        groups={
            "first": {"method": "wanda", "target": 0.5, "seeds": [0]},
            "later": {"method": "sparsegpt"},
        },
    )
    found = plan(study, tmp_path / "out", probed=False, groups=["first"])
    assert (found.runs.asked, found.draws, found.targets, [m[0] for m in found.methods]) == (
        1 + 2,
        (0,),
        ("0.5",),
        ["wanda"],
    )
    assert plan(study, tmp_path / "out", probed=False).runs.asked == 1 + 2 + 8


def test_a_whole_plan_of_a_model_that_is_here(model: str, tmp_path: Path):
    found = plan(asked(model), tmp_path / "out")
    (told,) = found.models
    assert (told.matrices, told.blocks, told.dtype, told.why) == (21, 3, "float32", "")
    widths = [32, 32, 32, 64]  # of q, k and v; of o; of gate and up; of down
    assert told.inputs == 3 * len(widths)
    assert told.statistics == {"FeatureNorms": 3 * sum(8 * w for w in widths)}
    assert told.statistics_bytes == 4 * told.statistics["FeatureNorms"]
    assert set(told.seconds) == {"open", "tokenize", "forward", "compress", "measure"}
    assert all(seconds > 0 for seconds in told.seconds.values())
    assert found.seconds == pytest.approx(sum(told.seconds.values()))
    assert [(s.data, s.lasts, s.exact) for s in found.supplies] == [
        ("python_docs", True, True),
        ("random_tokens", True, True),
    ]
    assert (found.unknown, found.warnings, list(tmp_path.iterdir())) == ((), (), [])
    assert json.loads(json.dumps(found.to_json()))["runs"] == {"asked": 19, "done": 0, "left": 19}


def test_what_the_store_has_is_not_left_to_do(model: str, tmp_path: Path):
    study = asked(model, methods=["wanda"], data=["random_tokens"], seeds=[0])
    less = replace(study, evaluate=study.evaluate[:1], targets=[0.5])
    less.run(tmp_path / "out")
    before = results(tmp_path / "out")
    found = plan(study, tmp_path / "out", probed=False)
    assert (found.runs.asked, found.runs.done, found.measurements.done) == (3, 2, 2)
    assert plan(less, tmp_path / "out", probed=False).runs.left == 0
    # 128 windows are the usual number, which says nothing beside tokens.
    in_tokens = {"samples": 128, "tokens": 100}
    for changed in ({"samples": 5}, {"length": 32}, in_tokens, {"dtype": "float64"}):
        assert plan(replace(study, **changed), tmp_path / "out", probed=False).runs.done == (
            0 if "dtype" in changed else 1
        ), changed
    assert (
        plan(
            replace(study, methods=["wanda"], propagate="reference"), tmp_path / "out", probed=False
        ).runs.done
        == 1
    )
    assert results(tmp_path / "out") == before
    assert sum(plan(less, tmp_path / "out").models[0].seconds.values()) == 0


def test_what_brings_a_model_back_is_not_compressed_again(model: str, tmp_path: Path):
    study = asked(model, methods=["sparsegpt"], data=["random_tokens"], seeds=[0], targets=[0.5])
    for masks in (True, False):
        folder = tmp_path / str(masks)
        replace(study, evaluate=study.evaluate[:1], masks=masks).run(folder)
        found = plan(study, folder)
        assert found.measurements.left == 2
        assert (found.models[0].seconds["forward"] == 0) is masks


def test_a_file_that_was_deleted_brings_no_model_back(model: str, tmp_path: Path):
    study = asked(model, methods=["wanda"], data=["random_tokens"], seeds=[0], targets=[0.5])
    replace(study, evaluate=study.evaluate[:1]).run(tmp_path)
    assert plan(study, tmp_path).models[0].seconds["forward"] == 0
    (mask,) = kept_files(tmp_path, MASK).values()
    mask.unlink()
    assert plan(study, tmp_path).models[0].seconds["forward"] > 0


def test_what_another_propagation_took_the_place_of_is_done(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(model, methods=["sparsegpt"], data=["random_tokens"], seeds=[0], targets=[0.5])
    monkeypatch.setattr("calibrant.lab.study.loaded.room", lambda _: 0)
    finished = study.run(tmp_path)
    with Store(tmp_path, create=False) as store:
        record = store.record(finished.cells[-1].run)
    assert record is not None
    assert (record.run.propagate, finished.cells[-1].propagate) == ("reference", "arrival")
    found = plan(study, tmp_path, probed=False)
    assert (found.runs.left, found.measurements.left) == (0, 0)


def test_what_is_stale_is_left_to_do(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = asked(model, methods=["wanda"], data=["random_tokens"], seeds=[0], targets=[0.5])
    study.run(tmp_path)
    assert plan(study, tmp_path, probed=False).runs.left == 0
    with monkeypatch.context() as patch:
        patch.setattr(Wanda, "revision", Wanda.revision + 1)
        assert plan(study, tmp_path, probed=False).runs.left == 1
    monkeypatch.setattr(Target, "revised", 1)
    assert plan(study, tmp_path, probed=False).runs.left == 2


def test_statistics_that_are_gathered_together_are_told_one_by_one(model: str, tmp_path: Path):
    study = asked(model, methods=["wanda"], allocation="least_error", data=["random_tokens"])
    (told,) = plan(study, tmp_path).models
    assert told.statistics.keys() == {"FeatureNorms", "Gram"}


def test_results_of_a_device_that_this_machine_lacks_do_not_end_a_plan(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(model, methods=["wanda"], data=["random_tokens"], seeds=[0], targets=[0.5])
    study.run(tmp_path)

    def lacking(*_: Any) -> Any:
        raise ModelError("there is no such device here")

    module = importlib.import_module("calibrant.lab.study.plan")  # whose name a function has
    monkeypatch.setattr(module, "resolve_dtype", lacking)
    assert plan(study, tmp_path, probed=False).runs.left == 2


def test_a_folder_that_isnt_ours(model: str, tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OutputError) as raised:
        plan(asked(model), tmp_path, probed=False)
    assert raised.value.subject == str(tmp_path)


def test_what_cant_be_known_here(model: str, tmp_path: Path):
    found = plan(
        asked(model, models=["nobody/nothing"], data=["c4", "random_tokens"], seeds=[0]),
        tmp_path / "out",
    )
    assert found.seconds is None
    assert "'nobody/nothing'" in found.unknown[0]


def test_sets_that_dont_last_and_targets_that_dont_fit_are_warned_of(model: str, tmp_path: Path):
    rows = [{"text": f"{i} the cat sat on the mat and saw that it was flat"} for i in range(40)]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = str(tmp_path / "few.jsonl")
    found = plan(
        asked(
            model,
            data=[few],
            targets=[0.5, "3:5"],
            methods=["wanda"],
            seeds=[0, 5],
            evaluate=[LOSS],
        ),
        tmp_path / "out",
    )
    assert any("few.jsonl" in warning and "6" in warning for warning in found.warnings)
    assert any(
        "wanda 3:5: model.layers.0.self_attn.q_proj" in warning for warning in found.warnings
    )
    much = plan(
        asked(model, data=[few], samples=400, methods=["wanda"], seeds=[0, 5], evaluate=[LOSS]),
        tmp_path / "out",
    )
    assert any("few.jsonl" in warning for warning in much.warnings)


# The pieces


@pytest.mark.parametrize(
    "expression",
    ["0.7*python_docs + 0.3*arithmetic:icl", pytest.param("python_docs", marks=pytest.mark.slow)],
)
def test_how_long_a_set_lasts_is_told_from_some_of_its_rows(expression: str):
    tokenizer = tiny_tokenizer()
    whole = CalibrationSet(expression, samples=96, length=128)
    exact, told = (
        supply_of(whole, 9, tokenizer, exact=True),
        supply_of(whole, 9, tokenizer, exact=False),
    )
    assert exact.held == whole.disjoint_draws(tokenizer, 9)
    assert told.held is not None
    assert min(told.held, 9) == pytest.approx(exact.held, rel=0.35)
    assert told.tokens == pytest.approx(whole.tokens(tokenizer).facts["tokens"], rel=0.1)


@dataclass(frozen=True, repr=False)
class Unending(Source):
    """Rows without end, and how many of them were read."""

    kind = "corpus"
    licence = "CC0-1.0"
    fields = ("text",)
    numbers: ClassVar[list[int]] = []

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        for number in itertools.count():
            self.numbers.append(number)
            yield Row(text=f"{part} {number:06} is followed by {number + 1:06}.")


@pytest.mark.parametrize("exact", [True, False])
def test_a_source_that_isnt_stored_is_read_as_far_as_the_draws_need_it(exact: bool):
    Unending.numbers.clear()
    data = CalibrationSet(Unending(), samples=8, length=64)
    supply = supply_of(data, 12, tiny_tokenizer(), exact)
    assert supply.lasts
    assert supply.held == 12
    # Twelve draws of 512 bytes are 154 texts of 40; they are estimated, and perhaps dealt.
    assert len(Unending.numbers) < 400


def test_controls_have_no_end_and_a_mix_lasts_as_long_as_its_shorter_part():
    tokenizer = tiny_tokenizer()
    assert (
        supply_of(CalibrationSet("full_stops", samples=4, length=32), 9, tokenizer, exact=True).held
        is None
    )
    mixed = supply_of(
        CalibrationSet("mix(a=full_stops, b=python_docs, weight=0.5)", samples=64, length=128),
        20,
        tokenizer,
        exact=True,
    )
    assert (
        mixed.held
        == supply_of(
            CalibrationSet("python_docs", samples=64, length=128), 20, tokenizer, exact=True
        ).held
    )
    assert mixed.tokens == 2 * 64 * 128


def test_a_model_without_a_longest_length_gets_windows_of_the_studys(model: str):
    opened = open_model(model)
    delattr(opened.model.config, "max_position_embeddings")
    batch = _micro_batch(CalibrationSet("random_tokens", length=48), opened)
    assert batch.ids.shape[1] == 48


def test_seconds_add_up_by_hand(model: str):
    study = asked(
        model,
        data=["python_docs", "mix(a=python_docs, b=random_tokens, weight=0.5)"],
        targets=[0.5],
        seeds=[1],
    )
    norms, gram = (FeatureNorms,), (Gram,)
    timed = Timings(
        model, "", "float32", 3, 21, 12, 7.0,
        forward={norms: 0.01, gram: 0.1},
        block={("wanda", "0.5"): 2.0, ("sparsegpt", "0.5"): 30.0, ("magnitude", "0.5"): 1.0},
        measure=dict.fromkeys(study.evaluators(), 5.0),
    )  # fmt: skip
    questions = study.requests()
    assert [str(p) for p in passes(questions)] == ["python_docs", "random_tokens"]
    stock = {"python_docs": Supply("python_docs", 2, None, 100, 3.0)}
    lacking = [Unfinished(q, list(study.evaluators()), False) for q in questions]
    gathered = kinds(questions)
    found = duration(timed, gathered, lacking, stock)
    assert found["open"] == 7.0
    assert found["tokenize"] == pytest.approx(3.0 * 2)  # the draw before is dealt again
    mix = 2 * 4 * 64
    assert found["forward"] == pytest.approx(3 * (0.01 * (100 + 4 * 64) + 0.1 * (100 + mix)))
    assert found["compress"] == pytest.approx(3 * (2 * 2.0 + 2 * 30.0 + 1.0))
    assert found["measure"] == pytest.approx(len(questions) * 2 * 5.0)
    kept = [Unfinished(q, [LOSS], True) for q in questions]
    measured = duration(timed, gathered, kept, stock)
    assert measured["compress"] == 0
    assert measured["measure"] == pytest.approx(len(questions) * 5.0)
    assert set(duration(timed, gathered, [], stock).values()) == {0}


def test_what_is_left_gathers_what_all_requests_share(model: str):
    """One set's requests of the first method are done, so the kinds of what is left come in
    another order, or are fewer.
    """
    study = asked(
        model, methods=["wanda", "sparsegpt"], targets=[0.5], seeds=[0], propagate="dense"
    )
    questions = [request for request in study.requests() if request.calibration is not None]
    gathered = kinds(questions)
    assert gathered == (FeatureNorms, Gram)
    timed = Timings(
        model, "", "float32", 3, 21, 12, 7.0,
        forward={gathered: 0.11, (FeatureNorms,): 0.01, (Gram,): 0.1},
    )  # fmt: skip
    for left, draws in ((questions[1:], 2), (questions[3:], 1)):
        assert kinds(left) != gathered
        unfinished = [Unfinished(request, [], False) for request in left]
        found = duration(timed, gathered, unfinished, {})
        assert found["forward"] == pytest.approx(3 * 0.11 * draws * 4 * 64)


def test_what_allocations_do_first_counts_by_hand(model: str):
    """`least_error` compresses each matrix to seven steps by a method of its own; `evolved` to
    five by the study's, walks once, and tries much.
    """
    study = asked(
        model,
        data=["python_docs"],
        methods=["wanda"],
        targets=[0.5],
        seeds=[0],
        allocation=["uniform", "least_error(method=sparsegpt)", "evolved"],
    )
    norms, gram = (FeatureNorms,), (Gram,)
    timed = Timings(
        model, "", "float32", 3, 21, 12, 7.0,
        forward={norms: 0.01, gram: 0.1, (FeatureNorms, Gram): 0.11, (Gram, FeatureNorms): 0.11},
        block={("wanda", "0.5"): 2.0, ("sparsegpt", "0.5"): 30.0},
        measure=dict.fromkeys(study.evaluators(), 5.0),
    )  # fmt: skip

    def costs(allocation: str) -> dict[str, float]:
        mine = [
            q for q in study.requests() if str(q.recipe.allocation) == allocation and q.calibration
        ]
        assert len(mine) == 1
        return duration(
            timed,
            kinds(mine),
            [Unfinished(q, [], False) for q in mine],
            {"python_docs": Supply("python_docs", 1, None, 100, 3.0)},
        )

    plain, judged, evolved = (
        costs(name) for name in ("uniform", "least_error(method=sparsegpt)", "evolved")
    )
    assert plain["compress"] == pytest.approx(3 * 2.0)
    assert judged["compress"] == pytest.approx(3 * (2.0 + 7 * 30.0))
    assert judged["forward"] > plain["forward"]
    assert evolved["compress"] == pytest.approx(3 * (2.0 + 5 * 2.0))
    assert evolved["forward"] - plain["forward"] == pytest.approx(
        3 * 0.01 * (100 + 16 * 40 * 512 + (2 * 40 + 1) * 2048)
    )


def test_what_an_allocation_judges_by_and_the_walk_of_methods_that_look_at_blocks_are_timed(
    model: str,
):
    one = {"data": ["random_tokens"], "targets": [0.5], "seeds": [0]}
    judging = asked(model, methods=["wanda"], allocation=["least_error(method=sparsegpt)"], **one)
    looking = asked(model, methods=["short_gpt", "greedy(tokens=[32, 64])"], **one)
    requests = [*judging.requests(), *looking.requests()]
    timings = measure_pieces(
        open_model(model, "float32", "cpu"), 0.0, requests, {}, kinds(requests)
    )
    assert timings.block.keys() >= {("wanda", "0.5"), ("sparsegpt", "0.5")}
    assert (Gram,) in timings.forward
    assert timings.forward[(BlockChange,)] > 0
    assert timings.why_not == []


@pytest.mark.parametrize(("once", "seconds", "tried"), [(2, 4.096, 6), (150, 150.256 * 16, 1)])
def test_what_is_known_of_the_dense_model_once_is_not_multiplied_unless_trying_again_is_too_long(
    once: float, seconds: float, tried: int, model: str, monkeypatch: pytest.MonkeyPatch
):
    clock, known, calls = [0.0], set[int](), list[int]()

    class Slow(Agreement):
        def measure(self, subject: Subject) -> Any:
            clock[0] += (0 if self.tokens in known else once) + self.tokens / 1000
            known.add(self.tokens)
            calls.append(self.tokens)

    monkeypatch.setattr(
        "calibrant.system.clock.time", SimpleNamespace(perf_counter=lambda: clock[0])
    )
    pieces = Timings("tiny", "", "float32", 1, 1, 1, 0.0)
    pieces.time_measurement(
        "slow", Slow(source="python_docs", tokens=4096), open_model(model, "float32", "cpu")
    )
    assert pieces.measure == {"slow": pytest.approx(seconds)}
    assert len(calls) == tried


def test_of_answers_that_are_written_together_a_step_is_told_from_what_each_adds_to_it(
    model: str, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]

    class Slow(Decoder):
        def run(self, batch: Any) -> Any:
            read = sum(len(self.prompts[number]) for number in batch)
            clock[0] += 0.01 * read + self.most * (0.1 + 0.02 * len(batch))

    monkeypatch.setattr("calibrant.lab.study.timing.Decoder", Slow)
    monkeypatch.setattr(
        "calibrant.system.clock.time", SimpleNamespace(perf_counter=lambda: clock[0])
    )
    costs = answer_costs(open_model(model, "float32", "cpu"))
    assert costs.step == pytest.approx(0.1)
    assert costs.answer == pytest.approx(0.02)
    # A token is written after what is read, which is counted with it.
    assert costs.read == pytest.approx(0.01, rel=0.1)


def test_a_whole_measurement_has_as_many_batches_as_its_prompts_and_answers_fill(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("calibrant.lab.study.timing.tokens_read", lambda evaluator: 103 * 40)
    costs = AnswerCosts(read=0.01, step=0.1, answer=0.02)
    writing = Generation(name="gsm8k", shots=3, limit=100, max_tokens=200)
    # Each prompt has its exemplars with it: 100 times 160 + 200 tokens are three batches.
    assert costs.of_measurement(writing) == pytest.approx(
        103 * 40 * 0.01 + 3 * 200 * 0.1 + 100 * 200 * 0.02
    )


def test_what_can_not_be_asked_of_a_model_is_said_and_not_timed(model: str):
    opened = open_model(model, "float32", "cpu")
    opened.tokenizer.chat_template = None
    pieces = Timings("tiny", "", "float32", 1, 1, 1, 0.0)
    asked_in_template = Generation(name="arithmetic", limit=100, shots=0, template=True)
    pieces.time_measurement("asked", asked_in_template, opened)
    assert pieces.measure == {}
    assert len(pieces.why_not) == 1
    assert "template" in pieces.why_not[0]


def test_no_try_finds_in_its_journal_what_another_has_scored(
    model: str, monkeypatch: pytest.MonkeyPatch
):
    held: list[bool] = []

    class Noting(Agreement):
        def measure(self, subject: Subject) -> Any:
            held.append("scored" in subject.journal)
            subject.journal.add({"scored": 1})

    pieces = Timings("tiny", "", "float32", 1, 1, 1, 0.0)
    noting = Noting(source="python_docs", tokens=4096)
    pieces.time_measurement("noting", noting, open_model(model, "float32", "cpu"))
    assert len(held) > 2
    assert not any(held)


def test_the_probe_leaves_the_model_as_it_was(model: str):
    opened = open_model(model, "float32", "cpu")
    before = view(opened.model).snapshot()
    study = asked(model)
    found = measure_pieces(
        opened, 1.0, study.requests(), study.evaluators(), kinds(study.requests())
    )
    assert all(
        torch.equal(weight.stored, before[weight.name]) for weight in view(opened.model).weights
    )
    assert found.block.keys() >= {("wanda", "0.5"), ("sparsegpt", "2:4"), ("magnitude", "0.5")}
    assert found.measure.keys() == study.evaluators().keys()


def test_nothing_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    """With sockets closed as here, asking would be another error."""
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    monkeypatch.setattr("calibrant.data.hub._chosen", [])
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with offline(), pytest.raises(DataError, match="'allenai/c4'"):
        CalibrationSet("mc4", samples=1, length=16).tokens(tiny_tokenizer())
    assert (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE) == (
        False,
        False,
    )
    with pytest.raises(ModelError) as raised:
        located("nobody/nothing")
    assert raised.value.subject == "nobody/nothing"
