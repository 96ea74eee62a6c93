"""Tests; the folders mirror those of the packages."""

# First of all, for it changes types before other modules take them.
import tests.plain_kernels  # noqa: F401
