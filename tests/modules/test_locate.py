"""Edits made with fitted statistics, in test and by `edit`."""

import json

import pytest
import torch
import yaml

from lightning_edit.cli import main
from lightning_edit.data import WorldFacts
from lightning_edit.editors import MEMIT, locate
from lightning_edit.errors import EditError
from lightning_edit.modules import Evaluator
from tests.modules.fitting import write_config
from tests.tiny_models import byte_level_tokenizer


def test_invalid_edits_are_refused_before_the_unedited_model_is_asked(run, monkeypatch, capsys):
    monkeypatch.setattr(Evaluator, "ask_before", lambda *arguments: pytest.fail("the unedited model was asked"))
    # Only the editor's own check detects this.
    arguments = ["test", "--config", str(run / "config.yaml"), "--model.editor.init_args.search.loss_layer", "0"]
    for sequential in ([], ["--model.evaluation.sequential.every", "1"]):
        assert main([*arguments, *sequential]) == 1
        assert "editor.search.loss_layer: layer 0 lies below the edited layer 1" in capsys.readouterr().err


def test_test_edits_with_the_statistics(run, text):
    assert main(["test", "--config", str(run / "config.yaml")]) == 0
    [path] = run.rglob("metrics.json")
    written = json.loads(path.read_text())
    assert written["counts"]["records"] == 3
    assert written["settings"]["editor"]["name"] == "MEMIT"
    assert written["settings"]["editor"]["covariance"] == "fitted"
    assert written["findings"]["corpus"]["tokens"] == 37 * 32
    assert (written["left_out"], written["stopped_after"]) == ([], None)


def test_invalid_edits_are_refused_before_the_first_edit(run, monkeypatch, capsys):
    records = WorldFacts("validation", limit=3).read().records
    longest = max(records, key=lambda record: sum(len(probe.prompt) for probe in record.all_probes))
    last = longest.requests[0].prompt

    def validate(self, model, groups):
        if any(request.prompt == last for group in groups for request in group):
            raise EditError("the last one cannot be edited")

    monkeypatch.setattr(MEMIT, "validate", validate)
    command = ["test", "--config", str(run / "config.yaml"), "--data.eval_batch_size", "1"]
    # A run that ends before that record does not refuse it.
    assert main([*command, "--trainer.limit_test_batches", "1"]) == 0
    monkeypatch.setattr(MEMIT, "compute_changes", None)
    assert main(command) == 1
    assert "the last one cannot be edited" in capsys.readouterr().err


def test_requests_without_an_edit_are_named_in_the_report(run, tmp_path, monkeypatch):
    report = ["--trainer.callbacks+=lightning_edit.callbacks.TestReport", "--trainer.callbacks.folder", str(tmp_path)]
    search = locate.search_values

    def broken(*arguments):
        results = search(*arguments)
        results[0].problem = "the loss of 'one' became nan"
        return results

    monkeypatch.setattr(locate, "search_values", broken)
    with pytest.warns(UserWarning, match="1 of 3 requests are left out"):
        assert main(["test", "--config", str(run / "config.yaml"), *report]) == 0
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["left_out"] == ["left out: the loss of 'one' became nan"]


def test_a_trial_without_statistics_is_recorded(run, tmp_path):
    report = ["--trainer.callbacks+=lightning_edit.callbacks.TestReport", "--trainer.callbacks.folder", str(tmp_path)]
    identity = ["--model.editor.init_args.covariance", "identity"]
    assert main(["test", "--config", str(run / "config.yaml"), *identity, *report]) == 0
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["settings"]["editor"]["covariance"] == "identity"
    assert written["findings"]["corpus"] == {}


def test_statistics_of_another_model_are_refused(run, tmp_path, capsys):
    from tests.tiny_models import FAMILIES, build

    other = build(FAMILIES["llama"][0]())
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    byte_level_tokenizer().save_pretrained(tmp_path / "other")
    arguments = ["test", "--config", str(run / "config.yaml")]
    assert main([*arguments, "--model.language_model.name_or_path", str(tmp_path / "other")]) == 1
    assert "the statistics were collected on" in capsys.readouterr().err


def test_missing_settings_are_named(tiny_folder, text, tmp_path, capsys):
    config = str(write_config(tmp_path, tiny_folder, text))
    assert main(["fit", "--config", config, "--data.corpus", "null"]) == 1
    assert "data.corpus" in capsys.readouterr().err
    assert main(["fit", "--config", config, "--data.corpus.length", "100000"]) == 1
    assert "1200 tokens are asked for, fewer than the 100000 of one row" in capsys.readouterr().err
    long = ["--data.corpus.length", "100000", "--data.corpus.tokens", "200000"]
    assert main(["fit", "--config", config, *long]) == 1
    assert "fewer than 100000 tokens" in capsys.readouterr().err
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del content["model"]["init_args"]["editor"]["init_args"]["statistics"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", config]) == 1
    assert "editor.statistics" in capsys.readouterr().err


FACT = ["--prompt", "The capital of France is", "--subject", "France", "--target", "Rome"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ROME", {"layers": [1]}),
        ("ROME", {"layers": [1], "original_keys": True}),
        ("MEMIT", {"layers": [0, 1]}),
        ("EMMET", {"layers": [1]}),
        ("PMET", {"layers": [0, 1]}),
        ("AlphaEdit", {"layers": [0, 1], "threshold": 10.0}),
        ("KnowledgeNeurons", {"steps": 4}),
    ],
)
def test_every_method_edits_from_a_file_without_a_checkpoint(run, tiny_folder, tmp_path, capsys, method, settings):
    editor = tmp_path / "editor.yaml"
    editor.write_text(yaml.safe_dump({"class_path": f"lightning_edit.editors.{method}", "init_args": settings}))
    statistics = [] if method == "KnowledgeNeurons" else ["--statistics", str(run / "statistics")]
    arguments = ["edit", "--editor", str(editor), "--name_or_path", str(tiny_folder), *statistics]
    assert main([*arguments, *FACT, "--save", str(tmp_path / "edit")]) == 0
    assert "edit saved" in capsys.readouterr().out
    assert json.loads((tmp_path / "edit" / "edit.json").read_text())["method"] == method


