"""Where a model keeps a fact: causal tracing, and its pictures."""
