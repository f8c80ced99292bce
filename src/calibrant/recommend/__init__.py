"""Which calibration data to use: predicted without pruning, raced by real measurements, and said in a paragraph."""

from calibrant.recommend.recommending import Advised, Recommendation, recommend

__all__ = ["Advised", "Recommendation", "recommend"]
