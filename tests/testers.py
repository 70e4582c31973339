"""The behaviour that every editor shares, as one suite; an editor's test file subclasses it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lightning_edit.editors import Editor
from lightning_edit.edits import Edit, EditSequence, WeightChanges, load_edit
from lightning_edit.errors import EditError
from lightning_edit.models import LanguageModel
from lightning_edit.records import EditRequest
from tests.tiny_models import language_model

REQUESTS = [
    EditRequest("The capital of France is", "Rome", "France", "Paris", id="france"),
    EditRequest("What is the capital of Germany? It is", "Paris the city", "Germany", "Berlin", id="germany"),
    EditRequest("On which continent is Brazil?", "Europe", "Brazil", "South America", id="brazil"),
]
PROBES = ["The capital of Italy is", "The currency of Japan is the", "Answer:"]


def state(model: LanguageModel) -> dict[str, torch.Tensor]:
    """A copy of every tensor of the base model."""
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def assert_untouched(model: LanguageModel, before: dict[str, torch.Tensor]) -> None:
    """The base model is the same, bit for bit, and carries no hook."""
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def log_prob(scorer: object, request: EditRequest) -> float:
    """Mean log-probability of a request's target."""
    values = scorer.score([request.prompt], [request.target])[0].log_probs  # type: ignore[attr-defined]
    return sum(values) / len(values)


def target_log_probs(scorer: object, requests: Sequence[EditRequest]) -> list[float]:
    """Log-probabilities of all target tokens, for comparing models."""
    scores = scorer.score([r.prompt for r in requests], [r.target for r in requests])  # type: ignore[attr-defined]
    return [value for score in scores for value in score.log_probs]


