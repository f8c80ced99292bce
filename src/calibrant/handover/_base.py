"""What a tool is: it knows how to write the script that runs it on a model with a file of data."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, Final

from calibrant.errors import ModelError
from calibrant.models import gguf_of
from calibrant.spec import Spec

READING: Final[Mapping[str, tuple[str, str]]] = {
    ".jsonl": (
        "import json",
        'rows = [json.loads(line) for line in DATA.open(encoding="utf-8")]',
    ),
    ".parquet": (
        "import pyarrow.parquet",
        "rows = pyarrow.parquet.read_table(DATA).to_pylist()",
    ),
    "": (
        "import datasets",
        "rows = datasets.load_from_disk(str(DATA)).to_list()",
    ),
}
"""How a script reads the rows of a file of each ending; a folder has none."""


@dataclass(frozen=True)
class ScriptFacts:
    """What a script is about: the model, the file or folder of data that lies beside the script,
    and how many windows are in it, each of at most `length` tokens.
    """

    model: str
    file: str
    windows: int
    length: int


class Tool(Spec, ABC):
    """A program that compresses models with data. `summary` is a sentence about its script, and
    `endings` are those of the files that it reads.
    """

    summary: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]

    @abstractmethod
    def check_model(self, model: str) -> None:
        """Raise `ModelError` for a model that the tool can't open."""

    @abstractmethod
    def script(self, facts: ScriptFacts) -> str:
        """Return a Python script of at most thirty lines that runs the tool."""

    def written(self, imports: str, constants: Mapping[str, Any], steps: str) -> str:
        """Return a script: `imports`, then `constants`, and DATA, the path of the data, then
        `steps`. Whatever comes from outside stands in `constants`, each written so that Python
        reads the same value and nothing else.
        """
        assignments = [f"{name} = {value!r}" for name, value in constants.items()]
        heading = f'"""{self.summary}"""'
        data = "DATA = Path(__file__).with_name(FILE)"
        return "\n".join([heading, "", imports, "", *assignments, data, "", steps, ""])


class IdsTool(Tool, ABC):
    """A tool that opens a folder that transformers wrote, or a model of the hub, and takes token
    ids.

    `steps` use MODEL, OUT and `rows`, each of which has the `input_ids` of a window.
    """

    endings = tuple(READING)
    imports: ClassVar[str]
    steps: ClassVar[str]

    def check_model(self, model: str) -> None:
        if gguf_of(model) is not None:
            problem = f"{model!r} is a GGUF file, and {self} opens folders of safetensors"
            command = shlex.join(["calibrant", "export", model, "--out", "FOLDER"])
            remedy = f"make one with {command}, and give that"
            raise ModelError(f"{problem}; {remedy}", subject=model)

    def script(self, facts: ScriptFacts) -> str:
        module, reading = READING[PurePath(facts.file).suffix.lower()]
        constants = {
            "MODEL": facts.model,
            "FILE": facts.file,
            "OUT": f"{file_stem(facts.model)}-{self.spec_name()}",
        }
        imports = f"{module}\nfrom pathlib import Path\n\n{self.imports}"
        return self.written(imports, constants, f"{reading}\n{self.steps}")


def file_stem(model: str) -> str:
    """Return the last part of a model's name, in letters that every file system takes.

    >>> file_stem("organisation/a model")
    'a-model'
    """
    stem = ""
    for letter in PurePath(model).name:
        if letter.isalnum() or letter in "._":
            stem += letter
        else:
            stem += "-"
    return stem
