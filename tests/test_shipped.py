"""Configurations by name, the public names of the package, and the wheel in a fresh environment."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lightning_edit
from lightning_edit.cli import main
from lightning_edit.commands.completing import completion_script
from lightning_edit.errors import ConfigurationError
from lightning_edit.shipped import (
    checkpoints_folder,
    configs_folder,
    shipped_checkpoint,
    shipped_checkpoints,
    shipped_file,
    shipped_names,
    with_shipped_files,
)

ROOT = Path(__file__).parents[1]
CHECKPOINTS = sorted((ROOT / "checkpoints").glob("*.ckpt"))


def test_full_and_partial_names_find_their_file():
    assert shipped_file("mend-smollm2-zsre", ["experiment"]).name == "mend-smollm2-zsre.yaml"
    assert shipped_file("mend-zsre", ["experiment"]).name == "mend-smollm2-zsre.yaml"
    assert shipped_file("gpt2-xl/rome", ["editor"]).parent.name == "gpt2-xl"
    with pytest.raises(
        ConfigurationError, match="@mend could be mend-smollm2-mixture, mend-smollm2-worldfacts, mend-smollm2-zsre"
    ):
        shipped_file("mend", ["experiment"])
    with pytest.raises(ConfigurationError, match=r"did you mean @rome\?"):
        shipped_file("roma", ["editor"])


def test_names_on_the_command_line_become_files():
    root = configs_folder()
    assert with_shipped_files(["fit", "--config", "@mend-zsre", "--x", "@y", "--config=@serac"]) == [
        "fit", "--config", str(root / "experiment/mend-smollm2-zsre.yaml"), "--x", "@y",
        f"--config={root}/experiment/serac-smollm2-zsre.yaml",
    ]  # fmt: skip
    assert with_shipped_files(["edit", "--editor", "@rome"])[-1] == str(root / "editor/rome.yaml")
    mend = str(checkpoints_folder() / "mend-smollm2-135m-instruct-zsre.ckpt")
    assert with_shipped_files(["edit", "--ckpt_path", "@mend", "--ckpt_path=@mend-zsre", "--target", "@mend"]) == [
        "edit", "--ckpt_path", mend, f"--ckpt_path={mend}", "--target", "@mend",
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"did you mean @serac-smollm2-135m-instruct-zsre\?"):
        shipped_checkpoint("serak-smollm2-zsre")


def test_the_command_lists_and_copies(tmp_path, capsys):
    assert main(["configs"]) == 0
    shown = capsys.readouterr().out
    assert all(f"@{name}" in shown for name in [*shipped_names("experiment"), *shipped_checkpoints()])
    assert main(["configs", "--copy", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "experiment" / "mend-smollm2-zsre.yaml").is_file()
    assert main(["configs", "--copy", str(tmp_path / "mine")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_every_public_name_can_be_imported():
    for name in lightning_edit.__all__:
        assert getattr(lightning_edit, name) is not None
    assert set(lightning_edit.__all__) <= set(dir(lightning_edit))
    with pytest.raises(AttributeError, match="no attribute 'Rome'"):
        _ = lightning_edit.Rome


def test_classes_of_allowed_modules_may_be_named(tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LIGHTNING_EDIT_ALLOW", "")
    (tmp_path / "of_a_user.py").write_text("from lightning_edit.editors import ICE\nclass Mine(ICE):\n    pass\n")
    (tmp_path / "editor.yaml").write_text("class_path: of_a_user.Mine")
    arguments = ["edit", "--editor", str(tmp_path / "editor.yaml"), "--prompt", "a", "--target", "b"]
    arguments += ["--name_or_path", str(tiny_folder)]
    assert main(arguments) == 1
    assert "set LIGHTNING_EDIT_ALLOW=of_a_user" in capsys.readouterr().err
    settings = tmp_path / "settings.yaml"
    (tmp_path / "editor.txt").write_text("class_path: of_a_user.Mine")
    for content in ("of_a_user.Mine", {"class_path": "of_a_user.Mine"}, "editor.yaml", "editor.txt"):
        settings.write_text(yaml.safe_dump({"editor": content, "prompt": "a", "target": "b"}))
        assert main(["edit", "--settings", str(settings)]) == 1
        assert "set LIGHTNING_EDIT_ALLOW=of_a_user" in capsys.readouterr().err
    nested = {"class_path": "lightning_edit.editors.ROME", "init_args": {"search": "of_a_user.Mine"}}
    (tmp_path / "nested.json").write_text(json.dumps(nested))
    for path in ("editor.txt", "nested.json"):
        assert main(["edit", f"--editor={tmp_path / path}", "--prompt", "a", "--target", "b"]) == 1
        assert "set LIGHTNING_EDIT_ALLOW=of_a_user" in capsys.readouterr().err
    assert "of_a_user" not in sys.modules
    assert main([*arguments, "--allow", "of_a_user"]) == 0
    assert "of_a_user" in sys.modules


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    # Include what is not committed yet.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("lightning_edit", "configs", "checkpoints"):
        subprocess.run(["cp", "-r", f"{ROOT / name}/.", str(source / name)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_configuration_and_checkpoint(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_edit").rglob("*.py")}
    configurations = {f"lightning_edit/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    checkpoints = {
        f"lightning_edit/{path.relative_to(ROOT)}"
        for path in (ROOT / "checkpoints").rglob("*")
        if path.suffix in (".ckpt", ".json", ".safetensors")
    }
    assert len(checkpoints) >= 3
    assert modules | configurations | checkpoints <= names
    assert "lightning_edit/py.typed" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_an_installed_wheel_works_without_a_checkout(wheel, tmp_path):
    """In a separate environment, which can import the dependencies of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))

    def run(*arguments):
        completed = subprocess.run([python, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    shown = run("-c", "import lightning_edit as e; print(e.__file__, e.MEND.__name__, e.__version__)")
    assert shown.startswith(str(packages))
    assert "MEND" in shown
    assert "--config @mend-smollm2-zsre" in run("-m", "lightning_edit", "configs")
    assert "train an editor" in run("-m", "lightning_edit", "--help")
    code = "from lightning_edit.shipped import shipped_checkpoints as s; print(*s().values())"
    assert run("-c", code).split() == [str(packages / "lightning_edit/checkpoints" / path.name) for path in CHECKPOINTS]


def test_the_package_allows_no_versions_older_than_the_tested_ones():
    """The lowest version of each requirement is the one that the tests run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    names = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    # For features that cannot be tested without the Hub or a GPU.
    untested = {"datasets", "bitsandbytes"}
    for requirement in map(Requirement, (one for group in groups for one in group)):
        if requirement.name in untested:
            continue
        [bound] = requirement.specifier
        assert bound.operator == ">="
        assert Version(bound.version) == names[canonicalize_name(requirement.name)], requirement.name


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["com"], ["compare", "completion"]),
        (["edit", "--over"], ["--overwrite"]),
        (["fit", "--ck"], ["--ckpt_path"]),
        (["fit", "--config", "@mend-smollm2-w"], ["@mend-smollm2-worldfacts"]),
        (["export-adapter", "--swi"], ["--switchable"]),
    ],
)
def test_bash_completes_commands_options_and_configurations(tmp_path, typed, expected):
    script = tmp_path / "completion.bash"
    script.write_text(completion_script())
    words = " ".join(f"'{word}'" for word in ["lightning-edit", *typed])
    command = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _lightning_edit; echo ${{COMPREPLY[@]}}"
    completed = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == expected
