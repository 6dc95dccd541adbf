"""Evaluators, by name."""
