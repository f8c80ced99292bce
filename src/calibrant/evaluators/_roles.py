"""Tokens of conversations by role: what the chat template writes, what is asked, what is
answered.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from transformers import PreTrainedTokenizerBase

from calibrant.data import ROLES, Chat, Role, Row, Stretch, start_tokens
from calibrant.evaluators._windows import ScoredWindow


class TokenDivergence(NamedTuple):
    """Of a token: its divergence in nats, whether both models predict the same, its own nats."""

    divergence: float
    agreed: bool
    nats: float


class RoleSums(NamedTuple):
    """Sums over tokens of one role: their number, divergence, how many are predicted alike,
    nats.
    """

    tokens: int = 0
    divergence: float = 0.0
    agreed: int = 0
    nats: float = 0.0

    def with_token(self, token: TokenDivergence) -> "RoleSums":
        """Return the sums with one token more."""
        return self.with_sums((1, *token))

    def with_sums(self, other: Sequence[Any]) -> "RoleSums":
        """Return the sums over the tokens of both."""
        tokens, divergence, agreed, nats = other
        return RoleSums(
            self.tokens + int(tokens),
            self.divergence + float(divergence),
            self.agreed + int(agreed),
            self.nats + float(nats),
        )


@final
@dataclass(frozen=True)
class WindowRoles:
    """The role of each scored token of each window, by the window's name."""

    of: dict[str, list[Role]]

    def sums(
        self,
        window: ScoredWindow,
        tokens: Iterable[TokenDivergence],
    ) -> dict[str, RoleSums]:
        """Return the sums of a window's scored tokens by their role."""
        found: dict[str, RoleSums] = {role: RoleSums() for role in ROLES}
        for role, token in zip(self.of[window.name], tokens, strict=True):
            found[role] = found[role].with_token(token)
        return found


def facts_of(windows: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, int | float]:
    """Return the facts of a document's outcome: the sums of its windows, by what they are of and
    role.
    """
    total = {role: RoleSums() for role in ROLES}
    for by_role in windows:
        for role in ROLES:
            total[role] = total[role].with_sums(by_role[role])
    facts: dict[str, int | float] = {}
    for role, sums in total.items():
        facts |= {
            f"tokens_{role}": sums.tokens,
            f"kl_{role}": sums.divergence,
            f"agreed_{role}": sums.agreed,
            f"nats_{role}": sums.nats,
        }
    return facts


def window_roles(
    windows: Sequence[ScoredWindow],
    rows: Iterable[Row],
    form: Chat,
    tokenizer: PreTrainedTokenizerBase,
) -> WindowRoles:
    """Return the roles of the windows' tokens; `rows` hold the documents they were cut from."""
    waiting = {window.document for window in windows}
    roles: dict[str, list[Role]] = {}
    for row in rows:
        if row.name in waiting:
            waiting.remove(row.name)
            roles[row.name] = token_roles(row, form, tokenizer)
        if not waiting:
            break
    starts = len(start_tokens(tokenizer))
    of: dict[str, list[Role]] = {}
    for window in windows:
        end = window.begin + len(window.ids) - starts
        of[window.name] = roles[window.document][end - window.scored : end]
    return WindowRoles(of)


def token_roles(row: Row, form: Chat, tokenizer: PreTrainedTokenizerBase) -> list[Role]:
    """Return the role of each token of a row's conversation: that of most of its letters."""
    text, stretches = form.stretches(row, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    roles: list[Role] = []
    first = 0
    for begin, end in encoded["offset_mapping"]:
        while first + 1 < len(stretches) and stretches[first].end <= begin:
            first += 1
        roles.append(_role(begin, end, stretches, first))
    return roles


def _role(begin: int, end: int, stretches: Sequence[Stretch], first: int) -> Role:
    """Return the role of most letters from `begin` to `end`; of as many, the first one's.

    `first` is the first of the stretches that goes beyond `begin`.
    """
    role: Role = stretches[first].role
    most = 0
    for place in range(first, len(stretches)):
        stretch = stretches[place]
        if stretch.begin >= end:
            break
        letters = min(end, stretch.end) - max(begin, stretch.begin)
        if letters > most:
            role, most = stretch.role, letters
    return role
