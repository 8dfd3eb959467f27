"""Which moments stand out: surprise, novelty, arousal, reward, conflict. Importance of experts is trust.py."""

from observer.salience.scorer import DEFINITION_VERSION, DIMENSIONS, Salience, Scorer
from observer.salience.windows import Window

__all__ = ["DEFINITION_VERSION", "DIMENSIONS", "Salience", "Scorer", "Window"]
