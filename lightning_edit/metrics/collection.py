"""Builds the metrics of a run: every measure for every kind and group of probes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torchmetrics import Metric, MetricCollection

from lightning_edit.errors import ConfigurationError
from lightning_edit.metrics.all_tokens_match import AllTokensMatch
from lightning_edit.metrics.base import Average, OutcomeMetric, Side, slug
from lightning_edit.metrics.consistency import TfidfConsistency
from lightning_edit.metrics.divergence import Divergence
from lightning_edit.metrics.fluency import NGramEntropy
from lightning_edit.metrics.generation import (
    Containment,
    ExactMatch,
    JudgedInContext,
    RivalContainment,
    WildInContext,
    WildMatch,
)
from lightning_edit.metrics.probability import ProbabilityMagnitude, ProbabilityScore
from lightning_edit.metrics.scope import ChosenEditAccuracy, ScopeHitRate
from lightning_edit.metrics.self_agreement import GenerationAgreement, SelfAgreement
from lightning_edit.metrics.sentiment import GeneratedSentiment, SentimentScore
from lightning_edit.metrics.token_accuracy import TokenAccuracy
from lightning_edit.records import WILD_CONTEXTS, EditOutcome, ProbeKind

_FLUENCY = (ProbeKind.FLUENCY,)
_SENTIMENT = (ProbeKind.SENTIMENT,)
_ANSWERED = tuple(kind for kind in ProbeKind if kind not in _FLUENCY + _SENTIMENT)
_CHANGED = tuple(kind for kind in _ANSWERED if kind is not ProbeKind.LOCALITY)
_LOCALITY = (ProbeKind.LOCALITY,)


@dataclass(frozen=True)
class Measure:
    """A measure as it appears in metrics, predictions and reports.

    Args:
        name: Its name.
        metric: Computes it.
        kinds: The kinds of probes it applies to.
        side: Whether it evaluates the edited or the unedited model.
    """

    name: str
    metric: Callable[..., OutcomeMetric]
    kinds: tuple[ProbeKind, ...]
    side: Side = "after"

    def of(self, outcome: EditOutcome) -> float | None:
        """Returns the value for one outcome, or None if it does not apply."""
        return self._metric.value(outcome) if outcome.probe.kind in self.kinds else None

    @cached_property
    def _metric(self) -> OutcomeMetric:
        # Cached, because building a metric takes longer than evaluating it.
        return self.metric(side=self.side)


MEASURES = (
    Measure("token_accuracy", TokenAccuracy, _ANSWERED),
    Measure("token_accuracy_before", TokenAccuracy, _ANSWERED, "before"),
    Measure("all_tokens_match", AllTokensMatch, _ANSWERED),
    Measure("exact_match", ExactMatch, _ANSWERED),
    Measure("exact_match_before", ExactMatch, _ANSWERED, "before"),
    Measure("containment", Containment, _ANSWERED),
    Measure("containment_before", Containment, _ANSWERED, "before"),
    Measure("wild_match", WildMatch, _ANSWERED),
    *(Measure(f"wild_{name}", partial(WildInContext, context=name), _CHANGED) for name in WILD_CONTEXTS),
    *(Measure(f"judged_{name}", partial(JudgedInContext, context=name), _CHANGED) for name in WILD_CONTEXTS),
    Measure("rival_containment", RivalContainment, _ANSWERED),
    Measure("probability_score", ProbabilityScore, _ANSWERED),
    Measure("probability_magnitude", ProbabilityMagnitude, _ANSWERED),
    Measure("self_agreement", SelfAgreement, _LOCALITY),
    Measure("generation_agreement", GenerationAgreement, _LOCALITY),
    Measure("kl_divergence", Divergence, _LOCALITY),
    Measure("scope_hit_rate", ScopeHitRate, _ANSWERED),
    Measure("chosen_edit_accuracy", ChosenEditAccuracy, _CHANGED),
    Measure("ngram_entropy", NGramEntropy, _FLUENCY),
    Measure("ngram_entropy_before", NGramEntropy, _FLUENCY, "before"),
    Measure("tfidf_consistency", TfidfConsistency, _FLUENCY),
    Measure("sentiment_score", SentimentScore, _SENTIMENT),
    Measure("sentiment_score_before", SentimentScore, _SENTIMENT, "before"),
    Measure("generated_sentiment", GeneratedSentiment, _SENTIMENT),
    Measure("generated_sentiment_before", GeneratedSentiment, _SENTIMENT, "before"),
)
"""All measures, in the order of reports."""


def measures_of(outcome: EditOutcome, extra: Mapping[str, Metric] | None = None) -> dict[str, float]:
    """Returns all measures that apply to an outcome, by name; values may be infinite or NaN.

    Args:
        outcome: The outcome of a probe.
        extra: Further metrics, as named by :func:`metric_names`; those that have no value for a single outcome, such as
            areas under curves, are left out.
    """
    values = {measure.name: measure.of(outcome) for measure in MEASURES}
    for name, metric in (extra or {}).items():
        if isinstance(metric, OutcomeMetric) and metric.counts(outcome):
            values[name.rpartition("/")[2]] = metric.value(outcome)
    return {name: value for name, value in values.items() if value is not None}


def metric_prefixes(groups: Sequence[tuple[ProbeKind, str]]) -> dict[tuple[ProbeKind, str], str]:
    """Returns unique names of kinds and groups for logs, such as "locality/same_relation".

    Letters and digits of every script are kept. Groups that would get the same name are numbered.
    """
    prefixes: dict[tuple[ProbeKind, str], str] = {}
    for kind, group in groups:
        name = slug(group)
        wanted = f"{kind}/{name}" if name else str(kind)
        prefix, number = wanted, 1
        while prefix in prefixes.values():
            number += 1
            prefix = f"{wanted}_{number}"
        prefixes[kind, group] = prefix
    return prefixes


def edit_metrics(
    groups: Sequence[tuple[ProbeKind, str]], average: Average = "probe", extra: Mapping[str, Metric] | None = None
) -> MetricCollection:
    """Builds all measures for the given kinds and groups of probes.

    Args:
        groups: Pairs of kind and group, the same on every process.
        average: See :class:`OutcomeMetric`.
        extra: Further metrics over all outcomes, by name.

    Returns:
        A collection whose names are "<kind>/<group>/<measure>", without the group if it has no name.
        Measures without outcomes are NaN.

    Raises:
        ConfigurationError: If a further metric has the name of a measure.
    """
    metrics: dict[str, Metric | MetricCollection] = {}
    for (kind, group), prefix in metric_prefixes(groups).items():
        for measure in MEASURES:
            if kind in measure.kinds:
                metrics[f"{prefix}/{measure.name}"] = measure.metric(kind, group, average, measure.side)
    taken = sorted(metrics.keys() & (extra or {}).keys())
    if taken:
        raise ConfigurationError(f"model.metrics: {taken[0]} is measured already; leave it out, or rename its class")
    metrics |= extra or {}
    # Compute groups would silently merge metrics with equal states.
    return MetricCollection(metrics, compute_groups=False)


def metric_names(metrics: Sequence[Metric]) -> dict[str, Metric]:
    """Returns metrics by their class names in snake case, such as "scope_auroc".

    Outcome metrics for a kind or group of probes are named like measures, such as "locality/first_token"; the side
    "before" is appended.

    Raises:
        ConfigurationError: If two metrics have the same name.
    """
    named: dict[str, Metric] = {}
    for metric in metrics:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(metric).__name__).lower()
        if isinstance(metric, OutcomeMetric):
            name = metric.qualified(name)
        if name in named:
            raise ConfigurationError(
                f"model.metrics: two metrics are named {name}; give them another kind, group or side, or subclass one"
            )
        named[name] = metric
    return named
