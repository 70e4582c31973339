"""Base LightningModule of all editors: loading of the base model, evaluation, checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torchmetrics import Metric, MetricCollection

from lightning_edit.checkpoint_io import AtomicCheckpointIO
from lightning_edit.data.sampling import limited
from lightning_edit.editors.base import Editor
from lightning_edit.edits import EditBatch
from lightning_edit.errors import ConfigurationError
from lightning_edit.judges import Judge
from lightning_edit.metrics.base import Average
from lightning_edit.metrics.collection import edit_metrics, metric_names
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import LanguageModelSettings, load_language_model
from lightning_edit.modules.checkpoint_hooks import load_description, write_description
from lightning_edit.modules.costs import Costs
from lightning_edit.modules.evaluation import Evaluator
from lightning_edit.modules.evaluation_settings import EvaluationSettings, SequentialSettings
from lightning_edit.modules.sequential import SequentialRun, flat, perplexity_text
from lightning_edit.modules.unedited_answers import UneditedAnswers
from lightning_edit.records import EditOutcome, EditRecord, ProbeKind
from lightning_edit.tokenization import PromptEncoder

_HEADLINES = {
    ProbeKind.EDIT_SUCCESS: "token_accuracy",
    ProbeKind.GENERALIZATION: "token_accuracy",
    ProbeKind.LOCALITY: "self_agreement",
}
"""The measure of each probe kind in the score that selects checkpoints."""


_LIMITS = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
"""The Trainer's setting that limits the batches of a stage."""


class Prediction:
    """The outcomes of a batch, wrapped because Lightning would traverse a list of frozen records.

    Args:
        outcomes: The outcome of each probe, record by record.
    """

    def __init__(self, outcomes: list[EditOutcome]) -> None:
        self.outcomes = outcomes


