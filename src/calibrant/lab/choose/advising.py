"""The advice in a paragraph, and the command that follows it."""

import os
import shlex
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from calibrant.data import CalibrationSet, PerDraw, mirror
from calibrant.handover import file_stem
from calibrant.lab.choose.budget import ROUNDS
from calibrant.lab.choose.fitting import own_files
from calibrant.lab.choose.goal import Goal
from calibrant.lab.choose.halves import COMMON, Halves, in_common
from calibrant.lab.choose.predicting import Prediction
from calibrant.lab.choose.racing import Race, RaceResult, Standing, plain
from calibrant.lab.mixtures import Mixture, aim_of
from calibrant.lab.stats import LEVEL
from calibrant.methods import methods
from calibrant.targets import GgmlKind, GgufBudget, GgufRecipe

ENDS: Final = {
    "clear": "All others are clearly behind",
    "alone": "No other set is left in the race",
    "alike": "The sets that are still in the race differ by less than matters, and more draws are "
    "not worth their time",
    "draws": "Every set in the race was drawn as often as a race allows",
    "time": "The time was up; the same command goes on from here",
}
IN_TORCH: Final = (
    "It was measured in PyTorch, with the numbers that the file's blocks stand for; llama.cpp "
    "rounds activations to 8 bits as well (calibrant evaluate model.gguf --engine llama_cpp "
    "measures that)."
)
"""What is said beside a figure of llama.cpp's blocks: it is none of llama.cpp."""
CHOSEN_BY_IT: Final = "The set's own figure is a little too good, since the set was chosen by it."
"""What is said of the best of several sets: its interval doesn't count that it was chosen."""
_LONG: Final = 100
"""Letters of a mixture that a sentence holds."""


def advice(
    mixture: Mixture,
    goal: Goal,
    baseline: str,
    race: RaceResult,
    most: int = ROUNDS,
    halves: Sequence[Halves] = (),
) -> str:
    """Return the paragraph.

    It says what to use, what to expect against the baseline, what cannot be distinguished from it,
    what couldn't be measured, and how the race ended.
    """
    best, *others = race.standings
    data = CalibrationSet(best.data)
    _, target = aim_of(mixture.method, mixture.target)
    bits = ""
    if race.bits is not None:
        bits = f" ({race.bits:.2f} bits a weight)"
    task = f"To {target.verb} {mixture.model} with {mixture.method} to {mixture.target}{bits}"
    tokens = f"{mixture.tokens:,} tokens"
    if data.mixed:
        tokens += " of each part"
    sentences = [
        f"{task} for {goal.text}, calibrate on {short(best.data)}, with {tokens}.",
        _expected(best, goal, baseline, race),
    ]
    if others:
        sentences.append(CHOSEN_BY_IT)
    if best.by_role:
        by_role = [f"{role} {value:.3f}" for role, value in best.by_role.items()]
        sentences.append(f"By role: {', '.join(by_role)}.")
    if best.divergence is not None:
        apart = f"{best.divergence.value:.3f} nats a token from the dense model's (KL)"
        sentences.append(f"Its predictions are {apart}.")
    if isinstance(target, GgmlKind | GgufRecipe | GgufBudget):
        sentences.append(IN_TORCH)
    if halves:
        sentences += _siblings(race, halves)
    else:
        sentences += _same_file(data, goal)
    alike = [short(standing.data) for standing in others if standing.dropped is None]
    behind = [short(standing.data) for standing in others if standing.dropped is not None]
    if alike:
        sentences.append(f"Not significantly different from it: {', '.join(alike)}.")
    if behind:
        sentences.append(f"Clearly behind: {', '.join(behind)}.")
    if race.unmeasured:
        failed = ", ".join(map(short, race.unmeasured))
        sentences.append(f"Could not be measured, so nothing is known of them: {failed}.")
    sentences.append(f"{ENDS[race.why]} ({race.rounds} of {most} rounds).")
    return " ".join(sentences)


