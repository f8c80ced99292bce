"""llama.cpp's importance matrix and quantizer."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, final

from calibrant.errors import ModelError
from calibrant.handover._base import ScriptFacts, Tool, file_stem
from calibrant.models import gguf_of
from calibrant.models.gguf_file import quantized_to

_IMPORTS: Final = """\
import subprocess
from pathlib import Path"""
_STEPS: Final = """\
imatrix = DATA.with_suffix(".imatrix.gguf")
cut = ["-c", str(LENGTH), "--chunks", str(WINDOWS), "--parse-special"]
subprocess.run(["llama-imatrix", "-m", MODEL, "-f", DATA, "-o", imatrix, *cut], check=True)
subprocess.run(["llama-quantize", "--imatrix", imatrix, MODEL, OUT, "Q4_K_M"], check=True)"""


@final
@dataclass(frozen=True, repr=False)
class LlamaCppTools(Tool):
    """llama-imatrix, and llama-quantize to Q4_K_M with what it found."""

    summary = "An importance matrix and Q4_K_M of llama.cpp, whose tools must be on the path"
    endings = (".txt",)

    def check_model(self, model: str) -> None:
        path = gguf_of(model)
        if path is None:
            problem = f"llama.cpp opens GGUF files, and {model!r} is none"
            remedy = "convert it with llama.cpp's convert_hf_to_gguf.py, and give what that wrote"
            raise ModelError(f"{problem}; {remedy}", subject=model)
        kind = quantized_to(path)
        if kind:
            problem = f"{model!r} is quantized to {kind} already, which llama-quantize refuses"
            remedy = "give the file of F16, BF16 or F32 that it was made from"
            raise ModelError(f"{problem}; {remedy}", subject=model)

    def script(self, facts: ScriptFacts) -> str:
        constants = {
            "MODEL": str(gguf_of(facts.model)),
            "FILE": facts.file,
            "OUT": f"{PurePath(file_stem(facts.model)).stem}-Q4_K_M.gguf",
            "LENGTH": facts.length,
            "WINDOWS": facts.windows,
        }
        return self.written(_IMPORTS, constants, _STEPS)
