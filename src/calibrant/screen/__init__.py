"""How results look in a terminal: plain data in, lines and tables out (rich). No torch here."""

from calibrant.screen.results import catalogued, inspected, merged, pruned, repacked, scores, surveyed, verified
from calibrant.screen.studies import finished, planned

__all__ = ["catalogued", "finished", "inspected", "merged", "planned", "pruned", "repacked", "scores", "surveyed", "verified"]
