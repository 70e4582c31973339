"""On-disk cache of optimized value vectors, shared by methods with the same objective."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lightning_edit.editors.value_search import ValueResult, ValueSettings, search_values
from lightning_edit.files import replace_file
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.recording import Tap
from lightning_edit.records import EditRequest

_SEPARATOR = "|"
_VERSION = 1
"""Part of each digest; increase it when the results of :func:`search_values` change."""


class SearchedValues:
    """Caches results of :func:`search_values`, each under a digest of everything that it depends on.

    ROME and R-ROME search the same values and differ only in how they use them; so do MEMIT and AlphaEdit.

    Args:
        folder: Folder of the files, one per value; processes may share it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.reused_seconds = 0.0
        """Seconds that the reused searches originally took."""

    def search(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        templates: Sequence[str],
        taps: Mapping[str, Tap],
        settings: ValueSettings,
    ) -> list[ValueResult]:
        """Loads cached values and searches the others; arguments as for :func:`search_values`.

        No edit may be applied to the model.
        """
        setting = _setting(model, templates, taps, settings)
        paths = [self.folder / f"{_digest([setting, *_described(request)])}.safetensors" for request in requests]
        results = [self._read(path) for path in paths]
        missing = [place for place, result in enumerate(results) if result is None]
        if missing:
            started = time.perf_counter()
            searched = search_values(model, [requests[place] for place in missing], templates, taps, settings)
            seconds = (time.perf_counter() - started) / len(missing)
            for place, result in zip(missing, searched, strict=True):
                results[place] = result
                self._write(paths[place], result, seconds)
        device = model.device
        return [_placed(result, device) for result in results if result is not None]

    def _read(self, path: Path) -> ValueResult | None:
        """Reads a cached value; None if there is none, or its file is damaged."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            losses, seconds = json.loads(metadata["losses"]), float(metadata["seconds"])
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        self.reused_seconds += seconds
        initial, delta = (
            {name.partition(_SEPARATOR)[2]: value for name, value in tensors.items() if name.startswith(part)}
            for part in (f"initial{_SEPARATOR}", f"delta{_SEPARATOR}")
        )
        return ValueResult(initial, delta, losses)

    def _write(self, path: Path, result: ValueResult, seconds: float) -> None:
        """Writes a value, unless its search failed."""
        if result.problem is not None:
            return
        parts = {"initial": result.initial, "delta": result.delta}
        tensors = {
            f"{part}{_SEPARATOR}{place}": value.detach().cpu().contiguous()
            for part, values in parts.items()
            for place, value in values.items()
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            save_file(tensors, temporary, {"losses": json.dumps(result.losses), "seconds": str(seconds)})


def _setting(model: LanguageModel, templates: Sequence[str], taps: Mapping[str, Tap], settings: ValueSettings) -> str:
    """Serialises everything that a search's values depend on, other than the requests."""
    names = {id(module): name for name, module in model.model.named_modules()}
    places = {place: [names[id(tap.module)], tap.side, tap.layer] for place, tap in taps.items()}
    base, encoder = asdict(model.fingerprint), model.encoder
    encoding = [encoder.chat_template, encoder.separator, encoder.end_token]
    # Seconds on another type of device would not be comparable.
    where = [_VERSION, model.device.type]
    return json.dumps([where, base, encoding, list(templates), places, asdict(settings)], sort_keys=True)


def _described(request: EditRequest) -> list[str]:
    return [request.prompt, request.target, str(request.subject), str(request.subject_span)]


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _placed(result: ValueResult, device: torch.device) -> ValueResult:
    initial, delta = (
        {place: value.to(device) for place, value in values.items()} for values in (result.initial, result.delta)
    )
    return ValueResult(initial, delta, result.losses, result.problem)
