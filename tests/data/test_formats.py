"""What a model is shown, letter by letter."""

import pytest

from calibrant.data import Row, formats
from calibrant.errors import DataError

SUM = Row(question="What is 2 and 3?", answer="5", rationale="2+3=5.")
PICK = Row(question="Where do fish live?", answer="water", choices=("air", "water"))


@pytest.mark.parametrize(
    ("name", "row", "shown"),
    [
        ("text", Row(text="as\nit is "), "as\nit is "),
        ("question", SUM, "Question: What is 2 and 3?\nAnswer:"),
        ("qa", SUM, "Question: What is 2 and 3?\nAnswer: 5"),
        ("cot", SUM, "Question: What is 2 and 3?\nAnswer: 2+3=5. The answer is 5."),
        ("question", PICK, "Question: Where do fish live?\nA. air\nB. water\nAnswer:"),
        ("qa", PICK, "Question: Where do fish live?\nA. air\nB. water\nAnswer: water"),
    ],
)
def test_rendering(name: str, row: Row, shown: str):
    assert formats.build(name).render(row) == shown


@pytest.mark.parametrize(("name", "lacking"), [("text", "text"), ("question", "question"), ("qa", "question"), ("cot", "question")])
def test_a_row_that_lacks_a_field_is_refused(name: str, lacking: str):
    with pytest.raises(DataError, match=f"without '{lacking}'.*it has answer"):
        formats.build(name).render(Row(answer="5"))


def test_formats_name_the_fields_that_they_read():
    full = {"text": "t", "question": "q", "answer": "a", "rationale": "r"}
    for name in formats.names():
        form = formats.build(name)
        assert form.render(Row(**{field: full[field] for field in form.needs}))
        for field in form.needs:
            with pytest.raises(DataError, match=field):
                form.render(Row(**{other: full[other] for other in form.needs if other != field}))
