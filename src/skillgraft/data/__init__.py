"""Data: documents, questions, slices, replay, retrieval and metrics."""
