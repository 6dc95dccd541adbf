"""What attention looks at, in pictures and numbers: `python -m vitjax.analysis.attention`."""
