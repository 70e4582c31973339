"""What callbacks show during a run."""

import re
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import WandbLogger

from lightning_edit.callbacks import PredictionTable, ProgressLines
from lightning_edit.cli import main
from lightning_edit.data import WorldFacts
from lightning_edit.editors import GradientStep
from lightning_edit.modules import EditingModule, EvaluationSettings, Evaluator
from tests.modules.test_training import write_config
from tests.tiny_models import language_model


class Tables(WandbLogger):
    """Keeps what is logged, without a run."""

    def __init__(self):
        self.logged = []

    @property
    def experiment(self):
        return SimpleNamespace(log=self.logged.append)


def test_the_table_shows_what_is_generated_before_and_after():
    model, records = language_model("llama"), WorldFacts("validation", limit=2).read().records
    module = EditingModule(GradientStep([1, 2], 0.5))
    module.attach(model)
    edits = module.editor.edit_each(model, [record.requests[0] for record in records])
    outcomes = Evaluator(model, EvaluationSettings(generate_records=1)).evaluate(records, edits)
    logger, table = Tables(), PredictionTable()
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, loggers=[logger], global_step=7)
    table.on_validation_start(trainer, module)
    table.on_validation_batch_end(trainer, module, {"outcomes": outcomes}, None, 0)
    table.on_validation_end(trainer, module)
    [logged] = logger.logged
    assert logged["trainer/global_step"] == 7
    shown = logged["val/predictions"]
    rows = [dict(zip(shown.columns, row, strict=True)) for row in shown.data]
    assert len(rows) == len(outcomes)
    changed = 0
    for row, outcome in zip(rows, outcomes, strict=True):
        generated = outcome.record_id == records[0].id
        assert row["generated"] is generated
        assert (row["step"], row["prompt"], row["target"]) == (7, outcome.probe.prompt, outcome.probe.answer)
        forced = [model.encoder.decode(answer.predicted_ids) for answer in (outcome.before, outcome.after)]
        if not generated:
            assert [row["before"], row["after"]] == forced
            continue
        length = len(model.encoder.tokenizer(max(outcome.probe.aliases, key=len))["input_ids"]) + 8
        texts = model.generate([outcome.probe.prompt], length)
        with edits[0].applied(model) as edited:
            texts += edited.generate([outcome.probe.prompt], length)
        assert [row["before"], row["after"]] == texts
        assert texts != forced
        changed += texts[0] != texts[1]
    assert changed


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("lightning_edit.callbacks.progress_lines.time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_progress_is_a_line_with_the_time_left(clock, caplog):
    caplog.set_level("INFO", "lightning_edit")
    lines = ProgressLines(every_seconds=15)
    trainer = SimpleNamespace(
        global_step=100,
        estimated_stepping_batches=140,
        progress_bar_metrics={"train/loss": 0.25},
        optimizers=[None],
        is_global_zero=True,
        num_test_batches=[3, 5],
    )
    lines.on_train_start(trainer, None)
    # A resumed run: ten steps in a minute, thirty steps left.
    for seconds, step in ((14, 102), (60, 110), (74, 112), (240, 140)):
        clock.seconds, trainer.global_step = seconds, step
        lines.on_train_batch_end(trainer, None, None, None, 0)
    assert caplog.messages == ["step 110 of 140, loss 0.250, 3.0 min left", "step 140 of 140, loss 0.250"]
    caplog.clear()
    lines.on_test_start(trainer, None)
    clock.seconds += 90
    lines.on_test_batch_end(trainer, None, None, None, 2)
    assert caplog.messages == ["batch 3 of 8, 2.5 min left"]


def test_a_pass_without_an_optimizer_counts_batches(clock, caplog):
    """Statistics take no steps; the step stays at zero."""
    caplog.set_level("INFO", "lightning_edit")
    lines = ProgressLines(every_seconds=15)
    trainer = SimpleNamespace(global_step=0, optimizers=[], num_training_batches=49, is_global_zero=True)
    lines.on_train_start(trainer, None)
    clock.seconds = 60
    lines.on_train_batch_end(trainer, None, None, None, 9)
    assert caplog.messages == ["batch 10 of 49, 3.9 min left"]


def test_a_terminal_gets_no_lines(clock, caplog, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    caplog.set_level("INFO", "lightning_edit")
    lines = ProgressLines()
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, num_test_batches=[8])
    lines.on_test_start(trainer, None)
    clock.seconds += 90
    lines.on_test_batch_end(trainer, None, None, None, 2)
    assert not caplog.messages


def test_fit_writes_progress_where_the_output_is_no_terminal(tiny_folder, tmp_path, capsys):
    config = str(
        write_config(
            tmp_path,
            tiny_folder,
            max_steps=4,
            logger=False,
            default_root_dir=str(tmp_path / "run"),
            limit_val_batches=0,
        )
    )
    assert main(["fit", "--config", config, "--progress.every_seconds", "1e-9"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 4
    for step, line in enumerate(lines, start=1):
        left = r", \d+\.\d min left" if step < 4 else ""
        assert re.fullmatch(rf"step {step} of 4, loss \d+\.\d{{3}}{left}", line), line
