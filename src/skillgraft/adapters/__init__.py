"""Adapters: trainable low-rank changes of weights, and PEFT's files."""
