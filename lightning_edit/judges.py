"""Judges of generated answers: a local language model, or a server with an OpenAI-compatible API."""

from __future__ import annotations

import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from lightning_edit.errors import ConfigurationError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import load_language_model

_QUESTION = """\
Question: {prompt}
Accepted answers: {answers}
Given answer: {text}
Does the given answer say the same as one of the accepted answers? Reply with one word, CORRECT or INCORRECT."""
_VERDICT = re.compile(r"\W*(IN)?CORRECT\b", re.IGNORECASE)
_TRIES = 3
"""Number of attempts when a server is busy or times out."""


@dataclass(frozen=True)
class Case:
    """An answer to be judged.

    Args:
        prompt: The question.
        answers: Acceptable answers.
        text: What was generated.
    """

    prompt: str
    answers: tuple[str, ...]
    text: str


class Judge(ABC):
    """Decides whether generated answers are right. Custom subclasses are given by their class path."""

    @abstractmethod
    def judge(self, cases: Sequence[Case]) -> list[float]:
        """Returns 1 for each right answer, 0 for each wrong one, and NaN if undecided (excluded from the score).

        Args:
            cases: The answers.
        """


class LanguageModelJudge(Judge):
    """Asks a local language model to reply CORRECT or INCORRECT (greedy decoding).

    Args:
        name_or_path: Hub id, folder, GGUF file or bundled name of an instruct model.
        dtype: Its precision.
        device: Where to put it.
    """

    def __init__(self, name_or_path: str, dtype: str = "float32", device: str | None = None) -> None:
        self.name_or_path, self.dtype, self.device = name_or_path, dtype, device
        self._model: LanguageModel | None = None

    def judge(self, cases: Sequence[Case]) -> list[float]:
        """See :meth:`Judge.judge`."""
        if self._model is None:
            self._model = load_language_model(
                self.name_or_path, dtype=self.dtype, device=self.device, chat_template=True
            )
        return [verdict(reply) for reply in self._model.generate([_judge_prompt(case) for case in cases], 8)]


class OpenAIJudge(Judge):
    """Asks a server with an OpenAI-compatible chat API, such as vLLM or llama.cpp.

    Args:
        model: Name of the model on the server.
        base_url: URL of the API, with its version ("http://127.0.0.1:8000/v1").
        token_variable: Environment variable with the token; no token is sent if it is unset.
        timeout: Timeout of a request in seconds.
    """

    def __init__(
        self, model: str, base_url: str, token_variable: str = "OPENAI_API_KEY", timeout: float = 60.0
    ) -> None:
        self.model, self.base_url = model, base_url
        self.token_variable, self.timeout = token_variable, timeout

    def judge(self, cases: Sequence[Case]) -> list[float]:
        """See :meth:`Judge.judge`.

        Raises:
            ConfigurationError: If the server cannot be reached, or refuses.
        """
        token = os.environ.get(self.token_variable)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(headers=headers, timeout=self.timeout) as client:
            return [verdict(self._reply(client, case)) for case in cases]

    def _reply(self, client: httpx.Client, case: Case) -> str:
        message = {"role": "user", "content": _judge_prompt(case)}
        content = {"model": self.model, "messages": [message], "max_tokens": 8, "temperature": 0.0}
        address = f"{self.base_url.rstrip('/')}/chat/completions"
        try:
            response = _post_with_retries(client, address, content).raise_for_status()
            return str(response.json()["choices"][0]["message"]["content"] or "")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigurationError(
                f"evaluation.wild.judge: {address} gave no answer ({type(error).__name__}: {error})"
            ) from error


def _post_with_retries(client: httpx.Client, address: str, content: dict[str, Any]) -> httpx.Response:
    """Posts to a server, and retries after 1 s and 2 s if it is busy, fails or times out."""
    for trial in range(1, _TRIES):
        try:
            response = client.post(address, json=content)
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS and response.status_code < 500:
                return response
        except httpx.TimeoutException:
            pass  # retried below
        time.sleep(trial)
    return client.post(address, json=content)


def verdict(reply: str) -> float:
    """Scores a reply: 1 if it begins with CORRECT, 0 for INCORRECT, NaN for any other.

    Example:
        >>> verdict("Correct."), verdict("**INCORRECT**"), verdict("It is not correct")
        (1.0, 0.0, nan)
    """
    match = _VERDICT.match(reply)
    return math.nan if match is None else float(match.group(1) is None)


def _judge_prompt(case: Case) -> str:
    answers = " / ".join(case.answers)
    return _QUESTION.format(prompt=case.prompt, answers=answers, text=" ".join(case.text.split()) or "(nothing)")
