"""Editing methods, one file each."""

from lightning_edit.editors.base import Capabilities, Editor
from lightning_edit.editors.checkpoint import load_editor
from lightning_edit.editors.gradient_step import GradientStep
from lightning_edit.editors.malmen import MALMEN
from lightning_edit.editors.mend import MEND
from lightning_edit.editors.serac import SERAC

__all__ = ["MALMEN", "MEND", "SERAC", "Capabilities", "Editor", "GradientStep", "load_editor"]
