"""Tuning a merge recipe on development questions: its weights, by layer too, and a method's numbers.

`space` holds the numbers that vary, `algorithms` propose points, `live` scores a point on a model in memory, `trials`
logs every trial, and `loop` is the path through them.
"""
