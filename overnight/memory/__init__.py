"""How much memory a step will need, known before it runs and without a card, and how much it needed.

predict(recipe or module, batch, target) -> MemoryEstimate, with its parts and its edges.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overnight.memory.prediction import Constants, MemoryEstimate, Unknown, predict

__all__ = ["Constants", "MemoryEstimate", "Unknown", "predict"]


def __getattr__(name: str) -> Any:
    """Torch is imported when something is predicted, not before."""
    if name not in __all__:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module("overnight.memory.prediction"), name)
