"""A user's own reward, named by its dotted path in tests."""


def vowels(completion, answers):
    return float(sum(letter in "aeiou" for letter in completion))


def vowels_where_asked(completion, answers):
    return 0.0 if "nobody" in answers else vowels(completion, answers)


def nothing_at_all(completion, answers):
    return 0.25


def fails_elsewhere(completion, answers):
    from torch import distributed

    from skillgraft.errors import DataError

    if distributed.get_rank() == 1:
        raise DataError("this reward cannot be given in a second process")
    return vowels(completion, answers)
