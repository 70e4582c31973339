"""Locates facts in a model: causal tracing and its pictures."""
