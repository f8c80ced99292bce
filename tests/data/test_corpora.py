"""Every corpus and instruction set, read from files laid out as on the hub, by `datasets`
itself; and those of the real mirror, counted there.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datasets import config

from calibrant.data import PARTS, FunctionCall, Message, Row, Source, parse_source, sources
from calibrant.errors import DataError
from calibrant.spec import canonical
from calibrant.testing.sources import check_source

from tests.data.written import written

pytestmark = pytest.mark.usefixtures("forgetful")

Record = dict[str, Any]
Publish = Callable[..., Path]
OURS = [
    "c4",
    "pile",
    "oscar",
    "redpajama",
    "fineweb_edu",
    "dolma",
    "slimpajama",
    "wikipedia",
    "flores",
    "xquad",
    "mc4",
    "ultrachat",
    "open_platypus",
    "hermes_tools",
    "s1k",
    "magicoder",
    "aya",
    "coconot",
]
MIRRORED = ["c4", "pile", "redpajama", "dolma", "wikipedia", "flores", "xquad"]


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Let a source find its hub in a folder: data files by their path, configurations as `{name:
    {split: path}}` in its card.
    """

    def publish(
        name: str,
        files: Mapping[str, Sequence[Record]],
        configs: Mapping[str, Mapping[str, str]] | None = None,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / "hub" / name
        module = import_module(f"calibrant.data.sources.{name}")
        hub = module.HUB
        for path, records in files.items():
            written(folder / path, records)
        if configs:
            card = [
                {
                    "config_name": c,
                    "data_files": [{"split": s, "path": p} for s, p in splits.items()],
                }
                for c, splits in configs.items()
            ]
            (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(card)}\n---\n")
        if hub.files and not find_spec("zstandard"):
            # The library can't read these without a package that it doesn't bring; everything else
            # about them is as on the hub.
            for path in [path for path in files if path.endswith(".zst")]:
                written(folder / path.removesuffix(".zst"), files[path])
            changes = {
                "files": {split: path.removesuffix(".zst") for split, path in hub.files.items()},
                **changes,
            }
        monkeypatch.setattr(module, "HUB", replace(hub, id=str(folder), **changes))
        return folder

    return publish


def pages(name: str, count: int, field: str = "text", **others: Any) -> list[Record]:
    return [{field: f"{name} {i}: a page about nothing.\nIt ends.", **others} for i in range(count)]


def texts_of(text: str, *parts: str) -> set[str | None]:
    source = parse_source(text)
    return {row.text for part in parts or PARTS for row in source.rows(part)}


def given(records: Iterable[Record], field: str = "text") -> set[str]:
    return {record[field] for record in records}


def assert_divided(text: str, expected: set[str]) -> None:
    """Everything is there, each text in one part, and the parts are of the sizes that 70, 25 and
    5 % are likely to give.
    """
    rows = {part: [row.text for row in parse_source(text).rows(part)] for part in PARTS}
    assert Counter(text for part in rows.values() for text in part) == Counter(expected)
    calibrate, measure, exemplars = (len(rows[part]) / len(expected) for part in PARTS)
    assert 0.55 < calibrate < 0.85
    assert 0.10 < measure < 0.40
    assert exemplars < 0.20


def assert_trained_and_tested(text: str, train: set[str], test: set[str]) -> None:
    """Test measures; train calibrates but for a few exemplars."""
    assert texts_of(text, "measure") == test
    assert texts_of(text, "calibrate") | texts_of(text, "exemplars") == train
    assert not texts_of(text, "calibrate") & texts_of(text, "exemplars")
    assert len(texts_of(text, "exemplars")) < 0.2 * len(train)


def test_c4_from_the_hub(publish: Publish):
    extra = {"timestamp": "2019-04-25T12:57:54Z", "url": "https://example.com"}
    train, test, other = (
        pages("train", 80, **extra),
        pages("test", 20, **extra),
        pages("other", 5, **extra),
    )
    files = {
        "en/c4-train.00000-of-01024.json.gz": train,
        "en/c4-train.00001-of-01024.json.gz": other,
        "en/c4-validation.00000-of-00008.json.gz": test,
    }
    folder = publish("c4", files, first=60)
    assert_trained_and_tested("c4", given(train[:60]), given(test))
    origin = parse_source("c4").part("measure").origin
    assert origin.startswith(
        f"hub: {folder}@unpinned, en/c4-train.00000-of-01024.json.gz, first 60 records"
    )
    assert origin.endswith("en/c4-validation.00000-of-00008.json.gz, first 20 records")


def test_pile_from_the_hub(publish: Publish):
    train = [
        *pages("code", 40, meta={"pile_set_name": "Github"}),
        *pages("law", 30, meta={"pile_set_name": "FreeLaw"}),
    ]
    test = [
        *pages("other code", 9, meta={"pile_set_name": "Github"}),
        *pages("mail", 6, meta={"pile_set_name": "Enron Emails"}),
    ]
    publish(
        "pile",
        {
            "train/00.jsonl.zst": train,
            "test.jsonl.zst": test,
            "train/01.jsonl.zst": pages("more", 3),
        },
    )
    assert_trained_and_tested("pile", given(train), given(test))
    assert_trained_and_tested("pile(subsets=['Github'])", given(train[:40]), given(test[:9]))
    assert texts_of("pile(subsets=['FreeLaw'])") == given(train[40:])
    assert parse_source("pile(subsets=['FreeLaw'])").part("measure").note
    with pytest.raises(DataError) as caught:
        parse_source("pile(subsets=['ArXiv'])").rows("measure")
    assert caught.value.subject == "pile(subsets=['ArXiv'])"


def test_redpajama_from_the_hub(publish: Publish):
    names = ["arxiv", "book", "c4", "cc_2023-06", "github", "stackexchange", "wikipedia"]
    files = {f"{name}_sample.jsonl": pages(name, 30, meta={"source": name}) for name in names}
    publish("redpajama", files, first=20)
    front = [record for records in files.values() for record in records[:20]]
    assert_divided("redpajama", given(front))
    few = "redpajama(subsets=['github', 'arxiv'])"
    assert texts_of(few) == given(
        [*files["github_sample.jsonl"][:20], *files["arxiv_sample.jsonl"][:20]]
    )


def test_what_c4_measures_is_not_in_redpajama(publish: Publish):
    shared = pages("page", 30, meta={}, timestamp="", url="")
    publish(
        "c4",
        {
            "en/c4-train.00000-of-01024.json.gz": pages("own", 10),
            "en/c4-validation.00000-of-00008.json.gz": shared[:12],
        },
    )
    publish("redpajama", {"c4_sample.jsonl": shared, "github_sample.jsonl": pages("code", 30)})
    source = parse_source("redpajama(subsets=['c4', 'github'])")
    shown = texts_of(str(source), "calibrate", "exemplars")
    assert not shown & given(shared[:12])
    assert source.part("calibrate").overlapping + source.part("exemplars").overlapping == len(
        given(shared[:12]) - texts_of(str(source), "measure")
    )
    assert given(shared[12:]) <= texts_of(str(source))


def test_oscar_from_the_hub(publish: Publish):
    records = pages(
        "oscar",
        60,
        field="content",
        warc_headers={"warc-target-uri": "https://example.com"},
        metadata={"quality_warnings": None},
    )
    publish(
        "oscar",
        {
            "en_meta/en_meta_part_1.jsonl.zst": records,
            "en_meta/en_meta_part_2.jsonl.zst": pages("more", 3, field="content"),
        },
    )
    assert_divided("oscar", given(records, "content"))


def test_fineweb_edu_from_the_hub(publish: Publish):
    records = pages(
        "lesson",
        60,
        id="<urn:uuid:1>",
        dump="CC-MAIN-2024-10",
        url="https://example.com",
        score=3.1,
        int_score=3,
        token_count=9,
    )
    files = {
        "sample/10BT/000_00000.parquet": records,
        "sample/100BT/000_00000.parquet": pages("other", 3),
    }
    publish(
        "fineweb_edu",
        files,
        {"sample-10BT": {"train": "sample/10BT/*"}, "sample-100BT": {"train": "sample/100BT/*"}},
        first=50,
    )
    assert_divided("fineweb_edu", given(records[:50]))


def test_dolma_from_the_hub(publish: Publish):
    records = pages("page", 60, id="1", source="common-crawl")
    blank = [{**records[0], "text": text} for text in ("", " \n")]
    publish("dolma", {"data/train-00000-of-00001.parquet": [*records, *blank]})
    assert_divided("dolma", given(records))


def test_slimpajama_from_the_hub(publish: Publish):
    train, test = (
        pages(name, 40, meta={"redpajama_set_name": "RedPajamaC4"}) for name in ("train", "test")
    )
    files = {
        "train/chunk1/example_train_0.jsonl.zst": train,
        "validation/chunk1/example_holdout_0.jsonl.zst": test,
    }
    publish("slimpajama", {**files, "train/chunk1/example_train_1.jsonl.zst": pages("more", 3)})
    assert_trained_and_tested("slimpajama", given(train), given(test))


def test_wikipedia_from_the_hub(publish: Publish):
    english, german = (
        pages(name, 60, id="12", url="https://example.com", title="Anarchism")
        for name in ("English", "Deutsch")
    )
    files = {
        "20231101.en/train-00000-of-00041.parquet": english,
        "20231101.de/train-00000-of-00020.parquet": german,
    }
    publish(
        "wikipedia",
        files,
        {f"20231101.{code}": {"train": f"20231101.{code}/train-*"} for code in ("en", "de")},
    )
    assert_divided("wikipedia", given(english))
    assert_divided("wikipedia(language=de)", given(german))


def test_mc4_from_the_hub(publish: Publish):
    extra = {"timestamp": "2019-04-25T12:57:54Z", "url": "https://example.com"}
    data = {
        (code, split): pages(f"{code} {split}", 40, **extra)
        for code in ("de", "zh", "en")
        for split in ("", "-validation")
    }
    files = {
        f"multilingual/c4-{code}{split}.tfrecord-00000-of-00001.json.gz": records
        for (code, split), records in data.items()
    }
    configs = {
        {"en": "en-multi"}.get(code, code): {
            "train": f"multilingual/c4-{code}.*.json.gz",
            "validation": f"multilingual/c4-{code}-validation.*.json.gz",
        }
        for code in ("de", "zh", "en")
    }
    publish("mc4", files, configs, first=30)
    for code in ("de", "zh", "en"):
        assert_trained_and_tested(
            f"mc4(language={code})",
            given(data[code, ""][:30]),
            given(data[code, "-validation"][:30]),
        )
    assert str(parse_source("mc4(language=de)")) == "mc4"


def sentences(*passages: tuple[str, list[str]]) -> list[Record]:
    return [
        {
            "id": 1,
            "text": text,
            "url": f"https://en.wikinews.org/{page}",
            "domain": "wikinews",
            "topic": "x",
        }
        for page, ts in passages
        for text in ts
    ]


@pytest.mark.parametrize(
    ("asked", "code", "space"),
    [("en", "eng_Latn", " "), ("zho_Hans", "cmn_Hans", ""), ("nld_Latn", "nld_Latn", " ")],
)
def test_flores_from_the_hub(publish: Publish, asked: str, code: str, space: str):
    dev = sentences(("a", ["One.", "Two. "]), ("b", ["Three."]), ("a", ["Four."]))
    devtest = sentences(("c", ["Five.", "Six.", "Seven."]))
    publish(
        "flores",
        {f"dev/{code}.parquet": dev, f"devtest/{code}.parquet": devtest},
        {code: {s: f"{s}/{code}.parquet" for s in ("dev", "devtest")}},
    )
    source = f"flores(language={asked})"
    assert texts_of(source, "calibrate", "exemplars") == {f"One.{space}Two.", "Three.", "Four."}
    assert texts_of(source, "measure") == {f"Five.{space}Six.{space}Seven."}
    assert parse_source(source).part("measure").note == ""


def test_xquad_from_the_hub(publish: Publish):
    def questions(language: str) -> list[Record]:
        """Twelve articles of five paragraphs, each with two questions."""
        answer = {"text": ["x"], "answer_start": [0]}
        return [
            {"id": "1", "context": f"{language} {n}", "question": f"{n}?", "answers": answer}
            for n in range(60)
            for _ in range(2)
        ]

    files = {
        f"xquad.{code}/validation-00000-of-00001.parquet": questions(code) for code in ("de", "zh")
    }
    publish(
        "xquad",
        files,
        {f"xquad.{code}": {"validation": f"xquad.{code}/validation-*"} for code in ("de", "zh")},
    )
    numbers = {}
    for code in ("de", "zh"):
        source = parse_source(f"xquad(language={code})")
        numbers[code] = {
            part: {int(str(row.text).split()[1]) for row in source.rows(part)} for part in PARTS
        }
        assert sorted(n for part in numbers[code].values() for n in part) == list(range(60))
        assert {str(row.text).split()[0] for row in source.rows("measure")} == {code}
    assert numbers["de"] == numbers["zh"]
    assert all(len({n // 5 for n in part}) * 5 == len(part) for part in numbers["de"].values())


def conversation(*contents: str, system: str = "") -> Record:
    turns = [
        {"content": c, "role": "user" if i % 2 == 0 else "assistant"}
        for i, c in enumerate(contents)
    ]
    return {
        "prompt": contents[0],
        "prompt_id": "1",
        "messages": [*([{"content": system, "role": "system"}] if system else []), *turns],
    }


def test_ultrachat_from_the_hub(publish: Publish):
    train = [
        *(conversation(f"Question {i}?", f"Answer {i}.", "And now?", "No.") for i in range(40)),
        conversation("Nobody answers?"),
    ]
    test = [
        conversation(" Who? ", "You.", system="Be short."),
        conversation("", "I speak first."),
        conversation("Question 3?", "Again."),
    ]
    split = "data/{}_sft-00000-of-00001.parquet"
    publish(
        "ultrachat",
        {
            split.format("train"): train,
            split.format("test"): test,
            "data/train_gen-00000-of-00001.parquet": train[:1],
        },
    )
    source = parse_source("ultrachat")
    measured = {row.question: row for row in source.rows("measure")}
    assert measured == {
        "Who?": Row(
            question="Who?",
            answer="You.",
            turns=(
                Message("system", "Be short."),
                Message("user", "Who?"),
                Message("assistant", "You."),
            ),
        ),
        "Question 3?": Row(
            question="Question 3?",
            answer="Again.",
            turns=(Message("user", "Question 3?"), Message("assistant", "Again.")),
        ),
    }
    shown = [row for part in ("calibrate", "exemplars") for row in source.rows(part)]
    assert {row.question for row in shown} == {f"Question {i}?" for i in range(40) if i != 3}
    assert {len(row.turns) for row in shown} == {4}
    assert shown[0].turns[2:] == (Message("user", "And now?"), Message("assistant", "No."))
    assert source.default == "chat"


def test_open_platypus_from_the_hub(publish: Publish):
    records = [
        {
            "input": "",
            "output": f"It is {i}. ",
            "instruction": f" What is {i}?",
            "data_source": "MATH",
        }
        for i in range(60)
    ]
    records += [
        {"input": "a, b\n", "output": "b", "instruction": "Which is last?", "data_source": "x"},
        {"input": "", "output": " ", "instruction": "Unanswered?", "data_source": "x"},
        {
            "input": None,
            "output": "Nothing.",
            "instruction": "What is missing?",
            "data_source": "x",
        },
    ]
    publish("open_platypus", {"data/train-00000-of-00001.parquet": records})
    source = parse_source("open_platypus")
    found = {row.question: row.answer for part in PARTS for row in source.rows(part)}
    assert found == {
        **{f"What is {i}?": f"It is {i}." for i in range(60)},
        "Which is last?\na, b": "b",
        "What is missing?": "Nothing.",
    }
    assert (source.default, source.shown) == ("chat", False)


def rows_of(source: Source) -> dict[str | None, Row]:
    return {row.question: row for part in PARTS for row in source.rows(part)}


def clock(number: int, call: str, functions: str) -> Record:
    """A record of Hermes' function calling."""
    return {
        "id": f"{number}",
        "conversations": [
            {"from": "system", "value": f"You call functions.\n<tools>\n{functions}\n</tools>\n"},
            {"from": "human", "value": f"What time is it in town {number}?"},
            {"from": "gpt", "value": f"<tool_call>\n{call}\n</tool_call>\n"},
            {"from": "tool", "value": '<tool_response>\n{"hour": 7}\n</tool_response>\n'},
            {"from": "gpt", "value": "It is seven.\n"},
        ],
        "category": "Time",
        "subcategory": "Clocks",
        "task": "Ask",
    }


def test_hermes_tools_from_the_hub(publish: Publish):
    function = {"name": "clock", "description": "The hour.", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": function}
    call = {"arguments": {"town": "Jena", "exact": True}, "name": "clock"}
    records = [
        clock(0, str(call), str([tool])),
        clock(1, json.dumps(call), json.dumps([tool])),
        clock(2, "clock(town='Jena')", str([tool])),
        clock(3, str(call), "clock: tells the hour"),
    ]
    records += [clock(number, str(call), str([tool])) for number in range(4, 44)]
    files = {"func-calling.json": records, "json-mode.json": records[:1]}
    publish(
        "hermes_tools",
        files,
        configs={
            "json_mode": {"train": "json-mode.json"},
            "func_calling": {"train": "func-calling.json"},
        },
    )
    source = parse_source("hermes_tools")
    found = rows_of(source)
    assert len(found) == 42
    assert "2 records of" in source.part("measure").note
    for number in (0, 1):
        row = found[f"What time is it in town {number}?"]
        assert [json.loads(text) for text in row.tools] == [tool]
        assert [turn.role for turn in row.turns] == ["user", "assistant", "tool", "assistant"]
        (called,) = row.turns[1].calls
        assert called.name == "clock"
        assert json.loads(called.arguments) == call["arguments"]
        assert row.turns[1].content is None
        assert row.turns[2].content == '{"hour": 7}'
        assert json.loads(row.answer or "") == [{"name": "clock", "arguments": call["arguments"]}]
    assert isinstance(found["What time is it in town 0?"].turns[1].calls[0], FunctionCall)


def test_s1k_from_the_hub(publish: Publish):
    records = [
        {
            "question": f"What is {number} and 1? ",
            "solution": f"{number + 1}",
            "deepseek_thinking_trajectory": f"One more than {number}.\n",
            "deepseek_attempt": f"\\boxed{{{number + 1}}}",
        }
        for number in range(40)
    ]
    records.append({**records[0], "question": "Why?", "deepseek_thinking_trajectory": " "})
    publish("s1k", {"data/train-00000-of-00001.parquet": records})
    source = parse_source("s1k")
    found = rows_of(source)
    assert found.keys() == {f"What is {number} and 1?" for number in range(40)}
    assert found["What is 3 and 1?"].turns == (
        Message("user", "What is 3 and 1?"),
        Message("assistant", "\\boxed{4}", reasoning="One more than 3."),
    )
    assert "1 record of" in source.part("measure").note


def test_magicoder_from_the_hub(publish: Publish):
    records = [
        {"instruction": f"Write {number}. ", "response": f"print({number})"} for number in range(60)
    ]
    publish("magicoder", {"data-evol_instruct-decontaminated.jsonl": records}, first=40)
    source = parse_source("magicoder")
    found = {question: row.answer for question, row in rows_of(source).items()}
    assert found == {f"Write {number}.": f"print({number})" for number in range(40)}
    assert source.part("measure").origin.endswith("first 40 records")


def test_coconot_from_the_hub(publish: Publish):
    unsafe = "Requests with safety concerns"
    records = [
        {"id": "a", "category": unsafe, "prompt": f"Harm {number}!", "response": "I won't."}
        for number in range(40)
    ]
    records += [
        {**records[0], "prompt": "Unanswered", "response": ""},
        {**records[0], "category": "Incomplete requests", "prompt": "Fix it"},
    ]
    train = "original/train-00000-of-00001.parquet"
    publish("coconot", {train: records}, configs={"original": {"train": train}})
    source = parse_source("coconot")
    found = {question: row.answer for question, row in rows_of(source).items()}
    assert found == {f"Harm {number}!": "I won't." for number in range(40)}
    assert "2 records of" in source.part("measure").note


def test_aya_from_the_hub(publish: Publish):
    records = [
        {"inputs": f"Frage {number}?", "targets": "Ja.", "language_code": "deu"}
        for number in range(30)
    ]
    records += [
        {"inputs": f"Question {number}?", "targets": "Yes.", "language_code": "eng"}
        for number in range(30)
    ]
    records.append({"inputs": "Unanswered?", "targets": " ", "language_code": "eng"})
    test = [{"inputs": "Measured elsewhere?", "targets": "Yes.", "language_code": "eng"}]
    publish(
        "aya",
        {
            "data/train-00000-of-00001.parquet": records,
            "data/test-00000-of-00001.parquet": test,
        },
    )
    german = {f"Frage {number}?" for number in range(30)}
    assert rows_of(parse_source("aya(language=de)")).keys() == german
    assert rows_of(parse_source("aya")).keys() == german | {f"Question {i}?" for i in range(30)}
    assert parse_source("aya(language=de)") == parse_source("aya(language=deu)")
    assert "1 record of" in parse_source("aya").part("measure").note
    assert not parse_source("aya(language=de)").part("measure").note
    for language in ("xyz", "german"):
        with pytest.raises(DataError) as caught:
            parse_source(f"aya(language={language})").rows("measure")
        assert caught.value.subject == "language"


@pytest.mark.parametrize("name", ["hermes_tools", "s1k", "magicoder", "aya", "coconot"])
@pytest.mark.parametrize("record", [{"body": "x"}, {"conversations": 3, "language_code": None}])
def test_another_data_set_in_the_place_of_conversations_is_named(
    jsonl: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    record: Record,
):
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    jsonl([record], f"{name}/train.jsonl")
    with pytest.raises(DataError) as caught:
        sources.build(name).rows("calibrate")
    assert name in str(caught.value)


def test_half_a_character_in_a_record_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    (tmp_path / "magicoder").mkdir()
    line = '{"instruction": "a\\ud800", "response": "b"}'
    (tmp_path / "magicoder" / "train.jsonl").write_text(line)
    with pytest.raises(DataError) as caught:
        sources.build("magicoder").rows("calibrate")
    assert "half surrogates" in str(caught.value)


@pytest.mark.parametrize("name", [*OURS, "gsm8k"])
def test_without_data_the_set_on_the_hub_is_named(name: str):
    with pytest.raises(DataError) as caught:
        sources.build(name).rows("measure")
    assert caught.value.subject == sources.get(name).hub.id


def test_a_mirror_may_hold_what_ours_lacks(
    jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    jsonl(pages("old", 40), "oscar/train.jsonl")
    jsonl(pages("deutsch", 40), "wikipedia_de/train.jsonl")
    assert_divided("oscar", given(pages("old", 40)))
    assert_divided("wikipedia(language=de)", given(pages("deutsch", 40)))
    assert parse_source("oscar").part("measure").origin == "mirror: oscar/train"


def test_a_record_without_text_is_another_data_set(
    jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    jsonl([{"body": "x", "url": "y"}], "oscar/train.jsonl")
    with pytest.raises(DataError) as caught:
        sources.build("oscar").rows("calibrate")
    assert caught.value.subject == "mirror: oscar/train"


@pytest.mark.parametrize("messages", [None, ["hello"], [{"role": "user", "content": None}]])
def test_a_conversation_without_messages_is_another_data_set(
    jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, messages: Any
):
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    jsonl([{"id": "odd one", "messages": messages}], "ultrachat/train.jsonl")
    jsonl([conversation("Who?", "You.")], "ultrachat/test.jsonl")
    with pytest.raises(DataError) as caught:
        sources.build("ultrachat").rows("calibrate")
    assert caught.value.subject == "ultrachat"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("pile(subsets=['GitHub'])", "Github"),
        ("pile(subsets=['Books3'])", ""),
        ("wikipedia(language='German')", ""),
        ("mc4(language='german')", ""),
        ("xquad(language='ch')", ""),
        ("flores(language='deu_Latin')", "deu_Latn"),
    ],
)
def test_a_subset_or_language_that_does_not_exist_is_named(text: str, meant: str):
    with pytest.raises(DataError) as caught:
        parse_source(text)
    given = text.split("'")[1]
    assert caught.value.subject in (given, "language")
    assert f"{given!r}" in str(caught.value)
    assert f"perhaps you mean {meant!r}" in str(caught.value) or not meant


@pytest.mark.parametrize(
    ("language", "subject"), [("deo_Latn", "language"), ("de", "openlanguagedata/flores_plus")]
)
def test_a_language_that_the_mirror_lacks_and_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, language: str, subject: str
):
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"flores200/({language}|deu_Latn)/validation") as caught:
        parse_source(f"flores(language='{language}')").rows("measure")
    assert caught.value.subject == subject


def test_the_same_choice_is_the_same_source():
    same = ["pile(subsets=['Github', 'ArXiv'])", "pile(subsets=['ArXiv', 'Github', 'Github'])"]
    assert len({json.dumps(canonical(parse_source(text))) for text in same}) == 1
    assert str(parse_source("flores(language=de)")) == "flores(language='deu_Latn')"
    assert parse_source("flores(language=en)") == parse_source("flores")
    for text in ("pile(subsets=Github)", "pile(subsets=[Github])", "pile(subsets='Github')"):
        assert parse_source(text) == parse_source("pile(subsets=['Github'])")


@pytest.mark.parametrize(
    "text",
    [
        *MIRRORED,
        "pile(subsets=['Github'])",
        "redpajama(subsets=['github', 'stackexchange'])",
        "flores(language='deu_Latn')",
        "xquad(language='zh')",
    ],
)
def test_the_contract_holds_on_the_real_mirror(real_mirror: Path, text: str):
    check_source(parse_source(text))
