"""Traces facts and writes the results: numbers, pictures and suggested layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm.auto import tqdm

from lightning_edit import ranges
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import write_json
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.printing import print_line
from lightning_edit.records import EditRequest
from lightning_edit.tracing.causal import (
    Restored,
    Trace,
    TraceSettings,
    average_effects,
    embedding_deviation,
    suggested_layers,
    trace_fact,
)
from lightning_edit.tracing.picture import TITLES, draw_averages, draw_trace
from lightning_edit.tracing.similarity import group_similarities

PICTURES = 5
"""Maximum number of facts with their own picture."""
_ASKED_AT_ONCE = 64
"""Facts asked per batch, before checking whether enough are known."""
SEVERAL = 5
"""Number of layers suggested to multi-layer methods, as many as MEMIT's authors edit in GPT-2 XL."""


def trace_facts(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    settings: TraceSettings,
    folder: Path,
    limit: int,
    severed: Literal["mlp", "attention"] | None = None,
    to_wandb: bool = False,
    groups: Sequence[str] | None = None,
) -> list[Trace]:
    """Traces the facts that the model knows, and writes traces.json, pictures, and averages of several facts.

    With severed outputs only single states are restored, as in the paper; file names get a suffix, and no layers are
    suggested. With groups, traces.json also has the similarity of the facts' locations within each group
    (:mod:`lightning_edit.tracing.similarity`).

    Args:
        model: The model.
        requests: The facts.
        settings: How to trace.
        folder: Where to write.
        limit: Maximum number of facts to trace; per group, if there are groups.
        severed: See :func:`trace_fact`.
        to_wandb: Send the pictures to W&B.
        groups: The group of each fact.

    Raises:
        ConfigurationError: If the model knows none of the facts, or ``limit`` is below one.
    """
    ranges.at_least(1, "trace", limit=limit)
    deviation = embedding_deviation(model, requests)
    asked, known, group_of = _known_by_group(model, requests, limit, groups)
    if not known:
        raise ConfigurationError(f"facts: {model.name} says the attribute of none of the {len(requests)} facts")
    kinds: tuple[Restored, ...] = ("state",) if severed else get_args(Restored)
    suffix = f"-{severed}-severed" if severed else ""
    traces = [
        trace_fact(model, request, settings, deviation, severed, kinds)
        for request in tqdm(known, desc="facts", disable=None if len(known) > 1 else True)
    ]
    layers = [[], []] if severed else [suggested_layers(traces, count) for count in (1, SEVERAL)]
    numbers = folder / f"traces{suffix}.json"
    counts = {"given": len(requests), "asked": asked, "known": len(known), "traced": len(traces)}
    content = _content(model, counts, known, settings, severed, deviation, traces, layers)
    similarities = _similarities(traces, group_of) if groups is not None else {}
    write_json(numbers, {**content, **({"groups": group_of, "similarity": similarities} if groups is not None else {})})
    pictures = [
        draw_trace(trace, folder / f"trace-{request.id}{suffix}.png", settings.window, severed)
        for request, trace in list(zip(known, traces, strict=True))[:PICTURES]
    ]
    if len(traces) > 1:
        pictures.append(draw_averages(traces, folder / f"averages{suffix}.png", severed))
    if to_wandb:
        _send(pictures)
    print_line(f"traced {len(traces)} facts that the model says, of {asked} asked and {len(requests)} given")
    if not severed:
        [[one], several] = layers
        print_line(
            f"suggested layers {one}, or {several[0]} to {several[-1]} for methods that edit several: there MLP "
            f"outputs at the subject's last token restore the answer most (window of {settings.window}, mean of "
            f"{len(traces)} fact{'s' * (len(traces) > 1)})"
        )
    _print_similarities(similarities)
    for path in (numbers, *pictures):
        print_line(f"written          {path}")
    return traces


