import json
import shutil
import threading

import pytest

from skillgraft.arithmetic import extract, inject, merge
from skillgraft.checkpoint import write_provenance
from skillgraft.errors import CheckpointError, MissingPathError, OutputExistsError, StorageError
from skillgraft.skills.card import card_text
from skillgraft.skills.library import (
    add_skill,
    checked_name,
    find_skill,
    library_home,
    list_skills,
    remove_skill,
    resolve_skill,
)
from skillgraft.skills.skill import add_scores
from tests.tiny import edit_json, tiny_finetune, weights

BASE = {"id": "some/base", "fingerprint": "blake3:0b0b0b"}
FILES = ["README.md", "skill.json", "skill.safetensors"]


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """Two skills on one known base and one on an unknown one."""
    folder = tmp_path_factory.mktemp("library-skills")
    sft = tiny_finetune(tiny, folder / "sft", seed=1)
    for number, name in enumerate(("recall", "tools", "orphan"), 2):
        if name != "orphan":
            write_provenance(sft, kind="sft", base=BASE)
        else:
            (sft / "skillgraft.json").unlink()
        rl = tiny_finetune(sft, folder / f"rl-{name}", seed=number, names=["model.norm.weight"])
        extract(rl, sft, folder / name, domain=f"The {name.upper()} domain")
    write_provenance(sft, kind="sft", base=BASE)
    return folder


def test_an_empty_library(monkeypatch, tmp_path):
    assert list_skills() == []
    monkeypatch.delenv("SKILLGRAFT_LIBRARY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert library_home() == tmp_path / "skillgraft" / "skills"


def test_add_copies_the_skills_own_files_and_lists_them(made):
    (made / "recall" / "pytorch_model.bin").write_bytes(b"pickle")
    try:
        entry = add_skill(made / "recall")
    finally:
        (made / "recall" / "pytorch_model.bin").unlink()
    assert entry.path == library_home() / "recall"
    assert sorted(file.name for file in entry.path.iterdir()) == FILES
    add_skill(made / "tools", "my-tools")
    assert [(e.name, e.manifest.domain, e.problem) for e in list_skills()] == [
        ("my-tools", "The TOOLS domain", None),
        ("recall", "The RECALL domain", None),
    ]
    assert entry.size_bytes == sum((made / "recall" / name).stat().st_size for name in FILES)


def test_filters(made):
    for name in ("recall", "tools", "orphan"):
        add_skill(made / name)
    assert [e.name for e in list_skills(domain="recall")] == ["recall"]
    for base in ("blake3:0b0b0b", "0b0b0b", "blake3:0b0b", "some/base"):
        assert [e.name for e in list_skills(base=base)] == ["recall", "tools"], base
    # The directory's own fingerprint is all that is known of the base of the third.
    assert [e.name for e in list_skills(base=str(made / "sft"))] == ["orphan", "recall", "tools"]
    assert list_skills(base="blake3:0b0b0c") == list_skills(base="other/base") == []
    assert [e.name for e in list_skills(base="some/base", domain="tools")] == ["tools"]


def test_an_origin_that_is_no_json(made):
    entry = add_skill(made / "recall", origin={"revision": "0"})
    (entry.path / "origin.json").write_text('{"revision": NaN}')
    (found,) = list_skills()
    assert "'revision' is nan, expected a finite number" in found.problem


def test_no_duplicates(made):
    add_skill(made / "recall")
    with pytest.raises(OutputExistsError, match="has a skill 'recall' already; give another name, or remove it"):
        add_skill(made / "tools", "recall")
    with pytest.raises(OutputExistsError, match="has this skill already, as 'recall'"):
        add_skill(made / "recall", "again")
    assert [entry.name for entry in list_skills()] == ["recall"]
    assert sorted(entry.name for entry in library_home().iterdir()) == [".lock", "recall"]


def test_many_at_once_add_one(made):
    outcomes = []

    def add(number):
        try:
            outcomes.append(add_skill(made / "recall", f"copy-{number}").name)
        except OutputExistsError:
            outcomes.append(None)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([name for name in outcomes if name]) == 1
    assert len(outcomes) == 6
    assert len(list_skills()) == 1


def test_a_copy_that_fails_leaves_nothing(made, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="the disk is full"):
        add_skill(made / "recall")
    assert [entry.name for entry in library_home().iterdir()] == [".lock"]


def test_damaged_entries_are_shown_and_can_be_removed(made):
    add_skill(made / "recall")
    add_skill(made / "tools")
    (library_home() / "recall" / "skill.json").write_text("{")
    (library_home() / "empty").mkdir()
    (library_home() / "odd name").mkdir()
    (library_home() / "file").write_text("no skill")
    found = {entry.name: entry for entry in list_skills()}
    assert sorted(found) == ["empty", "odd name", "recall", "tools"]
    assert "not readable as JSON" in found["recall"].problem
    assert "no skill.json" in found["empty"].problem
    assert found["tools"].problem is None
    assert [entry.name for entry in list_skills(domain="domain")] == ["tools"]
    for name in ("recall", "empty", "odd name"):
        remove_skill(name)
    assert [entry.name for entry in list_skills()] == ["tools"]


def test_remove(made):
    add_skill(made / "recall")
    with pytest.raises(MissingPathError, match="has no skill 'recal'; did you mean 'recall'"):
        remove_skill("recal")
    for name in ("../recall", ".lock", "", "."):
        with pytest.raises(MissingPathError, match="has no skill"):
            remove_skill(name)
    assert remove_skill("recall") == library_home() / "recall"
    assert [entry.name for entry in library_home().iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["CON", "nul", "Com1", "lpt9", "aux.skill", "PRN.tar.gz"])
def test_names_of_windows_devices(made, name):
    with pytest.raises(
        CheckpointError, match="is not a valid name for a skill: Windows reserves it for a device; give another"
    ):
        add_skill(made / "recall", name)
    assert list_skills() == []
    assert checked_name("console") == "console"


@pytest.mark.parametrize("file", FILES)
def test_links_are_not_followed(made, tmp_path, file):
    secret = tmp_path / "secret"
    received = shutil.copytree(made / "recall", tmp_path / "received")
    (received / file).rename(secret)
    (received / file).symlink_to(secret)
    with pytest.raises(
        CheckpointError, match=rf"received/{file} is a symbolic link to .*secret, expected a file of the"
    ):
        add_skill(received)
    (received / file).unlink()
    (received / file).mkdir()
    with pytest.raises(CheckpointError, match=rf"received/{file} is no regular file, expected a file of the skill"):
        add_skill(received)
    assert list_skills() == []


def test_the_card_is_written_anew(made, tmp_path):
    received = shutil.copytree(made / "recall", tmp_path / "received")
    (received / "README.md").write_text("\x1b]0;title\x07 trust me")
    entry = add_skill(received)
    assert (entry.path / "README.md").read_text() == card_text(entry.manifest)
    (received / "README.md").unlink()
    remove_skill("received")
    assert "trust me" not in (add_skill(received).path / "README.md").read_text()


def test_a_shipped_skill_is_added_by_name():
    assert add_skill("squad-recall", "mine").problem is None
    assert resolve_skill("mine").path == library_home() / "mine"


def test_an_empty_name_is_none(made, monkeypatch):
    monkeypatch.chdir(made / "recall")
    for act in (resolve_skill, find_skill, add_skill):
        with pytest.raises(MissingPathError, match="the name of a skill is empty; expected a directory or a name that"):
            act("")
    assert resolve_skill(".").path.resolve() == made / "recall"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "x" * 97, "-x", "é", "a."])
