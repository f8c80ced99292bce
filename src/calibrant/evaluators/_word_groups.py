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
from calibrant.data._words import spans, words
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._windows import ScoredWindow
from calibrant.spec.foreign import brief, did_you_mean, user_lines, user_path
from calibrant.system.durable import content, unreadable

KINDS: Final = ("words", "lemmas", "clusters")
CLUSTERS: Final = 64
"""Groups that words are put into by their embeddings."""
ROUNDS: Final = 30
"""Steps of k-means at most."""
LARGEST_LIST: Final = 2**20
"""Bytes of a list of words at most."""
VOWELS: Final = frozenset("aeiouy")
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
    """Groups of words by name, the most frequent first; `of` says in which one a word is.
    `left_out` are those that stand too seldom.
    """

    names: tuple[str, ...]
    of: Mapping[str, int]
    left_out: int = 0

    def labels(self, window: WindowWords) -> Int[Tensor, " word"]:
        """Return the group of each word of a window, -1 for a word in none."""
        return torch.tensor([self.of.get(word, -1) for word in window.words], dtype=torch.long)


def words_of(
    windows: Iterable[ScoredWindow],
    rows: Iterable[Row],
    format: Format,
    tokenizer: PreTrainedTokenizerBase,
) -> list[WindowWords]:
    """Return the words of each window. `rows` are those that the windows were cut from, and may
    be more.
    """
    cut: dict[str, list[ScoredWindow]] = {}
    for window in windows:
        cut.setdefault(window.document, []).append(window)
    start, found = len(start_tokens(tokenizer)), dict[str, WindowWords]()
    for row in rows:
        own = cut.pop(row.name, [])
        if own:
            ends = _ends(format.render(row, tokenizer), tokenizer)
            for window in own:
                shown = range(window.begin, window.begin + len(window.ids) - start)
                inside = [
                    (last - window.begin + start, word)
                    for first, last, word in ends
                    if first in shown and last in shown
                ]
                found[window.name] = WindowWords(
                    window, tuple(place for place, _ in inside), tuple(word for _, word in inside)
                )
        if not cut:
            break
    return [found[window.name] for window in windows]


def _ends(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int, str]]:
    """The first and the last token of each word of a text, and the word."""
    offsets: Sequence[tuple[int, int]] = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    ends: list[tuple[int, int, str]] = []
    at = 0
    for begin, end, word in spans(text):
        while at < len(offsets) and offsets[at][1] <= begin:
            at += 1
        last = at
        # Of a letter that is several tokens, each says that it is all of it.
        while last + 1 < len(offsets) and offsets[last + 1][0] < end:
            last += 1
        if last < len(offsets) and offsets[last][1] >= end:
            ends.append((at, last, word))
    return ends


def check_groups(groups: str) -> None:
    """`SpecError` for groups that are neither a known kind nor a file."""
    path = user_path(groups, SpecError)
    if groups not in KINDS and not path.is_file():
        hint = did_you_mean(groups, KINDS)
        raise SpecError(
            f"words(groups={brief(groups)}){hint}: groups is {', '.join(KINDS)}, or a file with a word in each line, and there is no such file",
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
    """Return the groups that stand `least` times in the windows, and in two of them, at most
    `most`. `DataError` if there are none.
    """
    counts = Counter(word for window in windows for word in window.words)
    apart = Counter(word for window in windows for word in set(window.words))
    common = {
        word: n for word, n in counts.items() if apart[word] >= WINDOWS
    }  # what stands in fewer is never stored, so it names nothing
    match groups:
        case "words":
            named = {word: word for word in counts}
        case "lemmas":
            named = {word: lemma(word, common) for word in counts}
        case "clusters":
            frequent = sorted(common, key=lambda word: (-common[word], word))
            named = _clusters(frequent, model, tokenizer)
        case _:
            named = {word: name for word, name in read_list(groups).items() if word in counts}
    sizes, spread = Counter[str](), Counter[str]()
    for window in windows:
        here = [named[word] for word in window.words if word in named]
        sizes.update(here)
        spread.update(set(here))
    kept = [
        name
        for name in sorted(sizes, key=lambda name: (-sizes[name], name))
        if sizes[name] >= least and spread[name] >= WINDOWS
    ][:most]
    if not kept:
        raise DataError(
            f"none of {len(sizes)} groups of words ({brief(groups)}) stands {least} times in the {len(windows)} windows, and in {WINDOWS} of them; "
            f"measure more tokens, or lower least",
            subject=groups,
        )
    numbers = {name: number for number, name in enumerate(kept)}
    return Groups(
        tuple(kept),
        {word: numbers[name] for word, name in named.items() if name in numbers},
        len(sizes) - len(kept),
    )


def lemma(word: str, known: Mapping[str, int]) -> str:
    """Return what a word is without an English ending (-s, -es, -ies, -ed, -ing, -ly), where that
    is a word of the same text; else the word.

    Simple rules, no dictionary: "saw" stays, and so does what never stands without its ending. A
    consonant that the ending doubled goes, and an e that it took comes back. What would be left
    without a vowel is no stem, and several endings go one after the other.

    >>> known = dict.fromkeys(("run", "city", "make", "was"), 1)
    >>> [lemma(word, known) for word in ("running", "cities", "making", "was")]
    ['run', 'city', 'make', 'was']
    >>> [lemma(word, dict.fromkeys(("the", "one", "she", "bee", "meet", "meeting"), 1)) for word in ("thing", "only", "shed", "being", "meetings")]
    ['thing', 'only', 'shed', 'being', 'meet']
    """
    for ending, instead in (
        ("ies", "y"),
        ("ied", "y"),
        ("es", ""),
        ("s", ""),
        ("ing", ""),
        ("ed", ""),
        ("ly", ""),
    ):
        stem = word.removesuffix(ending)
        if (
            stem == word
            or len(stem) < (3 if ending == "ly" else 2)
            or not VOWELS & set(stem + instead)
        ):
            continue
        doubled = stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] else stem
        with_e = stem + "e" if len(stem) > 2 or stem[0] in VOWELS else stem
        for base in (stem + instead, with_e, doubled):
            if 2 < len(base) < len(word) and base in known:
                return lemma(base, known)
    return word


