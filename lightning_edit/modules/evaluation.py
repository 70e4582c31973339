"""Evaluates a model on every probe of a record, before and after its edit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.edits import EditBatch, Scorer, routes_of
from lightning_edit.judges import Judge
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.models.scoring import Score
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.modules.questions import Question, QuestionKey, Reply
from lightning_edit.modules.unedited_answers import UneditedAnswers
from lightning_edit.modules.wild import in_context, judged
from lightning_edit.records import Answer, EditOutcome, EditRecord, Probe, ProbeKind, Route

_QUESTIONS_PER_PART = 1000
"""Maximum number of questions for the unedited model between two writes of its answers."""
_OPINION_TOKENS = 30
"""Number of tokens generated after a sentiment probe."""
_WILD_KINDS = (ProbeKind.EDIT_SUCCESS, ProbeKind.GENERALIZATION, ProbeKind.PORTABILITY)
"""Probe kinds of WILD's protocol."""


class Evaluator:
    """Evaluates edits of one base model, many at a time, each on the clean model.

    The unedited model is asked each question once, before any edit. Its answers are cached, as they are the same for
    every editor and every validation.

    Args:
        model: The base model.
        settings: How to evaluate.
        answers: Cached answers of the unedited model, shared with other evaluators of the same model.
        judge: Judge of WILD's answers, also shared; built from the settings by default.

    Attributes:
        judging_seconds: Seconds spent on judging so far.
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
        """Asks the unedited model; within the context, its hidden states below the editor's lowest layer are reused.

        Args:
            editor: The editor that edits the records within the context.
            records: The records that :meth:`evaluate` will be given.
        """
        trunk = self._trunk_below(editor.lowest_layer(self.model))
        self.ask_before(self.questions(records), trunk.caching_passes())
        self._passes = trunk.cached_passes()
        try:
            yield
        finally:
            self._passes = None

    @property
    def passes(self) -> ForwardPasses | None:
        """Forward passes that use the cached hidden states, within :meth:`prepared`."""
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
            edit_of_record: Index of each record's edit; by default the edits are in the order of the records.

        Returns:
            The outcomes, record by record.
        """
        questions = self.questions(records)
        before = self.ask_before(questions)
        rows = [
            question.record if edit_of_record is None else edit_of_record[question.record] for question in questions
        ]
        further = [row for row, one in zip(rows, questions, strict=True) for _ in one.further_texts]
        references = [reply.head_input for reply in before]
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
        after = self._score(scorer, questions, [reply.head_input for reply in before])
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
                reply.target_ids,
                reference.answer,
                reply.answer,
                reply.divergence if question.probe.kind is ProbeKind.LOCALITY else None,
                route,
                _is_right(route, records[question.record]),
            )
            for question, reference, reply, route in zip(questions, before, after, routes, strict=True)
        ]

    def questions(self, records: Sequence[EditRecord]) -> list[Question]:
        """Returns the probes of the records, with the length of their generations."""
        return [
            Question(index, probe, self._limit(probe) if generates else 0)
            for index, (record, generates) in enumerate((record, self._generates(record)) for record in records)
            for probe in self._probes(record)
        ]

    def check(self, records: Sequence[EditRecord]) -> None:
        """Refuses records with texts that the model cannot process, before any of them is evaluated.

        Raises:
            TokenizationError: If a probe does not survive the tokenizer, or exceeds the model's positions.
            ConfigurationError: If the tokenizer does not support one of WILD's contexts.
        """
        for record in records:
            for probe in self._probes(record):
                new_tokens = self._limit(probe) if self.settings.generate else 0
                self.model.limits.check_text(probe.prompt, probe.answer, new_tokens)
                for text in Question(0, probe, 0).further_texts:
                    self.model.limits.check_text(probe.prompt, text)
                if self.settings.wild is not None and probe.kind in _WILD_KINDS:
                    for context in self.settings.wild.contexts:
                        prompt = in_context(probe.prompt, context, self.model.encoder)
                        self.model.limits.check_text(prompt, "", self.settings.wild.new_tokens)

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
        """Returns the unedited model's answers, which are computed once.

        The head's inputs are cached only for locality probes, to compare distributions.
        """
        keys = [question.key for question in questions]
        if any(key not in self._before for key in keys):
            self._before.refresh()
        new = {key: question for key, question in zip(keys, questions, strict=True) if key not in self._before}
        new_questions = list(new.values())
        # In parts, so that little is lost if the process is stopped.
        for start in range(0, len(new_questions), _QUESTIONS_PER_PART):
            self._before.add(self._ask_unedited(new_questions[start : start + _QUESTIONS_PER_PART], passes))
        return [self._before[key] for key in keys]

    def _ask_unedited(self, questions: Sequence[Question], passes: ForwardPasses | None) -> dict[QuestionKey, Reply]:
        replies = self._generate(self.model, questions, self._score(self.model, questions, None, passes))
        return {
            question.key: reply if question.compares_distributions else replace(reply, head_input=None)
            for question, reply in zip(questions, replies, strict=True)
        }

    def _score(
        self,
        scorer: Scorer,
        questions: Sequence[Question],
        references: Sequence[Tensor | None] | None,
        passes: ForwardPasses | None = None,
    ) -> list[Reply]:
        """Scores the first answer of each probe, and any further texts, in one pass."""
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

    def _generate(self, scorer: Scorer, questions: Sequence[Question], replies: Sequence[Reply]) -> list[Reply]:
        """Adds free generations to the replies of the questions that ask for them."""
        generating = [question for question in questions if question.limit]
        if not generating:
            return list(replies)
        prompts, limits = [one.probe.prompt for one in generating], [one.limit for one in generating]
        texts = iter(scorer.generate(prompts, limits))
        return [
            replace(one, answer=replace(one.answer, generation=next(texts))) if question.limit else one
            for one, question in zip(replies, questions, strict=True)
        ]

    def _wild_questions(self, questions: Sequence[Question]) -> list[int]:
        """Returns the indices of WILD's questions: about the edited facts and what follows from them."""
        if self.settings.wild is None:
            return []
        return [place for place, one in enumerate(questions) if one.limit and one.probe.kind in _WILD_KINDS]

    def _ask_in_contexts(
        self, scorer: Scorer, questions: Sequence[Question], replies: Sequence[Reply], places: Sequence[int]
    ) -> list[Reply]:
        """Adds generations in WILD's contexts to the replies of the questions at some places."""
        settings, answers = self.settings.wild, list(replies)
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
        """Returns the judge's verdicts on the generated texts of each context; empty without a judge."""
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
    """Whether the closest item holds one of the record's requests."""
    if route is None:
        return None
    expected = {(request.prompt, request.target) for request in record.requests}
    return any((request.prompt, request.target) in expected for request in route.requests)
