"""How results look in a terminal: plain data in, lines and tables out (rich). No torch here."""

from calibrant.cli.screen.data import catalogued, inspected, kinds, surveyed, title, written
from calibrant.cli.screen.models import covered, exported, gathered, pruned, scores
from calibrant.cli.screen.studies import finished, merged, packed, planned, verified

__all__ = [
    "catalogued",
    "covered",
    "exported",
    "finished",
    "gathered",
    "inspected",
    "kinds",
    "merged",
    "packed",
    "planned",
    "pruned",
    "scores",
    "surveyed",
    "title",
    "verified",
    "written",
]
