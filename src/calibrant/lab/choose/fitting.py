"""Budgets that the goal and every candidate can give: a small file lowers them, and a sentence
says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet
from calibrant.data.expression import parse_expression
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError
from calibrant.evaluators import Evaluator
from calibrant.evaluators.agreement import Agreement
from calibrant.evaluators.loss import Loss
from calibrant.lab.choose.budget import ROUNDS
from calibrant.lab.choose.goal import Goal
from calibrant.lab.choose.halves import Halves, swapped

LEAST: Final = 256
"""Tokens of a set below which nothing is to be learnt from it; a half of a file that holds fewer
is no sibling.
"""
ENOUGH: Final = 2048
"""Tokens of a set from which on a second draw is worth more than a larger one."""


@dataclass(frozen=True)
class Fitted:
    """Budgets that fit the files.

    `tokens` is what a set holds, `judge_tokens` what is judged by, and `length` a window. `rounds`
    draws of the goal's own file share no row. `goal` measures as much as there is. `said` is a
    sentence where something was lowered, else empty.
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
    """Lower the budgets to what there is.

    Raises `DataError` for a candidate or a judge that holds next to nothing, or a window without
    room for text.
    """
    supply = _Supply(tokenizer, length)
    own_sets = [name for name in candidates if _names_a_file(name)]
    holdings = _holdings(candidates, tokens, supply)
    half_holdings = _holdings_of_halves(own_sets, halves, tokens, supply)
    # A half that holds so little is no sibling.
    if any(half.tokens < LEAST for half in half_holdings):
        halves = ()
    else:
        holdings += half_holdings
    reasons: list[str] = []
    # All sets have one budget, which the smallest of them decides.
    budget = tokens
    smallest = min(holdings, key=_budget_of, default=None)
    if smallest is not None and smallest.budget < tokens:
        budget = _rounded(smallest.budget)
        reasons.append(f"{smallest.name} holds {smallest.tokens:,} tokens to calibrate on")
    # No window is longer than a set; what there is depends on the length, so it is counted anew.
    supply = _Supply(tokenizer, min(length, budget))
    judges = dict.fromkeys([goal.judge, *_in_halves([goal.judge], halves)])
    judge_tokens = min(supply.held_out(judge, budget) for judge in judges)
    if judge_tokens < 2:
        raise DataError(f"{goal.judge} holds out nothing to judge by; add rows", subject=goal.judge)
    if judge_tokens < budget:
        where = ""
        if halves:
            where = " in the smaller of its halves"
        reasons.append(f"{goal.judge} holds out {judge_tokens:,} tokens{where}")
    draws = [supply.draws(name, budget) for name in _in_halves(own_sets, halves)]
    if own_sets:
        goal = goal.limited(supply.measured)
    fitted = Fitted(
        tokens=budget,
        judge_tokens=judge_tokens,
        length=supply.length,
        rounds=min([ROUNDS, *draws]),
        halves=tuple(halves),
        goal=goal,
    )
    if not reasons:
        return fitted
    sets = f"sets of {budget:,} tokens (not {tokens:,}), judged on {judge_tokens:,}"
    most = f"{fitted.rounds} draws that share no row"
    if fitted.rounds == 1:
        most = "one draw"
    lowered = f"{sets}, in windows of {fitted.length:,}, at most {most}"
    return replace(fitted, said=f"{'; '.join(reasons)}: {lowered}")


@dataclass(frozen=True)
class _Holding:
    """How many tokens a set holds, counted no further than is needed, and the budget that they
    allow. `name` is what a sentence calls it.
    """

    name: str
    tokens: int
    budget: int


def _budget_of(holding: _Holding) -> int:
    return holding.budget


def _holdings(names: Sequence[str], tokens: int, supply: "_Supply") -> list[_Holding]:
    """What sets hold that all have the budget `tokens`. How much a selector finds or writes isn't
    known before.
    """
    holdings: list[_Holding] = []
    for name in names:
        if CalibrationSet(name).per_draw:
            continue
        if _names_a_file(name):
            held = supply.tokens(name, 2 * tokens)
            budget = _for_two_draws(held)
        else:
            held = supply.tokens(name, tokens)
            budget = held
        if held < LEAST:
            enough = f"and {LEAST} are the least; add rows, or leave it out"
            message = f"{name} holds {held} tokens to calibrate on, {enough}"
            raise DataError(message, subject=name)
        holdings.append(_Holding(name, held, budget))
    return holdings


def _holdings_of_halves(
    names: Sequence[str], halves: Sequence[Halves], tokens: int, supply: "_Supply"
) -> list[_Holding]:
    """What sets hold with either half of the goal's files in their place."""
    holdings: list[_Holding] = []
    for name in names:
        for half in _in_halves([name], halves):
            if half != name and not CalibrationSet(half).per_draw:
                held = supply.tokens(half, 2 * tokens)
                holdings.append(_Holding(f"a half of {name}", held, _for_two_draws(held)))
    return holdings


@dataclass(frozen=True)
class _Supply:
    """How much sets hold, in windows of `length` tokens."""

    tokenizer: PreTrainedTokenizerBase
    length: int

    def tokens(self, name: str, most: int) -> int:
        """Tokens to calibrate on, counted up to `most`."""
        return CalibrationSet(name, length=self.length).most_tokens(self.tokenizer, most)

    def held_out(self, name: str, most: int) -> int:
        """Tokens that no calibration set may hold, counted up to `most`."""
        data = CalibrationSet(name, length=self.length, tokens=most)
        return data.held_out().most_tokens(self.tokenizer, most)

    def draws(self, name: str, tokens: int) -> int:
        """How many draws of so many tokens share no row, as far as a race has rounds for them."""
        data = CalibrationSet(name, length=self.length, tokens=tokens)
        return data.disjoint_draws(self.tokenizer, ROUNDS) or ROUNDS

    def measured(self, measure: Evaluator) -> int:
        """What a measure can use: tokens of a text, or items."""
        if not isinstance(measure, Loss | Agreement):
            return sum(1 for _ in measure.rows())
        data = CalibrationSet(f"{measure.source}:{measure.format}", length=self.length)
        return data.held_out().most_tokens(self.tokenizer, measure.tokens) or 1


def own_files(names: Sequence[str]) -> list[UserFile]:
    """Return the user's files that expressions name, each once."""
    files: list[UserFile] = []
    for name in names:
        for term in parse_expression(name):
            if isinstance(term.source, UserFile) and term.source not in files:
                files.append(term.source)
    return files


def _names_a_file(name: str) -> bool:
    return any(isinstance(term.source, UserFile) for term in CalibrationSet(name).parts)


def _in_halves(names: Sequence[str], halves: Sequence[Halves]) -> list[str]:
    """Each set with the first half of the goal's files in their place, and with the second; once
    where it names none of them.
    """
    versions: dict[str, None] = {}
    for name in names:
        for side in (0, 1):
            versions[swapped(name, halves, side)] = None
    return list(versions)


def _for_two_draws(supply: int) -> int:
    """The budget of a file's set: two draws that share no row are wanted, but no set of less than
    a few thousand tokens for it.
    """
    return max(supply // 2, min(supply, ENOUGH))


def _rounded(tokens: int) -> int:
    """Down to two digits that count."""
    unit = 100 if tokens >= 1000 else 10
    return tokens // unit * unit
