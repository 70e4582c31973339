"""Protocols of evaluation on a tiny model."""

import pytest
from lightning.pytorch import Trainer

from lightning_edit.data import EditDataModule, WorldFacts
from lightning_edit.editors import GradientStep
from lightning_edit.errors import ConfigurationError
from lightning_edit.modules import EditingModule, EvaluationSettings, SequentialSettings
from tests.tiny_models import language_model


class CountingEditor(GradientStep):
    """Counts how often each request is checked."""

    def __init__(self):
        super().__init__([-1])
        self.checked = []

    def check(self, model, groups, on_top=False):
        self.checked += [request for group in groups for request in group]
        super().check(model, groups, on_top)


def trainer(tmp_path, inference_mode=False, **settings):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, inference_mode=inference_mode, **settings,
    )  # fmt: skip


def module(editor, sequential=None):
    built = EditingModule(editor, evaluation=EvaluationSettings(generate=False, sequential=sequential))
    built.attach(language_model("llama"))
    return built


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("sequential", [None, SequentialSettings(every=0)])
@pytest.mark.parametrize("joint", [1, 2])
def test_each_request_is_checked_once(tmp_path, limit, sequential, joint):
    data = EditDataModule(test=WorldFacts("validation", limit=6), eval_batch_size=2, eval_requests_per_edit=joint)
    editor = CountingEditor()
    trainer(tmp_path, limit_test_batches=limit).test(module(editor, sequential), data, verbose=False)
    assert len(editor.checked) == len(set(editor.checked)) > 0


def test_gradients_in_inference_mode_are_refused_before_the_first_record(tmp_path, monkeypatch):
    built = module(GradientStep([-1]))
    monkeypatch.setattr(built.language_model, "score", lambda *_, **__: pytest.fail("the model was asked"))
    data = EditDataModule(test=WorldFacts("validation", limit=2))
    with pytest.raises(ConfigurationError, match="GradientStep takes gradients"):
        trainer(tmp_path, inference_mode=True).test(built, data, verbose=False)


@pytest.mark.parametrize(
    ("joint", "sequential", "expected"),
    [
        (1, None, "each edited on the clean model"),
        (2, None, "edited jointly, 2 at a time, on the clean model"),
        (1, SequentialSettings(), "edited one after another, each edit on top of all before"),
        (2, SequentialSettings(), "edited one after another, 2 at a time, each edit on top of all before"),
    ],
)
def test_a_protocol_says_how_records_are_edited(tmp_path, joint, sequential, expected):
    data = EditDataModule(test=WorldFacts("validation", limit=4), eval_requests_per_edit=joint)
    built = module(GradientStep([-1]), sequential)
    trainer(tmp_path).test(built, data, verbose=False)
    assert built.protocol("test").description == expected


def test_a_sequence_leaves_the_data_module_as_it_was(tmp_path):
    """A run on the clean model after a sequence evaluates full batches again."""
    data = EditDataModule(test=WorldFacts("validation", limit=6), eval_batch_size=3)
    sizes = []

    class Sized(EditingModule):
        def test_step(self, batch, batch_idx):
            sizes.append(len(batch))
            return super().test_step(batch, batch_idx)

    for sequential in (SequentialSettings(), None):
        built = Sized(GradientStep([-1]), evaluation=EvaluationSettings(generate=False, sequential=sequential))
        built.attach(language_model("llama"))
        trainer(tmp_path).test(built, data, verbose=False)
    assert sizes == [1] * 6 + [3, 3]
