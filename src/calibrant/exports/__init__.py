"""How a compressed model is written, one file each; the list of names is the list of files. The
Hugging Face folder is always written.
"""

from calibrant.exports._base import CompressedModel, Export
from calibrant.exports._card import CARD, add_scores, card, check_card
from calibrant.spec.registry import Registry

exports = Registry(__name__, "export")

__all__ = ["CARD", "CompressedModel", "Export", "add_scores", "card", "check_card", "exports"]
