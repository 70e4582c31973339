"""Commands that make edits, show them, and trace facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_edit.commands.output import given_options
from lightning_edit.errors import ConfigurationError, EditError
from lightning_edit.printing import print_line

if TYPE_CHECKING:
    # Imported only when the command runs, as the import takes seconds.
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
    """Edits facts, saves the edit, and shows whether it succeeded.

    As a check of locality, the answers to a prompt about another subject and to an unrelated prompt are also shown;
    they should not change.

    Args:
        ckpt_path: Checkpoint of a trained editor (MEND, MALMEN, SERAC, Scoped), or of one with an index (IKE).
        editor: Editor that needs no training: a YAML file with class_path and init_args, a shipped one (@rome), or a
            class (ROME). Override settings by name: --editor.search.steps 10.
        statistics: Folder of fitted statistics for such an editor; by default the one in its settings. If that is
            empty, statistics are collected on text sampled from the model, and saved.
        prompt: Input of the model, such as "The capital of France is".
        target: Answer that it should give, such as "Rome".
        subject: Subject of the fact, as it stands in the prompt; optional for most editors.
        requests: File of facts (.jsonl, .json or .csv) with prompt, target and, optionally, subject, ground_truth,
            subject_start and id, instead of the above; they are edited jointly.
        save: Folder to save the edit to.
        overwrite: Replace an existing edit in that folder.
        ask: Further prompts to show before and after, such as rephrases and unrelated facts.
        max_new_tokens: Maximum length of the answers shown.
        check: Exit with an error if the edited model does not answer a request with its target.
        name_or_path: Base model; by default the one that the editor was trained on, or the bundled one.
        dtype: Precision of the base model; by default that of training, or float32.
        device: Device of the base model.
        site: Name of the edit site with "{}" for the layer, for models whose structure is ambiguous.
        chat_template: Whether to render prompts with the tokenizer's chat template; by default as in training, or not.
        separator: Text between prompt and target; "" for scripts without spaces.

    Raises:
        ConfigurationError: If neither or both of a prompt with its target and a file are given, or of a checkpoint and
            an editor, or if the edit would replace another one.
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
        raise ConfigurationError("give either --ckpt_path, or --editor with an editor (a YAML file, @rome or ROME)")
    if ckpt_path is not None and statistics is not None:
        raise ConfigurationError("--statistics are for an editor that --editor names; a checkpoint has none")
    if ckpt_path is not None:
        model = load_language_model(**{**read_checkpoint(ckpt_path)[KEY]["base"]["settings"], **given})
        chosen = load_editor(ckpt_path, model)
    elif editor is not None:
        chosen = editor if statistics is None else rebuild(editor, statistics=statistics)
        if chosen.capabilities.fit_reads == "records":
            raise ConfigurationError(
                f"{type(chosen).__name__} has to be trained first (lightning-edit fit); give its checkpoint with "
                "--ckpt_path"
            )
        model = load_language_model(**given)
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
    """Shows the answers of the base model and the edited model side by side.

    Args:
        edits: Folders of saved edits, applied in this order.
        prompts: Prompts for both models.
        max_new_tokens: Maximum length of the answers.
        name_or_path: Base model; by default the one that the edit names.
        dtype: Precision of the base model.
        device: Device of the base model.
        chat_template: Whether to render prompts with the tokenizer's chat template; by default as for the edit.
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
    """Locates facts in a model by causal tracing: numbers, pictures, and a layer to edit.

    The subject's embeddings are corrupted with noise, and single hidden states, windows of MLP outputs and windows of
    attention outputs are restored, at every token and layer (Meng et al. 2022).

    Args:
        prompt: Prompt whose next token is traced, such as "The capital of France is".
        subject: Subject of the prompt, as it stands in the prompt.
        facts: JSON file with a list of facts with subject and prompt (the known_1000 format), instead of the above.
            Facts with an attribute are traced only if the model answers with it.
        limit: Number of facts to trace, in total or per group.
        group_by: Field of the file of facts, such as relation_id, that groups them; the numbers then include how
            similarly the facts of a group are located (KnowEdit's RSim).
        groups: Trace only these groups.
        output: Folder for the numbers (JSON) and the pictures (PNG).
        noise: Standard deviation of the noise, in standard deviations of the subjects' embeddings.
        samples: Number of noise samples.
        window: Number of layers in a window of MLP or attention outputs.
        severed: Freeze these outputs at the restored token to their corrupted values.
        seed: Seed of the noise.
        wandb: Also log the pictures to W&B (offline unless a key is set).
        name_or_path: Model; the bundled one by default.
        dtype: Precision of the model; float32 by default.
        device: Device of the model.
        site: Name of the MLP output projection with "{}" for the layer, for models whose structure is ambiguous.
        chat_template: Whether to render prompts with the tokenizer's chat template.
    """
    from lightning_edit.command_inputs import facts_and_groups
    from lightning_edit.models.loading import load_language_model
    from lightning_edit.records import EditRequest
    from lightning_edit.tracing.causal import TraceSettings
    from lightning_edit.tracing.report import trace_facts

    if (not prompt) == (facts is None):
        raise ConfigurationError("give either --prompt with --subject, or --facts with a JSON file")
    if facts is None and (group_by is not None or groups is not None):
        raise ConfigurationError("--group_by names a field of a file of facts; give --facts as well")
    given = given_options(name_or_path=name_or_path, dtype=dtype, device=device, site=site, chat_template=chat_template)
    model = load_language_model(**given)
    settings = TraceSettings(noise, samples, window, seed)
    # The target is unused, since the model's own answer is traced.
    prompt_request = EditRequest(prompt, "-", subject or None, id="prompt") if prompt else None
    if prompt_request is not None:
        requests, group_of = [prompt_request], None
    else:
        requests, group_of = facts_and_groups(str(facts), group_by, groups)
    trace_facts(model, requests, settings, Path(output), limit, severed, wandb, group_of)
