"""A user's own reward, named by its dotted path in tests."""


def vowels(completion, answers):
    return float(sum(letter in "aeiou" for letter in completion))


def vowels_where_asked(completion, answers):
    return 0.0 if "nobody" in answers else vowels(completion, answers)


def nothing_at_all(completion, answers):
    return 0.25
