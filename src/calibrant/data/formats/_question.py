"""How a question is put, the same in every format."""

from calibrant.data._base import Row


def question_text(row: Row) -> str:
    """Return the question in its frame, as `Question: …`, the choices as lines with their labels
    if they are listed, and `Answer:`.
    """
    before, after = row.frame
    choices = (
        [f"{label}. {choice}" for label, choice in zip(row.labels, row.choices, strict=True)]
        if row.labels
        else []
    )
    return "\n".join([f"{before}{row.need('question')}", *choices, after])
