"""The roles of tokens that are scored, where what is measured are conversations: what belongs to
the chat template, what was asked, what the assistant writes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from calibrant.data import Chat, Role, Row, Written, start_tokens
from calibrant.errors import SpecError
from calibrant.evaluators._base import SourceEvaluator
from calibrant.evaluators._windows import ScoredWindow

WindowRoles = Mapping[str, Sequence[Role]]
"""The role of each scored token of a window, by the window's name."""

RowRoles = Callable[[Row], list[Role] | None]
"""Gives the role of each token of a row; None where roles aren't clear."""


def conversation_format(evaluator: SourceEvaluator, option: str) -> Chat:
    """Return the evaluator's format, which must be a conversation's: in other texts no token has a
    role. `SpecError` for another one; `option` is what asks for roles.
    """
    _, form = evaluator.held_out()
    if not isinstance(form, Chat):
        raise SpecError(
            f"{evaluator}: roles are those of a conversation, and the format {str(form)!r} writes "
            f"none; give format=chat, or leave {option} out",
            subject=str(evaluator),
        )
    return form


def written_as_said(row: Row, form: Chat, tokenizer: PreTrainedTokenizerBase) -> Written | None:
    """Return what the chat template writes of a row; None where questions or answers aren't in it
    as they are, so that nobody can tell whose a token is.
    """
    result = form.written(row, tokenizer)
    left_out = "question" in result.unwritten or "answer" in result.unwritten
    if left_out or not result.stretches:
        return None
    return result


def window_roles(
    windows: Sequence[ScoredWindow],
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    roles_of: RowRoles,
) -> WindowRoles:
    """Return the roles of the windows' scored tokens; `rows` hold the documents they were cut from.

    Windows of rows in which roles aren't clear are left out.
    """
    waiting = {window.document for window in windows}
    by_row: dict[str, list[Role] | None] = {}
    for row in rows:
        if row.name in waiting:
            waiting.remove(row.name)
            by_row[row.name] = roles_of(row)
        if not waiting:
            break
    # A window begins with start tokens, which have no place in the document.
    starts = len(start_tokens(tokenizer))
    by_window: dict[str, list[Role]] = {}
    for window in windows:
        roles = by_row[window.document]
        if roles is not None:
            end = window.begin + len(window.ids) - starts
            by_window[window.name] = roles[end - window.scored : end]
    return by_window
