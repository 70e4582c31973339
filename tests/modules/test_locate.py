"""Fitting statistics: against a float64 brute force, whatever the batches, and after a stop; edits made with them."""

import json
import subprocess
import sys

import pytest
import torch
import yaml

from lightning_edit.cli import main
from lightning_edit.data import WorldFacts
from lightning_edit.data.corpus import TextCorpus
from lightning_edit.editors import MEMIT, locate
from lightning_edit.errors import EditError
from lightning_edit.models import load_language_model
from lightning_edit.models.moments import MomentSums, keys_of
from lightning_edit.models.statistics import KeyStatistics
from lightning_edit.modules import Evaluator, LocateEditing
from tests.tiny_models import byte_level_tokenizer


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(f"The capital of country {n} is city {n * 7}.\nIt lies by the sea." for n in range(80)))
    return path


def write_config(folder, tiny_folder, text, batch_size=4, **trainer):
    facts = {"class_path": "lightning_edit.data.WorldFacts"}
    config = {
        "seed_everything": 3,
        "model": {
            "class_path": "lightning_edit.modules.LocateEditing",
            "init_args": {
                "language_model": {"name_or_path": str(tiny_folder)},
                "editor": {
                    "class_path": "lightning_edit.editors.MEMIT",
                    "init_args": {"layers": [0, 1], "statistics": str(folder / "statistics"), "steps": 4},
                },
                "save_every": 1,
            },
        },
        "data": {
            "corpus": {"source": str(text), "tokens": 1200, "length": 32, "batch_size": batch_size},
            "test": {**facts, "init_args": {"split": "validation", "limit": 3}},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}},
            "callbacks": [{"class_path": "lightning_edit.callbacks.TestReport"}],
            **trainer,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fitted(folder, tiny_folder, text, **settings):
    assert main(["fit", "--config", str(write_config(folder, tiny_folder, text, **settings))]) == 0
    return KeyStatistics.load(folder / "statistics")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder, text):
    folder = tmp_path_factory.mktemp("locate")
    fitted(folder, tiny_folder, text)
    return folder


def test_statistics_say_how_many_tokens_they_were_collected_on(tmp_path, tiny_folder, text):
    assert fitted(tmp_path, tiny_folder, text, limit_train_batches=3).corpus.tokens == 3 * 4 * 32


def test_statistics_are_those_of_a_float64_brute_force(run, tiny_folder, text):
    statistics = KeyStatistics.load(run / "statistics")
    model = load_language_model(str(tiny_folder))
    rows = TextCorpus(str(text), tokens=1200, length=32).read(model.tokenizer)
    assert statistics.corpus.tokens == rows.numel() == 37 * 32
    for layer, (name, moment) in enumerate(statistics.moments.items()):
        site = model.layer_map.site(layer)
        assert site.name == name
        total, seen = torch.zeros(48, 48, dtype=torch.float64), []
        handle = site.module.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0][0]))
        with torch.no_grad():
            for row in rows:
                model.model(row.long()[None])
        handle.remove()
        for keys in seen:
            for key in keys.double():
                total += torch.outer(key, key)
        torch.testing.assert_close(moment.double(), total / rows.numel(), rtol=1e-4, atol=1e-6)
    statistics.check(model)
    assert not list(run.glob("*.partial-*"))


def test_statistics_do_not_depend_on_the_batches(run, tiny_folder, text, tmp_path):
    other = fitted(tmp_path, tiny_folder, text, batch_size=7)
    for name, moment in KeyStatistics.load(run / "statistics").moments.items():
        torch.testing.assert_close(other.moments[name], moment, rtol=1e-5, atol=1e-7)


