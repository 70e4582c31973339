"""Base class of locate-then-edit methods."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.prompts import (
    BARE,
    Contexts,
    ContextSettings,
    Sampling,
    every_context,
    in_context,
    last_subject_token,
    sampled_contexts,
)
from lightning_edit.editors.searched_values import SearchedValues
from lightning_edit.editors.update_inputs import Reading, UpdateInputs, no_change, scatter_edits
from lightning_edit.editors.value_search import ValueSettings, search_values
from lightning_edit.edits import EditSequence, Provenance, StackedFactors, WeightChanges
from lightning_edit.errors import ConfigurationError
from lightning_edit.hub import MARK
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.recording import Tap, record
from lightning_edit.models.sampled_statistics import sampled_statistics
from lightning_edit.models.shipped_statistics import shipped_statistics
from lightning_edit.models.statistics import MANIFEST, IdentityStatistics, KeyStatistics, Statistics
from lightning_edit.records import EditRequest

Covariance = Literal["fitted", "identity"]
PLACE = "value"
"""Key of the tap in methods that optimize a single value vector."""


class LocateEditor(Editor):
    """Base class of methods that write a fact's new value at the key of its subject.

    Args:
        layers: Layers whose MLP output projection is edited, lowest first; by default chosen from the model's depth,
            with a warning.
        statistics: Folder of fitted key statistics.
        covariance: "fitted" uses them; "identity" uses C = I instead, for trials.
        search: How values are searched.
        contexts: The contexts of a prompt.
        contradictions: How to handle requests of one edit with the same prompt and different targets: "error", "last"
            keeps the last one, "keep" tries to make all of them.
    """

    capabilities = Capabilities(needs_subject=True, fit_reads="corpus", needs_grad=True)

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        statistics: str | None = None,
        covariance: Covariance = "fitted",
        search: ValueSettings = ValueSettings(),
        contexts: ContextSettings = ContextSettings(),
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__()
        ranges.one_of(get_args(Covariance), "editor", covariance=covariance)
        ranges.one_of(get_args(Contradictions), "editor", contradictions=contradictions)
        ranges.layer_numbers("editor", layers)
        for name, value, kind in (("search", search, ValueSettings), ("contexts", contexts, ContextSettings)):
            if not isinstance(value, kind):
                raise ConfigurationError(f"editor.{name}: expected {kind.__name__}, found {value!r}")
        self.layers = list(layers) if layers is not None else None
        self.statistics, self.covariance = statistics, covariance
        self.search, self.contexts, self.contradictions = search, contexts, contradictions
        self._statistics: Statistics | None = None
        self._sampled: tuple[str, Contexts] | None = None
        self._searched_values: SearchedValues | None = None

    def use_statistics(self, statistics: Statistics) -> None:
        """Uses given statistics instead of loading them from the folder ``statistics``."""
        self._statistics = statistics
        self.covariance = "identity" if isinstance(statistics, IdentityStatistics) else "fitted"

    def fit_without_corpus(self, model: LanguageModel) -> None:
        """See :meth:`Editor.fit_without_corpus`."""
        is_fitted = self.statistics is not None and (
            self.statistics.startswith(MARK) or (Path(self.statistics) / MANIFEST).is_file()
        )
        if self._statistics is None and self.covariance == "fitted" and not is_fitted:
            layers = self.edited_layers(model)
            self.use_statistics(shipped_statistics(model, layers) or sampled_statistics(model, layers))

    def share_searches(self, folder: str | Path) -> None:
        """See :meth:`Editor.share_searches`; shares the values searched on the unedited model."""
        self._searched_values = SearchedValues(folder)

    @property
    def reused_seconds(self) -> float:
        """See :attr:`Editor.reused_seconds`."""
        return self._searched_values.reused_seconds if self._searched_values is not None else 0.0

    def ready_statistics(self, model: LanguageModel) -> Statistics:
        """Returns the statistics, checked against the model.

        Raises:
            BaseModelMismatchError: If they belong to another model.
            ConfigurationError: If none are configured.
        """
        statistics = self._loaded_statistics()
        statistics.check(model)
        return statistics

    def _loaded_statistics(self) -> Statistics:
        if self._statistics is None:
            if self.covariance == "identity":
                self._statistics = IdentityStatistics()
            elif self.statistics is None:
                raise ConfigurationError(
                    f"{type(self).__name__} needs statistics of the model's keys. Fit them with: lightning-edit fit "
                    "--config YOUR.yaml (with data.corpus, and model.editor.init_args.statistics naming their folder; "
                    "@rome-smollm2-counterfact shows how). Or collect some on text that the model samples "
                    "(fit_without_corpus), or set covariance: identity for a trial"
                )
            else:
                self._statistics = KeyStatistics.load(self.statistics)
        return self._statistics

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """Context sampling of the method's authors."""

    def contexts_for(self, model: LanguageModel) -> Contexts:
        """Returns the contexts, sampled from the model if none are configured."""
        if self.contexts.configured is not None:
            return self.contexts.configured
        digest = model.fingerprint.digest
        if self._sampled is None or self._sampled[0] != digest:
            sampling, separate = self.sampling, self.contexts.separate_bare_prompt
            if separate is not None:
                sampling = replace(sampling, separate_bare_prompt=separate)
            self._sampled = digest, sampled_contexts(model, sampling, self.contexts.seed)
        return self._sampled[1]

    def require(self, site: EditSite, statistics: Statistics) -> None:
        """Refuses statistics that do not support a site, before any work is done."""
        statistics.require(site.name)

    def loss_layer_of(self, model: LanguageModel, sites: Sequence[EditSite]) -> int | None:
        """Returns the index of the layer that the target's loss reads; None for the last.

        Raises:
            ConfigurationError: If it is below an edited layer, whose change it would not see.
        """
        if self.search.loss_layer is None:
            return None
        layer, highest = model.layer_map.index(self.search.loss_layer), max(site.layer for site in sites)
        if layer < highest:
            raise ConfigurationError(
                f"editor.search.loss_layer: layer {layer} lies below the edited layer {highest}, and would not see its "
                "change"
            )
        return None if layer == len(model.layer_map) - 1 else layer

    @abstractmethod
    def default_layers(self, depth: int) -> list[int]:
        """Returns default layers for a model, based only on its number of layers."""

    def lowest_layer(self, model: LanguageModel) -> int:
        """Returns the lowest edited layer."""
        return self.edited_layers(model)[0]

    def edited_layers(self, model: LanguageModel) -> list[int]:
        """Returns the layers to edit, lowest first.

        Raises:
            LayerMapError: If the model lacks one of them, or one is named twice.
        """
        if self.layers is not None:
            return [site.layer for site in model.layer_map.sites(self.layers)]
        chosen = self.default_layers(len(model.layer_map))
        warnings.warn(
            f"no layers are configured; {chosen} follow from the depth of {model.name} alone. Causal tracing shows "
            "where it keeps facts (lightning-edit trace)",
            stacklevel=3,
        )
        return chosen

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`.

        Raises:
            TokenizationError: If a subject cannot be found in the token ids.
        """
        statistics = self.ready_statistics(model)
        sites = self._sites(model)
        for site in sites:
            self.require(site, statistics)
        self.loss_layer_of(model, sites)
        for group in groups:
            for request in group:
                last_subject_token(in_context(model, request, BARE))

    def prepare(self, model: LanguageModel) -> None:
        """See :meth:`Editor.prepare`; samples contexts from the unedited model."""
        self.contexts_for(model)

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`.

        Requests with a non-finite loss are left out.
        """
        statistics, sites = self.ready_statistics(model), self._sites(model)
        flat = [request for group in groups for request in group]
        group_of = [index for index, group in enumerate(groups) for _ in group]
        contexts = self.contexts_for(model)
        settings = replace(self.search, loss_layer=self.loss_layer_of(model, sites))
        # Cached values are those of the unedited model.
        shared = self._searched_values if not len(after) else None
        search = shared.search if shared is not None else search_values
        values = search(model, flat, contexts.templates, self.taps(model, sites), settings)
        problems = {place: value.problem for place, value in enumerate(values) if value.problem is not None}
        problems |= self._find_unreached(model, flat, sites)
        good = [place for place in range(len(flat)) if place not in problems]
        # The edits that have a request left.
        left = list(dict.fromkeys(group_of[place] for place in good))
        if not left:
            return GroupChanges(WeightChanges({sites[0].name: no_change(len(groups), sites[0])}), problems)
        inputs = UpdateInputs(
            [flat[place] for place in good],
            [left.index(group_of[place]) for place in good],
            [values[place] for place in good],
            len(left),
            sites,
            contexts,
            after,
        )
        stacked = self.updates(model, inputs, statistics)
        state_of = dict(zip(left, self.states(model, inputs, stacked), strict=True))
        scattered = {site.name: scatter_edits(stacked[site.name], left, len(groups)) for site in sites}
        return GroupChanges(WeightChanges(scattered, [state_of.get(edit, {}) for edit in range(len(groups))]), problems)

    def could_have_produced(self, provenance: Provenance, requests: Sequence[EditRequest]) -> bool:
        """See :meth:`Editor.could_have_produced`.

        Compares the origin of the statistics instead of their folder, which can be moved or refilled.
        """
        if provenance.findings.get("corpus") != self._loaded_statistics().origin:
            return False
        settings = {**provenance.settings, "statistics": self.statistics}
        return super().could_have_produced(replace(provenance, settings=settings), requests)

    def _sites(self, model: LanguageModel) -> list[EditSite]:
        return model.layer_map.sites(self.edited_layers(model))

    def findings(self, model: LanguageModel) -> dict[str, Any]:
        """See :meth:`Editor.findings`; returns findings of the statistics, and the contexts."""
        contexts = [list(templates) for templates in self.contexts_for(model).groups]
        return {**self.statistics_findings(model), "contexts": contexts}

    def statistics_findings(self, model: LanguageModel) -> dict[str, Any]:
        """Returns findings of the statistics as plain data: what they were collected on."""
        return {"corpus": self._loaded_statistics().origin}

    def states(
        self, model: LanguageModel, inputs: UpdateInputs, changes: Mapping[str, StackedFactors]
    ) -> list[dict[str, Tensor]]:
        """Returns the state of each edit that later edits need (see :class:`Edit`); by default none."""
        return [{} for _ in range(inputs.groups)]

    def _find_unreached(
        self, model: LanguageModel, requests: Sequence[EditRequest], sites: Sequence[EditSite]
    ) -> dict[int, str]:
        """Finds requests whose last subject token no edited site reads, as it is routed to other experts."""
        if any(site.reads_all_tokens for site in sites):
            return {}
        texts = [in_context(model, request, BARE) for request in requests]
        taps = {site.name: Tap(site.module, "input", site.layer) for site in sites}
        keys = record(model, texts, [last_subject_token(text) for text in texts], taps)
        is_read = torch.stack([(key != 0).any(1) for key in keys.values()]).any(0)
        return {
            place: f"no edited expert reads the last token of {requests[place].subject!r}; choose another expert"
            for place in (~is_read).nonzero()[:, 0].tolist()
        }

    @abstractmethod
    def taps(self, model: LanguageModel, sites: Sequence[EditSite]) -> dict[str, Tap]:
        """Returns the module outputs whose values are optimized, by name."""

    @abstractmethod
    def updates(self, model: LanguageModel, inputs: UpdateInputs, statistics: Statistics) -> dict[str, StackedFactors]:
        """Computes the changes of every site."""

    def keys(
        self, model: LanguageModel, inputs: UpdateInputs, site: EditSite, partial: Mapping[str, StackedFactors]
    ) -> Reading:
        """Reads a site's keys at the last subject token, under the changes made so far."""
        read = self.readings(
            model, inputs, {"key": Tap(site.module, "input", site.layer)}, partial, inputs.contexts.templates
        )
        return Reading.of(read["key"], inputs.contexts)

    def readings(
        self,
        model: LanguageModel,
        inputs: UpdateInputs,
        taps: Mapping[str, Tap],
        partial: Mapping[str, StackedFactors],
        templates: Sequence[str],
    ) -> dict[str, Tensor]:
        """Reads the (N, T, D) float64 values of taps at the last subject token in T contexts, under these changes."""
        texts = every_context(model, inputs.requests, templates)
        positions = [last_subject_token(text) for text in texts]
        seen = record(model, texts, positions, taps, inputs.hooks(model, partial, len(templates)))
        shape = (len(inputs.requests), len(templates), -1)
        return {name: values.double().view(shape) for name, values in seen.items()}
