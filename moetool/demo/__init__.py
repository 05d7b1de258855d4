"""The built-in model and its corpora."""
