"""What can go wrong with a checkpoint or its settings, in one shallow tree.

SegmoeError
  ConfigError          bad or contradictory settings
  CheckpointError      a checkpoint that is missing, incomplete, damaged or of a layout that is not supported
  Unsupported          a use that a segmented model refuses because it could not be exact
"""

from __future__ import annotations


class SegmoeError(Exception):
    """Base of all expected failures: the message says what happened, with which values, and what to do."""


class ConfigError(SegmoeError):
    """Bad or contradictory settings."""


class CheckpointError(SegmoeError):
    """The checkpoint cannot be run as it is."""


class Unsupported(SegmoeError):  # noqa: N818 - reads as a sentence where it is raised
    """A use of the model that is refused because it could not be exact."""
