"""What the command line does beside training: make, show and merge edits, trace facts, export editors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_edit.components import build
from lightning_edit.data.known import read_known_facts
from lightning_edit.data.reading import read_requests
from lightning_edit.editors.base import Editor
from lightning_edit.editors.checkpoint import KEY, export_checkpoint, load_editor, read_checkpoint
from lightning_edit.edits import Edit, EditSequence, load_edit
from lightning_edit.errors import ConfigurationError, EditError, SourceNotFoundError
from lightning_edit.files import replace_folder
from lightning_edit.locate.tracing import TraceSettings
from lightning_edit.metrics.generation import containment
from lightning_edit.models.language_model import LanguageModel, Score
from lightning_edit.models.loading import load_language_model
from lightning_edit.records import EditRequest


def edit(
    ckpt_path: str | None = None,
    editor: str | None = None,
    statistics: str | None = None,
    prompt: str = "",
    target: str = "",
    subject: str = "",
    requests: str | None = None,
    save: str | None = None,
    overwrite: bool = False,
    ask: list[str] | None = None,
    max_new_tokens: int = 12,
    check: bool = False,
    name_or_path: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    site: str | None = None,
    chat_template: bool | None = None,
) -> None:
    """Edits facts, saves the edit, and shows whether it worked.

    Beside the requests, a prompt about another subject and an unrelated prompt are asked, which should stay as they
    were.

    Args:
        ckpt_path: Checkpoint of a trained editor (MEND, MALMEN, SERAC).
        editor: YAML file with class_path and init_args of an editor that is not trained, such as
            configs/editor/rome.yaml.
        statistics: Folder of fitted statistics, for an editor from a YAML file; the one that it names if none is given.
        prompt: What the model is given, such as "The capital of France is".
        target: What it should answer, such as "Rome".
        subject: What the fact is about, as it stands in the prompt; optional for most editors.
        requests: JSON Lines file with prompt, target and, optionally, subject, ground_truth, subject_start and id on
        each
            line, instead of the above; they are edited jointly.
        save: Folder to save the edit to.
        overwrite: Replace an edit that is in that folder already.
        ask: Further prompts to show before and after, such as rephrases and unrelated facts.
        max_new_tokens: Length of what is shown.
        check: End with an error where a request is not answered with its target afterwards.
        name_or_path: Base model; the one that the editor was trained on, or the bundled one, if none is given.
        dtype: Precision of the base model; the one of training, or float32, if none is given.
        device: Where to put the base model.
        site: Name of the edit site with "{}" for the layer, for models whose structure is ambiguous.
        chat_template: Render prompts with the tokenizer's chat template; as in training, or not, if none is given.

    Raises:
        ConfigurationError: If neither or both of a prompt with its target and a file are given, or of a checkpoint and
            an editor's file, or the edit would replace another one.
        EditError: If ``check`` is set and a request is not answered with its target.
    """
    wanted = _requests(prompt, target, subject, requests)
    if save is not None and Path(save).exists() and not overwrite:
        raise ConfigurationError(f"save: {save} exists already; choose a new folder, or add --overwrite true")
    given = _given(name_or_path=name_or_path, dtype=dtype, device=device, site=site, chat_template=chat_template)
    if (ckpt_path is None) == (editor is None):
        raise ConfigurationError("give either --ckpt_path, or --editor with a YAML file of an editor")
    if ckpt_path is not None:
        model = load_language_model(**{**read_checkpoint(ckpt_path)[KEY]["base"]["settings"], **given})
        chosen = load_editor(ckpt_path, model)
    else:
        model = load_language_model(**given)
        chosen = configured_editor(str(editor), statistics)
        chosen.setup(model)
    result = chosen.edit(model, wanted)
    if save is not None:
        _print(f"edit saved   {result.save(save)}")
    report = edit_report(model, result, wanted, max_new_tokens)
    _print_answers(report.rows, ["prompt", "before", "after", "P(target)", ""])
    if ask:
        show(model, result, ask, max_new_tokens)
    if check and report.failed:
        raise EditError(f"{len(report.failed)} of {len(wanted)} requests are not answered with their target")


def generate(
    edits: list[str],
    prompts: list[str],
    max_new_tokens: int = 24,
    name_or_path: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    chat_template: bool | None = None,
) -> None:
    """Shows what the base model and the edited model say, side by side.

    Args:
        edits: Folders of saved edits, applied in this order.
        prompts: What the models are given.
        max_new_tokens: Length of what is shown.
        name_or_path: Base model; the one that the edit names if none is given.
        dtype: Precision of the base model.
        device: Where to put the base model.
        chat_template: Render prompts with the tokenizer's chat template; as the edit was made if none is given.
    """
    sequence = EditSequence([load_edit(folder) for folder in edits])
    model = _base_of(sequence, name_or_path, dtype, device, chat_template)
    show(model, sequence, prompts, max_new_tokens)


def merge(
    edits: list[str],
    output: str,
    name_or_path: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
) -> None:
    """Writes edits into the weights and saves a Hugging Face model folder that plain transformers loads.

    Args:
        edits: Folders of saved edits, merged in this order.
        output: Folder for the merged model; it must not exist yet, or be empty.
        name_or_path: Base model; the one that the edit names if none is given.
        dtype: Precision of the merged model.
        device: Where to put the base model.

    Raises:
        ConfigurationError: If the output folder is not empty.
    """
    folder = Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"output: {folder} is not empty; choose a new folder")
    sequence = EditSequence([load_edit(path) for path in edits])
    model = _base_of(sequence, name_or_path, dtype, device)
    sequence.merge(model)
    with replace_folder(folder) as temporary:
        model.model.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
    _print(f"merged model {folder}")


def export(
    ckpt_path: str,
    output: str,
    dtype: Literal["float32", "float16", "bfloat16"] = "float16",
) -> None:
    """Writes a checkpoint with a trained editor alone, without what only going on with training needs.

    Args:
        ckpt_path: Checkpoint of a run.
        output: The file to write.
        dtype: Precision of the editor's parameters in the file; they are float32 again when it is loaded.
    """
    model = load_language_model(**read_checkpoint(ckpt_path)[KEY]["base"]["settings"])
    written = export_checkpoint(ckpt_path, output, model, getattr(torch, dtype))
    _print(f"editor written   {written} ({written.stat().st_size / 1e6:.1f} MB)")


def trace(
    prompt: str = "",
    subject: str = "",
    facts: str | None = None,
    limit: int = 20,
    output: str = "runs/trace",
    noise: float = 3.0,
    samples: int = 10,
    window: int = 10,
    severed: Literal["mlp", "attention"] | None = None,
    seed: int = 0,
    wandb: bool = False,
    name_or_path: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    site: str | None = None,
    chat_template: bool | None = None,
) -> None:
    """Shows by causal tracing where a model keeps facts: numbers, pictures, and a layer to edit.

    The subject's embeddings get noise, and single states, windows of MLP outputs and windows of attention outputs are
    put back, at every token and layer (Meng et al. 2022).

    Args:
        prompt: A prompt whose next token is traced, such as "The capital of France is".
        subject: What it is about, as it stands in the prompt.
        facts: JSON file with a list of facts with subject and prompt (the known_1000 format), instead of the above;
            only those are traced whose attribute, where they have one, the model says.
        limit: Number of facts to trace.
        output: Folder for the numbers (JSON) and the pictures (PNG).
        noise: Standard deviation of the noise, in standard deviations of the subjects' embeddings.
        samples: Noise samples.
        window: Layers in a window of MLP or attention outputs.
        severed: Keep these outputs at the restored token as they are under noise.
        seed: Seed of the noise.
        wandb: Send the pictures to W&B as well (offline unless a key is set).
        name_or_path: Model; the bundled one if none is given.
        dtype: Precision of the model; float32 if none is given.
        device: Where to put the model.
        site: Name of the MLP output projection with "{}" for the layer, for models whose structure is ambiguous.
        chat_template: Render prompts with the tokenizer's chat template.
    """
    from lightning_edit.locate.report import trace_facts

    if (not prompt) == (facts is None):
        raise ConfigurationError("give either --prompt with --subject, or --facts with a JSON file")
    given = _given(name_or_path=name_or_path, dtype=dtype, device=device, site=site, chat_template=chat_template)
    model = load_language_model(**given)
    settings = TraceSettings(noise, samples, window, seed)
    # A prompt's target is not used: the model's own answer is traced.
    own = EditRequest(prompt, "-", subject or None, id="prompt") if prompt else None
    requests = [own] if own is not None else read_known_facts(str(facts))
    trace_facts(model, requests, settings, Path(output), limit, severed, wandb)


@dataclass(frozen=True)
class EditReport:
    """Whether an edit worked.

    Args:
        rows: What is shown: prompt, text before, text after, probabilities, a mark.
        failed: Requests that are not answered with their target afterwards.
    """

    rows: list[list[str]]
    failed: list[EditRequest]


UNRELATED = "Water boils at"
"""A prompt that no edit should touch."""
_SHOWN = 8
"""Requests of an edit that are shown."""


def edit_report(
    model: LanguageModel, edit: Edit, requests: Sequence[EditRequest], max_new_tokens: int = 12
) -> EditReport:
    """Asks the requests of an edit and their neighbours before and after it.

    Args:
        model: The base model.
        edit: The edit.
        requests: Its requests.
        max_new_tokens: Length of the texts.
    """
    neighbours = list(dict.fromkeys([*_neighbours(requests), UNRELATED]))
    prompts, targets = [r.prompt for r in requests], [r.target for r in requests]
    before = [_probability(score) for score in model.score(prompts, targets)]
    texts_before = model.generate([*prompts, *neighbours], max_new_tokens)
    with edit.applied(model) as edited:
        after = [_probability(score) for score in edited.score(prompts, targets)]
        texts_after = edited.generate([*prompts, *neighbours], max_new_tokens)
    works = [containment(text, [target]) > 0 for text, target in zip(texts_after, targets, strict=False)]
    rows = [
        [prompt, old, new, f"{p:.2f} → {q:.2f}", "✓" if worked else "✗"]
        for prompt, old, new, p, q, worked in zip(
            prompts, texts_before, texts_after, before, after, works, strict=False
        )
    ][:_SHOWN]
    for prompt, old, new in zip(neighbours, texts_before[len(prompts) :], texts_after[len(prompts) :], strict=True):
        rows.append([prompt, old, new, "", "unchanged" if old == new else "changed"])
    return EditReport(rows, [request for request, worked in zip(requests, works, strict=True) if not worked])


def _neighbours(requests: Sequence[EditRequest]) -> list[str]:
    """The first request's prompt about another subject."""
    first = next((request for request in requests if request.subject_span is not None), None)
    if first is None or first.subject_span is None:
        return []
    start, end = first.subject_span
    other = "Japan" if "Japan" not in first.prompt else "Peru"
    return [first.prompt[:start] + other + first.prompt[end:]]


