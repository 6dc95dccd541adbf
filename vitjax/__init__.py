"""vitjax: exact, resumable Vision Transformer experiments in JAX and Flax."""

__version__ = "0.1.0"
