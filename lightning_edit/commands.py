"""What the command line does beside training: make, show and merge edits, trace facts, export editors.

Everything heavy is imported inside the commands, so that their help appears at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning_edit.errors import ConfigurationError, EditError


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

    Raises:
        ConfigurationError: If neither or both of a prompt with its target and a file are given, or of a checkpoint and
            an editor's file, or the edit would replace another one.
        EditError: If ``check`` is set and a request is not answered with its target.
    """
    from lightning_edit.answers import edit_report, print_answers, show
    from lightning_edit.command_inputs import requested
    from lightning_edit.editors.checkpoint import KEY, load_editor, read_checkpoint
    from lightning_edit.editors.configured import configured_editor
    from lightning_edit.models.loading import load_language_model

    wanted = requested(prompt, target, subject, requests)
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
        if statistics is None:
            chosen.fit_on_sampled_text(model)
    result = chosen.edit(model, wanted)
    if save is not None:
        _print(f"edit saved   {result.save(save)}")
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


def merge(
    edits: list[str],
    output: str,
    name_or_path: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> None:
    """Writes edits into the weights and saves a Hugging Face model folder that plain transformers loads.

    The folder also has a card that says what was edited (README.md) and where the edits come from (edits.json).

    Args:
        edits: Folders of saved edits, merged in this order.
        output: Folder for the merged model; it must not exist yet, or be empty.
        name_or_path: Base model; the one that the edit names if none is given.
        dtype: Precision of the merged model; "auto" is the one in which the base model is published.
        device: Where to put the base model.

    Raises:
        ConfigurationError: If the output folder is not empty.
    """
    from lightning_edit.command_inputs import base_of
    from lightning_edit.edits import EditSequence, load_edit
    from lightning_edit.export.merged import save_merged

    folder = Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"output: {folder} is not empty; choose a new folder")
    sequence = EditSequence([load_edit(path) for path in edits])
    model = base_of(sequence, name_or_path, dtype, device)
    save_merged(sequence, model, folder)
    _print(f"merged model {folder}")


