"""Searching what a merge recipe leaves open: weights, by layer too, and a method's numbers, on development questions.

`space` says what may vary, `algorithms` propose points, `live` scores a point on a model in memory, `looks` keeps every
look, and `searching` is the path through them.
"""
