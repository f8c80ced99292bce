"""Does `recommend`, run whole, take the right set for eight kinds of text?

    CALIBRANT_DATA=… python -m studies.large.recommended FOLDER [--minutes M] [--only TEXT]
    CALIBRANT_DATA=… python -m studies.large.recommended FOLDER --tables

The model has 1.5 billion numbers; `--model` names another. For each text and each method the
calibrating rows of a public set are written into a folder, as if they were one's own. `recommend`
is asked about that folder. Then every candidate that it had is measured on the measured rows of the
same set, which `recommend` never saw. *Regret*: how many per cent larger the divergence is with a
set than with the best candidate. Killed and run again, it goes on; `--tables` shows what is there.

Fixed before any run:
- The texts, in the order in which they are computed. What doesn't fit is left out from the end. The
  mirror of data sets has no tickets, no questions about SQL, no poems, and only six support chats.
  Questions to programmers, patents, the threads of a forum and everyday questions stand in their
  place.
- Questions with answers are measured in the model's chat template, since `recommend` measures them
  so.
- GPTQ with scales by importance at four bits, then `refined` at half of the weights.
- One draw of each candidate that no race can have had: `recommend` chose by the earlier ones, and
  what was lucky there would be judged by its luck. It has as many tokens as `recommend` took: 8,192
  in windows of 512, or fewer where one's own text is short. Where a text has too few rows for so
  many draws, this one shares rows with earlier ones.
- The best candidate is the best of that one draw, so partly by chance: each regret is a little too
  large, that of every set alike.
- What is asked, described and not tested: the regret of what `recommend` took, of C4 and of one's
  own text; and the minutes that `recommend` took. After a kill these are the last call's.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from studies.arms import number_or_nothing, table_head, table_row, value_of

from calibrant import CalibrantError, CalibrationSet, Study, recommend
from calibrant.data.inspect.leaks import find_leaks, serious
from calibrant.data.user_file import UserFile
from calibrant.evaluators.agreement import Agreement
from calibrant.lab.choose.budget import ROUNDS
from calibrant.lab.study.request import StudyResult
from calibrant.results import Store
from calibrant.system.durable import put
from calibrant.system.progress import Progress, silent

TEXTS: Final[Mapping[str, tuple[str, str]]] = {
    "questions to programmers": ("pile(subsets=['StackExchange'])", "text"),
    "arithmetic": ("gsm8k", "chat"),
    "biomedical abstracts": ("pile(subsets=['PubMed Abstracts'])", "text"),
    "a code base": ("python_code", "text"),
    "French": ("flores(language=fr)", "text"),
    "everyday questions": ("commonsense_qa", "chat"),
    "patents": ("pile(subsets=['USPTO Backgrounds'])", "text"),
    "threads of a forum": ("pile(subsets=['HackerNews'])", "text"),
}
"""The source of each text, and the format in which it is measured."""
METHODS: Final = (("gptq(scales=importance)", "w4g128"), ("refined", "0.5"))
"""The methods with their targets."""
MODEL: Final = "qwen2.5-coder-1.5b"
MINUTES: Final = 180.0
GENERAL: Final = "c4"
FIELDS: Final = ("text", "question", "answer", "rationale", "choices")
"""What of a row is written into one's own text."""
FRESH_DRAW: Final = ROUNDS
"""The draw that judges: a race draws from 0 on, at most so often, so it never had this one."""
ROWS_PER_MEASURED: Final = 4
"""One row in so many of one's own text measures; the others calibrate."""


