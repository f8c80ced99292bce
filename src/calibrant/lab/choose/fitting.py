"""Budgets that the target and every candidate can give: a small file lowers them, and a sentence
says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet
from calibrant.data.expression import parse_expression
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError
from calibrant.evaluators import Evaluator
from calibrant.evaluators.loss import Loss
from calibrant.lab.choose.budget import ROUNDS
from calibrant.lab.choose.goal import Goal
from calibrant.lab.choose.halves import Halves
from calibrant.lab.choose.predicting import swapped

LEAST: Final = 256
"""Tokens of a set below which nothing is to be learnt from it; a half of a file that holds fewer
is no sibling.
"""
ENOUGH: Final = 2048
"""Tokens of a set from which on a second draw is worth more than a larger one."""


@dataclass(frozen=True)
class Fitted:
    """What a set, a judge and a window may hold, how many draws of the target's own file share no
    row, and, where that was lowered, a sentence.

    `goal` measures as much as there is.
    """

    tokens: int
    judge_tokens: int
    length: int
    rounds: int
    halves: tuple[Halves, ...]
    goal: Goal
    said: str = ""


def fit(
    candidates: Sequence[str],
    goal: Goal,
    halves: Sequence[Halves],
    tokens: int,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Fitted:
    """Lower the budgets to what there is. `DataError` for a candidate or a judge that holds next
    to nothing, or a window without room for text.
    """

    def holds(data: str, most: int) -> int:
        return CalibrationSet(data, length=length).most_tokens(tokenizer, most)

    requested, judge, said = tokens, goal.judge, list[str]()
    sides = [swapped(one, halves, side) for one in candidates if _own(one) for side in (0, 1)]
    in_half = min((holds(side, 2 * tokens) for side in dict.fromkeys(sides)), default=2 * tokens)
    if halves and in_half < LEAST:
        halves, in_half = (), 2 * tokens
    supplies = {one: holds(one, 2 * tokens if _own(one) else tokens) for one in candidates}
    for one, supply in supplies.items():
        if supply < LEAST:
            raise DataError(
                f"{one} holds {supply} tokens to calibrate on, and {LEAST} are the least; add rows, or leave it out",
                subject=one,
            )
    # Of the target's own file two draws that share no row are wanted, and of its halves too, but no
    # set of less than a few thousand tokens for it.
    wanted = [
        tokens,
        *(max(n // 2, min(n, ENOUGH)) if _own(one) else n for one, n in supplies.items()),
        max(in_half // 2, min(in_half, ENOUGH)),
    ]
    tokens = min(wanted)
    tokens = tokens if tokens == requested else _rounded(tokens)
    length = min(length, tokens)
    judges = [judge, *(swapped(judge, halves, side) for side in (0, 1) if halves)]
    judge_tokens = min(
        CalibrationSet(each, length=length, tokens=tokens).held_out().most_tokens(tokenizer, tokens)
        for each in judges
    )
    if judge_tokens < 2:
        raise DataError(f"{judge} holds out nothing to judge by; add rows", subject=judge)
    own = [one for one in candidates if _own(one)]
    drawn = [swapped(one, halves, side) for one in own for side in (0, 1)] if halves else own
    draws = min(
        (
            CalibrationSet(one, length=length, tokens=tokens).disjoint_draws(tokenizer, ROUNDS)
            or ROUNDS
            for one in drawn
        ),
        default=ROUNDS,
    )
    if tokens < requested:
        small = min(own or supplies, key=lambda one: supplies[one])
        said.append(
            f"{small} holds {_amount(supplies[small], 2 * requested if _own(small) else requested)} tokens to calibrate on"
        )
    if judge_tokens < tokens:
        said.append(
            f"{judge} holds out {judge_tokens:,} tokens"
            + (" in the smaller of its halves" if halves else "")
        )
    sentence = (
        "; ".join(said)
        + f": sets of {tokens:,} tokens (not {requested:,}), judged on {judge_tokens:,}, in windows of {length:,}, at most {_draws(draws)}"
    )

    def held_out(measure: Evaluator) -> int:
        if not isinstance(measure, Loss):
            return sum(1 for _ in measure.rows())
        return (
            CalibrationSet(f"{measure.source}:{measure.format}", length=length)
            .held_out()
            .most_tokens(tokenizer, measure.tokens)
            or 1
        )

    limited = goal.limited(held_out) if own else goal
    return Fitted(
        tokens, judge_tokens, length, draws, tuple(halves), limited, sentence if said else ""
    )


def own_files(texts: Sequence[str]) -> Iterator[UserFile]:
    """Yield the user's files that expressions name, each once."""
    yield from dict.fromkeys(
        term.source
        for text in texts
        for term in parse_expression(text)
        if isinstance(term.source, UserFile)
    )


def _own(data: str) -> bool:
    return any(isinstance(term.source, UserFile) for term in CalibrationSet(data).parts)


def _rounded(tokens: int) -> int:
    """Down to two digits that count."""
    unit = 100 if tokens >= 1000 else 10
    return tokens // unit * unit


def _amount(tokens: int, most: int) -> str:
    return f"{tokens:,}" + (" or more" if tokens == most else "")


def _draws(draws: int) -> str:
    return "one draw" if draws == 1 else f"{draws} draws that share no row"