def test_a_stopped_run_goes_on_where_it_was(run, tiny_folder, text, tmp_path, monkeypatch):
    add, added = MomentSums.add, []

    def stopping(self, keys):
        if len(added) == 5:
            raise KeyboardInterrupt
        added.append(1)
        add(self, keys)

    monkeypatch.setattr(MomentSums, "add", stopping)
    config = write_config(tmp_path, tiny_folder, text)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(["fit", "--config", str(config)])
    assert not (tmp_path / "statistics").exists()
    (partial,) = tmp_path.glob("*.partial-*-0.safetensors")
    unfinished = tmp_path / f".{partial.name}.killed"
    unfinished.write_bytes(b"half of the sums")
    again = []
    monkeypatch.setattr(MomentSums, "add", lambda self, keys: again.append(1) or add(self, keys))
    assert main(["fit", "--config", str(config)]) == 0
    assert len(again) == 10 - 5
    assert not unfinished.exists()
    whole = KeyStatistics.load(run / "statistics")
    resumed = KeyStatistics.load(tmp_path / "statistics")
    assert resumed.corpus == whole.corpus
    assert all(torch.equal(resumed.moments[name], moment) for name, moment in whole.moments.items())


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_was_stopped_behind_its_last_batch_still_writes_its_statistics(
    run, tiny_folder, text, tmp_path, devices
):
    parallel = {"devices": devices, **({"strategy": "ddp"} if devices > 1 else {})}
    config = write_config(tmp_path, tiny_folder, text, **parallel)
    stopping = (
        "import sys, lightning_edit.modules.locate as l; from lightning_edit.cli import main\n"
        "def stop(self):\n"
        "    self.trainer.strategy.barrier()\n"
        "    raise KeyboardInterrupt\n"
        "l.LocateEditing.on_fit_end = stop\n"
        f"sys.exit(main(['fit', '--config', {str(config)!r}]))"
    )
    script = tmp_path / "stopping.py"
    script.write_text(stopping)
    assert subprocess.run([sys.executable, str(script)], capture_output=True).returncode != 0
    assert not (tmp_path / "statistics").exists()
    partial = sorted(tmp_path.glob("*.partial-*"))
    assert len(partial) == devices
    if devices > 1:
        # One process was further than the other.
        partial[1].unlink()
    again = subprocess.run(
        [sys.executable, "-m", "lightning_edit.cli", "fit", "--config", str(config)], capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr[-3000:]
    whole, found = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert found.corpus == whole.corpus
    for name, moment in whole.moments.items():
        torch.testing.assert_close(found.moments[name], moment, rtol=1e-5, atol=1e-7)
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.parametrize("batch_size", [13, 64])
def test_two_processes_with_another_number_of_batches_each(run, tiny_folder, text, tmp_path, batch_size):
    """Two batches and one, or one and none: nobody waits for a batch that does not come."""
    config = write_config(tmp_path, tiny_folder, text, batch_size, devices=2, strategy="ddp")
    command = [sys.executable, "-m", "lightning_edit.cli", "fit", "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    whole, found = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert found.corpus == whole.corpus
    for name, moment in whole.moments.items():
        torch.testing.assert_close(found.moments[name], moment, rtol=1e-5, atol=1e-7)


def test_statistics_are_taken_in_the_precision_of_the_base(run, tiny_folder, text, tmp_path):
    """Mixed precision is for editors that are trained."""
    found = fitted(tmp_path, tiny_folder, text, precision="bf16-mixed")
    for name, moment in KeyStatistics.load(run / "statistics").moments.items():
        torch.testing.assert_close(found.moments[name], moment, rtol=1e-5, atol=1e-7)


def test_a_trial_writes_no_statistics(tiny_folder, text, tmp_path, caplog):
    config = write_config(tmp_path, tiny_folder, text, fast_dev_run=True)
    assert main(["fit", "--config", str(config)]) == 0
    assert not list(tmp_path.glob("statistics*"))
    assert "no statistics were written" in caplog.text


def test_rows_that_the_model_cannot_read_are_refused(tiny_folder, text, tmp_path, capsys):
    config = str(write_config(tmp_path, tiny_folder, text))
    assert main(["fit", "--config", config, "--data.corpus.length", "65"]) == 1
    assert "data.corpus.length: rows of 65 tokens, but" in capsys.readouterr().err


def test_an_editor_goes_on_with_what_was_fitted(tiny_folder, text, tmp_path, monkeypatch, caplog):
    editors, write = [], LocateEditing._write
    monkeypatch.setattr(LocateEditing, "_write", lambda self, sums: editors.append(self.editor) or write(self, sums))
    config = str(write_config(tmp_path, tiny_folder, text))
    alphaedit = ["--model.editor", "lightning_edit.editors.AlphaEdit", "--model.editor.init_args.layers", "[0]"]
    alphaedit += ["--model.editor.init_args.statistics", str(tmp_path / "statistics")]
    alphaedit += ["--model.editor.init_args.threshold", "1000"]
    assert main(["fit", "--config", config, *alphaedit]) == 0
    statistics = editors[0].ready_statistics(load_language_model(str(tiny_folder)))
    assert statistics.origin == KeyStatistics.load(tmp_path / "statistics").origin
    assert "null_space: {'model.layers.0.mlp.down_proj': [48, 48]}" in caplog.text


def test_one_pass_is_made_whatever_the_number_of_epochs(run, tiny_folder, text, tmp_path):
    found = fitted(tmp_path, tiny_folder, text, max_epochs=3)
    assert found.corpus == KeyStatistics.load(run / "statistics").corpus


def test_a_checkpoint_goes_on_from_the_sums(run, tiny_folder, text, tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path, tiny_folder, text)
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["save_every"] = 1000
    config.write_text(yaml.safe_dump(content))
    checkpoint, step = tmp_path / "stopped.ckpt", LocateEditing.training_step

    def stopping(self, batch, batch_idx):
        if batch_idx == 6:
            self.trainer.save_checkpoint(checkpoint)
            raise KeyboardInterrupt
        step(self, batch, batch_idx)

    monkeypatch.setattr(LocateEditing, "training_step", stopping)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(["fit", "--config", str(config)])
    read = []
    monkeypatch.setattr(LocateEditing, "training_step", lambda *arguments: read.append(1) or step(*arguments))
    assert main(["fit", "--config", str(config), "--ckpt_path", str(checkpoint)]) == 0
    assert len(read) == 10 - 6
    whole, found = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert found.corpus == whole.corpus
    assert all(torch.equal(found.moments[name], moment) for name, moment in whole.moments.items())
    assert main(["fit", "--config", str(config), "--ckpt_path", str(checkpoint)]) == 1
    assert "has the sums of 0; collect the statistics again" in capsys.readouterr().err


def test_another_corpus_of_the_same_name_and_size_is_refused(tiny_folder, text, tmp_path, capsys):
    fitted(tmp_path, tiny_folder, text)
    other = tmp_path / "other" / text.name
    other.parent.mkdir()
    other.write_text(text.read_text().replace("capital", "captain"))
    config = str(write_config(tmp_path, tiny_folder, other))
    assert main(["fit", "--config", config, "--model.editor.init_args.layers", "[2]"]) == 1
    assert "cannot be added; name another folder" in capsys.readouterr().err


def test_statistics_of_more_sites_are_added_and_those_of_another_corpus_refused(
    run, tiny_folder, text, tmp_path, capsys
):
    config = write_config(tmp_path, tiny_folder, text)
    layers = "--model.editor.init_args.layers"
    for wanted in ("[0]", "[1]"):
        assert main(["fit", "--config", str(config), layers, wanted]) == 0
    whole, found = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert found.corpus == whole.corpus
    assert found.moments.keys() == whole.moments.keys()
    for site, moment in whole.moments.items():
        torch.testing.assert_close(found.moments[site], moment)
    assert main(["fit", "--config", str(config), layers, "[2]", "--data.corpus.tokens", "600"]) == 1
    assert "cannot be added; name another folder" in capsys.readouterr().err
    assert KeyStatistics.load(tmp_path / "statistics").moments.keys() == whole.moments.keys()


def test_statistics_do_not_depend_on_where_documents_are_kept(run, tiny_folder, text, tmp_path):
    """Rows are cut from one stream of tokens: the same documents one to a line, or in a file apart by blank lines."""
    lines = tmp_path / "corpus.jsonl"
    lines.write_text("".join(json.dumps({"text": part}) + "\n" for part in text.read_text().split("\n\n")))
    whole, found = KeyStatistics.load(run / "statistics"), fitted(tmp_path, tiny_folder, lines)
    assert found.corpus.digest == whole.corpus.digest
    assert all(torch.equal(found.moments[name], moment) for name, moment in whole.moments.items())


def test_statistics_do_not_depend_on_the_rows_beside_them(run, tiny_folder, text):
    """What a boundary between two rows parts is parted for good: nothing is read across it, whatever the batch."""
    model = load_language_model(str(tiny_folder))
    rows = TextCorpus(str(text), tokens=1200, length=32).read(model.tokenizer).long()
    sites = model.layer_map.sites([0, 1])
    alone, turned = MomentSums(), MomentSums()
    for row in rows:
        alone.add(keys_of(model, row[None], sites))
    turned.add_batch(model, rows.flip(0), sites)  # in more passes than one
    assert rows.numel() > 4 * model.tokens_enough
    assert (turned.tokens, turned.batches) == (rows.numel(), 1)
    for name, moment in KeyStatistics.load(run / "statistics").moments.items():
        torch.testing.assert_close(alone.moments()[name], moment, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(turned.moments()[name], moment, rtol=1e-5, atol=1e-7)


def test_rows_of_another_length_make_other_statistics(tiny_folder, text, tmp_path, capsys):
    fitted(tmp_path, tiny_folder, text)
    config = str(write_config(tmp_path, tiny_folder, text))
    more = ["--model.editor.init_args.layers", "[2]", "--data.corpus.length", "16"]
    assert main(["fit", "--config", config, *more]) == 1
    assert "cannot be added; name another folder" in capsys.readouterr().err


def test_a_run_that_was_cut_short_writes_no_statistics(run, tiny_folder, text, tmp_path, monkeypatch, caplog):
    step = LocateEditing.training_step

    def cut(self, batch, batch_idx):
        step(self, batch, batch_idx)
        # As trainer.max_time does.
        self.trainer.should_stop = batch_idx == 3

    monkeypatch.setattr(LocateEditing, "training_step", cut)
    config = str(write_config(tmp_path, tiny_folder, text, min_epochs=0))
    assert main(["fit", "--config", config]) == 0
    assert not (tmp_path / "statistics").exists()
    assert "stopped after 512 of 1184 tokens; no statistics were written" in caplog.text
    monkeypatch.setattr(LocateEditing, "training_step", step)
    assert main(["fit", "--config", config]) == 0
    whole, found = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert found.corpus == whole.corpus
    assert all(torch.equal(found.moments[name], moment) for name, moment in whole.moments.items())


def test_a_limited_run_goes_on_to_its_limit(tiny_folder, text, tmp_path, monkeypatch):
    step = LocateEditing.training_step

    def cut(self, batch, batch_idx):
        step(self, batch, batch_idx)
        self.trainer.should_stop = batch_idx == 3

    config = str(write_config(tmp_path, tiny_folder, text, min_epochs=0, limit_train_batches=6))
    monkeypatch.setattr(LocateEditing, "training_step", cut)
    assert main(["fit", "--config", config]) == 0
    assert not (tmp_path / "statistics").exists()
    monkeypatch.setattr(LocateEditing, "training_step", step)
    assert main(["fit", "--config", config]) == 0
    assert KeyStatistics.load(tmp_path / "statistics").corpus.tokens == 6 * 4 * 32
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_share_of_the_batches_is_refused(tiny_folder, text, tmp_path, capsys):
    config = str(write_config(tmp_path, tiny_folder, text, limit_train_batches=0.5))
    assert main(["fit", "--config", config]) == 1
    assert "give a number of batches, or limit data.corpus.tokens" in capsys.readouterr().err


def test_a_folder_named_with_a_slash_behind_it(run, tiny_folder, text, tmp_path):
    config = write_config(tmp_path, tiny_folder, text)
    slash = ["--model.editor.init_args.statistics", f"{tmp_path / 'statistics'}/"]
    assert main(["fit", "--config", str(config), *slash]) == 0
    assert KeyStatistics.load(tmp_path / "statistics").corpus == KeyStatistics.load(run / "statistics").corpus


def test_a_damaged_file_of_sums_is_named(tiny_folder, text, tmp_path, monkeypatch, capsys):
    def stopping(self, batch, batch_idx):
        raise KeyboardInterrupt

    config = str(write_config(tmp_path, tiny_folder, text))
    save = MomentSums.save
    monkeypatch.setattr(MomentSums, "save", lambda self, *arguments: save(self, *arguments) or stopping(self, 0, 0))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(["fit", "--config", config])
    monkeypatch.setattr(MomentSums, "save", save)
    [partial] = tmp_path.glob("*.partial-*")
    partial.write_bytes(partial.read_bytes()[:100])
    assert main(["fit", "--config", config]) == 1
    error = capsys.readouterr().err
    assert str(partial) in error
    assert "delete the file to begin anew" in error


def test_sums_of_another_run_are_kept_and_told_of(run, tiny_folder, text, tmp_path, caplog):
    other = tmp_path / "statistics.partial-0123456789ab-0.safetensors"
    other.write_bytes(b"of another run")
    fitted(tmp_path, tiny_folder, text)
    assert f"{other}: sums of another run that was stopped" in caplog.text
    assert other.exists()


def test_fit_reads_the_corpus_alone_where_validation_records_are_configured(
    run, tiny_folder, text, tmp_path, monkeypatch
):
    config = write_config(tmp_path, tiny_folder, text)
    content = yaml.safe_load(config.read_text())
    content["data"]["validation"] = content["data"]["test"]
    config.write_text(yaml.safe_dump(content))
    with monkeypatch.context() as patch:
        patch.setattr(WorldFacts, "read", lambda self: pytest.fail("records were read"))
        assert main(["fit", "--config", str(config)]) == 0
    assert KeyStatistics.load(tmp_path / "statistics").corpus == KeyStatistics.load(run / "statistics").corpus
    assert main(["validate", "--config", str(config)]) == 0


def test_what_cannot_be_edited_is_refused_before_the_unedited_model_is_asked(run, monkeypatch, capsys):
    monkeypatch.setattr(Evaluator, "ask_before", lambda *arguments: pytest.fail("the unedited model was asked"))
    # Nothing but the editor's own check sees this.
    arguments = ["test", "--config", str(run / "config.yaml"), "--model.editor.init_args.loss_layer", "0"]
    for sequential in ([], ["--model.evaluation.sequential.every", "1"]):
        assert main([*arguments, *sequential]) == 1
        assert "editor.loss_layer: layer 0 lies below the edited layer 1" in capsys.readouterr().err


def test_sums_of_another_corpus_are_not_gone_on_with(tmp_path):
    sums = MomentSums()
    sums.add({"site": torch.randn(5, 3)})
    sums.save(tmp_path / "partial", "one")
    assert MomentSums.resume(tmp_path / "partial", "two").tokens == 0
    assert MomentSums.resume(tmp_path / "partial", "one").tokens == 5


def test_two_processes_collect_the_statistics_of_one(run, tiny_folder, text, tmp_path):
    config = write_config(tmp_path, tiny_folder, text, batch_size=5, devices=2, strategy="ddp")
    command = [sys.executable, "-m", "lightning_edit.cli", "fit", "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert two.corpus == one.corpus
    for name, moment in one.moments.items():
        torch.testing.assert_close(two.moments[name], moment, rtol=1e-5, atol=1e-7)
    assert not list(tmp_path.glob("*.partial-*"))


def test_test_edits_with_the_statistics(run, text):
    assert main(["test", "--config", str(run / "config.yaml")]) == 0
    [path] = run.rglob("metrics.json")
    written = json.loads(path.read_text())
    assert written["counts"]["records"] == 3
    assert written["settings"]["editor"]["name"] == "MEMIT"
    assert written["settings"]["editor"]["covariance"] == "fitted"
    assert written["findings"]["corpus"]["tokens"] == 37 * 32
    assert (written["left_out"], written["stopped_after"]) == ([], None)


def test_what_cannot_be_edited_is_refused_before_the_first_edit(run, monkeypatch, capsys):
    records = WorldFacts("validation", limit=3).read().records
    longest = max(records, key=lambda record: sum(len(probe.prompt) for probe in record.all_probes))
    last = longest.requests[0].prompt

    def prepare(self, model, groups):
        if any(request.prompt == last for group in groups for request in group):
            raise EditError("the last one cannot be edited")

    monkeypatch.setattr(MEMIT, "prepare", prepare)
    command = ["test", "--config", str(run / "config.yaml"), "--data.eval_batch_size", "1"]
    # A run that is cut before it comes to that record has nothing against it.
    assert main([*command, "--trainer.limit_test_batches", "1"]) == 0
    monkeypatch.setattr(MEMIT, "edit_groups", None)
    assert main(command) == 1
    assert "the last one cannot be edited" in capsys.readouterr().err


def test_requests_without_an_edit_are_named_in_the_report(run, tmp_path, monkeypatch):
    report = ["--trainer.callbacks+=lightning_edit.callbacks.TestReport", "--trainer.callbacks.folder", str(tmp_path)]
    search = locate.search_values

    def broken(*arguments):
        found = search(*arguments)
        found[0].problem = "the loss of 'one' became nan"
        return found

    monkeypatch.setattr(locate, "search_values", broken)
    with pytest.warns(UserWarning, match="1 of 3 requests are left out"):
        assert main(["test", "--config", str(run / "config.yaml"), *report]) == 0
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["left_out"] == ["left out: the loss of 'one' became nan"]


def test_a_trial_without_statistics_says_so(run, tmp_path):
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


def test_what_is_missing_is_named(tiny_folder, text, tmp_path, capsys):
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


def test_the_module_has_nothing_to_optimise():
    from lightning_edit.editors import ROME

    assert LocateEditing(ROME(layers=[0])).configure_optimizers() is None


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


def test_a_file_that_describes_no_ready_editor_is_refused(tiny_folder, tmp_path, capsys):
    editor = tmp_path / "rome.yaml"
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": {"layers": [1]}}))
    arguments = ["edit", "--editor", str(editor), "--name_or_path", str(tiny_folder), *FACT]
    assert main(arguments) == 1
    assert "needs statistics" in capsys.readouterr().err
    assert main(["edit", *FACT]) == 1
    assert "--ckpt_path, or --editor" in capsys.readouterr().err
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": {"layer": 1}}))
    assert main(arguments) == 1
    assert f"{editor}: ROME has no setting layer; did you mean layers?" in capsys.readouterr().err
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.records.EditRequest"}))
    assert main(arguments) == 1
    assert "is no Editor" in capsys.readouterr().err
    editor.write_text("class_path: [lightning_edit")
    assert main(arguments) == 1
    assert f"{editor}: not a readable YAML file of an editor" in capsys.readouterr().err
    for missing in ("lightning_edit.editorz.ROME", "ROME", None):
        editor.write_text(yaml.safe_dump({"class_path": missing}))
        assert main(arguments) == 1
        assert f"{editor}: there is no class {missing}" in capsys.readouterr().err
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": [1]}))
    assert main(arguments) == 1
    assert f"{editor}: init_args: expected names and values, found [1]" in capsys.readouterr().err


def test_requests_that_cannot_be_edited_jointly_are_refused_in_words(run, tiny_folder, tmp_path, capsys):
    editor, requests = tmp_path / "rome.yaml", tmp_path / "requests.jsonl"
    editor.write_text(yaml.safe_dump({"class_path": "lightning_edit.editors.ROME", "init_args": {"layers": [1]}}))
    line = json.dumps({"prompt": "The capital of France is", "subject": "France", "target": "Rome"})
    requests.write_text(f"{line}\n{line.replace('France', 'Italy')}\n")
    arguments = ["edit", "--editor", str(editor), "--name_or_path", str(tiny_folder), "--requests", str(requests)]
    assert main([*arguments, "--statistics", str(run / "statistics")]) == 1
    assert "ROME edits one request at a time, and 2 are to be edited jointly; give one" in capsys.readouterr().err
