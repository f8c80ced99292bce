"""The advice in a paragraph, and the command that follows it."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from calibrant.compress.prune_quantize import TARGETS_OF, Verb
from calibrant.data import CalibrationSet, mirror
from calibrant.lab.choose.budget import ROUNDS
from calibrant.lab.choose.fitting import own_files
from calibrant.lab.choose.goal import Goal
from calibrant.lab.choose.halves import COMMON, Halves, in_common
from calibrant.lab.choose.racing import RaceResult, Standing, plain
from calibrant.lab.mixtures import Mixture
from calibrant.lab.stats import LEVEL
from calibrant.methods import methods
from calibrant.spec.grammar import Mix, read_set
from calibrant.targets import GgmlKind, GgufRecipe, Target, parse_target

ENDS: Final = {
    "clear": "All others are clearly behind",
    "alike": "The sets that are still in the race differ by less than matters, and more draws are not worth their time",
    "draws": "Every set in the race was drawn as often as a race allows",
    "time": "The time was up; the same command goes on from here",
}
IN_TORCH: Final = (
    "It was measured in PyTorch, with the numbers that the file's blocks stand for; llama.cpp rounds activations to 8 bits as well "
    "(calibrant evaluate model.gguf --engine llama_cpp measures that)."
)
"""What a figure of llama.cpp's blocks isn't."""
_LONG: Final = 100
"""Letters of a mixture that a sentence holds."""


def verb_of(target: Target) -> Verb:
    """Return what becomes of a model that is given this target: `prune` or `quantize`."""
    return next(verb for verb, kinds in TARGETS_OF.items() if isinstance(target, kinds))


def advice(
    mixture: Mixture,
    goal: Goal,
    base: str,
    race: RaceResult,
    most: int = ROUNDS,
    halves: Sequence[Halves] = (),
) -> str:
    """Return the paragraph: what to use, what to expect against the baseline, what cannot be
    distinguished from it, and how the race ended.
    """
    best, *others = race.standings
    target = parse_target(mixture.sparsity)
    mixed = isinstance(read_set(best.data), Mix)
    tokens = f"{mixture.tokens:,} tokens" + (" of each part" if mixed else "")
    bits = f" ({race.bits:.2f} bits a weight)" if race.bits is not None else ""
    sentences = [
        f"To {verb_of(target)} {mixture.model} with {mixture.method} to {mixture.sparsity}{bits} for {goal.text}, calibrate on {short(best.data)}, "
        f"with {tokens}."
    ]
    sentences.append(_expected(best, base, race))
    if best.divergence is not None:
        sentences.append(
            f"Its predictions are {best.divergence.value:.3f} nats a token from the dense model's (KL)."
        )
    if isinstance(target, GgmlKind | GgufRecipe):
        sentences.append(IN_TORCH)
    sentences += _siblings(race, halves) if halves else _same_file(best, goal)
    if alike := [short(standing.data) for standing in others if standing.dropped is None]:
        sentences.append(f"Not significantly different from it: {', '.join(alike)}.")
    if behind := [short(standing.data) for standing in others if standing.dropped is not None]:
        sentences.append(f"Clearly behind: {', '.join(behind)}.")
    sentences.append(f"{ENDS[race.why]} ({race.rounds} of {most} rounds).")
    return " ".join(sentences)


def command(
    model: str,
    data: str,
    mixture: Mixture,
    propagate: str,
    dtype: str,
    device: str,
    export: str = "",
) -> str:
    """Return the command that does what was measured, quoted for a shell; `export` is a form to
    write beside the folder.
    """
    verb = verb_of(parse_target(mixture.sparsity))
    option = "--sparsity" if verb == "prune" else "--target"
    words = [
        "calibrant",
        verb,
        model,
        "--data",
        data,
        "--method",
        mixture.method,
        option,
        mixture.sparsity,
    ]
    words += ["--tokens", str(mixture.tokens), "--length", str(mixture.length)]
    if propagate != methods.build(mixture.method).propagate:
        words += ["--propagate", propagate]
    words += ["--export", export] if export else []
    words += [
        word
        for name, value in (("--dtype", dtype), ("--device", device))
        if value != "auto"
        for word in (name, value)
    ]
    if (root := mirror()) is not None and not os.environ.get("CALIBRANT_DATA"):
        words += ["--data-dir", str(root)]
    stem = "".join(
        c if c.isalnum() or c in "._" else "-" for c in os.path.basename(os.path.normpath(model))
    )
    return shlex.join(
        [
            *words,
            "--out",
            f"{stem}-{mixture.method.split('(')[0]}-{mixture.sparsity.replace(':', '-')}",
        ]
    )


def short(data: str) -> str:
    """Return a set as a sentence names it: a long mixture by its largest parts.

    >>> short("mix(a=python_docs, b=python_code, c=arithmetic:cot, d=c4, weights=[0.4, 0.3, 0.2, 0.1])")
    'a mixture of python_docs (40 %), python_code (30 %) and 2 more'
    """
    mix = read_set(data)
    if not isinstance(mix, Mix) or (len(data) <= _LONG and len(mix.sets) <= 3):
        return data
    parts = sorted(zip(mix.texts, mix.shares, strict=True), key=lambda part: -part[1])
    if len(parts) > 3 and len(set(mix.shares)) == 1:
        return f"an even mixture of {len(parts)} sets"
    named = [f"{part} ({100 * float(share):.0f} %)" for part, share in parts[:2]]
    return (
        f"a mixture of {' and '.join(named)}"
        if len(parts) == 2
        else f"a mixture of {', '.join(named)} and {len(parts) - 2} more"
    )


def _expected(best: Standing, base: str, race: RaceResult) -> str:
    """What the best set is expected to lose, and how that compares with the baseline."""
    where = (
        " on rows whose templates it was not calibrated on"
        if race.sibling and best.sibling != best.increase
        else ""
    )
    increase = f"Expect to lose {with_interval(plain(best.deciding))} {race.unit} against the dense model{where}"
    if best.data == base:
        return f"{increase}; it is the baseline itself."
    against = best.against_baseline
    if against is None:
        return f"{increase}; {short(base)} couldn't be measured."
    if not against.over_draws:
        compared = "less" if against.value < 0 else "more"
        return f"{increase}, {abs(against.value):.3f} {compared} than with {short(base)}, by one draw, which says nothing about the next."
    verdict = f"significant at {LEVEL:.0%}" if against.significant() else "not significant"
    return f"{increase}; against {short(base)} that is {with_interval(plain(against))}: {verdict}."


def _siblings(race: RaceResult, halves: Sequence[Halves]) -> list[str]:
    """Whether the target's own rows and its held-out sibling give the same answer."""
    best = race.standings[0]
    across, inside = (max(getattr(each, name) for each in halves) for name in ("across", "inside"))
    names = ", ".join(str(each.source) for each in halves)
    about = f"The sibling is {names} in two halves that share {across:.0%} of their runs of words, where rows of one half share {inside:.0%}."
    first = min(race.standings, key=lambda standing: standing.increase.value)
    if first.data == best.data:
        return [
            "The same set is best on rows like its own and on the file's held-out sibling.",
            about,
        ]
    return [
        f"On rows like its own {short(first.data)} loses least ({first.increase.value:+.3f}), but calibrated on one half of the file and judged by "
        f"the other it loses {first.deciding.value:+.3f}, and {short(best.data)} {best.deciding.value:+.3f}: the advice follows the latter.",
        about,
    ]


def _same_file(best: Standing, goal: Goal) -> list[str]:
    """That the judge comes from the winner's own file, where it does and no sibling of it could
    be made.
    """
    sources = {term.source for term in CalibrationSet(best.data).parts}
    same = [file for file in own_files(goal.sources) if file in sources]
    shares = {str(file): in_common(file) for file in same}
    common = (
        " and has templates in common with it"
        if any(share >= COMMON for share in shares.values())
        else ""
    )
    runs = ", ".join(f"{share:.0%}" for share in shares.values())
    return (
        [
            f"The text that is measured comes from the same file ({', '.join(shares)}){common} ({runs} of the runs of words): "
            "give a second --for that is like your use, or take the figure for a best case."
        ]
        if same
        else []
    )


def with_interval(estimate: Mapping[str, Any] | None) -> str:
    """Return a number, and its interval behind it if that covers draws; nothing for None."""
    if estimate is None:
        return ""
    interval = estimate["interval"] if estimate["over_draws"] else None
    return f"{estimate['value']:+.3f}" + (
        f" ({interval['low']:+.3f} to {interval['high']:+.3f})" if interval else ""
    )
