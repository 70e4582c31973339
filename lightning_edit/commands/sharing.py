"""Commands that share edits and editors with other programs and people: merge, export, push, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning_edit.errors import ConfigurationError
from lightning_edit.printing import print_line

Precision = Literal["f32", "f16", "q8_0"]
"""Precision of the matrices of a GGUF file."""


def merge(
    edits: list[str],
    output: str,
    name_or_path: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    gguf: str | None = None,
    precision: Precision = "f16",
) -> None:
    """Merges edits into the weights and saves a Hugging Face model folder that plain transformers loads.

    The folder also has a model card of the edits (README.md) and their provenance (edits.json). An output that ends in
    .gguf is written as a file for llama.cpp, from the base model's GGUF file.

    Args:
        edits: Folders of saved edits, merged in this order.
        output: Folder for the merged model, which must be new or empty; or a file name that ends in .gguf.
        name_or_path: Base model; by default the one that the edit names.
        gguf: GGUF file of the base model, for a GGUF output; by default the one that it was loaded from.
        precision: Precision of a GGUF output's matrices.
        dtype: Precision of the merged model; "auto" is that of the published base model.
        device: Device of the base model.

    Raises:
        ConfigurationError: If the output folder is not empty.
    """
    from lightning_edit.command_inputs import base_of
    from lightning_edit.edits import EditSequence, load_edit
    from lightning_edit.export.merged import save_merged

    if output.endswith(".gguf"):
        _merge_to_gguf(edits, output, name_or_path, device, gguf, precision)
        return
    folder = Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"output: {folder} is not empty; choose a new folder")
    sequence = EditSequence([load_edit(path) for path in edits])
    model = base_of(sequence, name_or_path, dtype, device)
    save_merged(sequence, model, folder)
    print_line(f"merged model {folder}")


def _merge_to_gguf(
    edits: list[str], output: str, name_or_path: str | None, device: str | None, gguf: str | None, precision: Precision
) -> None:
    from lightning_edit.command_inputs import base_of
    from lightning_edit.edits import EditSequence, load_edit
    from lightning_edit.export import save_merged_gguf
    from lightning_edit.models.bundled import BUNDLED, bundled_source

    if Path(output).exists():
        raise ConfigurationError(f"output: {output} exists already; choose a new name")
    sequence = EditSequence([load_edit(path) for path in edits])
    model = base_of(sequence, name_or_path, "float32", device)
    source = gguf or (str(bundled_source(model.name)) if model.name in BUNDLED else model.name)
    if not source.endswith(".gguf"):
        raise ConfigurationError(f"gguf: {model.name} is no GGUF file; name that of the base model")
    written = save_merged_gguf(sequence, model, source, output, precision)
    print_line(f"merged model {written} ({written.stat().st_size / 1e6:.0f} MB)")


def export_adapter(
    edits: list[str],
    output: str,
    rank: int | None = None,
    max_error: float = 0.01,
    switchable: bool = False,
    name_or_path: str | None = None,
    device: str | None = None,
) -> None:
    """Exports weight edits as a LoRA adapter, which peft, vLLM and (as a .gguf file) llama.cpp load.

    Args:
        edits: Folders of saved edits, combined into one adapter.
        output: Folder for the adapter, in PEFT's format; a name that ends in .gguf writes a file for llama.cpp.
        rank: Rank of the adapter; by default the smallest that servers accept and that is exact enough.
        max_error: Largest relative error (Frobenius norm) of a change that is not of low rank.
        switchable: Write one adapter per edit, in folders named by id, so that a server can switch between them.
        name_or_path: Base model; by default the one that the edit names.
        device: Device of the base model.
    """
    from lightning_edit.command_inputs import base_of
    from lightning_edit.edits import EditSequence, load_edit
    from lightning_edit.export import adapter_of, save_adapter, save_gguf_adapter

    sequence = EditSequence([load_edit(path) for path in edits])
    model = base_of(sequence, name_or_path, "float32", device)
    if switchable and (dependent := [edit.id for edit in sequence.edits if edit.provenance.depends_on]):
        raise ConfigurationError(
            f"switchable: {dependent} were computed on top of other edits and cannot be used without them; export all "
            "edits as one adapter"
        )
    parts = {f"/{edit.id}": edit for edit in sequence.edits} if switchable else {"": sequence}
    for name, part in parts.items():
        adapter = adapter_of(part, model, rank, max_error)
        if output.endswith(".gguf"):
            written = save_gguf_adapter(adapter, model, output.removesuffix(".gguf") + name.replace("/", "-") + ".gguf")
        else:
            written = save_adapter(adapter, output + name)
        error = max(adapter.errors.values())
        print_line(f"adapter      {written} (rank {adapter.rank}, largest relative error {error:.1e})")


def export(
    ckpt_path: str,
    output: str,
    dtype: Literal["float32", "float16", "bfloat16"] = "float16",
) -> None:
    """Exports a trained editor to a small checkpoint, without the state that only resuming training needs.

    Args:
        ckpt_path: Checkpoint of a run.
        output: File to write.
        dtype: Precision of the editor's parameters in the file; they are loaded as float32.
    """
    import torch

    from lightning_edit.editors.checkpoint import KEY, export_checkpoint, read_checkpoint
    from lightning_edit.models.loading import load_language_model

    model = load_language_model(**read_checkpoint(ckpt_path)[KEY]["base"]["settings"])
    written = export_checkpoint(ckpt_path, output, model, getattr(torch, dtype))
    print_line(f"editor written   {written} ({written.stat().st_size / 1e6:.1f} MB)")


def push(
    path: str,
    repo: str,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
    metrics: str | None = None,
) -> None:
    """Uploads an edit, a trained editor or statistics to the Hugging Face Hub, with a model card.

    Afterwards, use the repository as hf://owner/name for --edits, --ckpt_path or --statistics.

    Args:
        path: Folder of a saved edit or of statistics, or the checkpoint of an editor.
        repo: The repository, owner/name; created if needed.
        private: Whether a new repository is private.
        token: Token with write access; by default that of the login.
        licence: Licence of the upload, as the Hub names it, such as "apache-2.0".
        metrics: metrics.json of a test run, to show its measures on the card.

    Raises:
        ConfigurationError: If the path is none of these, or the Hub refuses.
    """
    from lightning_edit.editors.checkpoint import KEY, load_editor, read_checkpoint
    from lightning_edit.edits import load_edit
    from lightning_edit.edits.base import MANIFEST as EDIT
    from lightning_edit.export.publishing import push_edit, push_editor, push_statistics, read_measures
    from lightning_edit.hub import PushOptions
    from lightning_edit.models.loading import load_language_model
    from lightning_edit.models.statistics import MANIFEST, KeyStatistics

    options: PushOptions = {"private": private, "token": token, "licence": licence}
    if metrics is not None:
        options["measures"] = read_measures(metrics)
    if (Path(path) / EDIT).is_file():
        address = push_edit(load_edit(path), repo, **options)
    elif (Path(path) / MANIFEST).is_file():
        address = push_statistics(KeyStatistics.load(path), repo, **options)
    elif Path(path).is_file():
        model = load_language_model(**read_checkpoint(path)[KEY]["base"]["settings"])
        address = push_editor(load_editor(path, model), model, repo, **options)
    else:
        raise ConfigurationError(f"path: {path} is neither a saved edit, statistics, nor a checkpoint")
    print_line(f"pushed       {address}")


def serve(
    edits: list[str] | None = None,
    edits_folder: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    batch_size: int = 16,
    longest: int = 512,
    name_or_path: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    chat_template: bool | None = None,
) -> None:
    """Serves an edited model with an OpenAI-compatible API; edits can be added and removed at run time.

    In addition to /v1/models, /v1/completions and /v1/chat/completions, the API has GET and POST /v1/edits and DELETE
    /v1/edits/ID. Each answer is generated with one set of edits, identified by its system_fingerprint.

    Args:
        edits: Folders of saved edits that are applied from the start.
        edits_folder: Folder from below which clients may add edits; by default they may add none.
        host: Address to listen on; addresses other than loopback need a token.
        port: Port to listen on.
        token: Bearer token that clients must send; by default LIGHTNING_EDIT_TOKEN in the environment.
        batch_size: Number of prompts answered together.
        longest: Maximum length of an answer, in tokens.
        name_or_path: Base model; by default the one that the edits name, or the bundled one.
        dtype: Precision of the base model.
        device: Device of the base model.
        chat_template: Whether to render prompts with the tokenizer's chat template; by default as for the edits.

    Raises:
        ConfigurationError: If the server would be reachable by others without a token.
    """
    import importlib.util
    import os

    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigurationError(f"serving needs the package {package}: pip install 'lightning-edit[serve]'")
    from lightning_edit.command_inputs import is_loopback, served_model
    from lightning_edit.edits import EditSequence, load_edit
    from lightning_edit.serving import Engine, create_app

    secret = token or os.environ.get("LIGHTNING_EDIT_TOKEN") or None
    if not is_loopback(host) and not secret:
        raise ConfigurationError(f"host: {host} can be reached by others; give a token, or listen on 127.0.0.1")
    sequence = EditSequence([load_edit(folder) for folder in edits or []])
    model = served_model(sequence, name_or_path, dtype, device, chat_template)
    engine = Engine(model, sequence, batch_size)
    app = create_app(engine, secret, edits_folder, longest)
    import uvicorn

    print_line(f"serving      {model.name} with {len(sequence)} edits on http://{host}:{port}/v1")
    uvicorn.run(app, host=host, port=port, log_level="warning")
    engine.close()
