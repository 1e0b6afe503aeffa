"""Synthetic documents: prompts, writers, filters, endpoints and the judge."""
