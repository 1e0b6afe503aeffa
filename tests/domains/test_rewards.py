import pytest

from skillgraft.domains.kind import RewardInput
from skillgraft.domains.rewards import DEFAULT_MIX, FREE_WORDS, REWARDS, brevity, get_reward
from skillgraft.errors import RecipeError


def given(completion, answers=()):
    return RewardInput("", completion, [], answers)


def test_brevity_is_flat_then_linear():
    assert brevity(given("word")) == 0.0
    assert brevity(given("word " * FREE_WORDS)) == 0.0
    assert brevity(given("word " * (FREE_WORDS + FREE_WORDS // 2))) == pytest.approx(-0.5)
    assert brevity(given("word " * 500)) == -1.0
    assert brevity(given("   ")) == -1.0


def test_default_mix_prefers_the_phrase_to_the_sentence_to_the_ramble_to_the_wrong_answer():
    def score(text):
        return sum(weight * REWARDS[name](given(text, ["Baltic Germans"])) for name, weight in DEFAULT_MIX.items())

    phrase, sentence = score("Baltic Germans"), score("They were the Baltic Germans of the country")
    ramble, wrong = score("Baltic Germans " + "and so on " * 20), score("Danes")
    assert phrase > sentence > ramble > wrong
    assert phrase == pytest.approx(1.0)


def test_dotted_path_names_a_function_of_the_users_own():
    assert get_reward("tests.domains.own_reward.vowels")(given("aeb")) == 2.0


@pytest.mark.parametrize("name", ["contaiment", "tests.domains.own_reward.nothing", "no.such.module", "math.pi"])
def test_unknown_reward(name):
    with pytest.raises(RecipeError, match=f"reward '{name}'"):
        get_reward(name)
