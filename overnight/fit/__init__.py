"""Whether a step fits the card, known before it runs and without a card.

predict(recipe or module, batch, target) -> Prediction; predict_peak(recipe, micro_batch, target) -> (low, high) MiB or None.
"""

from overnight.fit.predict import Constants, Prediction, Unknown, predict, predict_peak

__all__ = ["Constants", "Prediction", "Unknown", "predict", "predict_peak"]
