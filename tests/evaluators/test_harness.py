"""The harness's tasks through our model against the same tasks through its own `hf` model, and
what its results become.
"""

import json
import logging
import math
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import are_progress_bars_disabled
from tokenizers.processors import TemplateProcessing

from calibrant.errors import DataError, ModelError, NumericsError, SpecError
from calibrant.evaluators import Subject
from calibrant.evaluators.harness import NAME, Harness, language_model, main
from calibrant.models import Opened, open_model
from calibrant.models.quiet import quiet
from calibrant.results.outcomes import Journal
from calibrant.testing import tiny_folder, tiny_tokenizer

from tests.databases import forget_last
from tests.refusing import overflowing, refused

with quiet():
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

YAMLS = Path(__file__).parents[2] / "benchmarks" / "harness"
WORDS = [
    "red",
    "green",
    "blue",
    "small",
    "large",
    "quiet",
    "early",
    "late",
    "round",
    "seven",
    "apple",
    "river",
    "stone",
    "paper",
    "window",
    "market",
    "doctor",
    "garden",
]

QUESTIONS = """
task: tiny_choice
training_split: train
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Which {{question}}?\\nAnswer:"
doc_to_target: gold
doc_to_choice: "{{options}}"
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: mcc
metadata: {version: 3.5}
"""
BLANKS = """
task: tiny_blank
output_type: multiple_choice
doc_to_text: "{{gold}}"
doc_to_target: "{{question}} and so on"
doc_to_choice: "{{options}}"
metric_list: [{metric: acc}]
"""
TEXTS = """
task: tiny_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
ANSWERS = """
task: tiny_answer
training_split: train
fewshot_split: train
num_fewshot: 1
output_type: generate_until
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["e", "Q:"], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - name: first_letter
    filter: [{function: regex, regex_pattern: "([a-z])"}, {function: take_first}]
  - name: whole
    filter: [{function: take_first}]