def template_worth(
    race: Race,
    standings: Sequence[Standing],
    predicted: Mapping[str, Prediction],
    in_template: str,
    as_text: str,
) -> str:
    """Say what a chat template is worth: a set in it against the same rows `as_text`, measured
    where both were raced, else predicted; nothing where one of them isn't even predicted.
    """
    increases = {standing.data: plain(standing.deciding) for standing in standings}
    difference = race.worse(as_text, in_template)
    if difference is None:
        return _predicted_worth(predicted, in_template, as_text)
    text_increase = with_interval(increases[as_text])
    template_increase = with_interval(increases[in_template])
    figures = (
        f"Calibrated on the same rows as plain text ({as_text}), the increase was {text_increase}; "
        f"in the template {template_increase}"
    )
    if not difference.over_draws:
        return f"{figures}: too little was measured to say what the template is worth."
    verdict = f"significant at {LEVEL:.0%}" if difference.significant() else "not significant"
    return f"{figures}: the template was worth {with_interval(plain(difference))}, {verdict}."


def _predicted_worth(predicted: Mapping[str, Prediction], in_template: str, as_text: str) -> str:
    if not predicted.keys() >= {in_template, as_text}:
        return ""
    text_error = predicted[as_text].value
    template_error = predicted[in_template].value
    return (
        f"Predicted and not measured: calibrated on the same rows as plain text ({as_text}), it "
        f"loses {text_error:.2%} of the outputs' energy; in the template {template_error:.2%}."
    )


def command(
    model: str,
    data: str,
    mixture: Mixture,
    propagate: str,
    dtype: str,
    device: str,
    export: str = "",
) -> str:
    """Return the command that does what was measured with the `model` of that name or folder,
    quoted for a shell.

    `export` is a form to write beside the folder.
    """
    verb = aim_of(mixture.method, mixture.target)[1].verb
    words = ["calibrant", verb, model, "--data", data, "--method", mixture.method]
    words += ["--target", mixture.target]
    words += ["--tokens", str(mixture.tokens), "--length", str(mixture.length)]
    if propagate != methods.build(mixture.method).propagate:
        words += ["--propagate", propagate]
    if export:
        words += ["--export", export]
    if dtype != "auto":
        words += ["--dtype", dtype]
    if device != "auto":
        words += ["--device", device]
    # A mirror that the environment names is found again; one of this call alone is not.
    root = mirror()
    if root is not None and not os.environ.get("CALIBRANT_DATA"):
        words += ["--data-dir", str(root)]
    # The folder is called after the model, whose own name the mixture has.
    stem = file_stem(mixture.model)
    method = mixture.method.split("(")[0]
    target = mixture.target.replace(":", "-").replace(" ", "-")
    words += ["--out", f"{stem}-{method}-{target}"]
    return shlex.join(words)


def short(data: str) -> str:
    """Return a set as a sentence names it: a long mixture by its largest parts.

    >>> short("mix(a=python_docs, b=python_code, c=arithmetic, d=c4, weights=[0.4, 0.3, 0.2, 0.1])")
    'a mixture of python_docs (40 %), python_code (30 %) and 2 more'
    """
    mixture = CalibrationSet(data)
    count = len(mixture.mixed)
    if count == 0 or (len(data) <= _LONG and count <= 3):
        return data
    if count > 3 and len(set(mixture.shares)) == 1:
        return f"an even mixture of {count} sets"

    def order(part: tuple[CalibrationSet, Fraction]) -> Fraction:
        _, share = part
        return -share

    parts = sorted(zip(mixture.mixed, mixture.shares, strict=True), key=order)
    largest: list[str] = []
    for part, share in parts[:2]:
        percent = 100 * float(share)
        largest.append(f"{part} ({percent:.0f} %)")
    if count == 2:
        return f"a mixture of {' and '.join(largest)}"
    return f"a mixture of {', '.join(largest)} and {count - 2} more"


