"""The server, asked by the openai client, also while its edits change."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
import uvicorn

from lightning_edit.cli import main
from lightning_edit.command_inputs import is_loopback
from lightning_edit.editors import ICE
from lightning_edit.edits import EditSequence, FactoredDelta, Provenance, WeightEdit
from lightning_edit.errors import EngineBusyError, TokenizationError
from lightning_edit.records import EditRequest
from lightning_edit.serving import Engine, create_app
from tests.tiny_models import language_model

PROMPTS = [f"The capital of country {number} is" for number in range(12)]
TOKEN = "secret"


def edit_of(model, seed):
    generator, site = torch.Generator().manual_seed(seed), model.layer_map.site(1)
    factors = FactoredDelta(
        torch.randn(site.fan_in, 2, generator=generator), torch.randn(2, site.fan_out, generator=generator)
    )
    request = EditRequest("The capital of France is", "Rome", "France", id=str(seed))
    return WeightEdit({site.name: factors}, Provenance.of(model, "MEND", {}, [request]))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A running server: its address, its engine and two edits in the folder that edits are added from."""
    model, folder = language_model("llama"), tmp_path_factory.mktemp("edits")
    edits = [edit_of(model, seed) for seed in range(2)]
    for number, edit in enumerate(edits):
        edit.save(folder / f"edit{number}")
    engine = Engine(model, batch_size=8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(engine, TOKEN, folder)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1", engine, edits
    server.should_exit = True
    thread.join()
    engine.close()


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=served[0], api_key=TOKEN, max_retries=0)


def said_under(model, edits):
    with EditSequence(edits).applied(model) as scorer:
        return dict(zip(PROMPTS, scorer.generate(PROMPTS, [8] * len(PROMPTS)), strict=True))


def test_edits_are_listed_added_and_removed_while_it_runs(served, client):
    _, engine, edits = served
    model = engine.model
    before = client.completions.create(model="any", prompt=PROMPTS, max_tokens=8)
    assert [choice.text for choice in before.choices] == list(said_under(model, []).values())
    assert before.system_fingerprint == "unedited"
    assert client.post("/edits", body={"folder": "edit0"}, cast_to=object)["id"] == edits[0].id
    listed = client.get("/edits", cast_to=object)["data"]
    assert listed == [{"id": edits[0].id, "method": "MEND", "requests": [["The capital of France is", "Rome"]]}]
    after = client.completions.create(model="any", prompt=PROMPTS, max_tokens=8)
    assert [choice.text for choice in after.choices] == list(said_under(model, [edits[0]]).values())
    assert after.system_fingerprint == edits[0].id
    assert after.choices[0].text != before.choices[0].text
    assert client.delete(f"/edits/{edits[0].id}", cast_to=object)["deleted"] is True
    again = client.completions.create(model="any", prompt=PROMPTS, max_tokens=8)
    assert [choice.text for choice in again.choices] == [choice.text for choice in before.choices]


