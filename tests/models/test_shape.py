"""How wide the inputs of matrices are, read off their shapes alone."""

from calibrant.models import ModelShape, view
from calibrant.testing import tiny_model

from tests.models.families import small_model
from tests.models.mixtures_of_experts import tiny_mixture


def test_every_distinct_input_counts():
    plain = ModelShape.of(view(tiny_model("llama")))
    assert plain.input_widths == 3 * [32, 32, 32, 64]
    recurrent = ModelShape.of(view(small_model("mamba")))
    assert recurrent.input_widths == 3 * [32, 64, 8, 64]
    latent = ModelShape.of(view(tiny_mixture("deepseek_v3", v_head_dim=16)))
    # Of the first block, which has no experts.
    assert latent.input_widths[:6] == [32, 16, 16, 64, 32, 64]
