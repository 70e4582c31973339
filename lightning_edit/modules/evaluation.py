"""Asks a model every probe of a record, before and after its edit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.edits import EditBatch, Scorer, routes_of
from lightning_edit.judges import Judge
from lightning_edit.models.language_model import ForwardPasses, LanguageModel, Score
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.modules.questions import Question, Reply
from lightning_edit.modules.unedited_answers import UneditedAnswers
from lightning_edit.modules.wild import in_context, judged
from lightning_edit.records import Answer, EditOutcome, EditRecord, Probe, ProbeKind, Route

_OPINION_TOKENS = 30
"""Length of what is generated after a sentiment probe."""
_WILD_KINDS = (ProbeKind.EDIT_SUCCESS, ProbeKind.GENERALIZATION, ProbeKind.PORTABILITY)
"""Kinds of probes that WILD's protocol asks."""


class Evaluator:
    """Evaluates edits of one base model, many at a time, each on the clean model.

    The unedited model is asked each question once, before any edit, and its answers are kept: they are the same for
    every editor and every validation.

    Args:
        model: The base model.
        settings: How to evaluate.
        answers: What the unedited model says, shared with other evaluators of the same model.
        judge: Judge of WILD's answers, shared likewise; built from the settings if not given.

    Attributes:
        judging_seconds: Seconds that the judge took so far.
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: EvaluationSettings,
        answers: UneditedAnswers | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self._before = answers if answers is not None else UneditedAnswers()
        self._generating: set[str] = set()
        self._judge = settings.wild.build_judge() if judge is None and settings.wild is not None else judge
        self.judging_seconds = 0.0
        self._trunk: Trunk | None = None
        self._passes: ForwardPasses | None = None

    @contextmanager
    def prepared(self, editor: Editor, records: Sequence[EditRecord]) -> Iterator[None]:
        """Asks the unedited model; within the context, what it computed below the editor's lowest layer is used again.

        Args:
            editor: The editor that edits the records within the context.
            records: What :meth:`evaluate` will be given.
        """
        trunk = self._trunk_below(editor.lowest_layer(self.model))
        self.ask_before(self.questions(records), trunk.learner())
        self._passes = trunk.reader()
        try:
            yield
        finally:
            self._passes = None

    @property
    def passes(self) -> ForwardPasses | None:
        """Within :meth:`prepared`, forward passes that use the kept hidden states."""
        return self._passes

    def _trunk_below(self, layer: int) -> Trunk:
        limit = int(self.settings.trunk_gigabytes * 2**30)
        if self._trunk is None or self._trunk.layer != layer:
            self._trunk = Trunk(self.model, layer if limit else 0, limit)
        return self._trunk

    def evaluate(
        self, records: Sequence[EditRecord], edits: EditBatch, edit_of_record: Sequence[int] | None = None
    ) -> list[EditOutcome]:
        """Asks every probe of every record, under the record's own edit.

        Args:
            records: N records.
            edits: Their edits.
            edit_of_record: Which edit each record belongs to; by default the edits are in the order of the records.

        Returns:
            The outcomes, record by record.
        """
        questions = self.questions(records)
        before = self.ask_before(questions)
        rows = [
            question.record if edit_of_record is None else edit_of_record[question.record] for question in questions
        ]
        further = [row for row, one in zip(rows, questions, strict=True) for _ in one.further_texts]
        references = [said.head_input for said in before]
        with edits.applied(self.model, rows + further) as scorer:
            after = self._score(scorer, questions, references, self._passes)
        with edits.applied(self.model, rows) as scorer:
            routes = routes_of(scorer, [question.probe.prompt for question in questions])
        generating = [row for row, question in zip(rows, questions, strict=True) if question.limit]
        if generating:
            with edits.applied(self.model, generating) as scorer:
                after = self._generate(scorer, questions, after)
        wild = self._wild_questions(questions)
        if wild:
            with edits.applied(self.model, [rows[place] for place in wild]) as scorer:
                after = self._ask_in_contexts(scorer, questions, after, wild)
        return self._outcomes(records, questions, before, after, routes)

    def evaluate_under(self, records: Sequence[EditRecord], scorer: Scorer) -> list[EditOutcome]:
        """Asks every probe of every record of one edited model.

        Args:
            records: N records.
            scorer: The edited model.

        Returns:
            The outcomes, record by record.
        """
        questions = self.questions(records)
        before = [self._before[question.key] for question in questions]
        after = self._score(scorer, questions, [said.head_input for said in before])
        after = self._generate(scorer, questions, after)
        after = self._ask_in_contexts(scorer, questions, after, self._wild_questions(questions))
        routes = routes_of(scorer, [question.probe.prompt for question in questions])
        return self._outcomes(records, questions, before, after, routes)

    @staticmethod
    def _outcomes(
        records: Sequence[EditRecord],
        questions: Sequence[Question],
        before: Sequence[Reply],
        after: Sequence[Reply],
        routes: Sequence[Route | None],
    ) -> list[EditOutcome]:
        return [
            EditOutcome(
                records[question.record].id,
                question.probe,
                said.target_ids,
                reference.answer,
                said.answer,
                said.divergence if question.probe.kind is ProbeKind.LOCALITY else None,
                route,
                _is_right(route, records[question.record]),
            )
            for question, reference, said, route in zip(questions, before, after, routes, strict=True)
        ]

    def questions(self, records: Sequence[EditRecord]) -> list[Question]:
        """The probes of the records, with the length of their generations."""
        return [
            Question(index, probe, self._limit(probe) if generates else 0)
            for index, (record, generates) in enumerate((record, self._generates(record)) for record in records)
            for probe in self._probes(record)
        ]

    def check(self, records: Sequence[EditRecord]) -> None:
        """Refuses records with a text that the model cannot be asked, before the first of them is.

        Raises:
            TokenizationError: If a probe does not survive the tokenizer, or is longer than the model's positions.
            ConfigurationError: If the tokenizer cannot put probes into one of WILD's contexts.
        """
        for record in records:
            for probe in self._probes(record):
                self.model.check_text(probe.prompt, probe.answer, self._limit(probe) if self.settings.generate else 0)
                for text in Question(0, probe, 0).further_texts:
                    self.model.check_text(probe.prompt, text)
                if self.settings.wild is not None and probe.kind in _WILD_KINDS:
                    for context in self.settings.wild.contexts:
                        prompt = in_context(probe.prompt, context, self.model.encoder)
                        self.model.check_text(prompt, "", self.settings.wild.new_tokens)

    def _generates(self, record: EditRecord) -> bool:
        """Whether the model generates after a record's probes."""
        limit = self.settings.generate_records
        if self.settings.generate and (limit is None or len(self._generating) < limit):
            self._generating.add(record.id)
        return record.id in self._generating

    def _probes(self, record: EditRecord) -> list[Probe]:
        probes = [probe for probe in record.all_probes if probe.kind is not ProbeKind.FLUENCY]
        if not self.settings.measures_fluency:
            return probes
        given = list(record.probes_of(ProbeKind.FLUENCY))
        default = [Probe(request.prompt, (), ProbeKind.FLUENCY) for request in record.requests]
        return probes + (given or default)

    def _limit(self, probe: Probe) -> int:
        if probe.kind is ProbeKind.FLUENCY:
            return self.settings.fluency_tokens
        if probe.kind is ProbeKind.SENTIMENT:
            return _OPINION_TOKENS
        longest = max(probe.aliases, key=len)
        return len(self.model.tokenizer(longest, add_special_tokens=False)["input_ids"]) + self.settings.extra_tokens

    def ask_before(self, questions: Sequence[Question], passes: ForwardPasses | None = None) -> list[Reply]:
        """The unedited model's answers, asked once.

        Only what is needed later is kept of them: the head's inputs at locality probes, to compare distributions.
        """
        keys = [question.key for question in questions]
        if any(key not in self._before for key in keys):
            self._before.refresh()
        new = {key: question for key, question in zip(keys, questions, strict=True) if key not in self._before}
        if new:
            asked = list(new.values())
            said = self._score(self.model, asked, None, passes)
            said = self._generate(self.model, asked, said)
            kept = [
                reply if question.compares_distributions else replace(reply, head_input=None)
                for reply, question in zip(said, asked, strict=True)
            ]
            self._before.add(dict(zip(new, kept, strict=True)))
        return [self._before[key] for key in keys]

    def _score(
        self,
        scorer: Scorer,
        questions: Sequence[Question],
        references: Sequence[Tensor | None] | None,
        passes: ForwardPasses | None = None,
    ) -> list[Reply]:
        """Scores the first answer of each probe, and the further texts of those that have some, in one pass."""
        further = [(question.probe.prompt, text) for question in questions for text in question.further_texts]
        prompts = [question.probe.prompt for question in questions] + [prompt for prompt, _ in further]
        targets = [question.probe.answer for question in questions] + [text for _, text in further]
        padded = [*references, *([None] * len(further))] if references is not None else None
        scores = scorer.score(prompts, targets, padded, references is None, passes)
        rest = iter(scores[len(questions) :])
        return [
            _reply_of(question, score, [next(rest) for _ in question.further_texts])
            for question, score in zip(questions, scores, strict=False)
        ]

    def _generate(self, scorer: Scorer, questions: Sequence[Question], said: Sequence[Reply]) -> list[Reply]:
        """What is said freely to the questions that ask for it, added to what was scored."""
        generating = [question for question in questions if question.limit]
        if not generating:
            return list(said)
        prompts, limits = [one.probe.prompt for one in generating], [one.limit for one in generating]
        texts = iter(scorer.generate(prompts, limits))
        return [
            replace(one, answer=replace(one.answer, generation=next(texts))) if question.limit else one
            for one, question in zip(said, questions, strict=True)
        ]

    def _wild_questions(self, questions: Sequence[Question]) -> list[int]:
        """Places of the questions that WILD asks: those about what was edited, and about what follows from it."""
        if self.settings.wild is None:
            return []
        return [place for place, one in enumerate(questions) if one.limit and one.probe.kind in _WILD_KINDS]

    def _ask_in_contexts(
        self, scorer: Scorer, questions: Sequence[Question], said: Sequence[Reply], places: Sequence[int]
    ) -> list[Reply]:
        """What is said to the questions at some places in WILD's contexts, added to what was said before."""
        settings, answers = self.settings.wild, list(said)
        if settings is None or not places:
            return answers
        probes = [questions[place].probe for place in places]
        texts: dict[str, list[str]] = {}
        for context in settings.contexts:
            prompts = [in_context(probe.prompt, context, self.model.encoder) for probe in probes]
            texts[context] = scorer.generate(prompts, settings.new_tokens)
        verdicts = self._verdicts(probes, texts)
        for number, place in enumerate(places):
            answer = replace(
                answers[place].answer,
                in_context={context: generated[number] for context, generated in texts.items()},
                judged={
                    context: verdict
                    for context, of_context in verdicts.items()
                    if (verdict := of_context[number]) is not None
                },
            )
            answers[place] = replace(answers[place], answer=answer)
        return answers

    def _verdicts(self, probes: Sequence[Probe], texts: Mapping[str, Sequence[str]]) -> dict[str, list[float | None]]:
        """What the judge says of the generated texts of each context; nothing without a judge."""
        if self._judge is None:
            return {}
        prompts, aliases = [probe.prompt for probe in probes], [probe.aliases for probe in probes]
        started = time.perf_counter()
        verdicts = {context: judged(self._judge, prompts, aliases, generated) for context, generated in texts.items()}
        self.judging_seconds += time.perf_counter() - started
        return verdicts


def _reply_of(question: Question, score: Score, further: Sequence[Score]) -> Reply:
    answer = Answer(score.predicted_ids, score.log_probs)
    if question.probe.kind is ProbeKind.SENTIMENT:
        wanted = len(question.probe.aliases)
        answer = replace(
            answer,
            wanted_log_probs=_joined_log_probs(further[:wanted]),
            opposite_log_probs=_joined_log_probs(further[wanted:]),
        )
    elif further:
        answer = replace(answer, rival_log_probs=further[0].log_probs)
    return Reply(answer, score.target_ids, score.head_input, score.divergence)


def _joined_log_probs(scores: Sequence[Score]) -> tuple[float, ...]:
    return tuple(value for score in scores for value in score.log_probs)


def _is_right(route: Route | None, record: EditRecord) -> bool | None:
    """Whether the item that was found closest holds one of the record's requests."""
    if route is None:
        return None
    asked = {(request.prompt, request.target) for request in record.requests}
    return any((request.prompt, request.target) in asked for request in route.requests)
