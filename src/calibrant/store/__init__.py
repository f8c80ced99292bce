"""The results of runs, and the durable folder that stores them.

A store is a folder. A compression is `runs/<id>/record.json` with its matrices in `weights.json.gz`, what was measured on it
`runs/<id>/measures/<id>/` with `score.json` and one row an item in `items.parquet`. Both ids are hashes of the request, so the same request
finds the stored result, and the stores of two machines merge by copying one into the other. Times, versions and devices are provenance: stored
beside, in `provenance.json`, outside every hash. The hashes of the other files stand in `sums.json`.

A store that isn't written any more may be packed (`packed`): a few tables hold everything, to the byte, and are read like the folders.

Every folder appears by one rename, complete or not at all. It is written in `.unfinished/<writer>/`, where each writer holds a lock for as
long as it lives; what a dead writer left there is removed when the store is next opened for writing. Several processes may write to one
store: who claims a name first works on it. No torch here.
"""

from calibrant.outcomes import Measurement, Outcome, Score
from calibrant.store.claims import Claim
from calibrant.store.folder import STATISTICS, STUDY, Store, statistics_purpose
from calibrant.store.merging import Merged, merge
from calibrant.store.packed import MARKER
from calibrant.store.packing import Repacked, pack, unpack
from calibrant.store.reading import EDITS, MASK, PROFILE
from calibrant.store.records import Cell, Record, Run, apart_from_tokens, measurement_id, revisions, stored_bits
from calibrant.store.verifying import Audit, StoreProblem, audit, verify

__all__ = [
    "EDITS",
    "MARKER",
    "MASK",
    "PROFILE",
    "STATISTICS",
    "STUDY",
    "Audit",
    "Cell",
    "Claim",
    "Measurement",
    "Merged",
    "Outcome",
    "Record",
    "Repacked",
    "Run",
    "Score",
    "Store",
    "StoreProblem",
    "apart_from_tokens",
    "audit",
    "measurement_id",
    "merge",
    "pack",
    "revisions",
    "statistics_purpose",
    "stored_bits",
    "unpack",
    "verify",
]
