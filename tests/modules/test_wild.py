"""WILD's contexts and judges: what is asked, what is measured of it, and a judge behind a server."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lightning_edit.callbacks.report import prediction
from lightning_edit.data import WorldFacts
from lightning_edit.editors import ICE, GradientStep
from lightning_edit.edits import EditSequence
from lightning_edit.errors import ConfigurationError, TokenizationError
from lightning_edit.judges import Case, Judge, LanguageModelJudge, OpenAIJudge, verdict
from lightning_edit.metrics.collection import measures_of
from lightning_edit.metrics.generation import wild_match
from lightning_edit.models import LanguageModel
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.modules.wild import WildSettings, in_context, judged
from lightning_edit.records import ProbeKind
from tests.tiny_models import byte_level_tokenizer, language_model

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
JUDGED = {"class_path": "tests.modules.test_wild.LongAnswers"}


class LongAnswers(Judge):
    """A judge that likes long answers, and remembers what it was asked."""

    asked: list[Case] = []

    def judge(self, cases):
        self.asked += cases
        return [float(len(case.text) > 20) for case in cases]


def chatting(name="llama"):
    plain = language_model(name)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return LanguageModel(plain.model, tokenizer, name=name)


def records():
    return WorldFacts("validation", limit=2).read().records


def test_the_contexts_are_those_of_the_paper():
    encoder = chatting().encoder
    assert in_context("Who?", "question", encoder) == "Who?"
    instructed = "Please answer the question:\n\nQ: Who?\nA:"
    assert in_context("Who?", "instruction", encoder) == instructed
    system = "<system>You are a helpful, respectful and honest assistant.\n"
    assert in_context("Who?", "chat", encoder) == f"{system}<user>{instructed}\n<assistant>"
    with pytest.raises(ConfigurationError, match="the tokenizer has no chat template; leave out 'chat'"):
        in_context("Who?", "chat", language_model("llama").encoder)


def test_contexts_that_cannot_be_asked_are_refused_before_anything_is():
    with pytest.raises(ConfigurationError, match="the tokenizer has no chat template"):
        Evaluator(language_model("llama"), EvaluationSettings(wild=WildSettings())).check(records())
    model = chatting()
    model.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ConfigurationError, match=r"refuses WILD's messages .System role not supported.; leave out 'ch"):
        Evaluator(model, EvaluationSettings(wild=WildSettings())).check(records())
    with pytest.raises(TokenizationError, match="positions"):
        Evaluator(language_model("gpt2"), EvaluationSettings(wild=WildSettings(("question",), 5000))).check(records())


def test_answers_that_a_judge_cannot_tell_are_left_out_and_counted():
    class Unsure(Judge):
        def judge(self, cases):
            return [math.nan, *[1.0] * (len(cases) - 1)]

    with pytest.warns(UserWarning, match="no clear verdict on 1 of 3 answers"):
        assert judged(Unsure(), ["a"] * 3, [["b"]] * 3, ["c"] * 3) == [None, 1.0, 1.0]


@pytest.mark.parametrize("reply", ["It is not correct", "This isn't correct.", "", "maybe"])
def test_only_a_reply_that_begins_with_its_verdict_counts(reply):
    assert math.isnan(verdict(reply))
    assert verdict(" **Correct**, since") == 1.0


def test_edited_models_are_asked_in_each_context_about_what_was_edited(monkeypatch):
    monkeypatch.setenv("LIGHTNING_EDIT_ALLOW", "tests.modules.test_wild")
    model, facts = chatting(), records()
    LongAnswers.asked.clear()
    settings = EvaluationSettings(wild=WildSettings(new_tokens=6, judge=JUDGED))
    evaluator = Evaluator(model, settings)
    edits = GradientStep(sites=[-1], step_size=5.0).edit_each(model, [record.requests[0] for record in facts])
    outcomes = evaluator.evaluate(facts, edits)
    in_contexts = [one for one in outcomes if one.after.in_context]
    kinds = (ProbeKind.EDIT_SUCCESS, ProbeKind.GENERALIZATION, ProbeKind.PORTABILITY)
    assert in_contexts == [one for one in outcomes if one.probe.kind in kinds]
    for outcome in in_contexts:
        [record] = [number for number, fact in enumerate(facts) if fact.id == outcome.record_id]
        with edits[record].applied(model) as edited:
            for context, text in outcome.after.in_context.items():
                prompt = in_context(outcome.probe.prompt, context, model.encoder)
                assert text == edited.generate([prompt], 6)[0]
        measures = measures_of(outcome)
        for context, text in outcome.after.in_context.items():
            assert measures[f"wild_{context}"] == wild_match(text, outcome.probe.aliases)
            assert measures[f"judged_{context}"] == float(len(text) > 20)
        assert prediction(outcome, model.encoder.decode)["after"]["in_context"] == outcome.after.in_context
    assert len(LongAnswers.asked) == 3 * len(in_contexts)
    assert {case.prompt for case in LongAnswers.asked} == {one.probe.prompt for one in in_contexts}


def test_nothing_is_asked_unless_it_is_wanted():
    model, facts = chatting(), records()
    edits = ICE().edit_each(model, [record.requests[0] for record in facts])
    for settings in (EvaluationSettings(), EvaluationSettings(generate=False, wild=WildSettings())):
        for outcome in Evaluator(model, settings).evaluate(facts, edits):
            assert not outcome.after.in_context
            assert not {name for name in measures_of(outcome) if name.startswith(("wild_q", "wild_i", "judged"))}


def test_one_edited_model_is_asked_as_well():
    model, facts = chatting(), records()
    edit = ICE().edit(model, [record.requests[0] for record in facts])
    evaluator = Evaluator(model, EvaluationSettings(wild=WildSettings(("instruction",), new_tokens=4)))
    evaluator.ask_before(evaluator.questions(facts))
    with EditSequence([edit]).applied(model) as edited:
        outcomes = evaluator.evaluate_under(facts, edited)
    assert {tuple(one.after.in_context) for one in outcomes if one.probe.kind is ProbeKind.EDIT_SUCCESS} == {
        ("instruction",)
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contexts": ()}, "evaluation.wild.contexts: name at least one"),
        ({"contexts": ("chats",)}, "evaluation.wild.contexts: expected one of"),
        ({"new_tokens": 0}, "evaluation.wild.new_tokens"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        WildSettings(**settings)


class Stub(BaseHTTPRequestHandler):
    """Answers chats: CORRECT where an accepted answer is given."""

    busy = 0
    requests: list[dict] = []
    tokens: list[str] = []

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(content)
        self.tokens.append(self.headers.get("Authorization", ""))
        if Stub.busy:
            Stub.busy -= 1
            self.send_response(429)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        question = content["messages"][0]["content"]
        reply = "CORRECT" if "Given answer: Rome" in question else "INCORRECT."
        reply = "Hm." if "Given answer: (nothing)" in question else reply
        message = {"message": {"role": "assistant", "content": reply}, "index": 0, "finish_reason": "stop"}
        body = json.dumps({"id": "1", "model": "m", "object": "chat.completion", "choices": [message]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    stub = HTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    Stub.requests.clear()
    Stub.tokens.clear()
    yield f"http://127.0.0.1:{stub.server_port}/v1"
    stub.shutdown()
    stub.server_close()


def test_a_judge_behind_a_server(server, monkeypatch):
    monkeypatch.setenv("JUDGES_TOKEN", "secret")
    judge = OpenAIJudge("m", server, token_variable="JUDGES_TOKEN")
    cases = [Case("Capital?", ("Rome", "Roma"), text) for text in ("Rome", "Paris", " \n")]
    verdicts = judge.judge(cases)
    assert verdicts[:2] == [1.0, 0.0]
    assert math.isnan(verdicts[2])
    assert [request["model"] for request in Stub.requests] == ["m"] * 3
    assert Stub.requests[0]["temperature"] == 0.0
    assert "Accepted answers: Rome / Roma" in Stub.requests[0]["messages"][0]["content"]
    assert Stub.tokens == ["Bearer secret"] * 3


def test_no_token_of_another_service_is_sent(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    OpenAIJudge("m", server).judge([Case("Capital?", ("Rome",), "Rome")])
    assert not any("hf_secret" in token for token in Stub.tokens)


def test_a_busy_server_is_asked_again(server, monkeypatch):
    monkeypatch.setattr("lightning_edit.judges.time.sleep", lambda seconds: None)
    Stub.busy = 2
    assert OpenAIJudge("m", server).judge([Case("Capital?", ("Rome",), "Rome")]) == [1.0]
    assert len(Stub.requests) == 3
    Stub.busy = 3
    with pytest.raises(ConfigurationError, match=r"gave no answer .HTTPStatusError"):
        OpenAIJudge("m", server).judge([Case("Capital?", ("Rome",), "Rome")])
    Stub.busy = 0


def test_a_server_that_is_not_there_is_an_error_in_words():
    with pytest.raises(ConfigurationError, match=r"gave no answer .InvalidURL"):
        OpenAIJudge("m", "http://127.0.0.1:port/v1").judge([Case("Capital?", ("Rome",), "Rome")])
    with pytest.raises(
        ConfigurationError, match=r"evaluation.wild.judge: http://127.0.0.1:9/v1/chat/completions gave no answer"
    ):
        OpenAIJudge("m", "http://127.0.0.1:9/v1", timeout=2).judge([Case("Capital?", ("Rome",), "Rome")])


def test_a_local_judge_replies_in_the_chat_template(tiny_folder, tmp_path, monkeypatch):
    model, load_settings = chatting(), []
    monkeypatch.setattr(
        "lightning_edit.judges.load_language_model", lambda name, **settings: load_settings.append(settings) or model
    )
    monkeypatch.setattr(model, "generate", lambda prompts, tokens: ["correct", "Incorrect", "?"][: len(prompts)])
    verdicts = LanguageModelJudge("anything").judge([Case("Capital?", ("Rome",), text) for text in "abc"])
    assert verdicts[:2] == [1.0, 0.0]
    assert math.isnan(verdicts[2])
    assert load_settings[0]["chat_template"] is True