def _probability(score: Score) -> float:
    return math.exp(sum(score.log_probs) / max(len(score.log_probs), 1))


def show(model: LanguageModel, edit: Edit | EditSequence, prompts: Sequence[str], max_new_tokens: int) -> None:
    """Prints a table of what the model says to prompts before and after an edit."""
    unique = list(dict.fromkeys(prompts))
    before = model.generate(unique, max_new_tokens)
    with edit.applied(model) as edited:
        after = edited.generate(unique, max_new_tokens)
    _print_answers([list(row) for row in zip(unique, before, after, strict=True)], ["prompt", "before", "after"])


def _print_answers(rows: Sequence[Sequence[str]], titles: Sequence[str]) -> None:
    table = Table(show_lines=True)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        # Text objects: brackets in a text are no markup.
        table.add_row(*(Text(" ".join(text.split())) for text in row))
    Console().print(table)


def _print(line: str) -> None:
    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def _requests(prompt: str, target: str, subject: str, path: str | None) -> list[EditRequest]:
    if path is not None:
        if prompt or target:
            raise ConfigurationError("give either --requests, or --prompt with --target, not both")
        return read_requests(path)
    if not prompt or not target:
        raise ConfigurationError("nothing to edit: give --prompt and --target, or --requests with a JSON Lines file")
    return [EditRequest(prompt, target, subject or None, id="0")]


