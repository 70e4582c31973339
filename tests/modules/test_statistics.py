"""Fitting statistics: against a float64 brute force, for any batches and processes, and after an interruption."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors import safe_open

from lightning_edit.cli import main
from lightning_edit.data import WorldFacts
from lightning_edit.data.corpus import TextCorpus
from lightning_edit.models import load_language_model
from lightning_edit.models.moment_sums import MomentSums, keys_of
from lightning_edit.models.statistics import KeyStatistics
from lightning_edit.modules import LocateEditing
from tests.modules.fitting import fitted, write_config
from tests.two_processes import run_in_two_processes


def test_statistics_record_the_number_of_their_tokens(tmp_path, tiny_folder, text):
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
    assert main(["fit", "--config", str(config)]) == 130
    assert not (tmp_path / "statistics").exists()
    (partial,) = tmp_path.glob("*.partial-*-0.safetensors")
    unfinished = tmp_path / f".{partial.name}.0123abcd.unfinished"
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
def test_a_run_that_was_stopped_after_its_last_batch_still_writes_its_statistics(
    run, tiny_folder, text, tmp_path, monkeypatch, devices
):
    parallel = {"devices": devices, **({"strategy": "ddp"} if devices > 1 else {})}
    command = ["fit", "--config", str(write_config(tmp_path, tiny_folder, text, **parallel))]

    def stop(module):
        module.trainer.strategy.barrier()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocateEditing, "on_fit_end", stop)
        if devices == 1:
            assert main(command) != 0
        else:
            with pytest.raises(AssertionError, match=r"KeyboardInterrupt|exit status 130"):
                run_in_two_processes(command)
    assert not (tmp_path / "statistics").exists()
    partial = sorted(tmp_path.glob("*.partial-*"))
    assert len(partial) == devices
    if devices > 1:
        # One process got further than the other.
        partial[1].unlink()
        run_in_two_processes(command)
    else:
        assert main(command) == 0
    whole, actual = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert actual.corpus == whole.corpus
    for name, moment in whole.moments.items():
        torch.testing.assert_close(actual.moments[name], moment, rtol=1e-5, atol=1e-7)
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.parametrize("batch_size", [13, 64])
def test_two_processes_with_different_numbers_of_batches(run, tiny_folder, text, tmp_path, batch_size):
    """Two batches and one, or one and none: no process waits for a batch that never comes."""
    config = write_config(tmp_path, tiny_folder, text, batch_size, devices=2, strategy="ddp")
    run_in_two_processes(["fit", "--config", str(config)])
    whole, actual = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert actual.corpus == whole.corpus
    for name, moment in whole.moments.items():
        torch.testing.assert_close(actual.moments[name], moment, rtol=1e-5, atol=1e-7)
    assert not list(tmp_path.glob("*.partial-*"))


def test_statistics_are_taken_in_the_precision_of_the_base(run, tiny_folder, text, tmp_path):
    """Mixed precision is for editors that are trained."""
    actual = fitted(tmp_path, tiny_folder, text, precision="bf16-mixed")
    for name, moment in KeyStatistics.load(run / "statistics").moments.items():
        torch.testing.assert_close(actual.moments[name], moment, rtol=1e-5, atol=1e-7)


def test_a_trial_writes_no_statistics(tiny_folder, text, tmp_path, caplog):
    config = write_config(tmp_path, tiny_folder, text, fast_dev_run=True)
    assert main(["fit", "--config", str(config)]) == 0
    assert not list(tmp_path.glob("statistics*"))
    assert "no statistics were written" in caplog.text


def test_rows_that_the_model_cannot_read_are_refused(tiny_folder, text, tmp_path, capsys):
    config = str(write_config(tmp_path, tiny_folder, text))
    assert main(["fit", "--config", config, "--data.corpus.length", "65"]) == 1
    assert "data.corpus.length: rows of 65 tokens, but" in capsys.readouterr().err


def test_an_editor_uses_the_fitted_statistics(tiny_folder, text, tmp_path, monkeypatch, caplog):
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
    actual = fitted(tmp_path, tiny_folder, text, max_epochs=3)
    assert actual.corpus == KeyStatistics.load(run / "statistics").corpus


def test_a_checkpoint_resumes_from_the_sums(run, tiny_folder, text, tmp_path, monkeypatch, capsys):
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
    assert main(["fit", "--config", str(config)]) == 130
    read = []
    monkeypatch.setattr(LocateEditing, "training_step", lambda *arguments: read.append(1) or step(*arguments))
    assert main(["fit", "--config", str(config), "--ckpt_path", str(checkpoint)]) == 0
    assert len(read) == 10 - 6
    whole, actual = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert actual.corpus == whole.corpus
    assert all(torch.equal(actual.moments[name], moment) for name, moment in whole.moments.items())
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
    whole, actual = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert actual.corpus == whole.corpus
    assert actual.moments.keys() == whole.moments.keys()
    for site, moment in whole.moments.items():
        torch.testing.assert_close(actual.moments[site], moment)
    assert main(["fit", "--config", str(config), layers, "[2]", "--data.corpus.tokens", "600"]) == 1
    assert "cannot be added; name another folder" in capsys.readouterr().err
    assert KeyStatistics.load(tmp_path / "statistics").moments.keys() == whole.moments.keys()


def test_statistics_do_not_depend_on_where_documents_are_kept(run, tiny_folder, text, tmp_path):
    """Rows are cut from one stream of tokens, whether documents are one per line or separated by blank lines."""
    lines = tmp_path / "corpus.jsonl"
    lines.write_text("".join(json.dumps({"text": part}) + "\n" for part in text.read_text().split("\n\n")))
    whole, actual = KeyStatistics.load(run / "statistics"), fitted(tmp_path, tiny_folder, lines)
    assert actual.corpus.digest == whole.corpus.digest
    assert all(torch.equal(actual.moments[name], moment) for name, moment in whole.moments.items())


def test_statistics_do_not_depend_on_the_rows_beside_them(run, tiny_folder, text):
    """No token attends across the boundary between two rows, whatever the batch."""
    model = load_language_model(str(tiny_folder))
    rows = TextCorpus(str(text), tokens=1200, length=32).read(model.tokenizer).long()
    sites = model.layer_map.sites([0, 1])
    alone, turned = MomentSums(), MomentSums()
    for row in rows:
        alone.add(keys_of(model, row[None], sites))
    turned.add_batch(model, rows.flip(0), sites)  # in more passes than one
    assert rows.numel() > 4 * model.saturation_tokens
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
    whole, actual = KeyStatistics.load(run / "statistics"), KeyStatistics.load(tmp_path / "statistics")
    assert actual.corpus == whole.corpus
    assert all(torch.equal(actual.moments[name], moment) for name, moment in whole.moments.items())


def test_a_limited_run_resumes_up_to_its_limit(tiny_folder, text, tmp_path, monkeypatch):
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


def test_a_folder_with_a_trailing_slash(run, tiny_folder, text, tmp_path):
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
    assert main(["fit", "--config", config]) == 130
    monkeypatch.setattr(MomentSums, "save", save)
    [partial] = tmp_path.glob("*.partial-*")
    partial.write_bytes(partial.read_bytes()[:100])
    assert main(["fit", "--config", config]) == 1
    error = capsys.readouterr().err
    assert str(partial) in error
    assert "delete the file to begin anew" in error


def test_sums_of_another_run_are_kept_and_reported(run, tiny_folder, text, tmp_path, caplog):
    other = tmp_path / "statistics.partial-0123456789ab-0.safetensors"
    other.write_bytes(b"of another run")
    fitted(tmp_path, tiny_folder, text)
    assert f"{other}: sums of another run that was stopped" in caplog.text
    assert other.exists()


def test_fit_reads_only_the_corpus_where_validation_records_are_configured(
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


def test_sums_of_another_corpus_are_not_resumed(tmp_path):
    sums = MomentSums()
    sums.add({"site": torch.randn(5, 3)})
    sums.save(tmp_path / "partial", "one")
    assert MomentSums.resume(tmp_path / "partial", "two").tokens == 0
    assert MomentSums.resume(tmp_path / "partial", "one").tokens == 5


def test_the_module_has_nothing_to_optimise():
    from lightning_edit.editors import ROME

    assert LocateEditing(ROME(layers=[0])).configure_optimizers() is None


def test_sigterm_keeps_the_sums_and_is_the_exit_status(tiny_folder, text, tmp_path):
    """A corpus of ten batches; the process is told to stop after the third."""
    config = write_config(tmp_path, tiny_folder, text)
    script = tmp_path / "stopping.py"
    script.write_text(
        "import os, signal, sys\n"
        "from lightning_edit.cli import main\n"
        "from lightning_edit.modules import LocateEditing\n"
        "step = LocateEditing.training_step\n"
        "def stopping(self, batch, batch_idx):\n"
        "    step(self, batch, batch_idx)\n"
        "    if batch_idx == 2:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "LocateEditing.training_step = stopping\n"
        f"sys.exit(main(['fit', '--config', {str(config)!r}]))\n"
    )
    stopped = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert stopped.returncode == 143, stopped.stderr[-3000:]
    assert stopped.stderr.endswith("lightning-edit fit: stopped; run the same command again to resume\n")
    assert not (tmp_path / "statistics").exists()
    [partial] = tmp_path.glob("*.partial-*-0.safetensors")
    with safe_open(partial, "pt") as file:
        assert file.metadata()["batches"] == "3"
