"""The results of runs, and the durable folder that stores them.

A store is a folder. A study writes into `results.sqlite`: a row for each compression with its
record, a row for each measurement with its score and items. Masks, edits and profiles lie in
`blobs`, each under the hash of its content. The ids of runs and measurements are hashes of the
request, so the same request finds the stored result, and stores of two machines are merged by
copying what one lacks. Times, versions and devices are provenance: stored beside, outside every
hash.

A store that isn't written any more may be published (`pack`): a few tables hold everything, and are
read like the database. Several processes of a machine may write to one store: who claims a name
first works on it. No torch here.
"""

from calibrant.results.database import Claim
from calibrant.results.merging import Merged, merge
from calibrant.results.outcomes import Measurement, Outcome, Score
from calibrant.results.publishing import PackedStore, pack
from calibrant.results.records import (
    Cell,
    Record,
    Run,
    ScoreEntry,
    cache_in_words,
    condensed_in_words,
    identity_without_tokens,
    inputs_in_words,
    left_dense,
    measurement_id,
    parts_gone,
    revisions,
    short_of_target,
    stored_bits,
)
from calibrant.results.store import STATISTICS, STUDY, Store, is_store, statistics_purpose
from calibrant.results.stored import EDITS, MASK, PROFILE
from calibrant.results.verifying import Audit, StoreProblem, audit, verify

__all__ = [
    "EDITS",
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
    "PackedStore",
    "Record",
    "Run",
    "Score",
    "ScoreEntry",
    "Store",
    "StoreProblem",
    "audit",
    "cache_in_words",
    "condensed_in_words",
    "identity_without_tokens",
    "inputs_in_words",
    "is_store",
    "left_dense",
    "measurement_id",
    "merge",
    "pack",
    "parts_gone",
    "revisions",
    "short_of_target",
    "statistics_purpose",
    "stored_bits",
    "verify",
]
