import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from skillgraft.arithmetic import extract
from skillgraft.checkpoint import fingerprint_file
from skillgraft.errors import CheckpointError, HubError, MissingPathError, OutputExistsError
from skillgraft.skills.hub import pull_skill, push_skill
from skillgraft.skills.library import add_skill, library_home, list_skills
from tests.hub_server import TOKEN, running_hub
from tests.tiny import tiny_finetune

pytestmark = pytest.mark.loopback
FILES = ("README.md", "skill.json", "skill.safetensors")


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    rl = tiny_finetune(tiny, folder / "rl", names=["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
    return extract(rl, tiny, folder / "tiny-skill", domain="almanac", license="apache-2.0").path


def published(hub, made, **others):
    """A repository that holds the skill, by name the bytes of its files, and further ones."""
    files = {name: (made / name).read_bytes() for name in FILES}
    for name, content in others.items():
        files.pop(name, None)
        if content is not None:
            files[name] = content
    return hub.commit("me/recall", files)


def nothing_was_kept():
    home = library_home()
    return not home.exists() or sorted(entry.name for entry in home.iterdir()) in ([], [".lock"])


def test_push_then_pull_gives_the_same_bytes(hub, made):
    (made / "notes.txt").write_text("mine")
    try:
        pushed = push_skill(made, "me/recall", private=True)
    finally:
        (made / "notes.txt").unlink()
    (number, content), *_ = hub.repositories["me/recall"]
    assert pushed == {"repository": "me/recall", "url": f"{hub.endpoint}/me/recall", "revision": number}
    assert content == {name: (made / name).read_bytes() for name in FILES}
    assert hub.private == {"me/recall"}
    entry = pull_skill("me/recall", "mine")
    assert (entry.name, entry.path, entry.problem) == ("mine", library_home() / "mine", None)
    for name in FILES:
        assert (entry.path / name).read_bytes() == (made / name).read_bytes()
    weights = (made / "skill.safetensors").read_bytes()
    assert entry.origin["revision"] == number
    assert entry.origin["repository"] == "me/recall"
    assert entry.origin["endpoint"] == hub.endpoint
    assert sorted(entry.origin["files"]) == ["skill.json", "skill.safetensors"]
    assert entry.origin["files"]["skill.safetensors"] == {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "blake3": fingerprint_file(made / "skill.safetensors").removeprefix("blake3:"),
    }
    assert sorted(file.name for file in entry.path.iterdir()) == sorted([*FILES, "origin.json"])


def test_no_card_that_others_wrote_is_sent_or_kept(hub, made, tmp_path):
    received = shutil.copytree(made, tmp_path / "received")
    (received / "README.md").write_text("\x1b]0;title\x07 trust me")
    push_skill(received, "me/recall")
    ((_, content),) = hub.repositories["me/recall"]
    assert content["README.md"] == (made / "README.md").read_bytes()
    published(hub, made, **{"README.md": b"\x1b]0;title\x07 trust me"})
    entry = pull_skill("me/recall")
    assert (entry.path / "README.md").read_bytes() == (made / "README.md").read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_links_are_not_followed(hub, made, tmp_path, file):
    secret = tmp_path / "secret"
    received = shutil.copytree(made, tmp_path / "received")
    (received / file).rename(secret)
    (received / file).symlink_to(secret)
    with pytest.raises(CheckpointError, match=rf"received/{file} is a symbolic link to .*secret.* copied or sent"):
        push_skill(received, "me/recall")
    assert hub.requests == []


def test_a_name_is_pushed(hub, made):
    add_skill(made, "mine")
    push_skill("mine", "me/recall")
    assert sorted(hub.repositories["me/recall"][0][1]) == list(FILES)


def test_pushing_again_makes_a_commit_and_a_revision_is_kept(hub, made):
    first = push_skill(made, "me/recall")["revision"]
    hub.commit("me/recall", {"README.md": b"---\n---\nnew card"})
    assert (pull_skill("me/recall", "old", revision=first).path / "README.md").read_bytes() != b"---\n---\nnew card"
    with pytest.raises(OutputExistsError, match="has this skill already, as 'old'"):
        pull_skill("me/recall", "new")
    assert [entry.name for entry in list_skills()] == ["old"]
    with pytest.raises(HubError, match="me/recall has no such revision"):
        pull_skill("me/recall", "none", revision="f" * 40)


def test_a_public_repository_gets_nothing_that_is_to_be_private(hub, made):
    hub.commit("me/recall", {"README.md": b"public"})
    with pytest.raises(HubError, match="me/recall exists and is public; with --private nothing was uploaded"):
        push_skill(made, "me/recall", private=True)
    assert [sorted(content) for _, content in hub.repositories["me/recall"]] == [["README.md"]]


def test_only_the_skills_files_are_downloaded(hub, made):
    class Trap:
        def __reduce__(self):
            return (os.abort, ())

    extra = {"pytorch_model.bin": pickle.dumps(Trap()), "sub/skill.json": b"{}", "setup.py": b"import os"}
    published(hub, made, **extra)
    entry = pull_skill("me/recall")
    assert entry.name == "recall"
    assert hub.downloads() == ["skill.json", "skill.safetensors"]
    assert sorted(file.name for file in entry.path.iterdir()) == sorted([*FILES, "origin.json"])


def test_a_taken_name_downloads_nothing(hub, made):
    published(hub, made)
    pull_skill("me/recall")
    hub.requests.clear()
    with pytest.raises(OutputExistsError, match="has a skill 'recall' already; give another name: skillgraft skill"):
        pull_skill("me/recall")
    assert hub.requests == []


@pytest.mark.parametrize("missing", ["skill.json", "skill.safetensors"])
def test_a_repository_without_a_skill(hub, made, missing):
    published(hub, made, **{missing: None})
    with pytest.raises(HubError, match=f"holds no {missing}; expected a repository that `skillgraft skill push` made"):
        pull_skill("me/recall")
    assert hub.downloads() == []
    assert nothing_was_kept()


def test_a_skill_that_is_none(hub, made):
    published(hub, made, **{"skill.json": b'{"format_version": 1}'})
    with pytest.raises(CheckpointError, match="no valid skill manifest"):
        pull_skill("me/recall")
    published(hub, made, **{"skill.json": (made / "skill.json").read_bytes(), "skill.safetensors": b"\x80\x04code"})
    with pytest.raises(CheckpointError, match=r"skill\.safetensors"):
        pull_skill("me/recall")
    assert nothing_was_kept()


def test_no_such_repository_and_no_right(hub, made, monkeypatch):
    with pytest.raises(HubError, match=r"no such repository or file \(404\), or it is private; check the name"):
        pull_skill("me/none")
    published(hub, made)
    hub.private.add("me/recall")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match=r"refuses \(401\).*set HF_TOKEN"):
        pull_skill("me/recall")
    with pytest.raises(HubError, match=r"refuses \(401\).*set HF_TOKEN"):
        push_skill(made, "me/recall")
    assert nothing_was_kept()


@pytest.mark.parametrize("path", ["/api/models/me/recall", "/api/models/me/recall/tree", "/me/recall/resolve"])
def test_a_server_that_fails(hub, made, path):
    published(hub, made)
    hub.fail[path] = 503
    with pytest.raises(HubError, match=r"me/recall: .*(failed \(503\)|the exchange with .* failed)"):
        pull_skill("me/recall")
    assert nothing_was_kept()


@pytest.mark.parametrize("path", ["/api/repos/create", "/api/models/me/recall/preupload", "/lfs/", "/api/models"])
def test_a_server_that_fails_while_it_is_sent_to(hub, made, path):
    hub.fail[path] = 500
    with pytest.raises(HubError, match=r"me/recall: .*failed"):
        push_skill(made, "me/recall")
    assert not hub.repositories.get("me/recall")


@pytest.mark.parametrize("file", ["skill.safetensors", "skill.json"])
def test_a_truncated_download(hub, made, file):
    published(hub, made)
    hub.cut.add(file)
    with pytest.raises(HubError, match=r"the exchange with .* failed"):
        pull_skill("me/recall")
    assert nothing_was_kept()


def test_other_bytes_of_the_same_length(hub, made):
    published(hub, made)
    content = bytearray((made / "skill.safetensors").read_bytes())
    content[-1] ^= 1
    hub.swap["skill.safetensors"] = bytes(content)
    with pytest.raises(
        HubError, match=r"skill\.safetensors arrived with SHA-256 .*, expected .*; the download is damaged"
    ):
        pull_skill("me/recall")
    assert nothing_was_kept()


def test_a_hub_that_is_not_there(hub, made, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for act in (lambda: pull_skill("me/recall"), lambda: push_skill(made, "me/recall")):
        with pytest.raises(
            HubError, match=r"http://127\.0\.0\.1:9 failed \(ConnectError.*check the network and HF_END"
        ):
            act()


def test_offline(hub, made, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for act in (lambda: pull_skill("me/recall"), lambda: push_skill(made, "me/recall")):
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, which forbids the network"):
            act()
    assert hub.requests == []


@pytest.mark.parametrize("name", ["recall", "me/", "../x", "a/b/c", "me/..", "me/re call", "me/a--b", "-x/y"])
def test_names_that_are_none(hub, made, name):
    for act in (lambda: pull_skill(name), lambda: push_skill(made, name)):
        with pytest.raises(HubError, match=r"is not a repository of a model hub; expected USER/REPO"):
            act()
    assert hub.requests == []


def test_what_is_no_skill_is_not_pushed(hub, tmp_path):
    with pytest.raises(MissingPathError, match="expected a skill"):
        push_skill(tmp_path / "none", "me/recall")
    assert hub.requests == []


@pytest.mark.process
def test_the_command_line_takes_endpoint_and_token_from_the_environment(hub, made):
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def run(*arguments, **more):
        command = [sys.executable, "-m", "skillgraft", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**environment, **more}, timeout=120)

    pushed = run("skill", "push", str(made), "me/recall", "--json")
    assert pushed.returncode == 0, pushed.stderr
    pulled = run("skill", "pull", "me/recall", "--json")
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(pulled.stdout)["origin"]["revision"] == json.loads(pushed.stdout)["revision"]
    refused = run("skill", "pull", "me/recall", "again", HF_HUB_OFFLINE="1")
    assert refused.returncode == 2
    assert "HF_HUB_OFFLINE is set" in refused.stderr
    assert "Traceback" not in refused.stderr
