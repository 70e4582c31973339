"""Second moments of the keys at edit sites, collected once per model and corpus."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_edit.errors import (
    BaseModelMismatchError,
    ConfigurationError,
    EditorNotFittedError,
    LightningEditError,
    NonFiniteError,
    SourceNotFoundError,
)
from lightning_edit.files import holds_something_else, read_folder, replace_folder
from lightning_edit.functional.packed_moments import pack_moment, unpack_moment
from lightning_edit.hub import PushOptions, local_copy, marked
from lightning_edit.manifests import read_manifest, write_manifest
from lightning_edit.models.fingerprint import Fingerprint, Likeness
from lightning_edit.models.language_model import LanguageModel

MANIFEST = "statistics.json"
TENSORS = "statistics.safetensors"
FORMAT = 2
PACKED_FORMAT = 3
"""Format of half-precision statistics; see :func:`lightning_edit.functional.packed_moments.pack_moment`."""

_SCALE, _TRIANGLE = ":scale", ":triangle"
"""Suffixes of a site's two packed tensors."""


@dataclass(frozen=True)
class Corpus:
    """The corpus that statistics were collected on.

    Args:
        name: Name of the corpus.
        length: Tokens of a packed text.
        tokens: Number of tokens read.
        digest: SHA-256 of all packed texts; a run may have read only a part.
    """

    name: str
    length: int
    tokens: int
    digest: str


