"""Compress language models with the calibration data you choose, measure what was lost, and see
which differences are real.

    import calibrant
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    done = calibrant.quantize(model, tokenizer, data=texts, method="gptq", target="w4g64")
    done.save("small")
    calibrant.evaluate(done.model, tokenizer, tasks=["loss(source='gsm8k')"], store="results")

The same with names and folders:

    calibrant.prune("smollm2", data="gsm8k:cot", method="wanda", target=0.5, out="pruned")
    calibrant.evaluate("pruned", tasks=["loss(source='gsm8k')"])

The nouns. A `CalibrationSet` is a source, a format, a packing and a budget, or a weighted sum of
such: `0.3*gsm8k:cot + 0.7*c4`. A *method* (`wanda`, `sparsegpt(damp=0.02)`) compresses one matrix
after another to a *target* (`0.5`, `2:4`, `w4g64`), given the statistics of the matrix's inputs
while the set ran through the model. An *evaluator* (`loss(source='wikitext')`) measures a model,
item by item. Whatever is named here as text is an object too, and writes itself back as the same
text; an object of a class of your own stands wherever a name does. `catalogue("methods")` lists
what can be named.

The verbs. `prune`, `quantize` and `evaluate` do the whole job, files included; `inspect` shows what
a set holds before it is used, `survey` tries every source, `mix` weighs some of them, `recommend`
says which data to use; `explain` says which words a compressed model forgot; `export` writes a
model in another form, `load` opens any of them; `open_model` and `view` begin work in memory, which
goes on with `calibrant.walk.walk` and `calibrant.compress.compress`. The floor plan is
`docs/architecture.md`.

Everything is imported when it is first used, so that `import calibrant` costs nothing.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from calibrant.compress import export as export
    from calibrant.compress import plan as plan
    from calibrant.compress import prune as prune
    from calibrant.compress import quantize as quantize
    from calibrant.compress.importance import imatrix as imatrix
    from calibrant.data import CalibrationSet as CalibrationSet
    from calibrant.data.inspect import inspect as inspect
    from calibrant.data.inspect import survey as survey
    from calibrant.errors import CalibrantError as CalibrantError
    from calibrant.errors import InputError as InputError
    from calibrant.evaluators import evaluate as evaluate
    from calibrant.evaluators import explain as explain
    from calibrant.handover import write_data as write_data
    from calibrant.lab.choose import recommend as recommend
    from calibrant.lab.mixtures import mix as mix
    from calibrant.lab.study import Study as Study
    from calibrant.models import load as load
    from calibrant.models import open_model as open_model
    from calibrant.models import view as view
    from calibrant.names import catalogue as catalogue
    from calibrant.targets import parse_target as parse_target

__version__ = "0.3.0"

_HOME: Final = {
    "CalibrantError": "errors",
    "CalibrationSet": "data",
    "InputError": "errors",
    "Study": "lab.study",
    "catalogue": "names",
    "evaluate": "evaluators",
    "explain": "evaluators",
    "export": "compress",
    "imatrix": "compress.importance",
    "inspect": "data.inspect",
    "load": "models",
    "mix": "lab.mixtures",
    "open_model": "models",
    "parse_target": "targets",
    "plan": "compress",
    "prune": "compress",
    "quantize": "compress",
    "recommend": "lab.choose",
    "survey": "data.inspect",
    "view": "models",
    "write_data": "handover",
}
"""Every public name and the module that defines it."""

__all__ = [
    "CalibrantError",
    "CalibrationSet",
    "InputError",
    "Study",
    "__version__",
    "catalogue",
    "evaluate",
    "explain",
    "export",
    "imatrix",
    "inspect",
    "load",
    "mix",
    "open_model",
    "parse_target",
    "plan",
    "prune",
    "quantize",
    "recommend",
    "survey",
    "view",
    "write_data",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'calibrant' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    from calibrant.system.extras import load

    return load(f"calibrant.{_HOME[name]}", name)


def __dir__() -> list[str]:
    return __all__
