"""Situations that users of other tools reported, rebuilt: one test each, a small builder and the expected value."""