"""
ENDS = """
task: tiny_end
num_fewshot: 0
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{options[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
GROUP = "group: tiny_group\ntask: [tiny_choice, tiny_blank]\n"
GONE = """
task: tiny_gone
output_type: loglikelihood
doc_to_text: a
doc_to_target: b
dataset_path: json
dataset_kwargs: {data_files: {test: HERE/no.jsonl}}
"""
TASKS = {"tiny_choice": 3, "tiny_blank": 0, "tiny_text": 0, "tiny_answer": 1, "tiny_end": 0}


def documents(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "question": f"{' '.join(draw.choices(WORDS, k=4 + i % 5))} ({seed}.{i})",
            "options": [" ".join(draw.choices(WORDS, k=1 + j % 3)) for j in range(3)],
            "gold": i % 3,
            "text": " ".join(draw.choices(WORDS, k=8 + 5 * i)),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_model(
        str(
            tiny_folder(
                tmp_path_factory.mktemp("model") / "llama", "llama", max_position_embeddings=512
            )
        ),
        "float32",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML tasks as a user would write them, over files beside them."""
    here = tmp_path_factory.mktemp("tasks")
    for name, rows in (("train", documents(6, 1)), ("test", documents(9, 2))):
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"dataset_path: json\ntest_split: test\ndataset_kwargs:\n  cache_dir: {here}/cache\n"
    files += f"  data_files: {{train: {here}/train.jsonl, test: {here}/test.jsonl}}\n"
    for text in (QUESTIONS, BLANKS, TEXTS, ANSWERS, ENDS):
        (here / f"{text.split()[1]}.yaml").write_text(files + text)
    (here / "group.yaml").write_text(GROUP)
    (here / "gone.yaml").write_text(GONE.replace("HERE", str(here)))
    return here


def theirs(
    opened: Opened,
    task: str,
    folder: Path,
    shots: int | None,
    limit: int | None,
    batch: int = 2,
    **asked: Any,
) -> dict[str, Any]:
    """The harness's own run of a task with its own model: what its command line does."""
    with quiet(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda *_: None)
        patch.setattr("lm_eval.evaluator.get_git_commit_hash", lambda *_: "")
        model = HFLM(pretrained=opened.model, tokenizer=opened.tokenizer, batch_size=batch, **asked)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        return lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=10,
        )


def check_the_same(
    opened: Opened, task: str, folder: Path, shots: int | None, limit: int | None, within: float
) -> None:
    # Over a long text the harness's float32 softmax is off by 1e-5 a token, always to the same
    # side; ours isn't, and the harness can do better too.
    other = theirs(
        opened,
        task,
        folder,
        shots,
        limit,
        **({"softmax_dtype": "float64"} if task.endswith(("_loss", "_text")) else {}),
    )
    measured = Harness(task=task, num_fewshot=shots, limit=limit, include_path=str(folder)).measure(
        Subject(opened.model, opened.tokenizer)
    )
    results = other["results"][task]
    for score in (measured.score, *measured.beside):
        metric, _, chosen = score.metric.removesuffix(")").partition(" (")
        expected = results[f"{metric},{chosen or 'none'}"]
        assert (
            score.value == pytest.approx(expected, rel=within)
            if "per" in metric
            else score.value == expected
        )
        stderr = results[f"{metric}_stderr,{chosen or 'none'}"]
        if isinstance(stderr, float) and not isinstance(score.stderr, type(None)):
            assert score.stderr == pytest.approx(stderr)
    samples = [
        s for s in other["samples"][task] if s["filter"] == other["samples"][task][0]["filter"]
    ]
    assert [o.facts["document"] for o in measured.outcomes] == [s["doc_id"] for s in samples]
    assert [o.item for o in measured.outcomes] == [s["doc_hash"] for s in samples]
    assert sum(o.value for o in measured.outcomes) / sum(
        o.weight for o in measured.outcomes
    ) == pytest.approx(measured.score.value)
    if "nats" in measured.outcomes[0].facts:
        for outcome, sample in zip(measured.outcomes, samples, strict=True):
            assert outcome.facts["nats"] == pytest.approx(
                [-float(nats) for ((nats, _),) in sample["resps"]], abs=within
            )
    if measured.score.metric == "bits_per_byte":
        assert [-o.value * math.log(2) for o in measured.outcomes] == pytest.approx(
            [s["bits_per_byte"][0] for s in samples], rel=1e-6, abs=within
        )


@pytest.mark.parametrize(("task", "shots"), TASKS.items())
def test_the_same_numbers_as_the_harness_has_from_its_own_model(
    opened: Opened, folder: Path, task: str, shots: int
) -> None:
    check_the_same(opened, task, folder, shots, None, 1e-4)


@pytest.fixture(scope="module")
def smollm2() -> Opened:
    if "CALIBRANT_DATA" not in os.environ:
        pytest.skip("CALIBRANT_DATA names no mirror with real data")
    try:
        return open_model("smollm2", "float32")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "shots", "limit"),
    [
        ("commonsense_qa", 5, 20),
        ("winogrande", 0, 20),
        ("piqa", 2, 10),
        ("gsm8k", 2, 3),
        ("gsm8k_loss", 0, 10),
    ],
)
def test_the_same_numbers_on_real_data(
    smollm2: Opened, tmp_path: Path, task: str, shots: int, limit: int
) -> None:
    text = (
        (YAMLS / f"{task}.yaml")
        .read_text()
        .replace("MIRROR", os.environ["CALIBRANT_DATA"])
        .replace("CACHE", str(tmp_path / "cache"))
    )
    (tmp_path / f"{task}.yaml").write_text(text)
    check_the_same(smollm2, f"mirror_{task}", tmp_path, shots, limit, 1e-3)


def pairs_of_theirs(
    opened: Opened, tokenizer: Any, pairs: list[tuple[str, str]], **asked: Any
) -> list[tuple[list[int], list[int]]]:
    """How the harness's own model splits texts: what it hands to its scoring."""
    caught: list[tuple[list[int], list[int]]] = []
    with quiet(), pytest.MonkeyPatch.context() as patch:
        model = HFLM(pretrained=opened.model, tokenizer=tokenizer, **asked)
        patch.setattr(
            model,
            "_loglikelihood_tokens",
            lambda requests, **_: caught.extend((c, s) for _, c, s in requests),
        )
        model.loglikelihood(
            [Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True
        )
    return caught


def starting_tokenizer() -> Any:
    """The tiny tokenizer, with a start token put before each text, as Llama's does."""
    tokenizer = tiny_tokenizer()
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", start)]
    )
    return tokenizer


@pytest.mark.parametrize("make", [tiny_tokenizer, starting_tokenizer])
@pytest.mark.parametrize(
    "asked", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"prefix_token_id": 65}]
)
def test_texts_are_split_where_the_harness_splits_them(
    opened: Opened, make: Callable[[], Any], asked: dict[str, Any]
) -> None:
    contexts = ["a question:", "spaces behind  ", "a line\n", "<bos>chat<eos>\n", "", "é à"]
    pairs = [
        (context, continuation)
        for context in contexts
        for continuation in (" an answer", "\nœ", "<bos>a")
    ]
    ours = language_model()(opened.model, make(), **asked)
    assert [ours.pair(*pair) for pair in pairs] == pairs_of_theirs(opened, make(), pairs, **asked)


