"""What each source makes of its records, on small copies of how the hub and a mirror keep them."""

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from string import ascii_lowercase

import pytest

from calibrant.data import PARTS, CalibrationSet, Row, mirror, sources
from calibrant.data._base import check_part
from calibrant.data.sources import arithmetic, gsm8k, python_code, python_docs, wikitext
from calibrant.errors import DataError
from calibrant.testing import tiny_tokenizer

GSM8K = {
    "question": "A pen costs $1,000. How much are 2? ",
    "answer": "One is 1,000.\nTwo are 2*1,000=<<2*1000=2000>>2,000 dollars.\n#### 2,000",
}


def problems(count: int, begin: int = 0) -> list[dict[str, str]]:
    return [
        {
            "question": f"What is {i} and 1?",
            "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}",
        }
        for i in range(begin, begin + count)
    ]


def test_a_gsm8k_record_becomes_question_number_and_clean_rationale():
    assert gsm8k.problem(GSM8K) == Row(
        question="A pen costs $1,000. How much are 2?",
        answer="2000",
        rationale="One is 1,000.\nTwo are 2*1,000=2,000 dollars.",
    )
    with pytest.raises(DataError) as caught:
        gsm8k.problem({"question": "q", "answer": "five"})
    assert caught.value.subject == "gsm8k"


@pytest.fixture
def small_mirror(jsonl: Callable[..., Path]) -> Path:
    jsonl(problems(200), "mirror/gsm8k/train.jsonl")
    again = {**problems(1, begin=7)[0], "question": "what  is 7 AND 1?"}
    jsonl([*problems(40, begin=190), again], "mirror/gsm8k/test.jsonl")
    folder = jsonl(problems(1), "mirror/other/train.jsonl").parent.parent
    mirror(folder)
    return folder


def test_train_calibrates_test_measures_and_what_is_in_both_is_dropped(small_mirror: Path):
    source = sources.build("gsm8k")
    calibrate, measure, exemplars = (source.part(part) for part in PARTS)
    assert {row.question for row in measure.rows} == {
        f"What is {i} and 1?" for i in range(190, 230)
    } | {"what  is 7 AND 1?"}
    assert {row.question for row in (*calibrate.rows, *exemplars.rows)} == {
        f"What is {i} and 1?" for i in range(190) if i != 7
    }
    assert 0 < len(exemplars.rows) < 30
    assert calibrate.overlapping + exemplars.overlapping == 11
    assert "mirror: gsm8k/train" in calibrate.origin
    assert [row.key for row in calibrate.rows] == sorted(row.key for row in calibrate.rows)


def lines(*titles: str) -> list[dict[str, str]]:
    found = []
    for title in titles:
        found += [
            "",
            f" = {title} = \n",
            "",
            f" About {title} , = x = , text . \n",
            " More . \n",
            "",
            " = = Section = = \n",
            "",
            " End . \n",
        ]
    return [{"text": line} for line in found]


def test_wikitext_lines_become_articles():
    article = "= {0} = \n\n About {0} , = x = , text . \n More . \n\n = = Section = = \n\n End ."
    assert [row.text for row in wikitext.articles(lines("One", "Two Three"))] == [
        article.format("One"),
        article.format("Two Three"),
    ]
    assert list(wikitext.articles([])) == []
    odd = [*lines("One"), {"text": " before \n"}, {"text": " = 0 = \n"}, {"text": ""}]
    assert len(list(wikitext.articles(odd))) == 1, (
        "a line like a title inside a paragraph began an article"
    )


def test_the_real_mirror(real_mirror: Path):
    source = sources.build("gsm8k")
    held = source.part("calibrate")
    assert len(held.rows) + len(
        source.part("exemplars").rows
    ) + held.overlapping + held.duplicates == pytest.approx(7473, abs=5)
    assert len(source.part("measure").rows) == 1319
    assert all(
        re.fullmatch(r"-?[\d.]+", row.answer or "") and "<<" not in (row.rationale or "")
        for row in held.rows
    )
    assert 50 < len(sources.build("wikitext").part("calibrate").rows) < 62


def test_one_split_is_divided_by_hash():
    held = [sources.build("python_code").part(part).rows for part in PARTS]
    shares = [len(rows) / sum(map(len, held)) for rows in held]
    assert shares == pytest.approx([0.7, 0.25, 0.05], abs=0.07)
    for part, rows in zip(PARTS, held, strict=True):
        low, high = {"calibrate": (0, 0.7), "measure": (0.7, 0.95), "exemplars": (0.95, 1)}[part]
        assert all(low <= int(row.key, 16) / 16**64 < high for row in rows)


