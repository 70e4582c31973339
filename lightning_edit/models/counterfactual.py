"""Counterfactual models, which answer prompts given a remembered request (Mitchell et al. 2022, SERAC)."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_edit.errors import ConfigurationError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import load_language_model
from lightning_edit.records import EditRequest


def prepend_request(request: EditRequest, prompt: str) -> str:
    """Puts the request before a prompt that should be answered with it."""
    return f"{request.prompt} {request.target}\n{prompt}"


class CounterfactualModel(nn.Module, ABC):
    """Base class of models that answer prompts in the scope of an edit instead of the base model."""

    def __init__(self) -> None:
        super().__init__()
        # The tuple keeps the base out of the module registry.
        self._base: tuple[PreTrainedModel] | None = None
        self._pending: dict[str, Tensor] | None = None

    def setup(self, base: LanguageModel) -> None:
        """Builds the parts that depend on the base model, once per base; weights are preserved."""
        if self._base is not None and self._base[0] is base.model:
            return
        state = self.state_dict() if self._base is not None else self._pending
        self.build(base)
        if state is not None:
            self.load_state_dict(state)
        self._pending, self._base = None, (base.model,)
        self.to(base.device)

    def load_at_setup(self, state: dict[str, Tensor]) -> None:
        """Stores weights to be loaded by :meth:`setup`."""
        self._pending = state

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights, whether or not the model is already built."""
        return self.state_dict() if self._pending is None else self._pending

    @abstractmethod
    def build(self, base: LanguageModel) -> None:
        """Creates the parameters."""

    @property
    @abstractmethod
    def lowest_layer(self) -> int:
        """Index of the lowest block that differs from the base model's."""

    @abstractmethod
    def answering(self, base: LanguageModel) -> AbstractContextManager[LanguageModel]:
        """Returns a context that yields the language model that answers."""

    def same_tokens(self, base: LanguageModel) -> bool:
        """Whether the model has the base model's vocabulary."""
        with self.answering(base) as model:
            return bool(model.tokenizer.get_vocab() == base.tokenizer.get_vocab())


class AdaptedBase(CounterfactualModel):
    """The base model itself with a LoRA adapter (Hu et al. 2022) in its upper blocks.

    The adapter's layers replace the base's own only within :meth:`answering`; afterwards the base is restored, and its
    weights are never written.

    Args:
        rank: Rank of the adapter.
        alpha: The adapter's output is scaled by alpha / rank.
        layers: Number of uppermost blocks whose linear maps get an adapter.

    Raises:
        ConfigurationError: If peft is not installed.
    """

    def __init__(self, rank: int = 8, alpha: int = 16, layers: int = 10) -> None:
        super().__init__()
        if importlib.util.find_spec("peft") is None:
            raise ConfigurationError("an adapter needs the package peft: pip install peft")
        self.rank, self.alpha, self.layers = rank, alpha, layers
        self.adapter = nn.ModuleDict()
        self._swaps: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        self._lowest = 0

    def build(self, base: LanguageModel) -> None:
        """Builds adapter layers for the base's linear maps, then restores the base."""
        self._swaps, self.adapter = [], nn.ModuleDict()
        from peft import LoraConfig, inject_adapter_in_model

        count = len(base.layer_map.blocks)
        self._lowest = max(count - self.layers, 0)
        names = {id(module): name for name, module in base.model.named_modules()}
        wanted = [
            f"{names[id(block)]}.{name}"
            for block in base.layer_map.blocks[self._lowest :]
            for name, module in block.named_modules()
            if type(module).__name__ in ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
        ]
        originals = {name: base.model.get_submodule(name) for name in wanted}
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=wanted, lora_dropout=0.0)
        trainable = {name: parameter.requires_grad for name, parameter in base.model.named_parameters()}
        try:
            inject_adapter_in_model(config, base.model)
            self._take_layers(base, originals)
        finally:
            for name, original in originals.items():
                parent, _, child = name.rpartition(".")
                setattr(base.model.get_submodule(parent), child, original)
            for name, parameter in base.model.named_parameters():
                parameter.requires_grad_(trainable[name])
            vars(base.model).pop("peft_config", None)
        # Trained weights stay in float32 for any base precision; peft casts inputs and outputs.
        self.adapter.float()

    def _take_layers(self, base: LanguageModel, originals: dict[str, nn.Module]) -> None:
        """Keeps the adapter layers that peft put in the place of the base's.

        Raises:
            ConfigurationError: If peft has no adapter for one of them.
        """
        from peft.tuners.lora import LoraLayer

        for name, original in originals.items():
            parent, _, child = name.rpartition(".")
            layer = base.model.get_submodule(name)
            if not isinstance(layer, LoraLayer):
                raise ConfigurationError(f"peft has no adapter for {name}, a {type(original).__name__}")
            self._swaps.append((base.model.get_submodule(parent), child, original, cast(nn.Module, layer)))
            self.adapter[name.replace(".", "/")] = nn.ModuleDict(
                {"a": layer.lora_A["default"], "b": layer.lora_B["default"]}
            )

    @property
    def lowest_layer(self) -> int:
        """See :attr:`CounterfactualModel.lowest_layer`."""
        return self._lowest

    @contextmanager
    def answering(self, base: LanguageModel) -> Iterator[LanguageModel]:
        """See :meth:`CounterfactualModel.speaking`."""
        for owner, child, _, layer in self._swaps:
            setattr(owner, child, layer)
        try:
            yield base
        finally:
            for owner, child, original, _ in self._swaps:
                setattr(owner, child, original)

    def same_tokens(self, base: LanguageModel) -> bool:
        """Always true: it is the base model."""
        return True


class SeparateModel(CounterfactualModel):
    """Another, usually smaller, causal language model, trained and stored in full.

    Args:
        name_or_path: Hub id, local folder, GGUF file or bundled name.
    """

    def __init__(self, name_or_path: str) -> None:
        super().__init__()
        self.name_or_path = name_or_path
        self._loaded: LanguageModel | None = None

    def build(self, base: LanguageModel) -> None:
        """Loads the model in float32."""
        self._loaded = load_language_model(self.name_or_path)
        self.model = self._loaded.model
        self.model.requires_grad_(True)

    @property
    def lowest_layer(self) -> int:
        """Zero: every block differs from the base model's."""
        return 0

    @contextmanager
    def answering(self, base: LanguageModel) -> Iterator[LanguageModel]:
        """See :meth:`CounterfactualModel.speaking`."""
        if self._loaded is None:
            raise ConfigurationError("the counterfactual model is not loaded; call setup(base)")
        yield self._loaded
