"""Injection: θ + λ·v on disk and in memory, what every tensor got, and taking it out again."""