def read_list(groups: str) -> dict[str, str]:
    """Return the group of each word in a user's list. `DataError` for a file that holds no words,
    or a word in two groups.

    Words stand one or several a line. `[name]` in a line of its own begins a group; words before
    the first belong to one that is called like the file. What follows # is left out.
    """
    path, named = user_path(groups, DataError), dict[str, str]()
    name = path.stem
    for line in user_lines(list_content(groups), groups, DataError):
        stated = line.partition("#")[0].strip()
        if stated.startswith("[") and stated.endswith("]"):
            name = stated[1:-1].strip() or path.stem
            continue
        for word in words(stated):
            if named.setdefault(word, name) != name:
                raise DataError(
                    f"{brief(groups)} has {brief(word)} in {brief(named[word])} and in {brief(name)}; leave it in one group",
                    subject=word,
                )
    if not named:
        raise DataError(f"{brief(groups)} holds no words; write one a line", subject=groups)
    return named


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
        raise unreadable(path, error) from error


def _clusters(
    frequent: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """The cluster of each word, by the mean of its tokens' input embeddings; a cluster is called
    by its three most frequent words.
    """
    if not frequent:
        return {}
    # With a space before it, as it stands in a text.
    ids: list[list[int]] = [
        tokenizer(f" {word}", add_special_tokens=False, verbose=False)["input_ids"]
        for word in frequent
    ]
    embeddings: Any = model.get_input_embeddings()
    table: Tensor = embeddings.weight.detach()
    points = torch.stack([table[one].double().mean(0) for one in ids]).cpu()
    labels = spherical(points - points.mean(0), CLUSTERS)
    names: dict[int, list[str]] = {}
    for word, label in zip(frequent, labels, strict=True):
        names.setdefault(label, []).append(word)
    return {word: ", ".join(names[label][:3]) for word, label in zip(frequent, labels, strict=True)}


def spherical(points: Float[Tensor, "point feature"], k: int) -> list[int]:
    """Return the cluster of each point by spherical k-means from the points that are farthest
    apart: the same for the same points.
    """
    unit = torch.nn.functional.normalize(points, dim=1)
    chosen, near = [0], unit @ unit[0]
    while len(chosen) < min(k, len(unit)) and float(near.min()) < 1 - 1e-9:
        chosen.append(int(near.argmin()))
        near = torch.maximum(near, unit @ unit[chosen[-1]])
    centres = unit[chosen]
    labels = (unit @ centres.T).argmax(1)
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, labels, unit)
        centres = torch.where(
            sums.norm(dim=1, keepdim=True) > 0, torch.nn.functional.normalize(sums, dim=1), centres
        )
        before, labels = labels, (unit @ centres.T).argmax(1)
        if bool((before == labels).all()):
            break
    return labels.tolist()
