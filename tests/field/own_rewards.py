"""A user's own reward that keeps what it was shown."""

seen: list[str] = []


def record(given):
    seen.append(given.completion)
    return float(len(given.completion) % 3)
