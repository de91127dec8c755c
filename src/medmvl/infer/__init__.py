"""Text out of a model: generation and scoring."""