def test_names_that_are_none(made, name):
    with pytest.raises(CheckpointError, match="is not a valid name for a skill"):
        add_skill(made / "recall", name)


def test_a_library_that_is_a_file(made, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("SKILLGRAFT_LIBRARY", str(tmp_path / "file"))
    for act in (list_skills, lambda: add_skill(made / "recall"), lambda: remove_skill("recall")):
        with pytest.raises(StorageError, match="set SKILLGRAFT_LIBRARY to another folder"):
            act()
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_skill_is_not_added(tmp_path, made):
    with pytest.raises(MissingPathError, match="expected a skill"):
        add_skill(tmp_path / "none")
    damaged = shutil.copytree(made / "recall", tmp_path / "damaged")
    edit_json(damaged / "skill.json", format_version=9)
    with pytest.raises(CheckpointError, match="format_version is 9"):
        add_skill(damaged)
    assert list_skills() == []


def test_names_are_resolved_and_a_directory_wins(made, tmp_path, monkeypatch):
    add_skill(made / "recall")
    monkeypatch.chdir(tmp_path)
    assert resolve_skill("recall") == (library_home() / "recall", None)
    assert resolve_skill(made / "recall") == (made / "recall", None)
    assert resolve_skill(library_home() / "recall").remark is None
    (tmp_path / "recall").mkdir()
    path, remark = resolve_skill("recall")
    assert path.resolve() == tmp_path / "recall"
    assert remark == "'recall' is a directory here and a skill of the library; the directory was taken"
    with pytest.raises(
        MissingPathError, match=r"no such directory, and no skill of that name in .*; did you mean 'rec"
    ):
        resolve_skill("recal")
    with pytest.raises(MissingPathError, match=r"\.\./recall/x: no such directory; expected a skill"):
        resolve_skill("../recall/x")


def test_inject_and_merge_take_a_name(made, tmp_path):
    add_skill(made / "recall", "library-recall")
    inject(made / "sft", made / "recall", tmp_path / "by-path")
    inject(made / "sft", "library-recall", tmp_path / "by-name")
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(
        json.dumps({"method": "task_arithmetic", "base": str(made / "sft"), "operands": [{"skill": "library-recall"}]})
    )
    merge(str(recipe), tmp_path / "merged")
    expected = weights(tmp_path / "by-path")
    for other in ("by-name", "merged"):
        found = weights(tmp_path / other)
        assert all(found[name].equal(tensor) for name, tensor in expected.items()), other
    with pytest.raises(MissingPathError, match="no such directory, and no skill of that name in the library"):
        inject(made / "sft", "library-recal", tmp_path / "none")


def test_scores_that_are_added_later_are_listed(made):
    add_skill(made / "recall")
    add_scores(library_home() / "recall", [{"model": "SFT + skill", "F1": 0.2}])
    (entry,) = list_skills()
    assert entry.manifest.scores == [{"model": "SFT + skill", "F1": 0.2}]