class EditingModule(LightningModule):
    """Owns the frozen base model and an editor; validates, tests and predicts edits, each on the clean model.

    The base model is kept outside the module registry, so that it is not moved or cast with the editor, nor saved in
    the checkpoint, which holds its fingerprint instead.

    Args:
        editor: The editing method.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation; by default with free generation only for the first eight
            records, because it takes longest.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        metrics: Further metrics over all outcomes, logged under the names of their classes in snake case.
    """

    def __init__(
        self,
        editor: Editor,
        language_model: LanguageModelSettings = LanguageModelSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        validation: EvaluationSettings = EvaluationSettings(generate_records=8),
        average: Average = "probe",
        metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__()
        self.editor = editor
        self.settings = language_model
        self.evaluation = evaluation
        self.validation = validation
        self.average: Average = average
        # A tuple keeps them out of the module registry and the checkpoint.
        self._extra_metrics = tuple(metrics)
        self._language_model: LanguageModel | None = None
        self._answers: UneditedAnswers | None = None
        self._judge: Judge | None = None
        self.costs = Costs()
        self._evaluators: dict[str, Evaluator] = {}
        self._metrics: dict[str, MetricCollection] = {}
        self._runs: dict[str, SequentialRun] = {}
        self.left_out: list[str] = []

    @property
    def language_model(self) -> LanguageModel:
        """The base model.

        Raises:
            ConfigurationError: If it is not loaded yet.
        """
        if self._language_model is None:
            raise ConfigurationError("the base model is not loaded; run the module with a Trainer, or call attach()")
        return self._language_model

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of the base model."""
        return self.language_model.encoder

    def attach(self, model: LanguageModel, answers: UneditedAnswers | None = None, judge: Judge | None = None) -> None:
        """Uses a loaded base model instead of loading the one in the settings.

        Args:
            model: The model.
            answers: Its unedited answers, shared with other modules, so that each question is asked once.
            judge: Judge of generated answers, also shared; built from the settings by default.
        """
        self._language_model, self._answers, self._judge = model, answers, judge
        self.editor.setup(model)

    def load(self) -> None:
        """Loads the base model if needed."""
        if self._language_model is None:
            self._language_model = load_language_model(**vars(self.settings))

    def setup(self, stage: str) -> None:
        """Loads and places the base model, sets up the editor, and prepares the metrics of the stage."""
        self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        precision = self.trainer.precision_plugin.precision
        if str(precision) in ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16"):
            raise ConfigurationError(
                f"trainer.precision: {precision} would cast the editor, which must stay in float32; choose the base "
                "model's precision with model.language_model.dtype, and 32-true or bf16-mixed for the Trainer"
            )
        self.load()
        self.language_model.place(self.trainer.strategy.root_device)
        self.editor.setup(self.language_model)
        self.prepare_measures(stage)

    def check_inputs(self, datamodule: Any, stage: str) -> None:
        """Reads and checks all inputs of a stage of the Trainer, before it creates folders.

        Args:
            datamodule: An EditDataModule that was set up for the stage.
            stage: "fit", "validate", "test" or "predict".

        Raises:
            LightningEditError: If a file cannot be read, or a text cannot be used.
        """
        self.check_texts(datamodule, stage)
        if stage == "fit" and datamodule.corpus is not None:
            datamodule.corpus_rows(self.encoder)
        settings = self.evaluation.sequential
        text = None if stage == "fit" or settings is None else perplexity_text(settings)
        if text is not None:
            text.read(self.language_model.tokenizer)

    def check_texts(self, datamodule: Any, stage: str) -> None:
        """Refuses records with a text that does not survive the tokenizer, or exceeds the model's positions.

        Raises:
            TokenizationError: If there is such a text.
        """
        model, name = self.language_model, "validate" if stage == "fit" else stage
        if name in datamodule.reports:
            settings = self.validation if stage == "fit" else self.evaluation
            Evaluator(model, settings, judge=self._judge).check(datamodule.records(name))
        if "fit" in datamodule.reports and stage == "fit":
            for prompt, answer in datamodule.training_prompts():
                model.limits.check_text(prompt, answer)

    def prepare_measures(self, stage: str) -> None:
        """Prepares the evaluation of a stage of the Trainer."""
        for name in {"fit": ["validate"]}.get(stage, [stage]):
            self._prepare(name)

    def _prepare(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "groups"):
            raise ConfigurationError("pass an EditDataModule to the Trainer: it says which groups of probes there are")
        if datamodule.sources.get(stage) is None:
            return
        settings = self.validation if stage == "validate" and self.trainer.state.fn == "fit" else self.evaluation
        self._evaluators[stage] = Evaluator(self.language_model, settings, self._answers, self._judge)
        self.costs = Costs()
        self._close_sequence(stage)
        if settings.sequential is not None:
            self._prepare_sequence(datamodule, stage, settings.sequential)
        groups = settings.groups(datamodule.groups(stage))
        extra = metric_names(copy.deepcopy(self._extra_metrics))
        self._metrics[stage] = edit_metrics(groups, self.average, extra).to(self.device)

    @property
    def protocol(self) -> str:
        """Description of how records are edited in testing and prediction."""
        joint = getattr(getattr(self.trainer, "datamodule", None), "eval_requests_per_edit", 1)
        number = f"{joint} at a time, " if joint > 1 else ""
        if self.evaluation.sequential is not None:
            return f"edited one after another, {number}each edit on top of all before"
        return f"edited jointly, {number}on the clean model" if joint > 1 else "each edited on the clean model"

    def _prepare_sequence(self, datamodule: Any, stage: str, settings: SequentialSettings) -> None:
        if self.trainer.state.fn == "fit":
            raise ConfigurationError(
                "model.validation.sequential: a sequence is measured once, not after each epoch; run validate or test "
                "with model.evaluation.sequential"
            )
        if self.trainer.world_size > 1:
            raise ConfigurationError(
                "evaluation.sequential: a sequence of edits cannot be divided between processes; use trainer.devices 1"
            )
        datamodule.keep_order = True
        groups = datamodule.evaluation_groups(stage)
        # A limited sequence is measured at its limit.
        groups = groups[: limited(len(groups), getattr(self.trainer, _LIMITS[stage]))]
        folder = Path(settings.folder or self.trainer.log_dir or self.trainer.default_root_dir)
        self._runs[stage] = SequentialRun(
            self.language_model, self.editor, self._evaluators[stage], settings, groups, folder, self.costs
        )

    def _close_sequence(self, stage: str) -> None:
        run = self._runs.pop(stage, None)
        if run is not None:
            run.close()

    def teardown(self, stage: str) -> None:
        """Releases the folder of a sequence for other runs."""
        for run in self._runs.values():
            run.close()

    def stopped_after(self, stage: str) -> int | None:
        """Returns the number of edits after which a sequence was stopped by its perplexity, or None."""
        run = self._runs.get(stage)
        return run.edited if run is not None and run.stopped else None

    def _step_of_sequence(self, run: SequentialRun, number: int) -> list[EditOutcome]:
        outcomes = run.step(number)
        self.left_out = [note for edit in run.sequence.edits for note in edit.provenance.notes]
        for row in run.new_rows():
            values = {f"sequence/{name}": value for name, value in flat(row).items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=int(row["edits"]))
        return outcomes

    def evaluate(self, groups: list[list[EditRecord]], stage: str) -> list[EditOutcome]:
        """Edits each group of records jointly on the clean model, and asks all probes of its records."""
        requests = [[request for record in group for request in record.requests] for group in groups]
        records = [record for group in groups for record in group]
        evaluator = self._evaluators[stage]
        # Checked before asking the unedited model, which takes long.
        self.editor.check(self.language_model, requests)
        with ExitStack() as stack:
            with self.costs.timed("unedited"):
                stack.enter_context(evaluator.prepared(self.editor, records))
            parts = self.editor.edit_in_parts(
                self.language_model, requests, self.evaluation.change_bytes, evaluator.passes
            )
            outcomes: list[EditOutcome] = []
            while (part := self._next_part(parts)) is not None:
                places, edits = part
                self.left_out += [note for provenance in edits.provenances for note in provenance.notes]
                part_records = [record for group in groups[places] for record in group]
                edit_of_record = [index for index, group in enumerate(groups[places]) for _ in group]
                with self.costs.timed_asking(evaluator):
                    outcomes += evaluator.evaluate(part_records, edits, edit_of_record)
            self.costs.probes += len(outcomes)
            return outcomes

    def _next_part(self, parts: Iterator[tuple[slice, EditBatch]]) -> tuple[slice, EditBatch] | None:
        """Makes the next batch of edits, and adds up its costs."""
        reused = self.editor.reused_seconds
        with self.costs.timed("editing"):
            part = next(parts, None)
        self.costs.reused_seconds += self.editor.reused_seconds - reused
        if part is not None:
            self.costs.edits += len(part[1])
            self.costs.edit_bytes = max(self.costs.edit_bytes, part[1][0].nbytes)
        return part

    def on_validation_start(self) -> None:
        """See :meth:`on_test_start`."""
        self._check_all("validate")

    def on_predict_start(self) -> None:
        """See :meth:`on_test_start`."""
        self._check_all("predict")

    def on_test_start(self) -> None:
        """Checks all requests before the first record is edited."""
        self._check_all("test")

    def _check_all(self, stage: str) -> None:
        self.left_out = []
        if (datamodule := getattr(self.trainer, "datamodule", None)) is not None:
            self.check_texts(datamodule, stage)
        # A sequence is checked when it is prepared; in a limited run, each batch is checked when it is reached.
        limit = getattr(self.trainer, _LIMITS[stage])
        is_cut = limit is not None and (isinstance(limit, int) or limit < 1)
        if stage in self._runs or is_cut:
            return
        assert datamodule is not None
        groups = datamodule.evaluation_groups(stage) if stage in self._evaluators else []
        if groups:
            requests = [[request for record in group for request in record.requests] for group in groups]
            self.editor.check(self.language_model, requests)

    def validation_step(self, batch: list[list[EditRecord]], batch_idx: int) -> dict[str, Any]:
        """Evaluates a batch of groups of records; callbacks find the outcomes under "outcomes"."""
        return self._evaluate_and_update(batch, batch_idx, "validate")

    def test_step(self, batch: list[list[EditRecord]], batch_idx: int) -> dict[str, Any]:
        """Evaluates a batch of groups of records; callbacks find the outcomes under "outcomes"."""
        return self._evaluate_and_update(batch, batch_idx, "test")

    def predict_step(self, batch: list[list[EditRecord]], batch_idx: int) -> Prediction:
        """Returns the outcomes of a batch of groups of records."""
        return Prediction(self._evaluate_batch(batch, batch_idx, "predict"))

    def _evaluate_and_update(self, batch: list[list[EditRecord]], batch_idx: int, stage: str) -> dict[str, Any]:
        outcomes = self._evaluate_batch(batch, batch_idx, stage)
        self._metrics[stage].update(outcomes)
        return {"outcomes": outcomes}

    def _evaluate_batch(self, batch: list[list[EditRecord]], batch_idx: int, stage: str) -> list[EditOutcome]:
        if not batch:
            return []
        run = self._runs.get(stage)
        return self.evaluate(batch, stage) if run is None else self._step_of_sequence(run, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs the measures as "val/…"."""
        self._log_measures("validate", "val")

    def on_test_epoch_end(self) -> None:
        """Logs the measures as "test/…"."""
        self._log_measures("test", "test")

    def measures(self, stage: str) -> dict[str, float]:
        """Computes the measures of a stage so far, without those that have no values.

        Measures that are not finite for some outcome are infinite.
        """
        values = {name: float(value) for name, value in self._metrics[stage].compute().items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _log_measures(self, stage: str, prefix: str) -> None:
        measures = self.measures(stage)
        headlines = [
            value
            for name, value in measures.items()
            for kind, measure in _HEADLINES.items()
            if name.startswith(str(kind)) and name.endswith(f"/{measure}")
        ]
        if headlines:
            # A score that is not finite must not be the best one.
            measures["score"] = sum(headlines) / len(headlines) if all(map(math.isfinite, headlines)) else -math.inf
        self.log_dict({f"{prefix}/{name}": value for name, value in measures.items()}, rank_zero_only=False)
        self._metrics[stage].reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the editor, the base model and the digest of the weights to the checkpoint."""
        write_description(checkpoint, self.editor, self.language_model, self.settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another base model or of another editor.

        Raises:
            BaseModelMismatchError: If the checkpoint belongs to another base model.
            ConfigurationError: If it holds another editor, or one of another shape.
        """
        load_description(checkpoint, self.editor, self.language_model, self.state_dict())
