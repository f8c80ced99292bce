"""GPTQModel's GPTQ."""

from dataclasses import dataclass
from typing import final

from calibrant.handover._base import IdsTool


@final
@dataclass(frozen=True, repr=False)
class GptqModel(IdsTool):
    """GPTQ of GPTQModel: 4 bits in groups of 128."""

    summary = "GPTQ to 4 bits in groups of 128: pip install gptqmodel"
    imports = "from gptqmodel import GPTQModel, QuantizeConfig"
    # Texts of fewer than ten tokens would be left out.
    steps = """\
for row in rows:
    row["attention_mask"] = [1] * len(row["input_ids"])
model = GPTQModel.load(MODEL, QuantizeConfig(bits=4, group_size=128))
model.quantize(rows, calibration_sort=None, calibration_data_min_length=1, batch_size=1)
model.save(OUT)"""
