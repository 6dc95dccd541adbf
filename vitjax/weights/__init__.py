"""Weights of files: official parameter names and layouts, into ours and back."""

from vitjax.weights.loading import Loaded, load, shapes
from vitjax.weights.saving import save

__all__ = ["Loaded", "load", "save", "shapes"]