@dataclass(frozen=True)
class Trial:
    """`recommend` for one text and one method, in a folder of their own."""

    folder: Path
    model: str
    text: str
    method: str
    target: str
    minutes: float
    tokens: int | None = None
    length: int = 512

    @property
    def measure(self) -> Agreement:
        """What judges all candidates."""
        source, form = TEXTS[self.text]
        return Agreement(source=source, format=form, tokens=8192, length=self.length)

    @property
    def own_text(self) -> Path:
        """The folder of one's own text."""
        return self.folder / "own"

    @property
    def answer_file(self) -> Path:
        """The file that keeps what `recommend` said."""
        return self.folder / "answer.json"

    @property
    def judged_store(self) -> Path:
        """The store of what the candidates did."""
        return self.folder / "judged"

    def run(self, progress: Progress = silent) -> StudyResult:
        """Ask `recommend`, unless it was asked before, and measure all candidates that it had."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.answer_file.exists():
            self.write_own_text()
            recommendation = recommend(
                self.model,
                goal=str(self.own_text),
                method=self.method,
                target=self.target,
                minutes=self.minutes,
                tokens=self.tokens,
                length=self.length,
                folder=self.folder / "recommend",
                progress=progress,
            )
            put(self.answer_file, json.dumps(recommendation.to_json()).encode())
        return self._study().run(self.judged_store, progress, retry=True)

    def write_own_text(self) -> None:
        """Write the calibrating rows of the source as a user's folder."""
        source, _ = self.measure.held_out()
        rows = list(source.rows("calibrate"))
        # A study refuses rows that are nearly those that it measures on.
        leaks = find_leaks(rows, source.rows("measure"))
        leaked = {leak.row for leak in leaks if serious(leak)}
        # A single file would be divided by hash. Where the source was divided so too, all these
        # rows would calibrate and none measure, so they are divided here.
        calibrating: list[str] = []
        measured: list[str] = []
        own_rows = [row for row in rows if row.example not in leaked]
        for place, row in enumerate(own_rows):
            record = {name: getattr(row, name) for name in FIELDS if name in row.present}
            line = json.dumps(record, ensure_ascii=False) + "\n"
            if place % ROWS_PER_MEASURED:
                calibrating.append(line)
            else:
                measured.append(line)
        self.own_text.mkdir(parents=True, exist_ok=True)
        (self.own_text / "train.jsonl").write_text("".join(calibrating), encoding="utf-8")
        (self.own_text / "test.jsonl").write_text("".join(measured), encoding="utf-8")

    def answer(self) -> Mapping[str, Any]:
        """What `recommend` said, as its `to_json` has it."""
        return json.loads(self.answer_file.read_text(encoding="utf-8"))

    def _study(self) -> Study:
        answer = self.answer()
        return Study(
            model=self.model,
            data=[candidate["data"] for candidate in answer["candidates"]],
            method=self.method,
            target=self.target,
            seeds=FRESH_DRAW,
            tokens=answer["tokens"],
            length=answer["length"],
            evaluate=[self.measure],
            masks=False,
            quotes=False,
            edits_gb=0.0,
        )

    def divergences(self) -> dict[str, float]:
        """The divergence with each candidate that was measured, by its set, in nats a token."""
        found: dict[str, float] = {}
        with Store(self.judged_store, create=False) as store:
            for cell in store.cells():
                for measure in cell.measures.values():
                    measurement = store.measurement(cell.run, measure)
                    if cell.data and measurement is not None:
                        found[cell.data] = value_of(measurement, "kl")
        return found

    def own_sets(self) -> list[str]:
        """The candidates that are one's own text and nothing else, in whatever format."""
        found: list[str] = []
        for candidate in self.answer()["candidates"]:
            calibration = CalibrationSet(candidate["data"])
            sources = {term.source for term in calibration.parts}
            if sources == {UserFile(str(self.own_text))}:
                found.append(str(calibration))
        return found

    def row(self) -> str | None:
        """What came of it, as a row of the table; None until `recommend` was asked and its choice
        was measured.
        """
        if not self.answer_file.exists() or not self.judged_store.exists():
            return None
        answer = self.answer()
        divergences = self.divergences()
        taken = str(CalibrationSet(answer["expr"]))
        if taken not in divergences:
            return None
        best = min(divergences.values())
        own_divergences = [divergences[data] for data in self.own_sets() if data in divergences]
        compared = [
            divergences[taken],
            divergences.get(GENERAL),
            min(own_divergences, default=None),
        ]
        regrets: list[str] = []
        for divergence in compared:
            regret = None
            if divergence is not None:
                regret = 100 * (divergence / best - 1)
            regrets.append(number_or_nothing(regret, ".1f"))
        minutes = sum(answer["seconds"].values()) / 60
        measured = f"{len(divergences)} of {len(answer['candidates'])}"
        names = [self.text, f"`{self.method}`", f"`{taken}`"]
        return table_row([*names, measured, *regrets, f"{minutes:.0f}"])


def trials(folder: Path, model: str, minutes: float, only: str | None) -> Iterator[Trial]:
    """All trials in the order in which they are computed; those of one text alone where that is
    asked for.
    """
    for method, target in METHODS:
        for text in TEXTS:
            if only in (None, text):
                place = folder / Path(model).name / f"{text} {target}".replace(" ", "-")
                yield Trial(place, model, text, method, target, minutes)


def table(asked: Iterable[Trial]) -> Iterator[str]:
    """What came of the trials, as a table in Markdown; those that aren't there yet have no row."""
    numbers = ["candidates measured", "regret, %", "of C4", "of the best own text", "minutes"]
    yield from table_head(["text", "method", "`recommend` took"], numbers)
    for trial in asked:
        row = trial.row()
        if row is not None:
            yield row


def _tell(what: str, done: int, total: int) -> None:
    print(f"{what} {done}/{total}", file=sys.stderr)


def main() -> None:
    """Run all trials that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--only", choices=TEXTS)
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    asked = list(trials(options.folder, options.model, options.minutes, options.only))
    if not options.tables:
        for trial in asked:
            try:
                finished = trial.run(_tell)
            except CalibrantError as error:
                # The other trials can still be had.
                print(f"{trial.text}, {trial.method}: {error}", file=sys.stderr)
                continue
            for failure in finished.failures.values():
                print(f"{failure['what']}: {failure['error']}", file=sys.stderr)
    print("\n".join(table(asked)))


if __name__ == "__main__":
    main()
