"""Importance matrices of llama.cpp: gathered with any calibration data, written, read and
compared.
"""

from calibrant.compress.importance.comparing import ImatrixSummary, compared
from calibrant.compress.importance.gathering import imatrix
from calibrant.models.imatrix import Imatrix, ImatrixEntry, read_imatrix

__all__ = ["Imatrix", "ImatrixEntry", "ImatrixSummary", "compared", "imatrix", "read_imatrix"]
