"""The command that prints a shell completion script for commands, options and names of configurations."""

from __future__ import annotations

from typing import Literal

_TRAINER_OPTIONS = ("--config", "--ckpt_path", "--print_config", "--help", "--trainer.", "--model.", "--data.")
"""Options of the Trainer's commands; further ones depend on the classes in a configuration."""
_SCRIPT = """\
_lightning_edit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    elif [[ "$word" == @* ]]; then
        words="{configurations}"
    else
        case "$command" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [ ${{#COMPREPLY[@]}} -eq 0 ]; then
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _lightning_edit lightning-edit
"""


def completion(shell: Literal["bash", "zsh"] = "bash") -> None:
    """Prints a shell completion script; use it as eval "$(lightning-edit completion --shell bash)".

    Args:
        shell: The shell.
    """
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    print(start + completion_script(), end="")


def completion_script() -> str:
    """Returns the completion script for bash."""
    from lightning_edit import commands
    from lightning_edit.cli import COMMANDS, TRAINER_COMMANDS
    from lightning_edit.parsing import command_parser
    from lightning_edit.shipped import shipped_names

    options = dict.fromkeys(TRAINER_COMMANDS, " ".join(_TRAINER_OPTIONS))
    for name in COMMANDS:
        if name not in TRAINER_COMMANDS:
            parser = command_parser(getattr(commands, name.replace("-", "_")), name)
            options[name] = " ".join(option for action in parser._actions for option in action.option_strings)
    cases = "\n".join(f'            {name}) words="{words}" ;;' for name, words in options.items())
    names = [f"@{name}" for folder in ("experiment", "comparison", "editor") for name in shipped_names(folder)]
    return _SCRIPT.format(commands=" ".join(COMMANDS), configurations=" ".join(names), cases=cases)
