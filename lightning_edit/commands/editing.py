"""Commands that make edits, show them, and trace facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_edit.commands.output import given_options
from lightning_edit.errors import ConfigurationError, EditError
from lightning_edit.printing import print_line

if TYPE_CHECKING:
    # Only where the command is run: importing it takes seconds, which the other commands need not wait for.
    from lightning_edit.editors.base import Editor


def edit(
    ckpt_path: str | None = None,
    editor: Editor | None = None,
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
    separator: str | None = None,
) -> None:
    """Edits facts, saves the edit, and shows whether it worked.

    Beside the requests, a prompt about another subject and an unrelated prompt are asked, which should stay as they
    were.

    Args:
        ckpt_path: Checkpoint of a trained editor (MEND, MALMEN, SERAC).
        editor: Editor that is not trained: a YAML file with class_path and init_args, a shipped one (@rome), or a class
            (ROME). Settings follow by name: --editor.search.steps 10.
        statistics: Folder of fitted statistics for such an editor; the one that its settings name if none is given.
            Where that has none, some are collected on text that the model samples itself, and kept.
        prompt: What the model is given, such as "The capital of France is".
        target: What it should answer, such as "Rome".
        subject: What the fact is about, as it stands in the prompt; optional for most editors.
        requests: File of facts (.jsonl, .json or .csv) with prompt, target and, optionally, subject, ground_truth,
            subject_start and id, instead of the above; they are edited jointly.
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
        separator: What joins prompt and target; "" for scripts that are written without spaces.

    Raises:
        ConfigurationError: If neither or both of a prompt with its target and a file are given, or of a checkpoint and
            an editor's file, or the edit would replace another one.
        EditError: If ``check`` is set and a request is not answered with its target.
    """
    from lightning_edit.answers import edit_report, print_answers, show
    from lightning_edit.command_inputs import requested
    from lightning_edit.components import rebuild
    from lightning_edit.editors.checkpoint import KEY, load_editor, read_checkpoint
    from lightning_edit.models.loading import load_language_model

    wanted = requested(prompt, target, subject, requests)
    if save is not None and Path(save).exists() and not overwrite:
        raise ConfigurationError(f"save: {save} exists already; choose a new folder, or add --overwrite true")
    given = given_options(
        name_or_path=name_or_path, dtype=dtype, device=device, site=site, chat_template=chat_template,
        separator=separator,
    )  # fmt: skip
    if (ckpt_path is None) == (editor is None):
        raise ConfigurationError("give either --ckpt_path, or --editor with a YAML file of an editor")
    if ckpt_path is not None:
        model = load_language_model(**{**read_checkpoint(ckpt_path)[KEY]["base"]["settings"], **given})
        chosen = load_editor(ckpt_path, model)
    elif editor is not None:
        model = load_language_model(**given)
        chosen = editor if statistics is None else rebuild(editor, statistics=statistics)
        if chosen.capabilities.fit_reads == "records":
            raise ConfigurationError(
                f"{type(chosen).__name__} has to be trained first (lightning-edit fit); give its checkpoint with "
                "--ckpt_path"
            )
        chosen.setup(model)
        if statistics is None:
            chosen.fit_without_corpus(model)
    result = chosen.edit(model, wanted)
    if save is not None:
        print_line(f"edit saved   {result.save(save)}")
    report = edit_report(model, result, wanted, max_new_tokens)
    print_answers(report.rows, ["prompt", "before", "after", "P(target)", ""])
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
    from lightning_edit.answers import show
    from lightning_edit.command_inputs import base_of
    from lightning_edit.edits import EditSequence, load_edit

    sequence = EditSequence([load_edit(folder) for folder in edits])
    model = base_of(sequence, name_or_path, dtype, device, chat_template)
    show(model, sequence, prompts, max_new_tokens)


def trace(
    prompt: str = "",
    subject: str = "",
    facts: str | None = None,
    limit: int = 20,
    group_by: str | None = None,
    groups: list[str] | None = None,
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
        limit: Number of facts to trace; of each group, where they are grouped.
        group_by: Field of the file of facts, such as relation_id, that groups them: the numbers then also say how alike
            the facts of a group are located (KnowEdit's RSim).
        groups: Trace these groups alone.
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
    from lightning_edit.command_inputs import facts_and_groups
    from lightning_edit.locate.report import trace_facts
    from lightning_edit.locate.tracing import TraceSettings
    from lightning_edit.models.loading import load_language_model
    from lightning_edit.records import EditRequest

    if (not prompt) == (facts is None):
        raise ConfigurationError("give either --prompt with --subject, or --facts with a JSON file")
    if facts is None and (group_by is not None or groups is not None):
        raise ConfigurationError("--group_by names a field of a file of facts; give --facts as well")
    given = given_options(name_or_path=name_or_path, dtype=dtype, device=device, site=site, chat_template=chat_template)
    model = load_language_model(**given)
    settings = TraceSettings(noise, samples, window, seed)
    # A prompt's target is not used: the model's own answer is traced.
    prompt_request = EditRequest(prompt, "-", subject or None, id="prompt") if prompt else None
    if prompt_request is not None:
        requests, group_of = [prompt_request], None
    else:
        requests, group_of = facts_and_groups(str(facts), group_by, groups)
    trace_facts(model, requests, settings, Path(output), limit, severed, wandb, group_of)
