"""Looking at runs and models from outside."""