def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(kind, {}, one, at) for at, one in enumerate(arguments)]


@pytest.mark.parametrize("length", [16, 40])
def test_what_is_too_long_loses_its_beginning(opened: Opened, length: int) -> None:
    texts = [f"{' '.join(WORDS[:n])} and" for n in (1, 2, 4, 18)]
    with quiet():
        theirs = HFLM(
            pretrained=opened.model, tokenizer=opened.tokenizer, batch_size=1, max_length=length
        )
    ours = language_model()(opened.model, opened.tokenizer, max_length=length)
    asked = requests("loglikelihood", *((text, " more") for text in texts))
    likely, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [one for one, _ in likely] == pytest.approx([one for one, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in likely] == [greedy for _, greedy in expected]
    rolled = requests("loglikelihood_rolling", *((text,) for text in [*texts, ""]))
    with quiet():
        expected = theirs.loglikelihood_rolling(rolled, disable_tqdm=True)
    assert ours.loglikelihood_rolling(rolled) == pytest.approx(expected, abs=1e-4)
    written = requests(
        "generate_until", *((text, {"until": ["z"], "max_gen_toks": 6}) for text in texts)
    )
    with quiet():
        expected = theirs.generate_until(written, disable_tqdm=True)
    assert ours.generate_until(written) == expected


def test_chats_are_written_as_the_harness_writes_them(opened: Opened) -> None:
    ours = language_model()(opened.model, opened.tokenizer)
    with quiet():
        theirs = HFLM(pretrained=opened.model, tokenizer=opened.tokenizer)
        turns = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "green"}]
        assert (
            ours.apply_chat_template(turns[:1])
            == theirs.apply_chat_template(turns[:1])
            == "user: red?<eos>"
        )
        assert ours.apply_chat_template(turns, False) == theirs.apply_chat_template(turns, False)
        assert ours.chat_template(True) == theirs.chat_template(True)
        assert ours.tokenizer_name == theirs.tokenizer_name
    assert ours.chat_template(False) is None
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif "
        "%}{{ m['content'] }}{% endfor %}"
    )
    other = language_model()(opened.model, tokenizer)
    without_system = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "red?"},
    ]
    assert other.apply_chat_template(without_system) == "red?", (
        "a template that refuses a system goes without"
    )
    tokenizer.chat_template = {"short": "{{ messages[0]['content'] }}"}
    assert other.chat_template("short") == "{{ messages[0]['content'] }}"
    with refused(SpecError, "long"):
        other.chat_template("long")
    tokenizer.chat_template = None
    with refused(SpecError, "default"):
        other.chat_template(True)


def test_what_the_model_cannot_be_asked_is_refused(opened: Opened) -> None:
    short, plain = (
        language_model()(opened.model, opened.tokenizer, max_length=8),
        language_model()(opened.model, opened.tokenizer),
    )
    assert (short.max_length, plain.max_length, plain.max_gen_toks) == (8, 512, 256)
    for continuation in ("", "0123456789"):
        with refused(DataError, "continuation"):
            short.loglikelihood(requests("loglikelihood", ("a", continuation)))
    with refused(DataError, "max_gen_toks"):
        short.generate_until(requests("generate_until", ("a", {"max_gen_toks": 8})))
    for setting, asked in (
        ("do_sample=True", {"do_sample": True}),
        ("temperature=0.7", {"temperature": 0.7}),
        ("num_beams=4", {"num_beams": 4}),
    ):
        with pytest.raises(SpecError, match=setting):
            plain.generate_until(requests("generate_until", ("a", asked)))
    endless = tiny_tokenizer()
    endless.eos_token = None
    with refused(DataError, "eos_token_id"):
        language_model()(opened.model, endless).generate_until(
            requests("generate_until", ("a", {}))
        )
    with refused(SpecError, "tokenizer"):
        language_model()(opened.model)


