"""The command line as a user runs it."""

import inspect
import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest
import yaml

from lightning_edit import commands
from lightning_edit.cli import main
from lightning_edit.components import build
from lightning_edit.editors import Editor
from lightning_edit.editors.locate import LocateEditor
from lightning_edit.models.loading import LanguageModelSettings
from tests.small_benchmarks import write_benchmarks

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "configs" / "experiment").glob("*.yaml"))


def test_help_is_quick_and_imports_nothing_heavy():
    script = (
        "import sys; from lightning_edit.cli import main; main(['--help']);"
        "print([name for name in ('torch', 'transformers', 'lightning', 'wandb', 'sklearn') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip().splitlines()[-1] == "[]"
    for command in ("fit", "validate", "test", "predict", "edit", "generate", "merge", "trace", "export"):
        assert f"\n  {command} " in output


def test_importing_the_package_imports_nothing_heavy():
    script = "import sys, lightning_edit; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("command", commands.__all__)
def test_every_option_is_explained(command, capsys):
    """Each argument of a command's function is an option whose help is its line in the docstring."""
    with pytest.raises(SystemExit) as stopped:
        main([command.replace("_", "-"), "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    function = getattr(commands, command)
    explained = {one.arg_name: one.description for one in docstring_parser.parse(function.__doc__).params}
    arguments = list(inspect.signature(function).parameters)
    assert arguments
    for name in arguments:
        assert f"--{name}" in shown
        beginning = " ".join(explained[name].split())[:40]
        assert beginning in shown, name


def test_help_of_training_comes_from_the_docstrings(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "lightning_edit.modules.HypernetworkEditing"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Weight of the divergence from the unedited model" in shown
    assert "Hub id, local folder, GGUF file, or the bundled name" in shown
    with pytest.raises(SystemExit):
        main(["fit", "--model.editor.help", "lightning_edit.editors.MEND"])
    assert "Rank of the hypernetwork's layers" in " ".join(capsys.readouterr().out.split())


def test_a_wrong_key_is_an_error_that_names_it(capsys):
    arguments = ["fit", "--model", "lightning_edit.modules.HypernetworkEditing"]
    assert main([*arguments, "--model.log_siets", "true"]) == 1
    assert "log_siets; did you mean log_sites?" in capsys.readouterr().err
    assert main([*arguments, "--model.optimization.edit_wieght", "1"]) == 1
    message = "model.optimization: HypernetworkOptimization has no setting edit_wieght; did you mean edit_weight?"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])
def test_every_experiment_runs_a_step(path, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmarks = write_benchmarks(tmp_path / "data")
    small = {
        "--model.language_model.name_or_path": str(tiny_folder),
        "--trainer.fast_dev_run": "true",
        "--trainer.accelerator": "cpu",
        "--trainer.enable_progress_bar": "false",
        "--data.batch_size": "2",
    }
    config = yaml.safe_load(path.read_text())
    module = config["model"]["class_path"].rpartition(".")[2]
    editor_settings = yaml.safe_load((path.parent / config["model"]["init_args"]["editor"]).read_text())["init_args"]
    by_argument = {"adapted_layers": "1", "sites": "[1, 2]", "demonstrations": "2"}
    place = "--model.editor.init_args"
    if "editor" in editor_settings:
        place, editor_settings = f"{place}.editor.init_args", editor_settings["editor"]["init_args"]
    name = next((argument for argument in by_argument if argument in editor_settings), "layers")
    small[f"{place}.{name}"] = by_argument.get(name, "[1]")
    if "sequential" in config["model"]["init_args"].get("evaluation", {}):
        small["--model.evaluation.sequential.text"] = "corpus.txt"
    data = (
        yaml.safe_load((path.parent / config["data"]).read_text())
        if isinstance(config["data"], str)
        else config["data"]
    )
    for split in ("train", "validation", "test"):
        if split in data:
            small[f"--data.{split}.init_args.limit"] = "8"
            source = data[split]["init_args"].get("source")
            if source is not None:
                small[f"--data.{split}.init_args.source"] = str(benchmarks / Path(source).name)
            for part in data[split]["init_args"].get("sources", []):
                if "source" in part["init_args"]:
                    published = tmp_path / part["init_args"]["source"]
                    published.parent.mkdir(exist_ok=True)
                    shutil.copy(benchmarks / published.name, published)
    if "requests_per_edit" in data:
        small |= {"--data.requests_per_edit": "2", "--data.eval_requests_per_edit": "2"}
    if "corpus" in data:
        (tmp_path / "corpus.txt").write_text("The capital of France is Paris. " * 200)
        small |= {"--data.corpus.source": "corpus.txt", "--data.corpus.length": "32"}
        if "statistics" in editor_settings:
            small["--model.editor.init_args.statistics"] = "statistics"
    command = "test" if module == "EditingModule" else "fit"
    assert main([command, "--config", str(path), *(word for pair in small.items() for word in pair)]) == 0


def named(paths):
    return pytest.mark.parametrize("path", sorted(paths), ids=lambda path: f"{path.parent.name}/{path.stem}")


@named([*(ROOT / "configs" / "data").glob("*.yaml"), *(ROOT / "configs" / "trainer").glob("*.yaml")])
def test_every_file_belongs_to_an_experiment(path):
    name = f"../{path.parent.name}/{path.name}"
    assert any(name in experiment.read_text() for experiment in EXPERIMENTS), f"no experiment uses {name}"


@named((ROOT / "configs" / "editor").rglob("*.yaml"))
def test_every_editor_file_builds_its_editor_and_belongs_to_a_model(path):
    content = yaml.safe_load(path.read_text())
    editor = build(content, Editor, str(path))
    assert isinstance(editor, Editor)
    if path.parent.name == "editor":
        return
    assert (ROOT / "configs" / "model" / f"{path.parent.name}.yaml").is_file()
    if not isinstance(editor, LocateEditor):
        # The others search no value and need no statistics.
        assert "statistics" not in content["init_args"]
        return
    assert content["init_args"]["statistics"] == f"statistics/{path.parent.name}"
    missing = {"steps", "learning_rate", "weight_decay", "clamp_norm", "kl_weight"} - set(
        content["init_args"]["search"]
    )
    assert not missing, "every setting of a published model is written out"


@named((ROOT / "configs" / "model").glob("*.yaml"))
def test_every_model_file_holds_settings_of_a_model(path):
    assert LanguageModelSettings(**yaml.safe_load(path.read_text())).name_or_path


def test_interpolation_works_across_files_and_flags(capsys):
    experiment = ROOT / "configs" / "experiment" / "mend-smollm2-worldfacts.yaml"
    flags = [
        "--model.optimization.warmup_steps",
        "7",
        "--trainer.max_steps",
        "${..model.init_args.optimization.warmup_steps}",
    ]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(experiment), *flags, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == 7


def test_early_stopping_and_resuming_the_last_checkpoint(tiny_folder, tmp_path):
    from tests.modules.test_training import write_config

    config = write_config(tmp_path, tiny_folder)
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"].append(
        {
            "class_path": "lightning.pytorch.callbacks.EarlyStopping",
            "init_args": {"monitor": "val/score", "mode": "max", "patience": 1, "min_delta": 1.0},
        }
    )
    content["trainer"]["max_epochs"] = 5
    content["data"]["train"]["init_args"]["limit"] = 8
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(config)]) == 0
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert "step=4.ckpt" in names
    assert "step=6.ckpt" not in names  # no progress of 1.0: stopped after the second validation
    content["trainer"]["callbacks"].pop()
    content["trainer"]["max_epochs"] = 3
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(config), "--ckpt_path", "last"]) == 0
    assert (tmp_path / "checkpoints" / "step=6.ckpt").exists()


def test_messages_go_to_the_current_standard_error(monkeypatch):
    """A command that is called again, from Python, after its first standard error was closed."""
    for text in ("first", "second"):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        main(["configs", "--copy", "/dev/null"])
        logging.getLogger("lightning_edit").info(text)
        assert text in stream.getvalue()
        assert "Traceback" not in stream.getvalue()
        stream.close()


def test_omitted_settings_of_a_search_take_the_defaults_of_the_method(capsys):
    """On the command line as in :func:`lightning_edit.components.build`."""
    editor = {"class_path": "lightning_edit.editors.MEMIT", "init_args": {"layers": [1], "search": {"steps": 3}}}
    model = {"class_path": "lightning_edit.modules.LocateEditing", "init_args": {"editor": editor}}
    flags = ["--model.editor.init_args.search.learning_rate", "0.25", "--print_config"]
    with pytest.raises(SystemExit):
        main(["test", "--model", json.dumps(model), "--data.test", "lightning_edit.data.WorldFacts", *flags])
    search = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["editor"]["init_args"]["search"]
    assert (search["steps"], search["learning_rate"]) == (3, 0.25)
    assert (search["clamp_norm"], search["weight_decay"]) == (0.75, 0.5)
