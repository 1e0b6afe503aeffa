from skillgraft.support.digest import digest


def test_the_digest_is_of_canonical_json():
    assert digest({"b": 1, "a": ["λ"]}) == "662e3b150dd484d4c5e62ccc30d1d85277a75bfc8ff995de881a9408e243c98a"
