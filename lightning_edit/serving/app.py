"""An OpenAI-compatible server, with routes to add, list and remove edits."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from lightning_edit.edits import load_edit
from lightning_edit.errors import ConfigurationError, EngineBusyError, LightningEditError, SourceNotFoundError
from lightning_edit.serving.engine import Completion, Engine

_SYSTEM_ROLES = ("system", "developer")


class CompletionRequest(BaseModel):
    """The supported fields of the body of /v1/completions."""

    model: str = ""
    prompt: str | list[str]
    max_tokens: int = 16
    temperature: float | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    n: int = 1


class Message(BaseModel):
    """A message of a chat."""

    role: str
    content: str


class ChatRequest(BaseModel):
    """The supported fields of the body of /v1/chat/completions."""

    model: str = ""
    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    n: int = 1


class EditRequestBody(BaseModel):
    """The body of POST /v1/edits."""

    folder: str


def create_app(
    engine: Engine, token: str | None = None, folder: str | Path | None = None, longest: int = 512
) -> FastAPI:
    """Creates the server's FastAPI application.

    Decoding is greedy, as everywhere in this package; requests for sampling, streaming or several choices are rejected.
    The ``system_fingerprint`` of an answer names the edits that were applied.

    Args:
        engine: Answers the prompts.
        token: Token that clients must send as "Authorization: Bearer …"; None for no authorization.
        folder: Folder that edits may be added from; None for no additions.
        longest: Maximum answer length of a request, in tokens.
    """

    def authorized(authorization: Annotated[str, Header()] = "") -> None:
        if token is not None and not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "the token is missing or wrong")

    # No documentation pages: they would be served without the token.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(authorized)])

    async def answered(prompts: list[str], limit: int, request: CompletionRequest | ChatRequest) -> list[Completion]:
        _reject_unsupported(request)
        if not 1 <= limit <= longest:
            raise ConfigurationError(f"max_tokens: expected 1 to {longest}, found {limit}")
        completions = await asyncio.wrap_future(engine.submit(prompts, limit))
        return [_cut_at_stop(completion, request.stop) for completion in completions]

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": engine.model.name, "object": "model", "owned_by": "lightning_edit"}]}

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest) -> dict[str, Any]:
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        results = await answered(prompts, request.max_tokens, request)
        choices = [{"index": index, "text": one.text, **_finish(one)} for index, one in enumerate(results)]
        return _response("text_completion", engine, results, choices)

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> dict[str, Any]:
        prompt = _single_turn(request.messages)
        results = await answered([prompt], request.max_completion_tokens or request.max_tokens or 64, request)
        message = {"role": "assistant", "content": results[0].text}
        return _response("chat.completion", engine, results, [{"index": 0, "message": message, **_finish(results[0])}])

    @app.get("/v1/edits")
    def edits() -> dict[str, Any]:
        listed = [
            {
                "id": edit.id,
                "method": edit.provenance.method,
                "requests": [[one.prompt, one.target] for one in edit.provenance.requests],
            }
            for edit in engine.edits.edits
        ]
        return {"object": "list", "data": listed}

    @app.post("/v1/edits", status_code=201)
    def add(request: EditRequestBody) -> dict[str, Any]:
        edit = load_edit(_inside(folder, request.folder))
        engine.add(edit)
        return {"id": edit.id}

    @app.delete("/v1/edits/{id}")
    def remove(id: str) -> dict[str, Any]:
        engine.remove(id)
        return {"id": id, "deleted": True}

    app.add_exception_handler(LightningEditError, _error_response)
    app.add_exception_handler(HTTPException, _error_response)
    app.add_exception_handler(RequestValidationError, _error_response)
    return app


def _error_response(request: Request, error: Exception) -> JSONResponse:
    """Converts an error to OpenAI's format."""
    statuses: dict[type[Exception], int] = {SourceNotFoundError: 404, EngineBusyError: 429}
    status, message = statuses.get(type(error), 400), str(error)
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
    if isinstance(error, RequestValidationError):
        message = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"error": {"message": message, "type": type(error).__name__}}, status)


def _reject_unsupported(request: CompletionRequest | ChatRequest) -> None:
    """Raises a ConfigurationError for sampling, streaming and several choices."""
    if request.temperature:
        raise ConfigurationError("temperature: answers are greedy; leave it out, or send 0")
    if request.stream:
        raise ConfigurationError("stream: streaming is not supported; leave it out or send false")
    if request.n != 1:
        raise ConfigurationError("n: only one choice per prompt is supported; leave it out or send 1")


def _single_turn(messages: list[Message]) -> str:
    """Joins the system messages and the user's message.

    Raises:
        ConfigurationError: If there is more than one turn.
    """
    others = [message for message in messages if message.role not in _SYSTEM_ROLES]
    if len(others) != 1 or others[0].role != "user":
        raise ConfigurationError("messages: edits are routed by one prompt; send one message of the user")
    system = [message.content for message in messages if message.role in _SYSTEM_ROLES]
    return "\n\n".join([*system, others[0].content])


def _cut_at_stop(completion: Completion, stop: str | list[str] | None) -> Completion:
    marks = [stop] if isinstance(stop, str) else stop or []
    places = [place for mark in marks if mark and (place := completion.text.find(mark)) >= 0]
    if not places:
        return completion
    return replace(completion, text=completion.text[: min(places)], ended=True)


def _finish(completion: Completion) -> dict[str, Any]:
    return {"logprobs": None, "finish_reason": "stop" if completion.ended else "length"}


def _response(kind: str, engine: Engine, results: list[Completion], choices: list[dict[str, Any]]) -> dict[str, Any]:
    asked, used = sum(one.prompt_tokens for one in results), sum(one.completion_tokens for one in results)
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": engine.model.name,
        "system_fingerprint": "+".join(results[0].edits) or "unedited",
        "choices": choices,
        "usage": {"prompt_tokens": asked, "completion_tokens": used, "total_tokens": asked + used},
    }


def _inside(folder: str | Path | None, name: str) -> Path:
    """Resolves an edit's folder inside the one that edits may be added from.

    Raises:
        ConfigurationError: If none may be added, or it is outside that folder.
    """
    if folder is None:
        raise ConfigurationError("no edits can be added: the server was started without --edits_folder")
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if root not in path.parents:
        raise ConfigurationError(f"{name}: edits are added from below {root}")
    return path
