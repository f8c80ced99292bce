"""A driver answers the requests of a study, one after the other, with one open model.

`--workers N` are N drivers on one store.

Work is done once. The dense model stays in memory and is restored matrix by matrix; a calibration
set is tokenized once for all methods and targets; what the dense model's matrices see of it is kept
on disk for all targets; runs that look at no data (the dense model, magnitude) are made once
whatever the number of sets; and where only a measurement is missing, the run's mask or edits are
applied again.

Claims in the store decide who works on what, so drivers need not know of each other. What another
is at work on is passed over. When nothing else is left, it is looked at again and again, until it
is done or, its worker having died, can be done here. What a driver does it reports in messages,
which are lists of plain data (`Message`).

A run is claimed until it is measured. What the dense model's matrices see of a set is claimed only
while it isn't on disk: the run that gathers it is compressed first, and others on that set wait for
it, since they would gather the same. Once it is there, any number of runs read it at a time. A
driver with a folder of its own, such as an actor of Ray, can't read what others gather. It gathers
its own and waits for nobody.
"""

import errno
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from calibrant.compress import Recipe, compress
from calibrant.compress.costs import peak_memory, processor, provenance, shortage_of
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import Selector
from calibrant.errors import DataError, OutputError
from calibrant.evaluators import timed
from calibrant.lab.study.known import unanswered
from calibrant.lab.study.loaded import LoadedModel
from calibrant.lab.study.request import RunRequest, Workload
from calibrant.lab.study.sending import RemoteStore
from calibrant.models import open_model
from calibrant.models.readable import check_windows
from calibrant.results import (
    EDITS,
    MASK,
    PROFILE,
    STATISTICS,
    Record,
    Run,
    Store,
    identity_without_tokens,
    measurement_id,
)
from calibrant.results.outcomes import Journal
from calibrant.spec import identity
from calibrant.system.clock import Clock
from calibrant.system.durable import put
from calibrant.system.progress import silent
from calibrant.system.seals import tell_made_again
from calibrant.system.wide_products import wide_products
from calibrant.system.wire import Language, fields_of
from calibrant.walk.statistics import Statistics, statistics_ids, surplus

Made = TypeVar("Made")

Message = list[Any]
"""What a driver reports; the first item says what it is.

`progress`: a label, how much is done, of how much. `doing`: a label, the id under which its failure
would be recorded, the number of the request, the evaluator. `cell`: the number of a request, its
run's id, its measurements' ids, and which of all these the store has. `made`: the id of a new
record or measurement. `few_tokens`: a model, a set, and a sentence. `done`: the number of a
request. `spent`: seconds by phase, and the most bytes of memory that the process had.
"""

WAITING: Final[Message] = ["doing", "waiting for other workers", "", -1, ""]
"""Reported by a driver that has nothing to do until others finish."""

Report = Callable[[Message], None]

PAUSE: Final = 0.5
"""Seconds from one look through all that others are at work on to the next."""

OPENING: Final = "opening"
"""In what is recorded of a failure: the model that couldn't be opened. Whoever has it open goes on
all the same."""

TOKENS: Final = Language(fields_of(TokenBatch, without=("rows",)))
"""How drivers on one machine share token batches: as files of safetensors."""

REQUEST_FACTS: Final = ("data", "draw", "length", "tokens", "windows", "pads")
"""Facts of tokens that don't depend on the text that a model wrote or chose."""
PART_FACTS: Final = ("data", "share", "weight", "tokens", "windows", "bos")
"""The same of each part of a set."""


@dataclass(frozen=True)
class Resolved:
    """A request whose run is known by its id.

    `recipe` is as this machine can carry it out, with a `note` where that differs from the request.
    `measures` are the ids of the measurements by evaluator, `statistics` the ids of statistics that
    it may share with others, for each of the model's `blocks`. `shortage` says that there are few
    tokens, where there are.
    """

    request: RunRequest
    recipe: Recipe
    note: str
    run: Run
    measures: Mapping[str, str]
    statistics: tuple[str, ...] = ()
    blocks: int = 0
    shortage: str = ""