def export_adapter(
    edits: list[str],
    output: str,
    rank: int | None = None,
    max_error: float = 0.01,
    switchable: bool = False,
    name_or_path: str | None = None,
    device: str | None = None,
) -> None:
    """Writes edits of weights as a LoRA adapter, which peft, vLLM and (as a .gguf file) llama.cpp load.

    Args:
        edits: Folders of saved edits; they become one adapter.
        output: Folder for the adapter, in PEFT's format; a name that ends in .gguf writes a file for llama.cpp.
        rank: Rank of the adapter; the smallest that is exact enough, of those that servers accept, if none is given.
        max_error: Largest relative error (Frobenius norm) of a change that is not of low rank.
        switchable: Write an adapter for each edit, in folders of their ids, between which a server can switch.
        name_or_path: Base model; the one that the edit names if none is given.
        device: Where to put the base model.
    """
    from lightning_edit.command_inputs import base_of
    from lightning_edit.edits import EditSequence, load_edit
    from lightning_edit.export import adapter_of, save_adapter, save_gguf_adapter

    sequence = EditSequence([load_edit(path) for path in edits])
    model = base_of(sequence, name_or_path, "float32", device)
    if switchable and (dependent := [edit.id for edit in sequence.edits if edit.provenance.depends_on]):
        raise ConfigurationError(
            f"switchable: {dependent} were computed on top of other edits, without which they mean nothing; export all "
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
        _print(f"adapter      {written} (rank {adapter.rank}, largest relative error {error:.1e})")


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
    """Serves a model with edits as an OpenAI-compatible server; edits are added and removed while it runs.

    Beside /v1/models, /v1/completions and /v1/chat/completions there are GET and POST /v1/edits and DELETE
    /v1/edits/ID. Each answer is given under one state of the edits, which its system_fingerprint names.

    Args:
        edits: Folders of saved edits that are applied from the start.
        edits_folder: Folder from below which clients may add edits; none if not given.
        host: Address to listen on; others than this machine's own need a token.
        port: Port to listen on.
        token: What clients must send as bearer token; LIGHTNING_EDIT_TOKEN in the environment if not given.
        batch_size: Prompts that are answered side by side.
        longest: Longest answer that may be asked for, in tokens.
        name_or_path: Base model; the one that the edits name, or the bundled one, if none is given.
        dtype: Precision of the base model.
        device: Where to put the base model.
        chat_template: Render prompts with the tokenizer's chat template; as the edits were made if none is given.

    Raises:
        ConfigurationError: If the server would be open to others without a token.
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

    _print(f"serving      {model.name} with {len(sequence)} edits on http://{host}:{port}/v1")
    uvicorn.run(app, host=host, port=port, log_level="warning")
    engine.close()


def compare(
    config: str,
    output: str | None = None,
    records: int | None = None,
    shard: str = "1/1",
    preset: str = "default",
    plan: bool = False,
) -> None:
    """Runs a grid of editors, data sets and protocols, and writes its report.

    Each cell is a test run in its own folder. A grid that was stopped goes on where it was; a cell that failed is tried
    again. Several processes may share a folder.

    Args:
        config: YAML file of the grid, such as @knowedit-smollm2.
        output: Folder for the cells and the report, in place of the one that the file names.
        records: Limit of the records of each data set, in place of the file's; 0 takes all.
        shard: "i/n": run every n-th cell from the i-th on.
        preset: Columns of the report: "default", or "knowedit" for the definitions of its paper.
        plan: Show what would be run, and end.

    Raises:
        ConfigurationError: If the grid or the shard is not usable.
    """
    from lightning_edit.command_inputs import shard_of
    from lightning_edit.comparison import Grid, build_report, cells_of, read_comparison, read_runs, write_report

    comparison = read_comparison(config, {"output": output, "records": records})
    grid = Grid(comparison, shard_of(shard))
    _print(grid.plan())
    if plan:
        return
    grid.run()
    runs = read_runs([cell.folder for cell in cells_of(comparison) if cell.folder.is_dir()])
    built = build_report(runs, preset, comparison.reference, comparison.resamples, comparison.seed)
    for path in write_report(built, comparison.output):
        _print(f"written      {path}")


def report(
    runs: list[str],
    output: str,
    preset: str = "default",
    reference: str | None = None,
    per_record: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> None:
    """Writes the report of test runs: leaderboard.md, leaderboard.csv, report.json and report.html.

    Args:
        runs: Folders of test runs (with metrics.json), or folders above them.
        output: Folder for the report.
        preset: Columns: "default", or "knowedit" for the definitions of its paper.
        reference: Editor that others are compared with, record by record; the first one if none is given.
        per_record: Average over records, with each record's probes averaged first, instead of over probes.
        resamples: Bootstrap samples of the intervals.
        seed: Their seed.
    """
    from lightning_edit.comparison import build_report, read_runs, write_report

    built = build_report(read_runs(runs), preset, reference, resamples, seed, per_record)
    for path in write_report(built, output):
        _print(f"written      {path}")


def configs(copy: str | None = None) -> None:
    """Lists the configurations that come with the package, or copies them, to be changed.

    --config @NAME and --editor @NAME use one of them; words of a name that no other name has are enough.

    Args:
        copy: A new folder to copy them to.
    """
    from lightning_edit.shipped import configs_folder, copy_configs, shipped_names

    if copy is not None:
        _print(f"configurations {copy_configs(copy)}")
        return
    for folder, option in (("experiment", "--config"), ("comparison", "--config"), ("editor", "--editor")):
        for name in shipped_names(folder):
            first = (configs_folder() / folder / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
            _print(f"{option} @{name}  {first.removeprefix('#').strip() if first.startswith('#') else ''}")


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
    import torch

    from lightning_edit.editors.checkpoint import KEY, export_checkpoint, read_checkpoint
    from lightning_edit.models.loading import load_language_model

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
    from lightning_edit.data.known import read_known_facts
    from lightning_edit.locate.report import trace_facts
    from lightning_edit.locate.tracing import TraceSettings
    from lightning_edit.models.loading import load_language_model
    from lightning_edit.records import EditRequest

    if (not prompt) == (facts is None):
        raise ConfigurationError("give either --prompt with --subject, or --facts with a JSON file")
    given = _given(name_or_path=name_or_path, dtype=dtype, device=device, site=site, chat_template=chat_template)
    model = load_language_model(**given)
    settings = TraceSettings(noise, samples, window, seed)
    # A prompt's target is not used: the model's own answer is traced.
    prompt_request = EditRequest(prompt, "-", subject or None, id="prompt") if prompt else None
    requests = [prompt_request] if prompt_request is not None else read_known_facts(str(facts))
    trace_facts(model, requests, settings, Path(output), limit, severed, wandb)


def _print(line: str) -> None:
    from rich.console import Console

    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
