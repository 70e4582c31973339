"""What is asked of which records, and what is read before a run begins."""

import json
import unicodedata

import pytest
import yaml
from tokenizers import normalizers

from lightning_edit.cli import main
from lightning_edit.data import WorldFacts
from lightning_edit.editors import GradientStep, LoRA
from lightning_edit.errors import ConfigurationError, TokenizationError
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import EditRequest
from tests.modules.test_training import write_config
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model


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


@pytest.mark.parametrize(
    "setting",
    [{"extra_tokens": -9}, {"fluency_tokens": -1}, {"generate_records": -1}, {"trunk_gigabytes": -1.0},
     {"change_gigabytes": 0.0}],
)  # fmt: skip
def test_numbers_out_of_their_range_are_refused(setting):
    with pytest.raises(ConfigurationError, match=f"evaluation.{next(iter(setting))}: expected"):
        EvaluationSettings(**setting)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--model.evaluation.extra_tokens", "-9"),
        ("--model.optimization.learning_rate", "-1"),
        ("--model.optimization.edit_weight", "-1"),
        ("--model.optimization.warmup_steps", "-1"),
        ("--data.num_workers", "-1"),
        ("--model.trunk.gigabytes", "-1"),
    ],
)
def test_options_out_of_their_range_are_refused(tmp_path, tiny_folder, capsys, option, value):
    assert main(["fit", "--config", str(write_config(tmp_path, tiny_folder)), option, value]) == 1
    assert f"{option.rpartition('.')[2]}: expected at least 0, found {value}" in capsys.readouterr().err


def test_missing_texts_leave_no_folder(tmp_path, tiny_folder, capsys):
    config = str(write_config(tmp_path, tiny_folder))
    missing = str(tmp_path / "none.txt")
    corpus = ["--data.corpus.source", missing]
    sequence = ["--model.evaluation.sequential.text", missing, "--model.editor", "lightning_edit.editors.GradientStep"]
    for command, options in (("fit", corpus), ("test", ["--model", "lightning_edit.modules.EditingModule", *sequence])):
        assert main([command, "--config", config, *options]) == 1
        assert "none.txt: no such file" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("command", ["fit", "test"])
def test_texts_beyond_the_positions_are_refused_before_the_run(tmp_path, capsys, command):
    folder = tmp_path / "gpt2"
    build(FAMILIES["gpt2"][0]()).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    facts = [{"prompt": f"Fact {number} is", "target": "so", "rephrases": ["It is"]} for number in range(6)]
    facts[-1]["rephrases"] = ["very " * 60 + "long"]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    config = write_config(tmp_path, folder)
    content = yaml.safe_load(config.read_text())
    source = {"class_path": "lightning_edit.data.Facts", "init_args": {"source": str(tmp_path / "facts.json")}}
    content["data"] = {"train": source, "test": source, "batch_size": 2}
    if command == "test":
        content["model"] = {
            "class_path": "lightning_edit.modules.EditingModule",
            "init_args": {
                "editor": {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": [1]}},
                "language_model": {"name_or_path": str(folder)},
            },
        }
    config.write_text(yaml.safe_dump(content))
    assert main([command, "--config", str(config)]) == 1
    assert "positions" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "facts.json", "gpt2"]


@pytest.mark.parametrize("kind", [GradientStep, LoRA])
def test_requests_beyond_the_positions_are_refused_by_every_editor(kind):
    model = language_model("gpt2")
    with pytest.raises(TokenizationError, match="has 64; shorten it"):
        kind().edit(model, [EditRequest("very " * 70 + "long", "answer")])


def test_a_text_that_its_tokenizer_normalises_is_refused_before_the_run():
    model = language_model("llama")
    model.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    request = EditRequest("The city is", unicodedata.normalize("NFD", "Zürich"))
    with pytest.raises(TokenizationError, match="normalises it"):
        GradientStep([1]).check(model, [[request]])
    GradientStep([1]).check(model, [[EditRequest("The city is", "Zürich")]])
