"""The behaviour that every editor shares, as one suite; an editor's test file subclasses it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lightning_edit import components
from lightning_edit.editors import Editor
from lightning_edit.editors.checkpoint import load_editor, save_editor
from lightning_edit.edits import Edit, EditSequence, load_edit
from lightning_edit.errors import EditError
from lightning_edit.models import LanguageModel
from lightning_edit.records import EditRequest
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model

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


def assert_effect(edited: Sequence[float], unedited: Sequence[float], tolerance: float) -> None:
    """An edit changes a log-probability by so much that a comparison with ``tolerance`` could not overlook it."""
    largest = max(abs(after - before) for after, before in zip(edited, unedited, strict=True))
    assert largest > 10 * tolerance, f"the edit changes log-probabilities by {largest:.1e} at most"


class EditorTester:
    """Subclass it as ``TestX`` and say in ``make`` how to build the editor, ready to edit.

    Before two results are compared, the edit is shown to have an effect of ten times the tolerance, so that an edit
    without an effect, or one that reaches other rows, cannot pass.
    """

    families = ("llama", "gpt2", "gemma2", "opt")
    """A gated MLP, Conv1D, tied embeddings with soft-capping, and an MLP with biases outside a submodule."""

    minimum_effect: float | None = 0.01
    """By how much the log-probability of a target rises at least; None if a random model need not follow the edit."""
    tolerance = 1e-4
    """Largest difference of log-probabilities that are computed in another order."""
    a_sequence_is_the_joint_edit = True
    """Whether independent edits one after another are what editing jointly gives."""

    def make(self, model: LanguageModel) -> Editor:
        """The editor, fitted and in eval mode, with settings that suit a tiny model."""
        raise NotImplementedError

    def small_model(self) -> LanguageModel:
        """The model of the tests that run on one family only; the same for every call."""
        return language_model("llama")

    def complete(self, editor: Editor, model: LanguageModel) -> None:
        """Adds what is neither in an editor's description nor in its checkpoint, such as statistics of keys."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "family" in metafunc.fixturenames:
            metafunc.parametrize("family", self.families)

    @pytest.fixture
    def model(self, family: str) -> LanguageModel:
        return language_model(family)

    @pytest.fixture
    def editor(self, model: LanguageModel) -> Editor:
        return self.make(model)

    @pytest.fixture
    def llama(self) -> LanguageModel:
        return self.small_model()

    def assert_raised(self, edited: object, request: EditRequest, unedited: float) -> None:
        after = log_prob(edited, request)
        if self.minimum_effect is None:
            assert abs(after - unedited) > 10 * self.tolerance
        else:
            assert after > unedited + self.minimum_effect

    def assert_same(self, actual: Sequence[float], expected: Sequence[float], unedited: Sequence[float]) -> None:
        """Log-probabilities under an edit are the expected ones, and not those of the unedited model."""
        assert_effect(expected, unedited, self.tolerance)
        torch.testing.assert_close(list(actual), list(expected), rtol=0, atol=self.tolerance)

    def test_raises_the_probability_of_the_target_and_restores_the_model(self, model, editor):
        before, unedited = state(model), log_prob(model, REQUESTS[0])
        edit = editor.edit(model, REQUESTS[:1])
        assert_untouched(model, before)
        with edit.applied(model) as edited:
            self.assert_raised(edited, REQUESTS[0], unedited)
        assert_untouched(model, before)
        assert log_prob(model, REQUESTS[0]) == unedited

    def test_restores_the_model_after_an_exception(self, llama):
        before = state(llama)
        edit = self.make(llama).edit(llama, REQUESTS[:1])
        with pytest.raises(KeyError), edit.applied(llama):
            raise KeyError("inside")
        assert_untouched(llama, before)

    def test_hook_equals_merge(self, model, editor):
        edit, unedited = editor.edit(model, REQUESTS[:1]), target_log_probs(model, REQUESTS)
        hooked = self._scored(model, edit)
        if not editor.capabilities.mergeable:
            with pytest.raises(EditError, match=r"cannot be merged"):
                edit.merge(model)
            return
        edit.merge(model)
        self.assert_same(target_log_probs(model, REQUESTS), hooked, unedited)

    def test_save_and_load_are_equal(self, model, editor, tmp_path):
        edit = editor.edit(model, REQUESTS[:1])
        loaded = load_edit(edit.save(tmp_path / "edit"))
        assert loaded.provenance == edit.provenance
        expected = self._scored(model, edit)
        assert_effect(expected, target_log_probs(model, REQUESTS), self.tolerance)
        assert self._scored(model, loaded) == expected

    def test_a_loaded_edit_can_be_merged(self, llama, tmp_path):
        editor = self.make(llama)
        edit, unedited = editor.edit(llama, REQUESTS[:1]), target_log_probs(llama, REQUESTS)
        loaded, other = load_edit(edit.save(tmp_path / "edit")), self.small_model()
        if not editor.capabilities.mergeable:
            with pytest.raises(EditError, match=r"cannot be merged"):
                loaded.merge(other)
            return
        loaded.merge(other)
        self.assert_same(target_log_probs(other, REQUESTS), self._scored(llama, edit), unedited)

    def test_an_editor_is_built_from_its_description(self, llama):
        editor = self.make(llama)
        described = components.describe(editor)
        rebuilt = components.build(described, Editor, "a test")
        assert components.describe(rebuilt) == described
        rebuilt.setup(llama)
        rebuilt.load_state_dict(editor.state_dict())
        self.complete(rebuilt, llama)
        self._assert_same_edits(llama, rebuilt.eval(), editor)

    def test_an_editor_is_restored_from_a_checkpoint(self, llama, tmp_path):
        editor = self.make(llama)
        loaded = load_editor(save_editor(editor, llama, tmp_path / "editor.ckpt"), llama)
        self.complete(loaded, llama)
        self._assert_same_edits(llama, loaded, editor)

    def test_a_sequence_resumes_from_saved_edits(self, llama, tmp_path):
        editor = self.make(llama)
        if not editor.capabilities.sequential:
            pytest.skip("the editor cannot edit on top of earlier edits")
        first = editor.edit(llama, REQUESTS[:1])
        second = editor.edit(llama, REQUESTS[1:2], after=EditSequence([first]))
        resumed = EditSequence([load_edit(first.save(tmp_path / "first"))])
        resumed = resumed.then(editor.edit(llama, REQUESTS[1:2], after=resumed))
        expected = self._scored(llama, EditSequence([first, second]))
        alone, unedited = self._scored(llama, first), target_log_probs(llama, REQUESTS)
        assert_effect(expected, alone, self.tolerance)
        self.assert_same(self._scored(llama, resumed), expected, unedited)

    def test_no_leak_from_one_edit_to_the_next(self, llama):
        editor = self.make(llama)
        first = self._scored(llama, editor.edit(llama, REQUESTS[:1]))
        between = self._scored(llama, editor.edit(llama, REQUESTS[1:2]))
        assert_effect(between, first, self.tolerance)
        again = self._scored(llama, editor.edit(llama, REQUESTS[:1]))
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
            alone, other = editor.edit(model, [request]), batch[(index + 1) % len(REQUESTS)]
            mine = [position for position, row in enumerate(rows) if row == index]
            # The request itself is scored otherwise without its edit, and under the edit of another row.
            assert_effect(self._scored(model, alone, [request]), target_log_probs(model, [request]), self.tolerance)
            assert_effect(self._scored(model, alone, [request]), self._scored(model, other, [request]), self.tolerance)
            with alone.applied(model) as edited:
                for position in mine:
                    [score] = edited.score([prompts[position]], [targets[position]])
                    torch.testing.assert_close(
                        together[position].log_probs, score.log_probs, rtol=0, atol=self.tolerance
                    )
                    assert texts[position] == edited.generate([prompts[position]], 4)[0]

    def test_records_with_several_facts(self, llama):
        editor = self.make(llama)
        if not editor.capabilities.joint:
            pytest.skip("the editor edits one request at a time")
        batch, rows = editor.edit_each_group(llama, [REQUESTS[:2], REQUESTS[2:]]), [0, 0, 1]
        with batch.applied(llama, rows) as edited:
            together = target_log_probs(edited, REQUESTS)
        expected = self._scored(llama, editor.edit(llama, REQUESTS[:2]), REQUESTS[:2])
        expected += self._scored(llama, editor.edit(llama, REQUESTS[2:]), REQUESTS[2:])
        self.assert_same(together, expected, target_log_probs(llama, REQUESTS))

    def test_beams_stay_with_the_edit_of_their_prompt(self, llama):
        batch = self.make(llama).edit_each(llama, REQUESTS)
        prompts = [request.prompt for request in REQUESTS]
        with batch.applied(llama, [0, 1, 2]) as edited:
            beams = edited.generate(prompts, 4, num_beams=3)
        for index, prompt in enumerate(prompts):
            with batch[index].applied(llama) as edited:
                assert edited.generate([prompt], 4, num_beams=3)[0] == beams[index]

    def test_a_batch_of_another_size_is_an_error(self, llama):
        batch = self.make(llama).edit_each(llama, REQUESTS)
        with batch.applied(llama, [0, 1, 2]) as edited, pytest.raises(EditError, match="4 prompts"):
            edited.score([PROBES[0]] * 4, ["Rome"] * 4)

    def test_edits_on_top_of_edits(self, model, editor):
        first, unedited = editor.edit(model, REQUESTS[:1]), target_log_probs(model, REQUESTS)
        if not editor.capabilities.sequential:
            with pytest.raises(EditError, match="on top of"):
                editor.edit(model, REQUESTS[1:2], after=EditSequence([first]))
            return
        before = state(model)
        second = editor.edit(model, REQUESTS[1:2], after=EditSequence([first]))
        assert_untouched(model, before)
        sequence = EditSequence([first]).then(second)
        both = self._scored(model, sequence)
        assert_effect(both, self._scored(model, first), self.tolerance)
        if editor.capabilities.depends != "all":
            assert sequence.without(first.id).ids == (second.id,)
            if self.a_sequence_is_the_joint_edit:
                self.assert_same(self._scored(model, editor.edit(model, REQUESTS[:2])), both, unedited)
            return
        assert second.provenance.depends_on == (first.id,)
        with first.applied(model), second.applied(model) as edited:
            self.assert_same(target_log_probs(edited, REQUESTS), both, unedited)
        with pytest.raises(EditError, match="computed on top of it"):
            sequence.without(first.id)
        assert sequence.without(second.id).ids == (first.id,)

    def test_joint_edits(self, model, editor):
        if not editor.capabilities.joint:
            with pytest.raises(EditError, match="edits one request at a time"):
                editor.edit(model, REQUESTS)
            return
        edit = editor.edit(model, REQUESTS)
        unedited = [log_prob(model, request) for request in REQUESTS]
        with edit.applied(model) as edited:
            after = [log_prob(edited, request) for request in REQUESTS]
        for edited_request, unedited_request in zip(after, unedited, strict=True):
            assert_effect([edited_request], [unedited_request], self.tolerance)
        if self.minimum_effect is not None:
            assert sum(after) > sum(unedited) + self.minimum_effect

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
    def test_a_base_model_in_half_precision(self, dtype):
        model = language_model("llama", dtype)
        before, unedited = state(model), log_prob(model, REQUESTS[0])
        edit = self.make(model).edit(model, REQUESTS[:1])
        with edit.applied(model) as edited:
            self.assert_raised(edited, REQUESTS[0], unedited)
        assert_untouched(model, before)

    def test_a_base_model_with_a_chat_template(self):
        tokenizer = byte_level_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}<a>"
        chat = LanguageModel(build(FAMILIES["llama"][0]()), tokenizer, name="tiny-chat", chat_template=True)
        unedited = log_prob(chat, REQUESTS[0])
        edit = self.make(chat).edit(chat, REQUESTS[:1])
        assert edit.provenance.base.chat_template
        with edit.applied(chat) as edited:
            self.assert_raised(edited, REQUESTS[0], unedited)

    def test_a_subject_is_demanded_where_it_is_needed(self, llama):
        request, editor = EditRequest("The capital of France is", "Rome"), self.make(llama)
        if editor.capabilities.needs_subject:
            with pytest.raises(EditError, match="needs the subject"):
                editor.edit(llama, [request])
        else:
            editor.edit(llama, [request])

    def _assert_same_edits(self, model: LanguageModel, editor: Editor, expected: Editor) -> None:
        """Two editors make the same edit of the same request."""
        wanted = self._scored(model, expected.edit(model, REQUESTS[:1]))
        assert_effect(wanted, target_log_probs(model, REQUESTS), self.tolerance)
        assert self._scored(model, editor.edit(model, REQUESTS[:1])) == wanted

    @staticmethod
    def _scored(
        model: LanguageModel, edit: Edit | EditSequence, requests: Sequence[EditRequest] = REQUESTS
    ) -> list[float]:
        with edit.applied(model) as edited:
            return target_log_probs(edited, requests)