class KeyStatistics:
    """The uncentred second moment C = E[k kᵀ] of the keys at some edit sites.

    Args:
        moments: Site name to (M, M) second moment.
        corpus: The corpus they were collected on.
        model_name: Name of the model, for messages.
        fingerprint: Fingerprint of the model.

    Raises:
        NonFiniteError: If a moment is not finite.
    """

    def __init__(self, moments: dict[str, Tensor], corpus: Corpus, model_name: str, fingerprint: Fingerprint) -> None:
        for site, moment in moments.items():
            if not bool(moment.isfinite().all()):
                raise NonFiniteError(f"the statistics of {site} are not finite; collect them again")
        self.moments, self.corpus = dict(moments), corpus
        self.model_name, self.fingerprint = model_name, fingerprint
        self._factors: dict[str, Tensor] = {}

    @property
    def origin(self) -> dict[str, Any]:
        """The corpus as plain data."""
        return asdict(self.corpus)

    def check(self, model: LanguageModel) -> None:
        """Checks that the statistics belong to a model, in the same precision and with the same tokenizer.

        Raises:
            BaseModelMismatchError: If they were collected on another model.
        """
        if self.fingerprint.compare(model.fingerprint) is not Likeness.SAME:
            raise BaseModelMismatchError(
                f"the statistics were collected on {self.model_name} [{self.fingerprint}], but the model given is "
                f"{model.name} [{model.fingerprint}]; collect them on this one"
            )
        if self.fingerprint.text_differences(model.fingerprint, chat_template=False):
            raise BaseModelMismatchError(
                f"the statistics were collected with another tokenizer than that of {model.name}; collect them with "
                "this one"
            )

    @classmethod
    def kept_in(cls, folder: str | Path, corpus: Corpus, fingerprint: Fingerprint) -> KeyStatistics | None:
        """Loads a folder's statistics so that more sites can be added; None if there are none.

        Args:
            folder: The folder.
            corpus: The corpus of the new sites' statistics.
            fingerprint: Fingerprint of the model.

        Raises:
            ConfigurationError: If the folder's were collected on another corpus or model.
        """
        if not (Path(folder) / MANIFEST).is_file():
            return None
        kept = cls.load(folder)
        if kept.corpus != corpus or kept.fingerprint.compare(fingerprint) is not Likeness.SAME:
            raise ConfigurationError(
                f"editor.statistics: {folder} holds statistics of {kept.model_name} on {kept.corpus}, to which those "
                f"on {corpus} cannot be added; name another folder, or delete it"
            )
        return kept

    def moment(self, site: str) -> Tensor:
        """Returns the second moment (M, M) at a site.

        Raises:
            EditorNotFittedError: If there is none, or it has too few tokens for full rank.
        """
        if site not in self.moments:
            raise EditorNotFittedError(
                f"there are no statistics of {site}, only of {sorted(self.moments)}; collect them for this site"
            )
        size = len(self.moments[site])
        if self.corpus.tokens < size:
            raise EditorNotFittedError(
                f"the statistics of {site} come from {self.corpus.tokens} tokens, too few for keys of size {size}; "
                f"collect at least {size}, better {10 * size}"
            )
        return self.moments[site]

    def require(self, site: str) -> None:
        """Raises the errors of :meth:`inverse_times` before any work is done."""
        self._factor(site)

    def inverse_times(self, site: str, keys: Tensor) -> Tensor:
        """Computes C⁻¹K, (M, N) float64, with a Cholesky factor cached per site.

        Raises:
            EditorNotFittedError: See :meth:`moment`; or if the moment is not of full rank.
        """
        solved: Tensor = torch.cholesky_solve(keys.double(), self._factor(site).to(keys.device))
        return solved

    def _factor(self, site: str) -> Tensor:
        if site not in self._factors:
            factor, failed = torch.linalg.cholesky_ex(self.moment(site).double())
            if failed:
                raise EditorNotFittedError(
                    f"the statistics of {site} on {self.corpus.tokens} tokens are not of full rank: the text is too "
                    "short or says too much of the same; collect them on more text"
                )
            self._factors[site] = factor
        return self._factors[site]

    def save(self, folder: str | Path, packed: bool = False) -> Path:
        """Saves the moments and their origin; the folder is written atomically.

        Args:
            folder: The folder.
            packed: Save in half precision, at a quarter of the size; C⁻¹k then differs by 5e-4 of its length (SmolLM2).

        Raises:
            ConfigurationError: If the folder holds something else.
            EditorNotFittedError: If a moment to be packed is not of full rank.
        """
        folder = Path(folder)
        if holds_something_else(folder, MANIFEST):
            raise ConfigurationError(f"{folder} exists and holds no statistics; save to a new folder")
        plain = {site: moment.cpu().contiguous() for site, moment in self.moments.items()}
        tensors = self._packed() if packed else plain
        with replace_folder(folder, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
            save_file(tensors, temporary / TENSORS)
            manifest = {
                "format": PACKED_FORMAT if packed else FORMAT,
                "corpus": asdict(self.corpus),
                "model": self.model_name,
                "fingerprint": self.fingerprint.to_dict(),
            }
            write_manifest(temporary / MANIFEST, manifest, [TENSORS])
        return folder

    def _packed(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for site, moment in self.moments.items():
            try:
                scale, triangle = pack_moment(moment)
            except ValueError as error:
                raise EditorNotFittedError(
                    f"the statistics of {site} on {self.corpus.tokens} tokens cannot be packed: {error}"
                ) from error
            tensors |= {f"{site}{_SCALE}": scale.cpu(), f"{site}{_TRIANGLE}": triangle.cpu()}
        return tensors

    def push_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> str:
        """Uploads the statistics to the Hub; see :func:`lightning_edit.export.publishing.push_statistics`."""
        from lightning_edit.export.publishing import push_statistics

        return push_statistics(self, repo_id, **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None) -> KeyStatistics:
        """Loads saved statistics from a folder, or from a repository on the Hub (owner/name)."""
        return cls.load(marked(folder), revision)

    @classmethod
    def load(cls, folder: str | Path, revision: str | None = None) -> KeyStatistics:
        """Loads saved statistics.

        Args:
            folder: The folder, or a repository on the Hub (hf://owner/name).
            revision: Branch, tag or commit on the Hub.

        Raises:
            SourceNotFoundError: If there are none in the folder.
            ConfigurationError: If they are broken.
            NonFiniteError: If a moment is not finite.
        """
        folder = local_copy(folder, [MANIFEST, TENSORS], revision)
        return read_folder(folder, lambda: cls._read(folder))

    @classmethod
    def _read(cls, folder: Path) -> KeyStatistics:
        if not (folder / MANIFEST).is_file():
            raise SourceNotFoundError(f"{folder}: no statistics here ({MANIFEST} is missing)")
        try:
            manifest = read_manifest(folder / MANIFEST)
            if manifest["format"] not in (FORMAT, PACKED_FORMAT):
                raise ConfigurationError(
                    f"{folder}: statistics of format {manifest['format']}, expected {FORMAT} or {PACKED_FORMAT}"
                )
            tensors = load_file(folder / TENSORS)
            return cls(
                _unpacked(tensors) if manifest["format"] == PACKED_FORMAT else tensors,
                Corpus(**manifest["corpus"]),
                manifest["model"],
                Fingerprint.from_dict(manifest["fingerprint"]),
            )
        except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, LightningEditError):
                raise
            raise ConfigurationError(f"{folder}: broken statistics ({error!r}); collect them again") from error


def _unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    sites = [name.removesuffix(_SCALE) for name in tensors if name.endswith(_SCALE)]
    return {site: unpack_moment(tensors[f"{site}{_SCALE}"], tensors[f"{site}{_TRIANGLE}"]) for site in sites}


class IdentityStatistics:
    """C = I instead of collected statistics, for trials."""

    @property
    def origin(self) -> dict[str, Any]:
        """Empty: there is no corpus."""
        return {}

    def check(self, model: LanguageModel) -> None:
        """Accepts every model."""

    def require(self, site: str) -> None:
        """Accepts every site."""

    def moment(self, site: str) -> Tensor:
        """Raises an error: an identity has no null space.

        Raises:
            EditorNotFittedError: Always.
        """
        raise EditorNotFittedError(f"the second moment of {site} is needed; collect statistics (covariance: fitted)")

    def inverse_times(self, site: str, keys: Tensor) -> Tensor:
        """Returns K itself, (M, N) float64."""
        return keys.double()


Statistics = KeyStatistics | IdentityStatistics
