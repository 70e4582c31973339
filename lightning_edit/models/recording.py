"""Records inputs and outputs of modules at chosen positions, running only the blocks needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_edit.errors import LayerMapError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import BatchContext, BatchRows
from lightning_edit.models.skipping import skipped
from lightning_edit.tokenization import EncodedText, similar_lengths

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Tap:
    """A module input or output to record.

    Args:
        module: The module.
        side: Whether its input or its output is recorded.
        layer: Index of its block.
    """

    module: nn.Module
    side: Side
    layer: int


def as_rows(values: Tensor, shape: torch.Size) -> Tensor:
    """Reshapes values, which some architectures flatten to (R · S, D), to (R, S, D).

    Raises:
        LayerMapError: If there are several states for each position, as between Gemma 3n's blocks.
    """
    if values.numel() != shape.numel() * values.shape[-1]:
        raise LayerMapError(
            f"a block outputs values of shape {tuple(values.shape)} for texts of shape {tuple(shape)}, not one state "
            "for each position; choose a method that reads the MLP's output instead of the block's, such as ROME"
        )
    return values.reshape(*shape, values.shape[-1])


def first_tensor(output: Any) -> Tensor:
    """Returns a module's output, or the first of several."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


@contextmanager
def tapped(taps: Mapping[str, Tap], seen: dict[str, Tensor]) -> Iterator[None]:
    """Records tapped values into ``seen`` within the context."""
    with ExitStack() as stack:
        for name, tap in taps.items():
            handle = tap.module.register_forward_hook(_recording_hook(name, tap.side, seen), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _recording_hook(name: str, side: Side, seen: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        # Cloned, because some blocks add the attention's output to the MLP's in place.
        seen[name] = first_tensor(given if side == "input" else output).clone()

    return hook


@torch.no_grad()
def record(
    model: LanguageModel,
    texts: Sequence[EncodedText],
    positions: Sequence[int],
    taps: Mapping[str, Tap],
    around: BatchContext | None = None,
) -> dict[str, Tensor]:
    """Records taps at one position of each text; blocks above the highest tap are skipped.

    Args:
        model: The model; edits may be applied to it.
        texts: N texts.
        positions: Position in each text, counted from its first token.
        taps: Name to tap.
        around: Context of each padded batch; the rows' prompts end at the recorded positions.

    Returns:
        Name to (N, D) values, in float32 or, for a float64 model, in float64.
    """
    # Later positions have no influence, so they are cut off.
    texts = [EncodedText(text.ids[: end + 1], (end + 1, end + 1)) for text, end in zip(texts, positions, strict=True)]
    last = _recorded(model, texts, taps, around, lambda values, length: values[length - 1])
    return {name: torch.stack(states) for name, states in last.items()}


def record_all(
    model: LanguageModel,
    texts: Sequence[EncodedText],
    taps: Mapping[str, Tap],
    around: BatchContext | None = None,
) -> dict[str, list[Tensor]]:
    """Records taps at every token of texts; blocks above the highest tap are skipped.

    Args:
        model: The model; edits may be applied to it.
        texts: N texts.
        taps: Name to tap.
        around: Context of each padded batch; the rows' prompts end with the texts.

    Returns:
        Name to (T, D) values of each text, in float32 or, for a float64 model, in float64.
    """
    return _recorded(model, texts, taps, around, lambda values, length: values[:length])


@torch.no_grad()
def _recorded(
    model: LanguageModel,
    texts: Sequence[EncodedText],
    taps: Mapping[str, Tap],
    around: BatchContext | None,
    choose: Callable[[Tensor, int], Tensor],
) -> dict[str, list[Tensor]]:
    """Records what ``choose`` selects from each text's (S, D) values, given its length."""
    highest = max(tap.layer for tap in taps.values())
    above = model.layer_map.blocks[highest + 1 :]
    recorded: dict[str, dict[int, Tensor]] = {name: {} for name in taps}
    for chunk in similar_lengths([len(text.ids) for text in texts], model.tokens_per_batch):
        batch = model.encoder.collate([texts[index] for index in chunk], padding_side="right").to(model.device)
        lengths = [len(texts[index].ids) for index in chunk]
        ends = torch.tensor(lengths, device=model.device) - 1
        seen: dict[str, Tensor] = {}
        with (
            around(BatchRows(chunk, ends)) if around else nullcontext(),
            tapped(taps, seen),
            skipped(above, model.block_returns),
        ):
            model.head_logits(batch, torch.zeros_like(batch.answer_mask))
        for name, values in seen.items():
            rows = as_rows(values, batch.input_ids.shape)
            wide = torch.promote_types(rows.dtype, torch.float32)
            # Copied, so that the rest of the batch can be freed.
            chosen = (choose(row, length).to(wide, copy=True) for row, length in zip(rows, lengths, strict=True))
            recorded[name].update(zip(chunk, chosen, strict=True))
    return {name: [chosen[index] for index in range(len(texts))] for name, chosen in recorded.items()}