class Missing(NamedTuple):
    """What the store lacks of one request.

    That is its record, unless it is `recorded`, and what these evaluators measure.
    """

    recorded: bool
    measures: Sequence[str]

    def __bool__(self) -> bool:
        return not self.recorded or bool(self.measures)


class Driver:
    """Answers what `store` lacks of a workload.

    It is number `place` of `count` drivers that begin with different calibration sets, and then
    help each other; token batches are shared in the folder `shared`, if there is one. What failed
    before isn't tried again, except for the failures in `forgiven`. What workers died at before
    they knew a run's id is `given_up`: ids for such failures, and what `opening` says of models.
    """

    def __init__(
        self,
        store: Store | RemoteStore,
        work: Workload,
        report: Report,
        forgiven: Mapping[str, Mapping[str, Any]],
        shared: Path | None = None,
        place: int = 0,
        count: int = 1,
        given_up: Collection[str] = (),
    ) -> None:
        self._store = store
        self._work = work
        self._report = report
        self._doing = WAITING
        self._forgiven = forgiven
        self._given_up = given_up
        self._unopened = {model for model in work.models if opening(model) in given_up}
        """The models that can't be opened here."""
        self._shared = shared
        self._left = set(range(len(work.requests)))
        """The numbers of the requests that aren't done."""
        self._passed_over: set[int] = set()
        """Those that were left for later, since another driver was at work on them when this one
        last looked."""
        self._sets = [repr((request.model, request.calibration)) for request in work.requests]
        distinct = list(dict.fromkeys(self._sets))
        self._own_sets = set(distinct[place::count])
        self._alone = count == 1
        self._resolved: dict[int, Resolved] = {}
        self._model = ""
        self._loaded: LoadedModel | None = None
        self._elsewhere = Elsewhere(store)
        self._clock = Clock()

    @wide_products()
    def run(self) -> None:
        """Answer every request.

        Raises `OutputError` on a full disk and, for a study of one model, why that can't be opened.
        """
        while self._left:
            index = min(self._left, key=self._turn)
            if not self._visit(index):
                self._pass_over(index)
                continue
            self._left.discard(index)
            self._report(["done", index])
            self._trim()
            self._report(["spent", dict(self._clock.seconds), peak_memory()])
            self._clock.seconds.clear()

    def _turn(self, index: int) -> tuple[bool, bool, bool, int]:
        """What the order of the requests goes by.

        Those that nobody else was at work on come first; then those of the open model; then this
        driver's own sets.
        """
        passed_over = index in self._passed_over
        other_model = self._work.requests[index].model != self._model
        begun_by_others = self._sets[index] not in self._own_sets
        return passed_over, other_model, begun_by_others, index

    def _pass_over(self, index: int) -> None:
        """Pass a request over. When all that aren't done were passed over, pause, and look at them
        all again.

        To wait for one of them would be to sit idle while another becomes free.
        """
        self._passed_over.add(index)
        if self._passed_over >= self._left:
            # If this driver dies now, the run that it looked at last isn't to blame.
            self._report(WAITING)
            time.sleep(PAUSE)
            self._passed_over.clear()

    def _visit(self, index: int) -> bool:
        """Whether a request is done with. It isn't if another is at work on it."""
        # One that was passed over has its ids. Its model may have been let go since, and isn't
        # opened again before there is something to do.
        if index not in self._resolved and not self._find_ids(index):
            return True
        resolved = self._resolved[index]
        with ExitStack() as claims:
            lacking = bool(self._missing(index, resolved))
            if not lacking:
                ended = [journal for journal in self._ended_journals(resolved) if len(journal)]
                if not ended:
                    return True
            if not self._claim(claims, resolved.run.id):
                return not lacking
            # Looked at again: another driver may have finished it between the look and the claim.
            missing = self._missing(index, resolved)
            for journal in self._ended_journals(resolved):
                journal.remove()
            if not missing:
                return True
            return self._answer(index, resolved, missing)

    def _find_ids(self, index: int) -> bool:
        """Whether a request is resolved now. That fails, or failed before, where its model can't be
        opened or its tokens can't be made.
        """
        request = self._work.requests[index]
        failed_id = self._work.provisional(request)
        if failed_id in self._given_up:
            return False
        reason = self._failure(failed_id)
        # That another couldn't open the model is nothing to this driver, which has it open.
        is_open = self._model == request.model
        if reason is not None and not (is_open and OPENING in reason):
            return False
        if not self._open(index):
            return False
        self._begin(request.label, failed_id, index)
        try:
            self._resolved[index] = self._resolve(request)
        except Exception as error:
            if _is_of_the_store(error):
                raise
            self._fail(unanswered(self._store, self._work, [index]), error)
            return False
        return True

    def _answer(self, index: int, resolved: Resolved, missing: Missing) -> bool:
        """Make what is missing of a request whose run is claimed.

        False if another is gathering statistics that it needs.
        """
        request = resolved.request
        run_id = resolved.run.id
        state: bytes | None = None
        if missing.recorded:
            state = self._store.state(run_id)
        needed: list[str] = []
        if state is None:
            # Always in the same order, or two that need the same parts of mixes could each have one
            # and keep the other from both, again and again.
            needed = sorted(resolved.statistics)
        with ExitStack() as gathering:
            for name in needed:
                if self._hold(gathering, name, resolved):
                    continue
                if not self._claim_in_folder(gathering, name):
                    return False
            if not self._open(index):
                return True
            self._begin(request.label, run_id, index)
            make = partial(self._make, resolved, missing.recorded, state)
            if not self._attempt(make, run_id, request):
                return True
        # To record a run clears its failure, and one that was recorded before isn't again.
        self._store.clear_failure(run_id)
        # The model is compressed; what follows only measures.
        for text in missing.measures:
            label = f"{request.label}, measured by {text}"
            measure_id = resolved.measures[text]
            self._begin(label, measure_id, index, text)
            self._attempt(partial(self._measure, resolved, text), measure_id, request, text)
        return True

    def _begin(self, label: str, failed_id: str, index: int, evaluator: str = "") -> None:
        """Report what this driver is doing from now on."""
        self._doing = ["doing", label, failed_id, index, evaluator]
        self._report(self._doing)

    def _open(self, index: int) -> bool:
        """Whether the model of a request is open.

        One that can't be is a failure of all that is to be made of it; where it is the only one, it
        is the study's. One that could be before may only lack room now, and fails this request
        alone.
        """
        model = self._work.requests[index].model
        if self._model == model:
            return True
        if model in self._unopened:
            return False
        # Two models may be more than there is room for, so this one is let go first.
        self._model = ""
        self._loaded = None
        self._begin(opening(model), "", index)
        try:
            with self._clock.phase("open"):
                opened = open_model(model, self._work.dtype, self._work.device)
                self._loaded = LoadedModel(opened)
        except Exception as error:
            if len(self._work.models) == 1 or _is_of_the_store(error):
                raise
            failed = [index]
            if index not in self._resolved:
                self._unopened.add(model)
                failed = unanswered(self._store, self._work, self._work.about(model))
            self._fail(failed, error, of_opening=True)
            return False
        self._model = model
        return True

    def _fail(self, numbers: Iterable[int], error: Exception, of_opening: bool = False) -> None:
        """Record of these requests why their ids aren't known.

        That the model can't be opened here doesn't replace what another found who had it open.
        """
        for number in numbers:
            request = self._work.requests[number]
            failed_id = self._work.provisional(request)
            if of_opening and self._failed(failed_id):
                continue
            reason = failure(request, error, of_opening=of_opening)
            self._store.add_failure(failed_id, reason)

    def _resolve(self, request: RunRequest) -> Resolved:
        """Make the request's tokens, and with them its ids."""
        loaded = self._current
        with self._clock.phase("tokenize"):
            batch = self._tokens(request)
        if batch is not None:
            check_windows(loaded.opened.model, batch.ids, batch.mask)
        recipe, note = loaded.fitting(request.recipe, batch)
        run = recipe.run(loaded.opened, batch, request.cell.data, request.cell.seed)
        statistics: tuple[str, ...] = ()
        calibration = request.calibration
        if calibration is not None and batch is not None:
            if not self._store.has_record(run.id):
                stand_in = self._elsewhere.stand_in(run, calibration, batch, self._measures_of)
                run = stand_in or run
            if request.shares:
                statistics = statistics_ids(loaded.opened, batch)
        measures = self._measures_of(run.id)
        shortage = ""
        if recipe.weights_look:
            shortage = shortage_of(loaded.view, batch)
        if shortage:
            self._report(["few_tokens", request.model, request.cell.data, shortage])
        blocks = loaded.block_count
        return Resolved(request, recipe, note, run, measures, statistics, blocks, shortage)

    def _measures_of(self, run_id: str) -> dict[str, str]:
        """The ids of a run's measurements by evaluator."""
        ids: dict[str, str] = {}
        for text in self._work.evaluators:
            form, digest = self._work.measures(text)
            ids[text] = measurement_id(run_id, form, digest)
        return ids

    def _tokens(self, request: RunRequest) -> TokenBatch | None:
        """The token batch of a request, made by one driver for all.

        A set whose rows are chosen with the model's help is resolved by each.
        """
        calibration = request.calibration
        loaded = self._current
        if calibration is None or self._shared is None or calibration.per_draw:
            return loaded.tokens(calibration)
        if loaded.has_tokens(calibration):
            return loaded.tokens(calibration)
        # One driver draws it and the others read it: drawing the same twice takes long. They wait,
        # since without tokens they don't know the ids of its runs.
        name = identity([request.model, repr(calibration)]).removeprefix("sha256:")
        path = self._shared / f"{name}.tokens"
        with ExitStack() as claims:
            if not self._claim_in_folder(claims, path.name):
                self._report(WAITING)
                self._claim_in_folder(claims, path.name, wait=True)
                self._report(self._doing)
            if path.exists():
                return loaded.use_tokens(calibration, TOKENS.unpack(path.read_bytes()))
            batch = loaded.tokens(calibration)
            put(path, TOKENS.pack(batch))
            return batch

    def _missing(self, index: int, resolved: Resolved) -> Missing:
        """What is to be made for a request: nothing for one that wasn't chosen."""
        run_id = resolved.run.id
        wanted = resolved.measures
        self._store.clear_failure(self._work.provisional(resolved.request))
        recorded = self._store.has_record(run_id)
        measured = self._store.measured(run_id)
        stored: list[str] = []
        if recorded:
            stored.append(run_id)
        unmeasured: list[str] = []
        for text, measure_id in wanted.items():
            if measure_id in measured:
                stored.append(measure_id)
            else:
                unmeasured.append(text)
        if recorded and not unmeasured:
            # What failed of it was done since, or isn't asked any more.
            self._store.clear_failure(run_id)
        # Also of what wasn't chosen: the index is the whole study's.
        self._report(["cell", index, run_id, dict(wanted), stored])
        if index not in self._work.chosen or self._failed(run_id):
            return Missing(recorded=True, measures=())
        to_measure = [text for text in unmeasured if not self._failed(wanted[text])]
        return Missing(recorded, to_measure)

    def _ended_journals(self, resolved: Resolved) -> Iterator[Journal]:
        """The journals of what the store has of a request.

        A kill between a finished measurement, or search, and the end of its journal leaves it.
        """
        run_id = resolved.run.id
        measured = self._store.measured(run_id)
        for text, measure_id in resolved.measures.items():
            if measure_id in measured:
                yield self._store.journal(run_id, *self._work.measures(text))
        if self._store.has_record(run_id):
            yield self._store.trials(run_id)

    def _make(self, resolved: Resolved, recorded: bool, state: bytes | None) -> bool:
        """Put the model into the run's state.

        That is from what the store has of it, or by compressing it, of which a record is written.
        Always True: a step that failed gives None.
        """
        if state is None or not self._bring_back(resolved, state):
            self._compress(resolved, recorded)
        return True

    def _bring_back(self, resolved: Resolved, state: bytes) -> bool:
        """Whether the model is in the state that is kept of the run; not where that can't be
        read.
        """
        transforms = resolved.recipe.transforms
        batch: TokenBatch | None = None
        if any(transform.observes for transform in transforms):
            batch = self._tokens(resolved.request)
        try:
            self._current.apply(state, transforms, batch)
        except DataError:
            what = f"the mask or the edits of {resolved.request.label}"
            tell_made_again(what, str(self._store.folder))
            return False
        return True

    def _compress(self, resolved: Resolved, recorded: bool) -> None:
        """Compress the model, and write a record of it with the files beside it.

        Where that is `recorded` already, only the files are written.
        """
        request = resolved.request
        loaded = self._current

        def progress(label: str, done: int, total: int) -> None:
            del label  # that of the request says more than the method's name
            self._report(["progress", request.label, done, total])

        with self._clock.phase("tokenize"):
            batch = self._tokens(request)
        run_clock = Clock()
        journal = Journal()
        if resolved.recipe.tries:
            journal = self._store.trials(resolved.run.id)
        statistics_folder: Path | None = None
        if request.shares:
            statistics_folder = self._store.folder.absolute() / STATISTICS
        with run_clock.phase("compress"), self._clock.phase("compress"):
            # The run before left its edits in the model.
            loaded.restore()
            record = compress(
                loaded.opened,
                loaded.view,
                batch,
                resolved.recipe,
                data=request.cell.data,
                seed=request.cell.seed,
                progress=progress,
                statistics=statistics_folder,
                kinds=self._work.statistics_wanted(request),
                keep=loaded.remember,
                journal=journal,
            )
        record = self._with_origin(record, resolved, run_clock)
        with self._clock.phase("store"):
            files = self._files(resolved)
            if recorded:
                self._store.put_back(record.run.id, files)
            else:
                self._store.add_record(record, files)
                self._report(["made", record.run.id])
        # The journal goes last: a kill before the record is written goes on from it.
        journal.remove()

    def _with_origin(self, record: Record, resolved: Resolved, run_clock: Clock) -> Record:
        """Return the record with where it comes from, and with which of its rows are measured."""
        data = resolved.request.cell.data
        data_facts = dict(record.data_facts)
        if data in self._work.leaked:
            data_facts["leaked"] = dict(self._work.leaked[data])
        opened = self._current.opened
        origin = provenance(opened, run_clock, resolved.note, resolved.shortage)
        return replace(record, data_facts=data_facts, provenance=origin)

    def _files(self, resolved: Resolved) -> dict[str, bytes]:
        """What is stored beside a record.

        That is a mask or edits to make the model from again, and the profile of the calibration
        set.
        """
        if not resolved.recipe.looks:  # to compress again is quicker than to read
            return {}
        loaded = self._current
        files: dict[str, bytes] = {}
        profile = loaded.profile(resolved.request.calibration, self._work.quotes)
        if profile is not None:
            files[PROFILE] = profile
        if not self._work.masks:
            return files
        # A mask can't say what a transform changed.
        if not resolved.recipe.transforms:
            mask = loaded.mask()
            if mask is not None:
                return {MASK: mask, **files}
        edits = loaded.edits()
        # Beyond the limit nothing is kept, and the run is compressed again if need be.
        limit = self._work.edits_gb * 1e9
        if edits is not None and self._store.bytes_of(EDITS) + len(edits) <= limit:
            files[EDITS] = edits
        return files

    def _measure(self, resolved: Resolved, text: str) -> None:
        """Measure the model as it is now, and write the measurement."""
        evaluators = self._work.evaluators
        evaluator = evaluators[text]
        label = f"measuring {resolved.request.label}"
        place = list(evaluators).index(text)
        self._report(["progress", label, place, len(evaluators)])
        form, digest = self._work.measures(text)
        journal = self._store.journal(resolved.run.id, form, digest)
        with self._clock.phase("measure"):
            reference = None
            if evaluator.compares:
                reference = self._current.reference()
            measurement = timed(evaluator, self._current.opened, silent, reference, journal)
            # The file that it measures on may have changed since the study began.
            if evaluator.digest() != digest:
                journal.remove()
                raise DataError(
                    f"what {text} measures has changed since the study began; run it again",
                    subject=text,
                )
        self._report(["progress", label, place + 1, len(evaluators)])
        with self._clock.phase("store"):
            self._store.add_measurement(resolved.run.id, form, measurement, digest)
            journal.remove()
        self._report(["made", resolved.measures[text]])

    @property
    def _current(self) -> LoadedModel:
        assert self._loaded is not None
        return self._loaded

    def _attempt(
        self,
        step: Callable[[], Made],
        failed_id: str,
        request: RunRequest,
        measured: str = "",
    ) -> Made | None:
        """Return what `step` returns, or None where it fails, which is recorded.

        One failure must not cost the other runs.
        """
        try:
            return step()
        except Exception as error:
            if _is_of_the_store(error):
                raise
            self._store.add_failure(failed_id, failure(request, error, measured))
            return None

    def _failed(self, failed_id: str) -> bool:
        """Whether this failed, here or in another process, and isn't to be tried again."""
        return self._failure(failed_id) is not None

    def _failure(self, failed_id: str) -> Mapping[str, Any] | None:
        """What is recorded of a failure; None where there is none, or one to be tried again."""
        reason = self._store.failure(failed_id)
        if reason is not None and reason != self._forgiven.get(failed_id):
            return reason
        return None

    def _claim(self, claims: ExitStack, name: str, wait: bool = False) -> bool:
        """Whether `name` is this driver's while `claims` is open."""
        claim = self._store.claim(name, wait)
        if claim is not None:
            claims.enter_context(claim)
        return claim is not None

    def _claim_in_folder(self, claims: ExitStack, name: str, wait: bool = False) -> bool:
        """Whether statistics or tokens of this name are this driver's to write while `claims` is
        open. In a folder of its own they always are."""
        if not self._store.shares_folder:
            return True
        return self._claim(claims, name, wait)

    def _hold(self, holding: ExitStack, name: str, resolved: Resolved) -> bool:
        """Whether the statistics of this name are all there, and stay while `holding` is open."""
        statistics = Statistics(self._store.folder / STATISTICS, name)
        kinds = self._work.statistics_wanted(resolved.request)
        # Held before they are looked for, or another could remove them in between.
        held = holding.enter_context(statistics.held())
        return held and statistics.has(kinds, resolved.blocks)

    def _trim(self) -> None:
        """Delete statistics whose last use is over, until the rest fits the limit.

        The earliest go first.
        """
        root = self._store.folder / STATISTICS
        if not root.is_dir():
            return
        sizes: dict[str, int] = {}
        for path in root.iterdir():
            sizes[f"sha256:{path.name}"] = Statistics(root, path.name).bytes()
        limit = int(self._work.limit_gb * 1e9)
        for name in surplus(sizes, self._no_longer_needed(sizes), limit):
            # Another driver may be gathering them at this moment, or reading them, in which case
            # they stay.
            with ExitStack() as claims:
                if self._claim_in_folder(claims, name):
                    Statistics(root, name).remove()

    def _no_longer_needed(self, stored: Iterable[str]) -> list[str]:
        """Which statistics no request will use again, in the order of their last uses."""
        used: dict[str, None] = {}
        needed: set[str] = set()
        sets_left = {self._sets[index] for index in self._left}
        for index, resolved in self._resolved.items():
            for name in resolved.statistics:
                used.pop(name, None)  # so that the order is that of the last uses
                used[name] = None
            if self._sets[index] in sets_left:
                needed.update(resolved.statistics)
        # What this driver hasn't used is of an older study, or, until all sets are known, of
        # another driver's.
        unused: list[str] = []
        if self._alone or len(self._resolved) == len(self._sets):
            unused = [name for name in stored if name not in used]
        return [name for name in (*unused, *used) if name not in needed]


