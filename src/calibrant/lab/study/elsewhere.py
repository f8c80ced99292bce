"""What was measured on another processor.

A model that writes or chooses text may have taken another text there, since it rounds otherwise.
The tokens decide a run's id, so there it has another. It is the same set all the same, and what was
measured with it isn't to be lost.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from calibrant.compress.costs import processor
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import Selector
from calibrant.errors import DataError
from calibrant.lab.study.desk import RemoteStore
from calibrant.results import Record, Run, Store, identity_without_tokens
from calibrant.spec import identity

ASKED: Final = ("data", "draw", "length", "tokens", "windows", "pads")
"""Facts of tokens that don't depend on the text that a model wrote or chose."""
ASKED_OF_PART: Final = ("data", "share", "weight", "tokens", "windows", "bos")
"""The same of each part of a set."""


class Elsewhere:
    """The runs of other processors in a store. Those that others add meanwhile are found too."""

    def __init__(self, store: Store | RemoteStore) -> None:
        self._store = store
        self._here = processor()
        self._looked_at: set[str] = set()
        self._found: dict[str, list[Record]] = {}

    def stand_in(
        self,
        run: Run,
        calibration: CalibrationSet,
        batch: TokenBatch,
        measures: Callable[[str], Mapping[str, str]],
    ) -> Run | None:
        """Return the run that stands for `run`, which isn't in the store; None where there is none.

        It differs in nothing but the text that the model wrote or chose. All its `measures` (ids by
        evaluator) must be there: a lacking one would be measured on a model that saw this machine's
        text. Where a record of this processor has other tokens, something else has changed.
        """
        if calibration.mixed or not any(_chosen_by_model(calibration)):
            return None
        self._look()
        asked = _asked(batch.facts, calibration)
        whole: list[Run] = []
        for record in self._found.get(identity_without_tokens(run), []):
            there = self._store.measured(record.run.id)
            measured = set(measures(record.run.id).values()) <= there
            if measured and _asked(record.data_facts, calibration) == asked:
                whole.append(record.run)
        # Where there are several, always the first, so that methods mostly share a text.
        return min(whole, key=lambda other: other.tokens, default=None)

    def _look(self) -> None:
        """Read the records that are new; one that can't be read stands for nothing."""
        for name in set(self._store.ids()) - self._looked_at:
            self._looked_at.add(name)
            with suppress(DataError):
                record = self._store.record(name, whole=False)
                place = self._store.provenance(name).get("processor", "")
                if record is not None and place not in ("", self._here):
                    self._found.setdefault(identity_without_tokens(record.run), []).append(record)


def _chosen_by_model(calibration: CalibrationSet) -> list[bool]:
    """Of each part whether its text is written or chosen with the model's help."""
    sources = [term.source for term in calibration.parts]
    return [isinstance(source, Selector) and source.needs_model for source in sources]


def _asked(facts: Mapping[str, Any], calibration: CalibrationSet) -> str:
    """The identity of what is known of tokens but for the text that a model wrote or chose."""
    parts: list[list[Any]] = []
    for part, chosen in zip(facts.get("parts", []), _chosen_by_model(calibration), strict=False):
        names = ASKED_OF_PART if chosen else (*ASKED_OF_PART, "digest")
        parts.append([part.get(name) for name in names])
    return identity([[facts.get(name) for name in ASKED], parts])