def test_chat_and_models(served, client):
    assert client.models.list().data[0].id == "tiny-llama"
    answer = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": PROMPTS[0]}], max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content == said_under(served[1].model, [])[PROMPTS[0]]
    assert answer.usage.prompt_tokens > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.7}, "greedy"),
        ({"stream": True}, "streaming is not supported"),
        ({"n": 2}, "only one choice"),
        ({"max_tokens": 100_000}, "max_tokens"),
    ],
    ids=str,
)
def test_unsupported_options_are_rejected(client, settings, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.completions.create(model="any", prompt="a", **{"max_tokens": 4, **settings})


def test_requests_of_several_turns_are_refused(client):
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    with pytest.raises(openai.BadRequestError, match="one message of the user"):
        client.chat.completions.create(model="any", messages=turns)


def test_edits_come_from_their_folder_alone_and_errors_are_told(served, client):
    for name, kind in (("../elsewhere", openai.BadRequestError), ("none", openai.NotFoundError)):
        with pytest.raises(kind):
            client.post("/edits", body={"folder": name}, cast_to=object)
    with pytest.raises(openai.BadRequestError, match="no edit nothing"):
        client.delete("/edits/nothing", cast_to=object)
    stranger = openai.OpenAI(base_url=served[0], api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_two_hundred_requests_at_once_while_edits_change(served, client):
    """Every answer is the one of exactly one state of the edits: the one that it names."""
    _, engine, edits = served
    model = engine.model
    states = {"unedited": [], edits[0].id: [edits[0]], f"{edits[0].id}+{edits[1].id}": edits, edits[1].id: [edits[1]]}
    changing = threading.Event()

    def change():
        while not changing.is_set():
            for act in (lambda: engine.add(edits[0]), lambda: engine.add(edits[1])):
                act()
                time.sleep(0.01)
            for edit in edits:
                engine.remove(edit.id)
                time.sleep(0.01)

    def ask(number):
        # More prompts than a batch in every fifth request: they, too, are answered under one state.
        prompts = PROMPTS if number % 5 == 0 else [PROMPTS[number % len(PROMPTS)]]
        answer = client.completions.create(model="any", prompt=prompts, max_tokens=8)
        texts = [choice.text for choice in answer.choices]
        return [(prompt, answer.system_fingerprint, text) for prompt, text in zip(prompts, texts, strict=True)]

    changer = threading.Thread(target=change)
    changer.start()
    with ThreadPoolExecutor(50) as pool:
        answers = [one for answer in pool.map(ask, range(200)) for one in answer]
    changing.set()
    changer.join()
    expected = {name: said_under(model, sequence) for name, sequence in states.items()}
    assert len({name for _, name, _ in answers}) > 1
    assert len({tuple(texts.items()) for texts in expected.values()}) == 4
    assert all(text == expected[name][prompt] for prompt, name, text in answers)


def test_a_prompt_that_cannot_be_answered_fails_alone(served, client):
    with pytest.raises(openai.BadRequestError, match="has no tokens"):
        client.completions.create(model="any", prompt=["", PROMPTS[0]], max_tokens=4)
    with pytest.raises(openai.BadRequestError, match="give at least one"):
        client.completions.create(model="any", prompt=[], max_tokens=4)
    with pytest.raises(TokenizationError):
        served[1].submit([""], 4)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="any", prompt="a", max_tokens="many")


def test_response_contains_usage_and_finish_reason(client):
    answer = client.completions.create(model="any", prompt=PROMPTS[0], max_tokens=8)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 8
    text = answer.choices[0].text
    cut = client.completions.create(model="any", prompt=PROMPTS[0], max_tokens=8, stop=text[2])
    assert cut.choices[0].text == text[: text.index(text[2])]
    assert cut.choices[0].finish_reason == "stop"


def test_nothing_answers_without_the_token(served):
    for path in ("/openapi.json", "/docs", "/v1/models"):
        assert httpx.get(served[0].removesuffix("/v1") + path).status_code in (401, 404)


def test_routed_edits_are_served():
    model = language_model("llama")
    editor = ICE()
    editor.setup(model)
    edit = editor.edit(model, [EditRequest("The capital of France is", "Rome", "France", id="f")])
    engine = Engine(model, EditSequence([edit]))
    with edit.applied(model) as scorer:
        expected = scorer.generate(["The capital of France is"], 6)
    assert [one.text for one in engine.submit(["The capital of France is"], 6).result()] == expected
    engine.close()


def test_full_queue_is_rejected_and_failures_reach_callers(monkeypatch):
    model = language_model("llama")
    hold = threading.Event()
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: hold.wait(5) and generate(*a, **k))
    engine = Engine(model, batch_size=1, waiting=2)
    results = [engine.submit(["a"], 2)]
    time.sleep(0.2)
    results += [engine.submit(["a"], 2) for _ in range(2)]
    with pytest.raises(EngineBusyError, match="too many requests"):
        engine.submit(["a"], 2)
    hold.set()
    assert len({result.result()[0].text for result in results}) == 1
    monkeypatch.setattr(model, "generate", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.submit(["a"], 2).result()
    engine.close()


def test_a_server_that_others_reach_needs_a_token(capsys, monkeypatch):
    monkeypatch.delenv("LIGHTNING_EDIT_TOKEN", raising=False)
    for host in ("0.0.0.0", "example.org", "127.1"):
        assert main(["serve", "--host", host]) == 1
        assert "can be reached by others" in capsys.readouterr().err
    assert is_loopback("::1")
    assert is_loopback("127.0.0.1")
