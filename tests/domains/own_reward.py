"""A user's own rewards, named by their dotted paths in tests."""


def vowels(given):
    return float(sum(letter in "aeiou" for letter in given.completion))


def vowels_where_asked(given):
    return 0.0 if "nobody" in given.answers else vowels(given)


def nothing_at_all(given):
    return 0.25


def fails_elsewhere(given):
    from torch import distributed

    from skillgraft.errors import DataError

    if distributed.get_rank() == 1:
        raise DataError("this reward cannot be given in a second process")
    return vowels(given)
