"""A user's own reward, named by its dotted path in tests."""


def vowels(completion, answers):
    return float(sum(letter in "aeiou" for letter in completion))
