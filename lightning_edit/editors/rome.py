"""ROME (Meng et al. 2022, arXiv 2202.05262) and R-ROME (Gupta et al. 2024, arXiv 2403.07175)."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edit.editors.base import Capabilities
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.locate import PLACE, Covariance, LocateEditor
from lightning_edit.editors.prompts import PLAIN_SAMPLES, ContextSettings, Sampling
from lightning_edit.editors.update_inputs import Reading, UpdateInputs
from lightning_edit.editors.value_search import ValueSettings
from lightning_edit.edits import StackedFactors
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.key_value import constrained_update
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.recording import Tap
from lightning_edit.models.statistics import Statistics


class ROME(LocateEditor):
    """ROME: rank-one update of one MLP, which maps the subject's key to a value that predicts the target.

    W' = W + (v* - W k*) (C⁻¹k*)ᵀ / (k*ᵀC⁻¹k*), with k* the mean key of the subject's last token over contexts, C the
    second moment of the layer's keys, and v* found by gradient descent on the layer's output at that token.

    The same mean key is used in numerator and denominator, and v* replaces its mean output. This is R-ROME's
    correction: contrary to the paper's equation, the original implementation uses the bare prompt's key in the
    denominator, and its output, with which single edits can disable the model. ``original_keys`` reproduces that.

    Each edit has one request; make several in a batch or in a sequence.

    Args:
        layers: The one layer to edit. The authors edit layer 17 of 48 of GPT-2 XL and 5 of 28 of GPT-J.
        original_keys: As in the original implementation, use the bare prompt's key and output outside C⁻¹k*.
        search: How values are searched, by default with the authors' |δ| ≤ 4 |h| and a weight decay of 1e-3, which is
            common for Llama (the authors' 0.5 is for GPT models).
        contexts: See :class:`LocateEditor`.
        statistics: See :class:`LocateEditor`.
        covariance: See :class:`LocateEditor`.
        contradictions: See :class:`LocateEditor`.

    Example:
        >>> from lightning_edit import EditRequest
        >>> from lightning_edit.editors import ValueSettings
        >>> editor = ROME(layers=[1], search=ValueSettings(steps=5), covariance="identity")
        >>> edit = editor.edit(model, [EditRequest("The capital of France is", target="Rome", subject="France")])
        >>> [delta] = edit.weight_deltas().values()
        >>> int(delta.dense().count_nonzero() > 0), edit.provenance.method
        (1, 'ROME')
    """

    capabilities = Capabilities(joint=False, needs_subject=True, fit_reads="corpus", needs_grad=True)

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        original_keys: bool = False,
        search: ValueSettings = ValueSettings(),
        contexts: ContextSettings = ContextSettings(),
        statistics: str | None = None,
        covariance: Covariance = "fitted",
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__(layers, statistics, covariance, search, contexts, contradictions)
        if layers is not None and len(layers) != 1:
            raise ConfigurationError(f"editor.layers: ROME edits one layer, found {list(layers)}")
        self.original_keys = original_keys

    @property
    def sampling(self) -> Sampling:
        """See :attr:`LocateEditor.sampling`."""
        return PLAIN_SAMPLES

    def default_layers(self, depth: int) -> list[int]:
        """See :meth:`LocateEditor.default_layers`: a sixth of the way up, as for GPT-J and Llama."""
        return [depth // 6]

    def taps(self, model: LanguageModel, sites: Sequence[EditSite]) -> dict[str, Tap]:
        """Returns a tap at the output of the edited projection."""
        return {PLACE: Tap(sites[0].module, "output", sites[0].layer)}

    def updates(self, model: LanguageModel, inputs: UpdateInputs, statistics: Statistics) -> dict[str, StackedFactors]:
        """See :meth:`LocateEditor.updates`."""
        [site] = inputs.sites
        taps = {"key": Tap(site.module, "input", site.layer), "output": Tap(site.module, "output", site.layer)}
        read = self.readings(model, inputs, taps, {}, inputs.contexts.templates)
        keys, outputs = (Reading.of(read[name], inputs.contexts) for name in taps)
        output = outputs.bare if self.original_keys else outputs.mean
        factors = []
        for place, value in enumerate(inputs.values):
            key = keys.mean[place][:, None]
            weighted = statistics.inverse_times(site.name, key)
            held = keys.bare[place][:, None] if self.original_keys else None
            residual = value.target(PLACE).double() - output[place]
            factors.append((constrained_update(key, weighted, held), residual[None]))
        return {site.name: inputs.stacked(factors)}
