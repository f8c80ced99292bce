"""How results look in a terminal: plain data in, lines and tables out (rich). No torch here."""

from calibrant.cli.screen.compressed import exported, pruned
from calibrant.cli.screen.importance import covered, gathered
from calibrant.cli.screen.results import (
    catalogued,
    inspected,
    kinds,
    merged,
    packed,
    scores,
    surveyed,
    title,
    verified,
)
from calibrant.cli.screen.studies import finished, planned

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
]
