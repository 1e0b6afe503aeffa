"""Skillgraft."""