def in_own_names(text: str, names: Mapping[str, str]) -> str:
    """Return a text in which models and data that came as objects have names of their own, in the
    place of the files that they were written to.

    >>> in_own_names("for out/given/0a1b.jsonl", {"out/given/0a1b.jsonl": "your data"})
    'for your data'
    """
    for file, name in names.items():
        text = text.replace(file, name)
    return text


def _expected(best: Standing, goal: Goal, baseline: str, race: RaceResult) -> str:
    """What the best set is expected to lose, and how that compares with the baseline."""
    expected_loss = f"{with_interval(plain(best.deciding))} {race.unit}"
    increase = f"Expect to lose {expected_loss} against the dense model"
    if goal.conversations:
        increase = f"Expect predictions {expected_loss} from the dense model's (KL)"
    if race.sibling and best.sibling != best.increase:
        increase += " on rows whose templates it was not calibrated on"
    if best.data == baseline:
        return f"{increase}; it is the baseline itself."
    difference = best.against_baseline
    if difference is None:
        return f"{increase}; {short(baseline)} couldn't be measured."
    if not difference.over_draws:
        direction = "less" if difference.value < 0 else "more"
        compared = f"{abs(difference.value):.3f} {direction} than with {short(baseline)}"
        return f"{increase}, {compared}, by one draw, which says nothing about the next."
    # Whichever set is best is compared, so all that might have been count.
    is_significant = difference.significant(comparisons=race.comparisons)
    verdict = f"significant at {LEVEL:.0%}" if is_significant else "not significant"
    worse = with_interval(plain(difference, comparisons=race.comparisons))
    return f"{increase}; against {short(baseline)} that is {worse}: {verdict}."


def _siblings(race: RaceResult, halves: Sequence[Halves]) -> list[str]:
    """Whether the goal's own rows and its held-out sibling give the same answer."""
    across = max(file_halves.across for file_halves in halves)
    inside = max(file_halves.inside for file_halves in halves)
    names = ", ".join(str(file_halves.source) for file_halves in halves)
    shared = f"share {across:.0%} of their runs of words, where rows of one half share {inside:.0%}"
    about = f"The sibling is {names} in two halves that {shared}."
    best = race.standings[0]

    def increase(standing: Standing) -> float:
        return standing.increase.value

    best_on_own = min(race.standings, key=increase)
    if best_on_own.data == best.data:
        agreement = "The same set is best on rows like its own and on the file's held-out sibling."
        return [agreement, about]
    least = f"{short(best_on_own.data)} loses least ({best_on_own.increase.value:+.3f})"
    halved = f"it loses {best_on_own.deciding.value:+.3f}"
    best_halved = f"{short(best.data)} {best.deciding.value:+.3f}"
    disagreement = (
        f"On rows like its own {least}, but calibrated on one half of the file and judged by the "
        f"other {halved}, and {best_halved}: the advice follows the latter."
    )
    return [disagreement, about]


def _same_file(data: CalibrationSet, goal: Goal) -> list[str]:
    """Say that the judge comes from the best set's own file; nothing where it doesn't."""
    sources = {term.source for term in data.parts}
    for term in data.parts:
        if isinstance(term.source, PerDraw):
            sources.update(term.source.origins)
    shared_files = [file for file in own_files(goal.sources) if file in sources]
    if not shared_files:
        return []
    shares = [in_common(file) for file in shared_files]
    files = ", ".join(map(str, shared_files))
    runs = ", ".join(f"{share:.0%}" for share in shares)
    common = " and has templates in common with it" if max(shares) >= COMMON else ""
    return [
        f"The text that is measured comes from the same file ({files}){common} ({runs} of the runs "
        "of words): give a second --for that is like your use, or take the figure for a best case."
    ]


def with_interval(estimate: Mapping[str, Any] | None) -> str:
    """Return a number, and its interval behind it if that covers draws; nothing for None."""
    if estimate is None:
        return ""
    value = f"{estimate['value']:+.3f}"
    interval = estimate["interval"]
    if interval is None or not estimate["over_draws"]:
        return value
    return f"{value} ({interval['low']:+.3f} to {interval['high']:+.3f})"
