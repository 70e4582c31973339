"""What is asked of which records, and what is read before a run begins."""

import pytest

from lightning_edit.cli import main
from lightning_edit.data import WorldFacts
from lightning_edit.editors import GradientStep
from lightning_edit.modules import EvaluationSettings, Evaluator
from tests.modules.test_training import write_config
from tests.tiny_models import language_model


def test_the_first_records_alone_generate():
    model, records = language_model("llama"), WorldFacts("validation", limit=5).read().records
    editor = GradientStep([1, 2])
    editor.setup(model)
    edits = editor.edit_each(model, [record.requests[0] for record in records])
    for limit, generating in ((None, 5), (2, 2), (0, 0)):
        evaluator = Evaluator(model, EvaluationSettings(generate_records=limit))
        outcomes = evaluator.evaluate(records, edits)
        assert len({one.record_id for one in outcomes if one.after.generation is not None}) == generating
        # The same records generate when they are evaluated again, in whatever order.
        again = evaluator.evaluate(records[::-1], edits, list(range(5))[::-1])
        texts = {(one.record_id, one.probe): one.after.generation for one in outcomes}
        assert {(one.record_id, one.probe): one.after.generation for one in again} == texts
        assert all((one.before.generation is None) == (one.after.generation is None) for one in outcomes)
    full = Evaluator(model, EvaluationSettings()).evaluate(records, edits)
    some = Evaluator(model, EvaluationSettings(generate_records=2)).evaluate(records, edits)
    for one, other in zip(some, full, strict=True):
        assert one.after.log_probs == pytest.approx(other.after.log_probs, abs=1e-4)


@pytest.mark.parametrize("broken", ["data", "model"])
def test_a_run_that_cannot_read_its_input_leaves_no_folder(tmp_path, tiny_folder, broken, capsys):
    config = str(write_config(tmp_path, tiny_folder))
    wrong = {
        "data": ["--data.train", "lightning_edit.data.ZsRE", "--data.train.source", str(tmp_path / "none.json")],
        "model": ["--model.language_model.name_or_path", str(tmp_path / "no" / "model")],
    }[broken]
    assert main(["fit", "--config", config, *wrong]) == 1
    assert {"data": "none.json", "model": "no/model"}[broken] in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
