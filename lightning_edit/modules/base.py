"""Base LightningModule of all editors: loading of the base model, evaluation, checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric, MetricCollection

from lightning_edit.checkpoint_io import AtomicCheckpointIO
from lightning_edit.data.corpus import CorpusRange
from lightning_edit.data.sampling import limited
from lightning_edit.editors.base import Editor
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
from lightning_edit.modules.protocols import EvaluationProtocol, IndependentProtocol, JointProtocol
from lightning_edit.modules.sequential import SequentialProtocol, flat, perplexity_text
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
        metrics: Further metrics over all outcomes, logged under the names of their classes in snake case, with their
            kind, group and side ("locality/first_token").
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
        self.extra_metrics = metric_names(metrics)
        """Further metrics over all outcomes, by name."""
        self._language_model: LanguageModel | None = None
        self._answers: UneditedAnswers | None = None
        self._judge: Judge | None = None
        self.costs = Costs()
        self._metrics: dict[str, MetricCollection] = {}
        self._protocols: dict[str, EvaluationProtocol] = {}
        self._checked_texts: dict[str, object] = {}

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
        self._checked_texts.clear()
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
        if stage == "fit":
            self._check_probes(datamodule, "validate", self.validation)
        else:
            self._check_probes(datamodule, stage, self.evaluation)
        if "fit" in datamodule.reports and stage == "fit":
            for prompt, answer in datamodule.training_prompts():
                self.language_model.limits.check_text(prompt, answer)

    def _check_probes(self, datamodule: Any, stage: str, settings: EvaluationSettings) -> None:
        """Checks the texts of a stage's records once: in fit, validation starts after every epoch."""
        if stage not in datamodule.reports or self._checked_texts.get(stage) is datamodule.reports[stage]:
            return
        self._checked_texts[stage] = datamodule.reports[stage]
        Evaluator(self.language_model, settings, judge=self._judge).check(datamodule.records(stage))

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
        evaluator = Evaluator(self.language_model, settings, self._answers, self._judge)
        self.costs = Costs()
        names = settings.groups(datamodule.groups(stage))

        def new_metrics() -> MetricCollection:
            return edit_metrics(names, self.average, copy.deepcopy(self.extra_metrics))

        self._close(stage)
        if settings.sequential is not None:
            self._protocols[stage] = self._sequential(datamodule, stage, settings.sequential, evaluator, new_metrics)
        else:
            groups, joint = datamodule.evaluation_groups(stage), datamodule.eval_requests_per_edit > 1
            limit = getattr(self.trainer, _LIMITS[stage])
            complete = limit is None or (isinstance(limit, float) and limit >= 1)
            protocol = JointProtocol if joint else IndependentProtocol
            self._protocols[stage] = protocol(
                self.language_model, self.editor, evaluator, groups, self.costs, check_all=complete
            )
        self._metrics[stage] = new_metrics().to(self.device)

    def protocol(self, stage: str) -> EvaluationProtocol:
        """Returns how the records of a stage are edited and evaluated.

        Raises:
            ConfigurationError: If the stage was not set up.
        """
        if stage not in self._protocols:
            raise ConfigurationError(f"nothing was prepared for {stage}; run it with a Trainer and an EditDataModule")
        return self._protocols[stage]

    def keeps_order(self, stage: str) -> bool:
        """Whether the records of a stage have to be evaluated in their order, one group at a time."""
        return stage in self._protocols and self._protocols[stage].keeps_order

    @property
    def corpus_range(self) -> CorpusRange:
        """The part of the corpus that fit reads."""
        return CorpusRange()

    def _sequential(
        self,
        datamodule: Any,
        stage: str,
        settings: SequentialSettings,
        evaluator: Evaluator,
        new_metrics: Callable[[], MetricCollection],
    ) -> SequentialProtocol:
        if self.trainer.state.fn == "fit":
            raise ConfigurationError(
                "model.validation.sequential: a sequence is measured once, not after each epoch; run validate or test "
                "with model.evaluation.sequential"
            )
        if self.trainer.world_size > 1:
            raise ConfigurationError(
                "evaluation.sequential: a sequence of edits cannot be divided between processes; use trainer.devices 1"
            )
        groups = datamodule.evaluation_groups(stage)
        # A limited sequence is measured at its limit.
        groups = groups[: limited(len(groups), getattr(self.trainer, _LIMITS[stage]))]
        folder = Path(settings.folder or self.trainer.log_dir or self.trainer.default_root_dir)
        return SequentialProtocol(
            self.language_model, self.editor, evaluator, settings, groups, folder, self.costs, new_metrics
        )

    def _close(self, stage: str) -> None:
        protocol = self._protocols.pop(stage, None)
        if protocol is not None:
            protocol.close()

    def teardown(self, stage: str) -> None:
        """Releases the folder of a sequence for other runs."""
        for protocol in self._protocols.values():
            protocol.close()

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
        if (datamodule := getattr(self.trainer, "datamodule", None)) is not None:
            fitting = self.trainer.state.fn == "fit"
            self._check_probes(datamodule, stage, self.validation if fitting else self.evaluation)
        if stage in self._protocols:
            if self.editor.capabilities.needs_grad and torch.is_inference_mode_enabled():
                raise ConfigurationError(
                    f"{type(self.editor).__name__} takes gradients, which inference mode forbids; create the Trainer "
                    "with inference_mode=False"
                )
            self._protocols[stage].check()

    def validation_step(self, batch: list[list[EditRecord]], batch_idx: int) -> dict[str, Any]:
        """Evaluates a batch of groups of records; callbacks find the outcomes under "outcomes"."""
        return self._evaluate_and_update(batch, "validate")

    def test_step(self, batch: list[list[EditRecord]], batch_idx: int) -> dict[str, Any]:
        """Evaluates a batch of groups of records; callbacks find the outcomes under "outcomes"."""
        return self._evaluate_and_update(batch, "test")

    def predict_step(self, batch: list[list[EditRecord]], batch_idx: int) -> Prediction:
        """Returns the outcomes of a batch of groups of records."""
        return Prediction(self._evaluate(batch, "predict"))

    def _evaluate_and_update(self, batch: list[list[EditRecord]], stage: str) -> dict[str, Any]:
        outcomes = self._evaluate(batch, stage)
        self._metrics[stage].update(outcomes)
        return {"outcomes": outcomes}

    def _evaluate(self, batch: list[list[EditRecord]], stage: str) -> list[EditOutcome]:
        if not batch:
            return []
        protocol = self._protocols[stage]
        outcomes = protocol.step(batch)
        for row in protocol.new_measures():
            values = {f"sequence/{name}": value for name, value in flat(row).items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=int(row["edits"]))
        return outcomes

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
        extra = self.extra_metrics
        headlines = [
            value
            for name, value in measures.items()
            for kind, measure in _HEADLINES.items()
            if name.startswith(str(kind)) and name.endswith(f"/{measure}") and name not in extra
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
