"""Which calibration data to use: predicted without compressing, raced by real measurements, and
explained in a paragraph.
"""

from calibrant.lab.choose.recommending import Candidate, Recommendation, recommend

__all__ = ["Candidate", "Recommendation", "recommend"]
