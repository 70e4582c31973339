"""The measures of a run: every measure for every kind and group of probes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchmetrics import Metric, MetricCollection

from lightning_edit.metrics.all_tokens_match import AllTokensMatch
from lightning_edit.metrics.base import Average, OutcomeMetric
from lightning_edit.metrics.consistency import TfidfConsistency
from lightning_edit.metrics.divergence import Divergence
from lightning_edit.metrics.fluency import NGramEntropy
from lightning_edit.metrics.generation import Containment, ExactMatch
from lightning_edit.metrics.probability import ProbabilityMagnitude, ProbabilityScore
from lightning_edit.metrics.scope import ChosenEditAccuracy, ScopeAUROC, ScopeAveragePrecision, ScopeHitRate
from lightning_edit.metrics.self_agreement import GenerationAgreement, SelfAgreement
from lightning_edit.metrics.token_accuracy import TokenAccuracy
from lightning_edit.records import ProbeKind


def metric_prefix(kind: ProbeKind, group: str) -> str:
    """The stable name of a kind and group in logs: "locality/same_relation"."""
    slug = re.sub(r"[^a-z0-9]+", "_", group.lower()).strip("_")
    return f"{kind}/{slug}" if slug else str(kind)


def edit_metrics(groups: Sequence[tuple[ProbeKind, str]], average: Average = "probe") -> MetricCollection:
    """All measures for the given kinds and groups of probes.

    Args:
        groups: Pairs of kind and group, the same on every process.
        average: See :class:`OutcomeMetric`.

    Returns:
        A collection whose names are "<kind>/<group>/<measure>", without the group where it has no name; "scope/…"
        judges the router of edits with an explicit memory. Measures that nothing was counted for are NaN.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "scope/auroc": ScopeAUROC(),
        "scope/average_precision": ScopeAveragePrecision(),
    }
    for kind, group in groups:
        for name, metric in _measures(kind, group, average).items():
            metrics[f"{metric_prefix(kind, group)}/{name}"] = metric
    # Metrics with equal states would be merged silently if the collection were free to group them.
    return MetricCollection(metrics, compute_groups=False)


def _measures(kind: ProbeKind, group: str, average: Average) -> dict[str, OutcomeMetric]:
    if kind is ProbeKind.FLUENCY:
        return {
            "ngram_entropy": NGramEntropy(kind, group, average),
            "ngram_entropy_before": NGramEntropy(kind, group, average, "before"),
            "tfidf_consistency": TfidfConsistency(kind, group, average),
        }
    measures: dict[str, OutcomeMetric] = {
        "token_accuracy": TokenAccuracy(kind, group, average),
        "token_accuracy_before": TokenAccuracy(kind, group, average, "before"),
        "all_tokens_match": AllTokensMatch(kind, group, average),
        "exact_match": ExactMatch(kind, group, average),
        "exact_match_before": ExactMatch(kind, group, average, "before"),
        "containment": Containment(kind, group, average),
        "containment_before": Containment(kind, group, average, "before"),
        "probability_score": ProbabilityScore(kind, group, average),
        "probability_magnitude": ProbabilityMagnitude(kind, group, average),
        "scope_hit_rate": ScopeHitRate(kind, group, average),
    }
    if kind is not ProbeKind.LOCALITY:
        measures["chosen_edit_accuracy"] = ChosenEditAccuracy(kind, group, average)
    if kind is ProbeKind.LOCALITY:
        measures["self_agreement"] = SelfAgreement(kind, group, average)
        measures["generation_agreement"] = GenerationAgreement(kind, group, average)
        measures["kl_divergence"] = Divergence(kind, group, average)
    return measures