def _is_of_the_store(error: Exception) -> bool:
    """Whether a place can't be written to: that is not the request's fault, and such a place can't
    take the record of a failure either.
    """
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, OutputError)


def opening(model: str) -> str:
    """Return what a driver says that opens a model."""
    return f"opening {model}"


def failure(
    request: RunRequest, error: BaseException, measured: str = "", of_opening: bool = False
) -> dict[str, Any]:
    """Return what is recorded of a failure, with the labels of the cell that is empty for it."""
    failed = request.label
    if measured:
        failed += f", measured by {measured}"
    reason: dict[str, Any] = {
        "what": failed,
        "cell": list(request.cell.labels),
        "error": f"{type(error).__name__}: {error}",
        "traceback": traceback.format_exception(error),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if of_opening:
        reason[OPENING] = request.model
    return reason


class Elsewhere:
    """The runs of other processors in a store. Those that others add meanwhile are found too.

    A model that writes or chooses text may have taken another text there, since it rounds
    otherwise. The tokens decide a run's id, so there it has another. It is the same set all the
    same, and what was measured with it isn't to be lost.
    """

    def __init__(self, store: Store | RemoteStore) -> None:
        self._store = store
        self._processor = processor()
        self._looked_at: set[str] = set()
        """The ids of the records that were read."""
        self._records: dict[str, list[Record]] = {}
        """Those of other processors, by the identities of their runs without tokens."""

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
        # The facts of a mix stand elsewhere, set by set.
        if calibration.mixed or not any(_chosen_by_model(calibration)):
            return None
        self._read_new_records()
        facts_id = _identity_without_text(batch.facts, calibration)
        standing: list[Run] = []
        for record in self._records.get(identity_without_tokens(run), []):
            measured = self._store.measured(record.run.id)
            needed = set(measures(record.run.id).values())
            same = _identity_without_text(record.data_facts, calibration) == facts_id
            if needed <= measured and same:
                standing.append(record.run)
        # Where there are several, always the first, so that methods mostly share a text.
        return min(standing, key=attrgetter("tokens"), default=None)

    def _read_new_records(self) -> None:
        """Read the records that are new; one that can't be read stands for nothing."""
        for run_id in set(self._store.ids()) - self._looked_at:
            self._looked_at.add(run_id)
            with suppress(DataError):
                record = self._store.record(run_id, whole=False)
                made_on = self._store.provenance(run_id).get("processor", "")
                if record is not None and made_on not in ("", self._processor):
                    alike = identity_without_tokens(record.run)
                    self._records.setdefault(alike, []).append(record)


def _chosen_by_model(calibration: CalibrationSet) -> list[bool]:
    """Of each part whether its text is written or chosen with the model's help."""
    chosen: list[bool] = []
    for term in calibration.parts:
        source = term.source
        chosen.append(isinstance(source, Selector) and source.needs_model)
    return chosen


def _identity_without_text(facts: Mapping[str, Any], calibration: CalibrationSet) -> str:
    """The identity of what is known of tokens, but for the text that a model wrote or chose."""
    of_request = [facts.get(name) for name in REQUEST_FACTS]
    of_parts: list[list[Any]] = []
    known = facts.get("parts", [])
    for part, chosen in zip(known, _chosen_by_model(calibration), strict=False):
        of_part = [part.get(name) for name in PART_FACTS]
        if not chosen:
            # The text is the data's own, so it is the same everywhere.
            of_part.append(part.get("digest"))
        of_parts.append(of_part)
    return identity([of_request, of_parts])