def measured(opened: Opened, folder: Path, task: str = "tiny_choice", **asked: Any) -> Any:
    return Harness(task=task, include_path=str(folder), **asked).measure(
        Subject(opened.model, opened.tokenizer)
    )


@pytest.mark.smoke
def test_a_measurement_says_what_it_is(opened: Opened, folder: Path) -> None:
    found = measured(opened, folder, num_fewshot=2)
    assert found.score.measured == "tiny_choice, 2-shot (harness)"
    assert found.score.facts["version"] == 3.5
    assert found.score.facts["harness"] == lm_eval.__version__
    assert (found.score.metric, found.score.n, found.score.better) == ("acc", 9, "higher")
    assert found.score.chance == pytest.approx(1 / 3)
    assert {score.metric for score in found.beside} == {"acc_norm", "mcc"}
    assert [o.facts["gold"] for o in found.outcomes] == [0, 1, 2] * 3
    assert all(
        o.value == (int(np.argmin(o.facts["nats"])) == o.facts["gold"]) for o in found.outcomes
    )
    assert not any(word in str(found.outcomes) for word in WORDS), "texts aren't kept"


def test_another_metric_can_be_the_score(opened: Opened, folder: Path) -> None:
    assert measured(opened, folder, metric="acc_norm").score.metric == "acc_norm"
    whole = measured(opened, folder, "tiny_answer", metric="exact_match,whole")
    assert (whole.score.metric, whole.beside[0].metric) == (
        "exact_match (whole)",
        "exact_match (first_letter)",
    )
    for metric in ("acc_nrm", "mcc"):  # one that isn't there, and one that is no mean over items
        with pytest.raises(SpecError, match=metric):
            measured(opened, folder, metric=metric)
    text = measured(opened, folder, "tiny_text")
    assert (text.score.metric, text.score.unit, text.score.better, text.score.chance) == (
        "bits_per_byte",
        "bits/byte",
        "lower",
        None,
    )
    assert [score.metric for score in text.beside] == ["word_perplexity"]


def test_items_are_the_same_for_every_budget_and_a_document_that_stands_twice_is_two(
    opened: Opened, folder: Path, tmp_path: Path
) -> None:
    whole, few = measured(opened, folder), measured(opened, folder, limit=4)
    assert [o.item for o in few.outcomes] == [o.item for o in whole.outcomes][:4]
    assert len({o.item for o in whole.outcomes}) == 9
    row = json.dumps(documents(1, 3)[0])
    (tmp_path / "twice.jsonl").write_text(f"{row}\n{row}\n")
    text = (
        (folder / "tiny_choice.yaml")
        .read_text()
        .replace(f"test: {folder}/test.jsonl", f"test: {tmp_path}/twice.jsonl")
    )
    (tmp_path / "twice.yaml").write_text(text)
    one, two = measured(opened, tmp_path).outcomes
    assert two.item == f"{one.item}-2"
    assert two.value == one.value


