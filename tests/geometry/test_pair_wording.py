import pytest

from skillgraft.geometry.pair_wording import plain, say_pair, signed, z_text


def pair(cosine, sd, rms_z=1.0, **more):
    widest = max(sd.values())
    return {"cosine": cosine, "chance_sd": sd, "z": cosine / widest, "rms_z": rms_z, "rms_z_limit": 1.3, **more}


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (
            pair(0.013, {"isotropic": 1e-4, "sign_flips": 9e-5}),
            "nearly orthogonal, yet not by chance: cosine +0.013, random vectors of these shapes and norms give 0 ± "
            "0.00010 (z = 130.0)",
        ),
        (
            pair(-0.0001, {"isotropic": 1e-4, "sign_flips": 2e-4}),
            "nearly orthogonal, as chance would have it: cosine −0.00010, random vectors with these magnitudes element "
            "by element give 0 ± 0.00020 (z = −0.5)",
        ),
        (
            pair(0.0001, {"isotropic": 1e-4}, rms_z=20.1),
            "nearly orthogonal, as chance would have it: cosine +0.00010, random vectors of these shapes and norms "
            "give 0 ± 0.00010 (z = 1.0); tensor by tensor not by chance: z has a root mean square of 20.1, where "
            "chance gives 1 and hardly 1.3",
        ),
        (
            pair(-0.3, {"rotation": 0.01, "isotropic": 0.001}),
            "weakly opposed, not by chance: cosine −0.300, random vectors with the same subspaces on the shorter sides "
            "give 0 ± 0.010 (z = −30.0)",
        ),
    ],
)
def test_sentences(measured, sentence):
    assert say_pair(measured) == sentence


def test_few_dimensions():
    assert say_pair(pair(0.3, {"isotropic": 0.2})).startswith("weakly aligned, within chance: cosine +0.300")


def test_no_angle():
    assert say_pair({"cosine": None, "z": None, "chance_sd": {}}) == "no angle: one of the two is zero"


def test_numbers():
    assert [signed(value) for value in (None, 0, 0.5, -0.0123, 1.0)] == ["–", "0", "+0.500", "−0.012", "+1.000"]
    assert [plain(value) for value in (0.0, 0.1, 0.05, 0.00012345)] == ["0.000", "0.100", "0.050", "0.00012"]
    assert plain(0.000099996) == "0.00010"
    assert [z_text(value) for value in (None, -0.01, -0.05001, 1234.56)] == ["–", "0.0", "−0.1", "1,234.6"]
