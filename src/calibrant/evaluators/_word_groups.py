"""The words of measured windows, and the groups that they are put into: single words, lemmas,
lists of a user, clusters of embeddings.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Format, Row, start_tokens
from calibrant.data._encoding import token_offsets
from calibrant.data._words import spans, words
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._windows import ScoredWindow, token_ids
from calibrant.spec.foreign import brief, did_you_mean, user_lines, user_path
from calibrant.system.durable import content

KINDS: Final = ("words", "lemmas", "clusters")
CLUSTERS: Final = 64
"""Groups that words are put into by their embeddings."""
ROUNDS: Final = 30
"""Steps of k-means at most."""
LARGEST_LIST: Final = 2**20
"""Bytes of a list of words at most."""
VOWELS: Final = frozenset("aeiouy")
ENDINGS: Final = {"ies": "y", "ied": "y", "es": "", "s": "", "ing": "", "ed": "", "ly": ""}
"""English endings, and what a word without one ends with instead."""
WINDOWS: Final = 2
"""Windows in which a group must stand: what stands in one alone may be anybody's name, and says
more of the window than of the group.
"""


@final
@dataclass(frozen=True)
class WindowWords:
    """The words that stand whole in a window: at which of its tokens each ends, and what it is."""

    window: ScoredWindow
    places: tuple[int, ...]
    words: tuple[str, ...]


@final
@dataclass(frozen=True)
class Groups:
    """Groups of words by name, the most frequent first; `numbers` says in which one a word is.
    `left_out` is how many stand too seldom.
    """

    names: tuple[str, ...]
    numbers: Mapping[str, int]
    left_out: int = 0

    def labels(self, window: WindowWords) -> Int[Tensor, " word"]:
        """Return the group of each word of a window, -1 for a word in none."""
        numbers = [self.numbers.get(word, -1) for word in window.words]
        return torch.tensor(numbers, dtype=torch.long)


def words_of(
    windows: Iterable[ScoredWindow],
    rows: Iterable[Row],
    format: Format,
    tokenizer: PreTrainedTokenizerBase,
) -> list[WindowWords]:
    """Return the words of each window. `rows` are those that the windows were cut from, and may
    be more.
    """
    waiting: dict[str, list[ScoredWindow]] = {}
    for window in windows:
        waiting.setdefault(window.document, []).append(window)
    starts = len(start_tokens(tokenizer))
    by_window: dict[str, WindowWords] = {}
    for row in rows:
        cut_windows = waiting.pop(row.name, [])
        if cut_windows:
            ends = _token_ends(format.render(row, tokenizer), tokenizer)
            for window in cut_windows:
                by_window[window.name] = _inside(window, ends, starts)
        if not waiting:
            break
    return [by_window[window.name] for window in windows]


def _inside(window: ScoredWindow, ends: Sequence[tuple[int, int, str]], starts: int) -> WindowWords:
    """Return the words whose first and last token lie in a window, which begins with `starts`
    tokens of its own.
    """
    shown = range(window.begin, window.begin + len(window.ids) - starts)
    places: list[int] = []
    inside: list[str] = []
    for first, last, word in ends:
        if first in shown and last in shown:
            places.append(last - window.begin + starts)
            inside.append(word)
    return WindowWords(window, tuple(places), tuple(inside))


def _token_ends(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int, str]]:
    """Return the first and the last token of each word of a text, and the word.

    A word whose end no token reaches is left out.
    """
    _, offsets = token_offsets(tokenizer, text)
    ends: list[tuple[int, int, str]] = []
    first = 0
    for begin, end, word in spans(text):
        while first < len(offsets) and offsets[first][1] <= begin:
            first += 1
        last = first
        # Of a letter that is several tokens, each says that it is all of it.
        while last + 1 < len(offsets) and offsets[last + 1][0] < end:
            last += 1
        if last < len(offsets) and offsets[last][1] >= end:
            ends.append((first, last, word))
    return ends


def check_groups(groups: str) -> None:
    """Raise `SpecError` for groups that are neither a known kind nor a file."""
    path = user_path(groups, SpecError)
    if groups not in KINDS and not path.is_file():
        hint = did_you_mean(groups, KINDS)
        raise SpecError(
            f"words(groups={brief(groups)}){hint}: groups is {', '.join(KINDS)}, "
            f"or a file with a word in each line, and there is no such file",
            subject=groups,
        )


def grouped(
    groups: str,
    windows: Sequence[WindowWords],
    least: int,
    most: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Groups:
    """Return the `most` frequent of the groups that stand at least `least` times in the windows,
    and in two windows or more. `DataError` if there are none.
    """
    names = _group_names(groups, windows, model, tokenizer)
    groups_of_windows: list[list[str]] = []
    for window in windows:
        groups_of_windows.append([names[word] for word in window.words if word in names])
    sizes, windows_of_groups = _counted(groups_of_windows)
    frequent: list[str] = []
    for name in _by_frequency(sizes):
        if sizes[name] >= least and windows_of_groups[name] >= WINDOWS:
            frequent.append(name)
    kept = frequent[:most]
    if not kept:
        raise DataError(
            f"none of {len(sizes)} groups of words ({brief(groups)}) stands {least} times in the "
            f"{len(windows)} windows, and in {WINDOWS} of them; "
            f"measure more tokens, or lower least",
            subject=groups,
        )
    places = {name: number for number, name in enumerate(kept)}
    numbers = {word: places[name] for word, name in names.items() if name in places}
    return Groups(tuple(kept), numbers, len(sizes) - len(kept))


def _group_names(
    groups: str,
    windows: Sequence[WindowWords],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, str]:
    """Return what the group of each word is called; words in none are left out."""
    counts, window_counts = _counted([window.words for window in windows])
    # A word of fewer windows is never stored, so it names nothing.
    common = {word: count for word, count in counts.items() if window_counts[word] >= WINDOWS}
    match groups:
        case "words":
            return {word: word for word in counts}
        case "lemmas":
            return {word: lemma(word, common) for word in counts}
        case "clusters":
            return _clusters(_by_frequency(common), model, tokenizer)
        case _:
            return {word: name for word, name in read_list(groups).items() if word in counts}


def _counted(windows: Iterable[Sequence[str]]) -> tuple[Counter[str], Counter[str]]:
    """Return how often each name stands in the windows, and in how many of them."""
    counts = Counter[str]()
    window_counts = Counter[str]()
    for names in windows:
        counts.update(names)
        window_counts.update(set(names))
    return counts, window_counts


def _by_frequency(counts: Mapping[str, int]) -> list[str]:
    """Return the names, the most frequent first, of as many by the alphabet."""

    def order(name: str) -> tuple[int, str]:
        return -counts[name], name

    return sorted(counts, key=order)


def lemma(word: str, known: Mapping[str, int]) -> str:
    """Return what a word is without an English ending (-s, -es, -ies, -ed, -ing, -ly), where that
    is a word of the same text; else the word.

    Simple rules, no dictionary: "saw" stays, and so does what never stands without its ending. A
    consonant that the ending doubled goes, and an e that it took comes back. What would be left
    without a vowel is no stem, and several endings go one after the other.

    >>> known = dict.fromkeys(("run", "city", "make", "was"), 1)
    >>> [lemma(word, known) for word in ("running", "cities", "making", "was")]
    ['run', 'city', 'make', 'was']
    >>> known = dict.fromkeys(("the", "one", "she", "bee", "meet", "meeting"), 1)
    >>> [lemma(word, known) for word in ("thing", "only", "shed", "being", "meetings")]
    ['thing', 'only', 'shed', 'being', 'meet']
    """
    for ending, instead in ENDINGS.items():
        stem = word.removesuffix(ending)
        shortest = 3 if ending == "ly" else 2
        if stem == word or len(stem) < shortest or not VOWELS & set(stem + instead):
            continue
        bases = [stem + instead]
        if len(stem) > 2 or stem[0] in VOWELS:
            bases.append(stem + "e")
        if len(stem) > 3 and stem[-1] == stem[-2]:
            bases.append(stem[:-1])
        else:
            bases.append(stem)
        for base in bases:
            if 2 < len(base) < len(word) and base in known:
                return lemma(base, known)
    return word


def read_list(groups: str) -> dict[str, str]:
    """Return the group of each word in a user's list. `DataError` for a file that holds no words,
    or a word in two groups.

    Words stand one or several a line. `[name]` in a line of its own begins a group; words before
    the first belong to one that is called like the file. What follows # is left out.
    """
    path = user_path(groups, DataError)
    names: dict[str, str] = {}
    group = path.stem
    for line in user_lines(list_content(groups), groups, DataError):
        stated = line.partition("#")[0].strip()
        if stated.startswith("[") and stated.endswith("]"):
            group = stated[1:-1].strip() or path.stem
            continue
        for word in words(stated):
            if names.setdefault(word, group) != group:
                raise DataError(
                    f"{brief(groups)} has {brief(word)} in {brief(names[word])} and in "
                    f"{brief(group)}; leave it in one group",
                    subject=word,
                )
    if not names:
        raise DataError(f"{brief(groups)} holds no words; write one a line", subject=groups)
    return names


def list_content(groups: str) -> bytes:
    """Return what a user's list of words holds; nothing where `groups` names no file.
    `DataError` for a file that can't be read.
    """
    if groups in KINDS:
        return b""
    path = user_path(groups, DataError)
    try:
        return content(path, LARGEST_LIST)
    except (OSError, ValueError) as error:
        message = f"the list of words {groups!r} can't be read ({error})"
        advice = f"give a text file of at most {LARGEST_LIST:,} bytes, or one of {', '.join(KINDS)}"
        raise DataError(f"{message}; {advice}", subject=groups) from error


def _clusters(
    frequent: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """Return the cluster of each word, by the mean of its tokens' input embeddings; a cluster is
    called by its three most frequent words.
    """
    if not frequent:
        return {}
    embeddings: Any = model.get_input_embeddings()
    table: Tensor = embeddings.weight.detach()
    means: list[Tensor] = []
    for word in frequent:
        # With a space before it, as it stands in a text.
        ids = token_ids(tokenizer, f" {word}")
        # In float64: the points differ little, and the nearest is taken.
        means.append(table[ids].cpu().double().mean(0))
    points = torch.stack(means)
    labels = spherical(points - points.mean(0), CLUSTERS)
    members: dict[int, list[str]] = {}
    for word, label in zip(frequent, labels, strict=True):
        members.setdefault(label, []).append(word)
    names: dict[str, str] = {}
    for cluster in members.values():
        name = ", ".join(cluster[:3])
        names |= dict.fromkeys(cluster, name)
    return names


def spherical(points: Float[Tensor, "point feature"], count: int) -> list[int]:
    """Return the cluster of each point by spherical k-means from the points that are farthest
    apart: the same for the same points.
    """
    unit = torch.nn.functional.normalize(points, dim=1)
    centres = unit[_farthest_apart(unit, count)]
    labels = (unit @ centres.T).argmax(1)
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, labels, unit)
        moved = torch.nn.functional.normalize(sums, dim=1)
        # A centre whose points cancel out stays.
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, moved, centres)
        before = labels
        labels = (unit @ centres.T).argmax(1)
        if bool((before == labels).all()):
            break
    return labels.tolist()


def _farthest_apart(unit: Float[Tensor, "point feature"], count: int) -> list[int]:
    """Return the numbers of up to `count` points: the first, then each time the point that is
    farthest, by its cosine, from the nearest of those.
    """
    chosen = [0]
    nearest = unit @ unit[0]
    while len(chosen) < min(count, len(unit)):
        # Two points of one direction would be centres of one cluster. What is no number ends it
        # too, so this isn't `>=`.
        if not float(nearest.min()) < 1 - 1e-9:
            break
        farthest = int(nearest.argmin())
        chosen.append(farthest)
        nearest = torch.maximum(nearest, unit @ unit[farthest])
    return chosen
