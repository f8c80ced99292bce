"""How everything is named: specs with their texts and identities, the grammar of calibration data,
and registries.

`spec` has the specs themselves, `classes` says what a class is called, `registry` finds it by its
name, and `grammar` reads what is more than one spec: sums, mixes, formats, packings and targets.
`foreign` reads what comes from outside, with the limits that everything from outside has.
"""

from calibrant.spec.classes import is_foreign, qualified
from calibrant.spec.spec import (
    MOST_STEPS,
    Call,
    Spec,
    about,
    build,
    canonical,
    check_most,
    classes_in,
    identity,
    later,
    parameters,
    parse,
    reads_back,
    text_of,
    with_parameters,
    written_form,
)

__all__ = [
    "MOST_STEPS",
    "Call",
    "Spec",
    "about",
    "build",
    "canonical",
    "check_most",
    "classes_in",
    "identity",
    "is_foreign",
    "later",
    "parameters",
    "parse",
    "qualified",
    "reads_back",
    "text_of",
    "with_parameters",
    "written_form",
]
