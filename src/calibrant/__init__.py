"""Calibrant prunes language models with the calibration data you choose, measures what was lost, and says which differences are real.

    import calibrant

    calibrant.prune("smollm2", data="gsm8k:cot", method="wanda", sparsity=0.5, out="pruned")
    calibrant.evaluate("pruned", ["loss(source='gsm8k')"])

The nouns. A `CalibrationSet` is a source, a format, a packing and a budget, or a weighted sum of such: `0.3*gsm8k:cot + 0.7*c4`. A *method*
(`wanda`, `sparsegpt(damp=0.02)`) compresses one matrix at a time to a *target* (`0.5`, `2:4`), given what the matrix saw while the set ran
through the model. An *evaluator* (`loss(source='wikitext')`) measures a model, item by item. Whatever is named here as text is an object
too, and writes itself back as the same text. `catalogue("methods")` lists what can be named.

The verbs. `prune` and `evaluate` do the whole job, files included; `inspect` shows what a set holds before it is used; `open_model`, `view`,
`walk` and `compress` are the parts they are made of, for work in memory. `docs/architecture.md` is the floor plan.

Everything is imported when it is first used, so that `import calibrant` costs nothing.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from calibrant.catalogue import catalogue as catalogue
    from calibrant.compress import compress as compress
    from calibrant.compress import prune as prune
    from calibrant.data import CalibrationSet as CalibrationSet
    from calibrant.demo import demo as demo
    from calibrant.errors import CalibrantError as CalibrantError
    from calibrant.errors import InputError as InputError
    from calibrant.evaluate import evaluate as evaluate
    from calibrant.inspection import inspect as inspect
    from calibrant.models import open_model as open_model
    from calibrant.models import view as view
    from calibrant.report import report as report
    from calibrant.study import Study as Study
    from calibrant.targets import parse_target as parse_target
    from calibrant.walk import walk as walk

__version__ = "0.1.0"

_HOME: Final = {
    "CalibrantError": "errors",
    "CalibrationSet": "data",
    "InputError": "errors",
    "Study": "study",
    "catalogue": "catalogue",
    "compress": "compress",
    "demo": "demo",
    "evaluate": "evaluate",
    "inspect": "inspection",
    "open_model": "models",
    "parse_target": "targets",
    "prune": "compress",
    "report": "report",
    "view": "models",
    "walk": "walk",
}
"""Every public name and the module that defines it."""

__all__ = [
    "CalibrantError",
    "CalibrationSet",
    "InputError",
    "Study",
    "__version__",
    "catalogue",
    "compress",
    "demo",
    "evaluate",
    "inspect",
    "open_model",
    "parse_target",
    "prune",
    "report",
    "view",
    "walk",
]


class _Verb(ModuleType):
    """A module that can be called: it is then the function of its own name. So `calibrant.evaluate` is one thing, imported or not."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """The package, which makes a verb of each module that shares its name with a public function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOME:
            value.__class__ = _Verb
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'calibrant' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"calibrant.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


importlib.import_module(__name__).__class__ = _Package
