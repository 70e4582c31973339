"""The commands other than those of the Trainer.

Heavy packages are imported inside the functions, so that the list of commands appears at once.
"""

from lightning_edit.commands.comparing import compare, configs, report
from lightning_edit.commands.completing import completion
from lightning_edit.commands.editing import edit, generate, trace
from lightning_edit.commands.sharing import export, export_adapter, merge, push, serve
from lightning_edit.commands.watching import dashboard, plot

__all__ = [
    "compare",
    "completion",
    "configs",
    "dashboard",
    "edit",
    "export",
    "export_adapter",
    "generate",
    "merge",
    "plot",
    "push",
    "report",
    "serve",
    "trace",
]
