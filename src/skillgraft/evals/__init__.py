"""Metrics, intervals, retention, and the table that is reported."""