def configured_editor(path: str, statistics: str | None = None) -> Editor:
    """The editor of a YAML file with class_path and init_args.

    Args:
        path: The file.
        statistics: Folder of fitted statistics, in place of the one that the file names.

    Raises:
        SourceNotFoundError: If there is no such file.
        ConfigurationError: If it describes no editor.
    """
    if not Path(path).is_file():
        raise SourceNotFoundError(f"{path}: no such file; pass a YAML file with class_path and init_args")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a readable YAML file of an editor ({error})") from error
    if not isinstance(content, dict) or "class_path" not in content:
        raise ConfigurationError(f"{path}: expected class_path and init_args of an editor")
    configured = content.get("init_args") or {}
    if not isinstance(configured, dict):
        raise ConfigurationError(f"{path}: init_args: expected names and values, found {configured!r}")
    arguments = {**configured, **_given(statistics=statistics)}
    try:
        return build({"class_path": content["class_path"], "init_args": arguments}, Editor, path)
    except TypeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _base_of(
    sequence: EditSequence,
    name_or_path: str | None,
    dtype: str,
    device: str | None,
    chat_template: bool | None = None,
) -> LanguageModel:
    """The base model of edits, loaded as it was when they were made unless something else is asked for."""
    if not len(sequence):
        raise ConfigurationError("edits: give the folder of at least one saved edit")
    base = sequence.edits[0].provenance.base
    return load_language_model(
        name_or_path or base.name,
        base.revision,
        dtype=dtype,
        device=device,
        site=base.site,
        chat_template=base.chat_template if chat_template is None else chat_template,
    )