def test_python_docs_repeat_no_paragraph_across_parts():
    where: dict[str, str] = {}
    for part in PARTS:
        for row in sources.build("python_docs").rows(part):
            for paragraph in re.split(r"\n\s*\n", row.text or ""):
                if len(paragraph) > 40:
                    assert where.setdefault(" ".join(paragraph.split()), part) == part
    assert len(where) > 500
    shared, own = (
        "This paragraph is in both, and it is longer than a heading.",
        "And one more paragraph, which only this has.",
    )
    found = list(
        python_docs.unrepeated({"short": f"Head\n\n{shared}", "long": f"Top\n\n{shared}\n\n{own}"})
    )
    assert [row.text for row in found] == [f"Top\n\n{shared}\n\n{own}"]


def test_python_code_leaves_out_tests_and_large_files(tmp_path: Path):
    good = {"good.py": "x = 1\r\n", "pkg/inner.py": "y = 2"}
    tests = dict.fromkeys(
        [
            "test/test_a.py",
            "pkg/tests/b.py",
            "site-packages/c.py",
            "_sysconfigdata_x.py",
            "notes.txt",
        ],
        "no",
    )
    for name, text in {
        **good,
        **tests,
        "empty.py": "",
        "blank.py": "\n",
        "big.py": "#" * 200_001,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    assert [row.text for row in python_code.files(tmp_path)] == ["x = 1", "y = 2"]


@pytest.mark.parametrize(
    ("name", "module"),
    [("python_docs", "pydoc_data.topics"), ("arithmetic", "reasoning_gym.factory")],
)
@pytest.mark.usefixtures("forgetful")
def test_a_missing_package_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError) as caught:
        sources.build(name).rows("calibrate")
    assert caught.value.subject == name


@pytest.mark.usefixtures("forgetful")
def test_an_installation_without_sources_and_a_part_that_there_is_not_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(python_code.sysconfig, "get_path", lambda _: str(tmp_path))
    for subject, ask in (
        ("python_code", lambda: sources.build("python_code").rows("calibrate")),
        ("train", lambda: check_part("train")),
    ):
        with pytest.raises(DataError) as caught:
            ask()
        assert caught.value.subject == subject


def test_arithmetic_measures_clean_rows_of_templates_that_are_never_calibrated_on():
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import create_dataset

    made = create_dataset("gsm_symbolic", size=arithmetic.MOST_ROWS, seed=0)
    template = {
        made[i]["question"].removesuffix(
            " Give the result as your final answer. Do not include units."
        ): made.task_indices[i]
        for i in range(1500)
    }
    source = sources.build("arithmetic")
    found = {
        part: {template[row.question] for row in source.rows(part) if row.question in template}
        for part in PARTS
    }
    assert not found["calibrate"] & found["measure"]
    assert not (found["calibrate"] | found["measure"]) & found["exemplars"]
    assert [len(found[part]) for part in PARTS] == pytest.approx([60, 21, 4], abs=8)
    rows = list(source.rows("measure"))
    assert len({row.question for row in rows}) == len(rows) > 3000
    for row in rows:
        assert "Give the result" not in (row.question or "")
        assert "####" not in (row.rationale or "")
        assert re.fullmatch(r"-?[\d.]+", row.answer or "")


def test_keys_are_the_hash_of_the_content():
    row = Row(question="q é", answer="1", choices=("a", "b"))
    expected = json.dumps(
        {"answer": "1", "choices": ["a", "b"], "question": "q é"}, ensure_ascii=False
    )
    assert row.key == hashlib.sha256(expected.encode()).hexdigest()


def test_random_letters_are_questions_without_sense_that_chat_can_put():
    source = sources.build("random_letters")
    drawn = list(islice(source.rows("calibrate", 1), 200))
    assert drawn == list(islice(source.rows("calibrate", 1), 200))
    assert not {row.key for row in drawn} & {
        row.key for row in islice(source.rows("calibrate", 2), 200)
    }
    assert not {row.key for row in drawn} & {
        row.key for row in islice(source.rows("measure", 1), 200)
    }
    words = [
        word for row in drawn for word in [*row.need("question").split(" "), row.need("answer")]
    ]
    assert {len(word) for word in words} == set(range(1, 9))
    counts = Counter("".join(words))
    assert set(counts) == set(ascii_lowercase)
    assert max(counts.values()) < 1.25 * min(
        counts.values()
    )  # 256 is no multiple of 26: w to z come a tenth less often
    tokenizer = tiny_tokenizer()
    drawn_for_chat = CalibrationSet("random_letters:chat", tokens=512, length=256)
    first = next(source.rows("calibrate"))
    assert drawn_for_chat.rows(tokenizer)[0][0].question == first.question
    assert f"user: {first.need('question')[:20]}" in tokenizer.decode(
        drawn_for_chat.tokens(tokenizer).ids[0]
    )