def _known_by_group(
    model: LanguageModel, requests: Sequence[EditRequest], limit: int, groups: Sequence[str] | None
) -> tuple[int, list[EditRequest], list[str]]:
    """Returns the number of facts asked, the known ones, and the group of each known one."""
    if groups is None:
        asked, known = _known(model, requests, limit)
        return asked, known, []
    asked, known, group_of = 0, [], []
    for name in dict.fromkeys(groups):
        members = [request for request, group in zip(requests, groups, strict=True) if group == name]
        count, known_of_group = _known(model, members, limit)
        asked += count
        known += known_of_group
        group_of += [name] * len(known_of_group)
    return asked, known, group_of


def _similarities(traces: Sequence[Trace], groups: Sequence[str]) -> dict[str, Any]:
    """Computes the similarity of all facts and of each group, by restored kind."""
    result: dict[str, Any] = {}
    for kind in traces[0].restored:
        of_all, by_group = group_similarities(traces, groups, kind)
        relative = [one.relative for one in by_group.values()]
        result[kind] = {
            "all": of_all,
            "mean_relative": sum(relative) / len(relative) if relative else None,
            "groups": {name: asdict(one) for name, one in by_group.items()},
        }
    return result


def _print_similarities(similarities: dict[str, Any]) -> None:
    for kind, entry in similarities.items():
        if entry["mean_relative"] is None:
            print_line(f"similarity       {TITLES[kind]}: no group has two facts that the model says")
            continue
        groups = entry["groups"]
        best = max(groups, key=lambda name: groups[name]["relative"])
        print_line(
            f"similarity       {TITLES[kind]}: RSim {entry['mean_relative']:.2f} (mean of {len(groups)} groups; two "
            f"facts of any: {entry['all']:.2f}), highest {groups[best]['relative']:.2f} for {best}"
        )


def _known(model: LanguageModel, requests: Sequence[EditRequest], limit: int) -> tuple[int, list[EditRequest]]:
    """Returns the number of facts asked, and those whose attribute's first token the model predicts.

    Stops after the batch in which ``limit`` known facts are found.
    """
    known: list[EditRequest] = []
    asked = 0
    with tqdm(total=len(requests), desc="facts asked", leave=False, disable=None if len(requests) > 1 else True) as bar:
        for start in range(0, len(requests), _ASKED_AT_ONCE):
            some = requests[start : start + _ASKED_AT_ONCE]
            scores = model.score([request.prompt for request in some], [request.target for request in some])
            for request, score in zip(some, scores, strict=True):
                # Prompts without an attribute are always traced.
                is_known = request.target == "-" or score.predicted_ids[0] == score.target_ids[0]
                known += [request] if is_known and len(known) < limit else []
                asked += 1
            bar.update(len(some))
            if len(known) == limit:
                break
    return asked, known


def _content(
    model: LanguageModel,
    counts: dict[str, int],
    known: Sequence[EditRequest],
    settings: TraceSettings,
    severed: str | None,
    deviation: float,
    traces: Sequence[Trace],
    layers: Sequence[Sequence[int]],
) -> dict[str, Any]:
    averages = {
        kind: {
            role: {
                "facts": sum(role in trace.roles() for trace in traces),
                "mean": mean.tolist(),
                "band": band.tolist(),
            }
            for role, (mean, band) in average_effects(traces, kind).items()
        }
        for kind in traces[0].restored
    }
    return {
        "model": model.name,
        "fingerprint": model.fingerprint.digest,
        "settings": {**vars(settings), "severed": severed, "embedding_deviation": deviation},
        "counts": counts,
        "suggested_layer": layers[0][0] if layers[0] else None,
        "suggested_layers": layers[1] or None,
        "averages": averages,
        "facts": [
            {
                "prompt": request.prompt,
                "subject": request.subject,
                "answer": trace.answer,
                "tokens": trace.tokens,
                "roles": trace.roles(),
                "clean": trace.clean,
                "corrupted": trace.corrupted,
                "restored": {kind: values.tolist() for kind, values in trace.restored.items()},
            }
            for request, trace in zip(known, traces, strict=False)
        ],
    }


def _send(pictures: Sequence[Path]) -> None:
    import wandb

    from lightning_edit.callbacks.loggers import WandbDashboard

    run: Any = WandbDashboard(name="trace").experiment
    run.log({f"trace/{path.stem}": wandb.Image(str(path)) for path in pictures})
    run.finish()
