"""Sweeps: many trials of one config file, run side by side, resumed, reported on (docs/sweeps.md)."""
