"""How long what a study lacks may take: the pieces that were timed, as often as they are needed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from calibrant.activations import FeatureNorms
from calibrant.data import CalibrationSet
from calibrant.study.probe import Kinds, Probed
from calibrant.study.question import Question
from calibrant.study.stock import Stock, budget_of


class Lacking(NamedTuple):
    """A question that isn't answered whole: what evaluators lack, and whether its record is there."""

    question: Question
    measures: Sequence[str]
    recorded: bool


def kinds(questions: Iterable[Question]) -> Kinds:
    """The statistics of the untouched model that these questions share."""
    return tuple(dict.fromkeys(kind for q in questions if q.shares for kind in q.recipe.shared))


def passes(questions: Iterable[Question]) -> list[CalibrationSet]:
    """The sets, draw by draw, of which the untouched model's statistics are gathered, each once; a mix is made of its parts'."""
    parts = (part for q in questions if q.shares and q.calibration for part in q.calibration.mixed or (q.calibration,))
    return list({repr(part): part for part in parts}.values())


def duration(found: Probed, lacking: Sequence[Lacking], stock: Mapping[str, Stock]) -> dict[str, float]:
    """Seconds by phase for one worker. A set that wasn't looked at is taken to fill its budget."""
    compressed = [one.question for one in lacking if not one.recorded or one.question.recipe.method.updates]
    drawn = {repr(q.calibration): q.calibration for q, _, _ in lacking if q.calibration}.values()

    def tokens(asked: CalibrationSet) -> int:
        return stock[str(asked)].tokens if str(asked) in stock else budget_of(asked) * (len(asked.mixed) or 1)

    forward = sum(found.forward.get(kinds(compressed), 0) * tokens(asked) for asked in passes(compressed))
    for question in compressed:
        if question.calibration and question.recipe.propagate != "dense":
            again = found.forward.get((FeatureNorms,), 0) if question.recipe.propagate == "reference" else 0
            forward += (found.forward.get(question.recipe.method.observes, 0) + again) * tokens(question.calibration)
    return {
        "open": found.opened if lacking else 0.0,
        "tokenize": sum(stock[str(asked)].seconds * (asked.seed + 1) for asked in drawn if str(asked) in stock),
        "forward": forward * found.blocks,
        "compress": sum(found.block.get((str(q.recipe.method), str(q.recipe.target)), 0) for q in compressed) * found.blocks,
        "measure": sum(found.measure.get(text, 0) for one in lacking for text in one.measures),
    }