class EditorTester:
    """Subclass it as ``TestX`` and say in ``make`` how to build the editor, ready to edit."""

    families = ("llama", "gpt2", "gemma2", "opt")
    """A gated MLP, Conv1D, tied embeddings with soft-capping, and an MLP with biases outside a submodule."""

    minimum_effect = 0.01
    """By how much the log-probability of a target rises at least."""
    a_sequence_is_the_joint_edit = True
    """Whether independent edits one after another are what editing jointly gives."""

    def make(self, model: LanguageModel) -> Editor:
        """The editor, fitted and in eval mode, with settings that suit a tiny model."""
        raise NotImplementedError

    @pytest.fixture(params=("llama", "gpt2", "gemma2", "opt"))
    def model(self, request: pytest.FixtureRequest) -> LanguageModel:
        return language_model(request.param)

    @pytest.fixture
    def editor(self, model: LanguageModel) -> Editor:
        return self.make(model)

    def test_raises_the_probability_of_the_target_and_restores_the_model(self, model, editor):
        before, unedited = state(model), log_prob(model, REQUESTS[0])
        edit = editor.edit(model, REQUESTS[:1])
        assert_untouched(model, before)
        with edit.applied(model) as edited:
            assert log_prob(edited, REQUESTS[0]) > unedited + self.minimum_effect
            assert log_prob(edited, REQUESTS[0]) != unedited
        assert_untouched(model, before)
        assert log_prob(model, REQUESTS[0]) == unedited

    def test_restores_the_model_after_an_exception(self, model, editor):
        before = state(model)
        edit = editor.edit(model, REQUESTS[:1])
        with pytest.raises(KeyError), edit.applied(model):
            raise KeyError("inside")
        assert_untouched(model, before)

    def test_hook_equals_merge(self, model, editor):
        edit = editor.edit(model, REQUESTS[:1])
        with edit.applied(model) as edited:
            hooked = target_log_probs(edited, REQUESTS)
        if not editor.capabilities.mergeable:
            with pytest.raises(EditError, match=r"cannot be merged"):
                edit.merge(model)
            return
        edit.merge(model)
        torch.testing.assert_close(target_log_probs(model, REQUESTS), hooked, rtol=1e-3, atol=1e-3)

    def test_save_and_load_are_equal(self, model, editor, tmp_path):
        edit = editor.edit(model, REQUESTS[:1])
        loaded = load_edit(edit.save(tmp_path / "edit"))
        assert loaded.provenance == edit.provenance
        with edit.applied(model) as edited:
            expected = target_log_probs(edited, REQUESTS)
        with loaded.applied(model) as edited:
            assert target_log_probs(edited, REQUESTS) == expected

    def test_no_leak_from_one_edit_to_the_next(self, model, editor):
        first = self._said(model, editor.edit(model, REQUESTS[:1]))
        editor.edit(model, REQUESTS[1:2])
        again = self._said(model, editor.edit(model, REQUESTS[:1]))
        assert again == first

    def test_edit_each_equals_one_at_a_time(self, model, editor):
        batch = editor.edit_each(model, REQUESTS)
        prompts = [r.prompt for r in REQUESTS] + PROBES
        targets = [r.target for r in REQUESTS] + ["Rome", "Yen", "Paris"]
        rows = [0, 1, 2, 2, 0, 1]
        with batch.applied(model, rows) as edited:
            together = edited.score(prompts, targets)
            texts = edited.generate(prompts, 4)
        for index, request in enumerate(REQUESTS):
            alone = editor.edit(model, [request])
            mine = [position for position, row in enumerate(rows) if row == index]
            with alone.applied(model) as edited:
                for position in mine:
                    [score] = edited.score([prompts[position]], [targets[position]])
                    torch.testing.assert_close(together[position].log_probs, score.log_probs, rtol=2e-3, atol=2e-3)
                    assert texts[position] == edited.generate([prompts[position]], 4)[0]

    def test_beams_and_return_sequences_repeat_rows(self, model, editor):
        batch = editor.edit_each(model, REQUESTS)
        prompts = [request.prompt for request in REQUESTS]
        with batch.applied(model, [0, 1, 2]) as edited:
            beams = edited.generate(prompts, 4, num_beams=3)
        for index, prompt in enumerate(prompts):
            with batch[index].applied(model) as edited:
                assert edited.generate([prompt], 4, num_beams=3)[0] == beams[index]

    def test_a_batch_of_another_size_is_an_error(self, model, editor):
        batch = editor.edit_each(model, REQUESTS)
        with batch.applied(model, [0, 1, 2]) as edited, pytest.raises(EditError, match="4 prompts"):
            edited.score([PROBES[0]] * 4, ["Rome"] * 4)
        if not isinstance(batch.changes, WeightChanges):
            return
        ids = torch.ones(4, 5, dtype=torch.int64)
        with batch.changes.hooked(model, [0, 1, 2]), pytest.raises(EditError, match=r"4 rows|do not divide"):
            model.model(input_ids=ids)

    def test_edits_on_top_of_edits(self, model, editor):
        first = editor.edit(model, REQUESTS[:1])
        if not editor.capabilities.sequential:
            with pytest.raises(EditError, match="on top of"):
                editor.edit(model, REQUESTS[1:2], after=EditSequence([first]))
            return
        before = state(model)
        second = editor.edit(model, REQUESTS[1:2], after=EditSequence([first]))
        assert_untouched(model, before)
        sequence = EditSequence([first]).then(second)
        with sequence.applied(model) as edited:
            both = target_log_probs(edited, REQUESTS)
        if not editor.capabilities.depends:
            assert sequence.without(first.id).ids == (second.id,)
            if not self.a_sequence_is_the_joint_edit:
                return
            with editor.edit(model, REQUESTS[:2]).applied(model) as edited:
                torch.testing.assert_close(target_log_probs(edited, REQUESTS), both, rtol=1e-3, atol=1e-3)
            return
        assert second.provenance.depends_on == (first.id,)
        with first.applied(model), second.applied(model) as edited:
            torch.testing.assert_close(target_log_probs(edited, REQUESTS), both, rtol=1e-3, atol=1e-3)
        with pytest.raises(EditError, match="computed on top of it"):
            sequence.without(first.id)
        assert sequence.without(second.id).ids == (first.id,)

    def test_joint_edits(self, model, editor):
        if not editor.capabilities.joint:
            with pytest.raises(EditError, match="edits one request at a time"):
                editor.edit(model, REQUESTS)
            return
        edit = editor.edit(model, REQUESTS)
        unedited = sum(log_prob(model, request) for request in REQUESTS)
        with edit.applied(model) as edited:
            after = sum(log_prob(edited, request) for request in REQUESTS)
        assert after > unedited + min(self.minimum_effect, 0) * len(REQUESTS)
        assert after != unedited

    def test_bfloat16(self, editor_dtype=torch.bfloat16):
        model = language_model("llama", editor_dtype)
        before, unedited = state(model), log_prob(model, REQUESTS[0])
        edit = self.make(model).edit(model, REQUESTS[:1])
        with edit.applied(model) as edited:
            assert log_prob(edited, REQUESTS[0]) > unedited + min(self.minimum_effect, 0)
        assert_untouched(model, before)

    def test_a_subject_is_demanded_where_it_is_needed(self, model, editor):
        request = EditRequest("The capital of France is", "Rome")
        if editor.capabilities.needs_subject:
            with pytest.raises(EditError, match="needs the subject"):
                editor.edit(model, [request])
        else:
            editor.edit(model, [request])

    @staticmethod
    def _said(model: LanguageModel, edit: Edit) -> list[float]:
        with edit.applied(model) as edited:
            return target_log_probs(edited, REQUESTS)