def test_what_cannot_be_measured_is_refused_by_name(
    opened: Opened, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused(SpecError, "tiny_end"):  # it is always put without exemplars
        measured(opened, folder, "tiny_end", num_fewshot=2)
    broken = overflowing()
    for task in ("tiny_choice", "tiny_answer"):
        with pytest.raises(NumericsError):
            measured(broken, folder, task)
    text = (
        (folder / "tiny_answer.yaml")
        .read_text()
        .replace("metric: exact_match", "metric: !function odd.odd")
    )
    (tmp_path / "odd.py").write_text(
        "def odd(references, predictions, **_):\n    return float('inf')\n"
    )
    (tmp_path / "odd.yaml").write_text(text)
    with refused(NumericsError, "tiny_answer"):
        measured(opened, tmp_path, "tiny_answer")
    few = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr("calibrant.evaluators.harness._tasks", lambda include_path, defaults: few)
    for error, task in (
        (SpecError, "tiny_chioce"),
        (SpecError, "tiny_group"),
        (DataError, "tiny_gone"),
    ):
        with refused(error, task):
            measured(opened, folder, task)
    for word in ("UNSAFE_CODE", "MULTIMODAL"):
        with monkeypatch.context() as patched, refused(SpecError, "tiny_choice"):
            patched.setattr(f"lm_eval.api.task.ConfigurableTask.{word}", True, raising=False)
            measured(opened, folder)
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    with refused(SpecError, "lm_eval"):
        measured(opened, folder)


def test_what_was_asked_before_a_kill_is_not_asked_again(
    opened: Opened, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        assert what == f"scoring {task}"
        if 0 < done < total:
            raise Killed

    task = Harness(task="tiny_choice", num_fewshot=2, include_path=str(folder))
    monkeypatch.setattr("calibrant.evaluators._language_model.TOKENS_PER_PASS", 64)
    whole = task.measure(Subject(opened.model, opened.tokenizer))
    path = tmp_path / "journal.jsonl"
    with pytest.raises(Killed):
        task.measure(
            Subject(opened.model, opened.tokenizer, progress=kill, journal=Journal(path, "q"))
        )
    known = len(Journal(path, "q"))
    assert 0 < known < 27
    kept = repr(Journal(path, "q").known)
    assert not any(word in kept for word in WORDS)
    counts: list[tuple[int, int]] = []
    again = task.measure(
        Subject(
            opened.model,
            opened.tokenizer,
            progress=lambda what, done, total: counts.append((done, total)),
            journal=Journal(path, "q"),
        )
    )
    assert counts[0][0] > known
    assert counts[-1] == (27, 27)
    assert again == whole
    broken = overflowing()
    assert (
        task.measure(Subject(broken.model, opened.tokenizer, journal=Journal(path, "q"))) == again
    ), "all is known"


def test_generations_are_kept_too(
    opened: Opened, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrant.decoding.TOKENS_PER_BATCH", 300)
    task, path, counts = (
        Harness(task="tiny_answer", include_path=str(folder)),
        tmp_path / "j",
        list[int](),
    )

    def again() -> Any:
        counts.clear()
        return task.measure(
            Subject(
                opened.model,
                opened.tokenizer,
                progress=lambda what, done, total: counts.append(done),
                journal=Journal(path, "q"),
            )
        )

    first = again()
    assert len(counts) > 1
    assert counts[-1] == 9
    forget_last(path, 6)  # a kill after three answers
    assert again() == first
    assert counts[-1] == 9
    assert again() == first
    assert not counts


def test_what_no_calibration_set_may_hold(folder: Path) -> None:
    rows = list(Harness(task="tiny_choice", include_path=str(folder)).rows())
    texts = [row.question or "" for row in rows]
    for document in documents(9, 2):
        assert document["question"] in texts or len(document["question"].split()) < 5
        assert document["text"] in texts
        assert f"Which {document['question']}?\nAnswer:" in texts
    assert all(len(text.split()) >= 5 for text in texts)


def test_the_rest_of_the_process_is_left_as_it_was(
    opened: Opened, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import lm_eval.api.task

    def state() -> list[Any]:
        drawn = np.random.get_state()[1].tolist()  # noqa: NPY002  # what tasks draw from
        return [
            drawn,
            torch.get_rng_state().tolist(),
            lm_eval.api.task.tqdm,
            logging.getLogger("lm_eval").level,
            are_progress_bars_disabled(),
        ]

    logging.getLogger("lm_eval").setLevel(logging.INFO)
    before = state()
    measured(opened, folder)
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_the_harness_s_own_command_line_knows_the_model(
    opened: Opened,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Few(TaskManager):
        """Without the thousands of tasks that take seconds to read."""

        def __init__(self, **asked: Any) -> None:
            super().__init__(**{**asked, "include_defaults": False})

    arguments = [
        "--model",
        NAME,
        "--model_args",
        f"pretrained={opened.name},dtype=float32",
        "--tasks",
        "tiny_blank",
    ]
    monkeypatch.setattr("sys.argv", ["lm_eval", "run", *arguments, "--include_path", str(folder)])
    monkeypatch.setattr("lm_eval.tasks.TaskManager", Few)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda *_: None)
    with quiet():
        main()
    shown = capsys.readouterr().out
    found = measured(opened, folder, "tiny_blank")
    assert "tiny_blank" in shown
    assert f"{found.score.value:.4f}"[:5] in shown
    assert shown.startswith(f"{NAME} (")


def test_its_command_line_ends_with_2_where_the_harness_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "calibrant[harness]" in capsys.readouterr().err
