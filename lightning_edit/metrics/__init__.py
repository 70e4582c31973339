"""Metrics of knowledge editing, each a function and a torchmetrics class."""

from lightning_edit.metrics.all_tokens_match import AllTokensMatch, all_tokens_match
from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.metrics.collection import MEASURES, Measure, edit_metrics, measures_of, metric_prefixes
from lightning_edit.metrics.consistency import TfidfConsistency, tfidf_similarity
from lightning_edit.metrics.divergence import Divergence
from lightning_edit.metrics.fluency import NGramEntropy, ngram_entropy
from lightning_edit.metrics.generation import (
    Containment,
    ExactMatch,
    JudgedInContext,
    RivalContainment,
    WildInContext,
    WildMatch,
    containment,
    exact_match,
    wild_match,
)
from lightning_edit.metrics.probability import (
    ProbabilityMagnitude,
    ProbabilityScore,
    probability_magnitude,
    probability_score,
)
from lightning_edit.metrics.scope import (
    ChosenEditAccuracy,
    ScopeAUROC,
    ScopeAveragePrecision,
    ScopeHitRate,
    scope_curve,
)
from lightning_edit.metrics.self_agreement import GenerationAgreement, SelfAgreement, generation_agreement
from lightning_edit.metrics.sentiment import GeneratedSentiment, SentimentScore, sentiment_score
from lightning_edit.metrics.token_accuracy import TokenAccuracy, token_accuracy

__all__ = [
    "MEASURES",
    "AllTokensMatch",
    "ChosenEditAccuracy",
    "Containment",
    "Divergence",
    "ExactMatch",
    "GeneratedSentiment",
    "GenerationAgreement",
    "JudgedInContext",
    "Measure",
    "NGramEntropy",
    "OutcomeMetric",
    "ProbabilityMagnitude",
    "ProbabilityScore",
    "RivalContainment",
    "ScopeAUROC",
    "ScopeAveragePrecision",
    "ScopeHitRate",
    "SelfAgreement",
    "SentimentScore",
    "TfidfConsistency",
    "TokenAccuracy",
    "WildInContext",
    "WildMatch",
    "all_tokens_match",
    "containment",
    "edit_metrics",
    "exact_match",
    "generation_agreement",
    "measures_of",
    "metric_prefixes",
    "ngram_entropy",
    "probability_magnitude",
    "probability_score",
    "scope_curve",
    "sentiment_score",
    "tfidf_similarity",
    "token_accuracy",
    "wild_match",
]
