"""Plots of a comparison, each from its own Vega-Lite: inside the page, and as files for a paper.
No torch here.
"""

from calibrant.lab.report.plots.collection import plots
from calibrant.lab.report.plots.drawing import inline, write
from calibrant.lab.report.plots.forest import evidence, forest, formats
from calibrant.lab.report.plots.growth import against_sparsity, against_tokens, layer_errors
from calibrant.lab.report.plots.heat import kept
from calibrant.lab.report.plots.pareto import pareto
from calibrant.lab.report.plots.picture import Plot
from calibrant.lab.report.plots.routers import routers
from calibrant.lab.report.plots.sensitivity import worth
from calibrant.lab.report.plots.size import against_size

__all__ = [
    "Plot",
    "against_size",
    "against_sparsity",
    "against_tokens",
    "evidence",
    "forest",
    "formats",
    "inline",
    "kept",
    "layer_errors",
    "pareto",
    "plots",
    "routers",
    "worth",
    "write",
]
