"""What attention looks at, as pictures and numbers: `python -m vitjax.analysis.attention`, see docs/attention.md."""
