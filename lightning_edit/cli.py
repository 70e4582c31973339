"""The command line: fit, validate, test and predict through LightningCLI; edit, generate and merge for single edits."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

COMMANDS = {
    "fit": "train an editor, or collect what it needs",
    "validate": "measure on the validation records",
    "test": "measure on the test records; writes metrics.json and predictions.jsonl",
    "predict": "what the model says to every probe; writes predictions.jsonl",
    "edit": "change facts with an editor, and save the change",
    "generate": "what the base and the edited model say, side by side",
    "trace": "show by causal tracing where a model keeps facts",
    "merge": "write an edit into the weights and save a Hugging Face model",
    "export-adapter": "write an edit as a LoRA adapter for peft, vLLM or llama.cpp",
    "push": "upload an edit, an editor or statistics to the Hugging Face Hub",
    "serve": "serve a model with edits, which can be changed while it runs",
    "compare": "run a grid of editors, data sets and protocols, and write its report",
    "report": "write the report of test runs",
    "plot": "draw the learning curves of runs",
    "dashboard": "create a W&B workspace from a file",
    "configs": "list the configurations that come with the package, or copy them",
    "completion": "print a script with which a shell completes commands and options",
    "export": "write a trained editor alone, in a file small enough to ship",
}
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Full or read-only disk, or no permission: reported without a traceback."""
_NOISE = (
    (r"lightning\..*", ".*is deprecated.*"),
    (r"lightning\..*", ".*does not have many workers.*"),
    (r"lightning\..*", ".*LightningCLI's args parameter.*"),
    (r"lightning\..*", ".*Checkpoint directory .* exists and is not empty.*"),
    (r"lightning\..*", ".*smaller than the logging interval.*"),
    (r"lightning\..*", ".*across ranks is zero.*"),
    (r"lightning\..*", ".*configure_optimizers. returned .None.*"),
    # The data module itself skips finished batches.
    (r"lightning\..*", ".*dataloader is not resumable.*"),
    (r"torch\..*", ".*lr_scheduler.step.*"),
)
"""Module and message of library warnings that users cannot act on."""
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


def usage() -> str:
    """Returns the text of ``lightning-edit --help``."""
    lines = [f"  {name:<14} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lightning-edit COMMAND [OPTIONS]",
            "",
            "Knowledge editing of language models with PyTorch Lightning.",
            "",
            *lines,
            "",
            "lightning-edit COMMAND --help explains the options of a command. Each also takes --allow MODULE: files",
            "may then name classes of that module, which is imported.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        Exit status: 0 on success, 1 after a reported error, 2 for an unknown command, 130 after an interrupt and 143
        after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("lightning-edit"))
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        print(f"lightning-edit: unknown command {command!r}\n\n{usage()}", file=sys.stderr)
        return 2
    # Imported late, to keep the program's own help fast.
    from lightning_edit.errors import LightningEditError, RunInterruptedError

    try:
        from lightning_edit.shipped import with_shipped_files

        given = with_shipped_files(_with_allowed_modules(arguments))
        _show_notes()
        if os.environ.get("LIGHTNING_EDIT_ALLOW"):
            from lightning_edit.components import import_allowed

            import_allowed()
        _run(command, given)
    except RunInterruptedError as error:
        print(f"lightning-edit {command}: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f"lightning-edit {command}: stopped", file=sys.stderr)
        return 130
    except LightningEditError as error:
        print(f"lightning-edit {command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        print(f"lightning-edit {command}: {error.filename or 'the disk'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _with_allowed_modules(arguments: list[str]) -> list[str]:
    """Moves "--allow MODULE" options from the command line to the environment."""
    if not any(argument.partition("=")[0] == "--allow" for argument in arguments):
        return arguments
    from lightning_edit.components import ALLOWED

    rest: list[str] = []
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name != "--allow":
            rest.append(argument)
            continue
        allowed = value if equals else next(given, "")
        os.environ[ALLOWED] = ",".join(filter(None, [os.environ.get(ALLOWED), allowed]))
    return rest


def _run(command: str, arguments: list[str]) -> None:
    if command in TRAINER_COMMANDS:
        from lightning_edit.training_cli import run

        run(arguments)
        return
    from lightning_edit import commands
    from lightning_edit.parsing import SETTINGS, command_parser, parse

    function = getattr(commands, command.replace("-", "_"))
    given = repeated_values(arguments[1:], function)
    _check_editor_files(given)
    values = parse(command_parser(function, f"lightning-edit {command}"), given)
    values.pop(SETTINGS, None)
    function(**values)


def _check_editor_files(arguments: Sequence[str]) -> None:
    """Checks the files that describe an editor before anything that they name is imported.

    Raises:
        LightningEditError: If a file is no description of an editor, or names a class whose module is not allowed; if
            settings of an editor are given without one.
    """
    split = [tuple(argument.split("=", 1)) for argument in arguments if "=" in argument]
    values = [option for option in (*pairwise(arguments), *split) if option[0] in ("--editor", "--settings")]
    names = [argument.partition("=")[0] for argument in arguments]
    loose = [name for name in names if name.startswith("--editor.") and not name.endswith(".help")]
    if loose and not values:
        from lightning_edit.errors import ConfigurationError

        raise ConfigurationError(f"{loose[0]} changes a setting of an editor, and none is given; add --editor")
    for option, value in values:
        if option == "--settings" or Path(value).is_file() or value.endswith((".yaml", ".yml")):
            from lightning_edit.editors.configured import check_editor_file, check_settings_file

            (check_settings_file if option == "--settings" else check_editor_file)(value)


def repeated_values(arguments: Sequence[str], function: Callable[..., object]) -> list[str]:
    """Rewrites the plain values of list options as JSON lists.

    "--ask one --ask two", "--ask one two" and "--ask [one, two]" all give a list. Values before the first option are
    those of the command's first parameter, if it is a list: "report RUN RUN" is "report --runs RUN RUN".

    Args:
        arguments: The arguments.
        function: The command, whose parameters annotated with a list take several values.
    """
    parameters = list(inspect.signature(function).parameters.values())
    lists = {f"--{one.name}" for one in parameters if "list[" in str(one.annotation)}
    values: dict[str, list[str]] = {}
    others: list[str] = []
    first = f"--{parameters[0].name}" if parameters else None
    current = first if first in lists else None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            current = name if name in lists else None
            if current is None:
                others.append(argument)
            else:
                values.setdefault(current, []).extend([value] if equals else [])
        elif current is None:
            others.append(argument)
        else:
            values.setdefault(current, []).append(argument)
    for name, given in values.items():
        is_list = len(given) == 1 and _is_list(given[0])
        others += [name, given[0] if is_list else json.dumps(given, ensure_ascii=False)]
    return others


def _is_list(text: str) -> bool:
    """Whether a text is a YAML list; "[INST] and so on [/INST]" is not."""
    import yaml

    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        return isinstance(yaml.safe_load(text), list)
    except yaml.YAMLError:
        return False


class _Notes(logging.Handler):
    """Writes log messages to the current standard error, which callers may redirect between two commands."""

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        print(self.format(record), file=sys.stderr)


def _show_notes() -> None:
    """Shows the package's log messages on standard error, and silences messages of libraries."""
    import warnings

    logger = logging.getLogger("lightning_edit")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = _Notes()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    # Progress bars of short reads, and advertisements; the report names the W&B run's folder.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("WANDB_SILENT", "true")
    for module, message in _NOISE:
        warnings.filterwarnings("ignore", message=message, module=module)


if __name__ == "__main__":
    sys.exit(main())
