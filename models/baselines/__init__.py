"""Models that need no server: level, gaps, and partners of one entity."""
