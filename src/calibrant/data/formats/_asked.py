"""How a question is put, the same in every format."""

from calibrant.data._base import Row


def asked(row: Row) -> str:
    """`Question: …`, the choices as lettered lines if there are any, and `Answer:`."""
    choices = [f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(row.choices)]
    return "\n".join([f"Question: {row.need('question')}", *choices, "Answer:"])
