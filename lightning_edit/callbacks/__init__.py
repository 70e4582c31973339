"""Callbacks and loggers: dashboards, prediction tables, reports, artifacts."""

from lightning_edit.callbacks.interrupts import Interrupts
from lightning_edit.callbacks.last_checkpoint import LastCheckpoint
from lightning_edit.callbacks.loggers import MetricsCSV, WandbDashboard
from lightning_edit.callbacks.prediction_table import PredictionTable
from lightning_edit.callbacks.progress_lines import ProgressLines
from lightning_edit.callbacks.report import TestReport
from lightning_edit.callbacks.run_artifacts import RunArtifacts

__all__ = [
    "Interrupts",
    "LastCheckpoint",
    "MetricsCSV",
    "PredictionTable",
    "ProgressLines",
    "RunArtifacts",
    "TestReport",
    "WandbDashboard",
]
