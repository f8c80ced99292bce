"""Attention of one token a row to all before it, compiled. Importing this imports numba.

Keys that several heads share are read once for all of them, and those that aren't seen are not
read.
"""

from typing import Any

import numpy as np

from calibrant.models.divergence_kernel import ANY_ORDER, exp
from calibrant.system.compiling import compiled


def attend(query: Any, keys: Any, values: Any, shift: int, seen: Any, mixed: Any) -> None:
    """Write into `mixed` [row, head, feature] the mean of the values, weighted by e^(query · key).

    `query` [row, head, feature] is float32. `keys` and `values` [row, head, column, feature], of
    which several heads of the query share one, are the bits of numbers; moved up by `shift` they
    are those of float32. `seen` [row, column] says which columns count; behind them there may be
    room.
    """
    columns = seen.shape[1]
    group = query.shape[1] // keys.shape[1]
    key_bits = np.empty(keys.shape[3], np.int32)
    key = key_bits.view(np.float32)
    value_bits = np.empty(values.shape[3], np.int32)
    value = value_bits.view(np.float32)
    shares = np.empty((group, columns), np.float32)
    for row in range(len(query)):
        for head in range(keys.shape[1]):
            begin = head * group
            for column in range(columns):
                if not seen[row, column]:
                    shares[:, column] = -np.inf
                    continue
                for feature in range(len(key)):
                    key_bits[feature] = np.int32(keys[row, head, column, feature]) << shift
                for member in range(group):
                    score = np.float32(0)
                    for feature in range(len(key)):
                        score += query[row, begin + member, feature] * key[feature]
                    shares[member, column] = score
            for member in range(group):
                to_shares(shares[member])
                mixed[row, begin + member] = 0
            for column in range(columns):
                if not seen[row, column]:
                    continue
                for feature in range(len(value)):
                    value_bits[feature] = np.int32(values[row, head, column, feature]) << shift
                for member in range(group):
                    share = shares[member, column]
                    for feature in range(len(value)):
                        mixed[row, begin + member, feature] += share * value[feature]


def to_shares(scores: Any) -> None:
    """Make scores their softmax."""
    largest = scores[0]
    for column in range(len(scores)):
        largest = max(largest, scores[column])
    total = np.float32(0)
    for column in range(len(scores)):
        share = exp(scores[column] - largest)
        scores[column] = share
        total += share
    for column in range(len(scores)):
        scores[column] /= total


to_shares = compiled(to_shares, fastmath=ANY_ORDER)
attend = compiled(attend, fastmath=ANY_ORDER)
