"""The one error of training that a user can mend."""

from __future__ import annotations


class TrainingError(ValueError):
    """Training cannot go on; the message says what was found and what to do."""
