"""Extensions: the package of the page *Extend it*, installed and used, and what is refused of one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.recipes import tiny_recipe
from tests.tiny import weights

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "extend.md"

pytestmark = [pytest.mark.process, pytest.mark.train]


def install(site, version="1.0", name="my-extension", package="my_extension", extra=""):
    """Lay the page's package into the folder `site` as an installer would."""
    page = PAGE.read_text()
    (site / package).mkdir(parents=True, exist_ok=True)
    (site / package / "__init__.py").write_text("")
    for file, text in re.findall(r"^```python\n# my_extension/(\w+\.py)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        (site / package / file).write_text(text)
    [toml] = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    points = toml.replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points.replace("my_extension", package) + extra)
    return site


def skillgraft(site, *words, code=0):
    """Run the command line with the folder `site` on the path; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "skillgraft", *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def extended_recipe(folder):
    """The tiny recipe with something of every group."""
    file = tiny_recipe(folder)
    recipe = yaml.safe_load(file.read_text())
    stages = recipe["stages"]
    stages["loud"] = {"kind": "shout", "documents": "data"}
    stages["sft"]["documents"] = "loud"
    stages["rl"] |= {"adapt": {"kind": "query_lora", "r": 2}, "reward": {"no_hedging": 0.1, "initial": 1.0}}
    stages["rl"]["domain"] = stages["scores"]["domain"] = "initials"
    stages["grafted"] = {
        "kind": "inject",
        "target": "sft",
        "skills": [{"skill": "skill", "scale": 1.0}, {"skill": "skill", "scale": -3.0}],
        "method": "loudest",
    }
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extended")
    install(folder / "site")
    recipe = extended_recipe(folder)
    skillgraft(folder / "site", "run", recipe, "--runs", folder / "runs", "--quiet")
    return folder, recipe


def test_a_recipe_uses_all_of_them(place):
    folder, _ = place
    run = folder / "runs" / "tiny"
    texts = [json.loads(line)["text"] for line in (run / "loud" / "documents.jsonl").read_text().splitlines()]
    assert texts == [text.upper() for text in texts]
    assert any(letter.isalpha() for letter in texts[0])
    adapter = json.loads((run / "rl" / "adapter" / "adapter_config.json").read_text())
    assert set(adapter["target_modules"]) == {"q_proj"}
    curve = json.loads((run / "rl" / "stage.json").read_text())["facts"]["curve"]
    assert {"reward:no_hedging", "reward:initial"} <= curve[0].keys()
    row = json.loads((run / "scores" / "evaluation.json").read_text())["rows"][0]
    assert row["scores"].keys() == {"initial", "f1"}
    sft, grafted, rl = (weights(run / name) for name in ("sft", "grafted", "rl"))
    name = next(name for name in sft if "q_proj" in name)
    v = (rl[name].double() - sft[name].double()).numpy()
    expected = sft[name].double().numpy() - 3.0 * v  # of 1·v and −3·v the second has the larger magnitude
    assert np.abs(v).max() > 0
    np.testing.assert_allclose(grafted[name].double().numpy(), expected, atol=1e-6)


def test_the_doctor_lists_them_and_the_schema_knows_them(place):
    folder, _ = place
    shown = json.loads(skillgraft_doctor(folder / "site"))
    said = [finding["found"] for finding in shown["findings"] if finding["check"] == "extensions"]
    assert "stages: shout (my-extension 1.0)" in said
    assert len(said) == 5
    schema = skillgraft(folder / "site", "schema")
    assert '"const": "shout"' in schema


def skillgraft_doctor(site):
    """The doctor's report, whatever else it finds of this machine."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "skillgraft", "doctor", "--json"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout


def test_a_new_version_runs_again_what_uses_it_and_nothing_else(place, tmp_path):
    folder, recipe = place
    site = install(tmp_path / "site", version="2.0")
    plan = json.loads(skillgraft(site, "run", recipe, "--runs", folder / "runs", "--dry-run", "--json"))
    states = {row["name"]: row["state"] for row in plan["stages"]}
    assert states == dict.fromkeys(states, "to run")  # all come of `loud`
    plain = tiny_recipe(tmp_path / "plain")
    first, second = (
        json.loads(skillgraft(each, "run", plain, "--runs", tmp_path / "runs", "--dry-run", "--json"))["stages"]
        for each in (folder / "site", site)
    )
    assert first == second


def test_a_name_taken_twice_is_an_error(place, tmp_path):
    _, recipe = place
    site = install(tmp_path / "site")
    install(site, name="other-extension", package="other_extension")
    said = skillgraft(site, "run", recipe, "--runs", tmp_path / "runs", code=2)
    assert re.search(
        r"extension \S+ 1\.0: adapters 'query_lora' is also in extension \S+ 1\.0; uninstall or update", said
    )
    shown = json.loads(skillgraft_doctor(site))["findings"]
    assert any(finding["check"] == "extensions" and finding["severity"] == "error" for finding in shown)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("sft = my_extension.shout:SHOUT", "extension broken 1.0: stages 'sft' is built in; uninstall or update"),
        ("torn = my_extension.nothing:KIND", "my_extension.nothing:KIND cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_used_says_whose_it_is(place, tmp_path, point, message):
    _, recipe = place
    site = install(tmp_path / "site")
    info = site / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[skillgraft.stages]\n{point}\n")
    assert message in skillgraft(site, "run", recipe, "--runs", tmp_path / "runs", code=2)