def test_an_editor_without_statistics_collects_some_once(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTNING_EDIT_CACHE", str(tmp_path / "cache"))
    editor = tmp_path / "rome.yaml"
    settings = {"layers": [1], "search": {"steps": 2}, "contexts": {"templates": [["{}"]]}}
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": settings}))
    arguments = ["edit", "--editor", str(editor), "--name_or_path", str(tiny_folder), *FACT]
    assert main(arguments) == 0
    [folder] = (path for path in (tmp_path / "cache" / "statistics").iterdir() if path.is_dir())
    written = (folder / "statistics.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (folder / "statistics.safetensors").stat().st_mtime_ns == written
    # Statistics that are named are not replaced by others.
    assert main([*arguments, "--statistics", str(tmp_path / "none")]) == 1
    assert "no statistics here" in capsys.readouterr().err


def test_a_file_that_describes_no_ready_editor_is_refused(tiny_folder, tmp_path, capsys):
    editor = tmp_path / "rome.yaml"
    arguments = ["edit", "--editor", str(editor), "--name_or_path", str(tiny_folder), *FACT]
    assert main(["edit", *FACT]) == 1
    assert "--ckpt_path, or --editor" in capsys.readouterr().err
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": {"layer": 1}}))
    assert main(arguments) == 1
    assert f"{editor}, line 3: editor: ROME has no setting layer; did you mean layers?" in capsys.readouterr().err
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.records.EditRequest"}))
    assert main(arguments) == 1
    assert "is not a subclass of Editor" in capsys.readouterr().err
    editor.write_text("class_path: [lightning_edit")
    assert main(arguments) == 1
    assert f"{editor}: not a readable YAML file of an editor" in capsys.readouterr().err
    for missing in ("lightning_edit.editorz.ROME", "ROME", None):
        editor.write_text(yaml.safe_dump({"class_path": missing}))
        assert main(arguments) == 1
        message = "there is no class" if str(missing).startswith("lightning_edit") else "is not a class of this package"
        assert message in capsys.readouterr().err
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": [1]}))
    assert main(arguments) == 1
    assert f"{editor}: init_args: expected names and values, found [1]" in capsys.readouterr().err


def test_settings_of_an_editor_are_changed_on_the_command_line(run, tiny_folder, tmp_path, capsys):
    editor = tmp_path / "rome.yaml"
    settings = {"layers": [0], "search": {"steps": 2, "kl_weight": 0.5}}
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": settings}))
    arguments = ["edit", "--name_or_path", str(tiny_folder), "--statistics", str(run / "statistics"), *FACT]
    changed = ["--editor.layers", "[1]", "--editor.search.steps", "3"]
    for given, weight in (["--editor", str(editor)], 0.5), (["--editor", "ROME"], 0.0625):
        save = tmp_path / f"edit-{weight}"
        assert main([*arguments, *given, *changed, "--save", str(save)]) == 0
        recorded = json.loads((save / "edit.json").read_text())["settings"]
        assert recorded["layers"] == [1]
        assert (recorded["search"]["steps"], recorded["search"]["kl_weight"]) == (3, weight)
    capsys.readouterr()
    for option, value, message in (
        ("search.stps", "3", "ValueSettings has no setting stps; did you mean steps?"),
        ("layers", "five", "editor.layers"),
        ("search.steps", "-1", "search.steps"),
        ("covariance", "null", "null is not possible here"),
    ):
        assert main([*arguments, "--editor", str(editor), f"--editor.{option}", value]) == 1
        assert message in capsys.readouterr().err
    assert main([*arguments, "--editor.search.steps", "3"]) == 1
    assert "--editor.search.steps changes a setting of an editor, and none is given" in capsys.readouterr().err
    assert main([*arguments, "--editor", "lightning_edit.editors.Rome"]) == 1
    assert "there is no class lightning_edit.editors.Rome; did you mean ROME?" in capsys.readouterr().err
    assert main([*arguments, "--editor", "Rome"]) == 1
    assert "editor: there is neither a class nor a file Rome; did you mean ROME?" in capsys.readouterr().err
    assert main([*arguments, "--editor", "FineTuning"]) == 1
    assert "FineTuning has no setting statistics" in capsys.readouterr().err


def test_the_help_of_edit_explains_the_settings_of_an_editor(capsys):
    with pytest.raises(SystemExit):
        main(["edit", "--editor.help", "ROME"])
    assert "--editor.search.steps" in capsys.readouterr().out


def test_requests_that_cannot_be_edited_jointly_are_refused(run, tiny_folder, tmp_path, capsys):
    editor, requests = tmp_path / "rome.yaml", tmp_path / "requests.jsonl"
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": {"layers": [1]}}))
    line = json.dumps({"prompt": "The capital of France is", "subject": "France", "target": "Rome"})
    requests.write_text(f"{line}\n{line.replace('France', 'Italy')}\n")
    arguments = ["edit", "--editor", str(editor), "--name_or_path", str(tiny_folder), "--requests", str(requests)]
    assert main([*arguments, "--statistics", str(run / "statistics")]) == 1
    assert "ROME edits one request at a time, and 2 are to be edited jointly; give one" in capsys.readouterr().err
