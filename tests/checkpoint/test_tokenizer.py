import json

import pytest

from skillgraft.checkpoint import tokenizer_files, tokenizer_identity
from skillgraft.errors import CheckpointError, MissingPathError
from tests.tiny import tiny_checkpoint


def write_tokenizer(path, vocab, merges=(), added=()):
    path.mkdir(exist_ok=True)
    content = {"model": {"type": "BPE", "vocab": vocab, "merges": list(merges)}, "added_tokens": list(added)}
    (path / "tokenizer.json").write_text(json.dumps(content))
    return tokenizer_identity(path)


def test_order_of_entries_does_not_count(tmp_path):
    one = write_tokenizer(tmp_path / "a", {"x": 0, "y": 1}, added=[{"id": 2, "content": "<s>"}])
    two = write_tokenizer(tmp_path / "b", {"y": 1, "x": 0, "<s>": 2})
    assert one == two
    assert one.startswith("blake3:")


def test_ids_tokens_added_tokens_and_merges_count(tmp_path):
    identities = [
        write_tokenizer(tmp_path / "a", {"x": 0, "y": 1}),
        write_tokenizer(tmp_path / "b", {"x": 1, "y": 0}),
        write_tokenizer(tmp_path / "c", {"x": 0, "z": 1}),
        write_tokenizer(tmp_path / "d", {"x": 0, "y": 1}, added=[{"id": 2, "content": "<s>"}]),
        write_tokenizer(tmp_path / "e", {"x": 0, "y": 1}, merges=["x y", "y x"]),
        write_tokenizer(tmp_path / "f", {"x": 0, "y": 1}, merges=["y x", "x y"]),
    ]
    assert len(set(identities)) == len(identities)


def test_both_ways_to_write_a_merge_are_the_same(tmp_path):
    assert write_tokenizer(tmp_path / "a", {"x": 0}, ["x y"]) == write_tokenizer(tmp_path / "b", {"x": 0}, [["x", "y"]])


def test_unigram_positions_are_ids(tmp_path):
    assert write_tokenizer(tmp_path / "a", [["x", -1.0], ["y", -2.0]]) == write_tokenizer(
        tmp_path / "b", {"x": 0, "y": 1}
    )


def test_saving_again_keeps_the_identity(tiny, tmp_path):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "again")
    assert tokenizer_identity(tmp_path / "again") == tokenizer_identity(tiny)
    assert tokenizer_identity(tiny) == tokenizer_identity(tiny_checkpoint(tmp_path / "other", seed=7))


def test_no_tokenizer(copied):
    (copied / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"copied: a checkpoint without tokenizer: expected tokenizer\.json; copy it"
    ):
        tokenizer_identity(copied)
    with pytest.raises(MissingPathError, match="no such directory"):
        tokenizer_identity(copied / "nowhere")


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"model": {}}', '{"model": {"vocab": 3}}', '{"model": {"vocab": {"a": "b"}}}']
)
def test_damaged_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        tokenizer_identity(tmp_path)


def test_tokenizer_files(tiny):
    assert [file.name for file in tokenizer_files(tiny)] == [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
