"""Causal tracing against one forward pass at a time, for every cell, on a tiny model."""

import json
from dataclasses import replace

import pytest
import torch

from lightning_edit.cli import main
from lightning_edit.data.known import read_known_facts
from lightning_edit.errors import ConfigurationError, DataFormatError, LayerMapError, SourceNotFoundError
from lightning_edit.models import LanguageModel
from lightning_edit.models.skipping import entering
from lightning_edit.records import EditRequest
from lightning_edit.tracing import causal
from lightning_edit.tracing.causal import (
    Trace,
    TraceSettings,
    average_effects,
    embedding_deviation,
    suggested_layers,
    trace_fact,
)
from lightning_edit.tracing.picture import draw_trace
from tests.testers import assert_untouched, state
from tests.tiny_models import FAMILIES, SHARED, build, byte_level_tokenizer, language_model

REQUEST = EditRequest("The capital of South America is", "-", "South America")
DOWN = "model.layers.{}.mlp.down_proj"
SETTINGS = TraceSettings(noise=3.0, samples=3, window=2, seed=4, tokens_per_batch=200)


def plain(model, request, settings, deviation, kind, position, layers, severed=None, above=None):
    """The mean probability of the answer, one noise sample at a time, with independently written hooks."""
    text = model.encoder.encode(request.prompt, "", request.subject_span)
    ids, (start, end) = torch.tensor([text.ids]), text.subject
    modules = {
        "state": lambda layer: model.layer_map.block(layer),
        "mlp": lambda layer: model.layer_map.site(layer).module,
        "attention": lambda layer: model.layer_map.attention_site(layer).module,
    }
    generator = torch.Generator().manual_seed(settings.seed)
    size = model.model.get_input_embeddings().weight.shape[1]
    noise = torch.randn(settings.samples, end - start, size, generator=generator) * settings.noise * deviation

    def run(sample, put_back):
        handles, seen = [], {}

        def embed(module, args, output):
            output = output.clone()
            output[:, start:end] += noise[sample]
            return output

        if sample is not None:
            handles.append(model.model.get_input_embeddings().register_forward_hook(embed))
        for name, value in put_back.items():
            which, layer = name

            def patch(module, args, output, value=value):
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                hidden.view(-1, hidden.shape[-1])[position] = value
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            handles.append(modules[which](layer).register_forward_hook(patch))
        for which in modules:
            for layer in range(len(model.layer_map)):

                def note(module, args, output, name=(which, layer)):
                    hidden = output[0] if isinstance(output, tuple) else output
                    seen[name] = hidden.reshape(-1, hidden.shape[-1]).clone()

                handles.append(modules[which](layer).register_forward_hook(note))
        probabilities = model.model(ids).logits[0, -1].softmax(-1)
        for handle in handles:
            handle.remove()
        return probabilities, seen

    clean, states = run(None, {})
    answer = int(clean.argmax())
    values = []
    for sample in range(settings.samples):
        _, noisy = run(sample, {})
        put_back = {(kind, layer): states[kind, layer][position] for layer in layers}
        if severed:
            put_back |= {(severed, layer): noisy[severed, layer][position] for layer in above}
        values.append(float(run(sample, put_back)[0][answer]))
    return sum(values) / len(values), float(clean[answer])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_cell_equals_that_of_a_plain_loop(family, recwarn):
    model = language_model(family)
    before = state(model)
    deviation = embedding_deviation(model, [REQUEST])
    trace = trace_fact(model, REQUEST, SETTINGS, deviation)
    assert not [warning for warning in recwarn if "all blocks are run" in str(warning.message)]
    corrupted, clean = plain(model, REQUEST, SETTINGS, deviation, "state", 0, [])
    assert trace.clean == pytest.approx(clean, rel=1e-4)
    assert trace.corrupted == pytest.approx(corrupted, rel=1e-3, abs=1e-7)
    last = trace.subject[1] - 1
    for position, layer in ((last, 0), (last, 2), (len(trace.tokens) - 1, 1), (0, 1)):
        window = [candidate for candidate in (layer - 1, layer) if candidate >= 0]
        for kind, layers in (("state", [layer]), ("mlp", window), ("attention", window)):
            expected, _ = plain(model, REQUEST, SETTINGS, deviation, kind, position, layers)
            assert float(trace.restored[kind][position, layer]) == pytest.approx(expected, rel=1e-3, abs=1e-7), (
                kind,
                position,
            )
    assert_untouched(model, before)


@torch.no_grad()
def test_blocks_below_a_cell_are_skipped_where_that_changes_nothing(monkeypatch):
    model = language_model("llama")
    deviation = embedding_deviation(model, [REQUEST])
    settings = replace(SETTINGS, tokens_per_batch=1)
    assert model.block_returns == 0  # determined once, in a separate pass

    def traced():
        passes = []
        handle = model.layer_map.block(0).mlp.register_forward_hook(lambda *args: passes.append(1))
        trace = trace_fact(model, REQUEST, settings, deviation, kinds=("state",))
        handle.remove()
        return trace.restored["state"], len(passes)

    short, few = traced()
    monkeypatch.setattr(causal, "entering", lambda block, hidden: entering(block, hidden + 1))
    with pytest.warns(UserWarning, match="all blocks are run"):
        whole, many = traced()
    torch.testing.assert_close(short, whole, rtol=1e-3, atol=1e-7)
    # The clean and the noisy pass, and one pass for each cell of the lowest layer.
    assert few == 2 + len(short)
    assert many > few


@torch.no_grad()
def test_cells_and_samples_are_run_together():
    model = language_model("llama")
    deviation = embedding_deviation(model, [REQUEST])
    length = len(model.encoder.encode(REQUEST.prompt).ids)
    settings = replace(SETTINGS, tokens_per_batch=4 * SETTINGS.samples * length)
    rows = []
    handle = model.layer_map.block(2).register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    trace_fact(model, REQUEST, settings, deviation, kinds=("state",))
    handle.remove()
    full = 4 * SETTINGS.samples
    assert rows.count(full) == 3 * length // 4


@torch.no_grad()
def test_a_model_with_shared_keys_and_values_is_traced_whole():
    model = LanguageModel(build(SHARED["gemma4"]()), byte_level_tokenizer(), "tiny-gemma4", site=DOWN)
    with pytest.warns(UserWarning, match="passes that start above the first block .* all blocks are run"):
        trace = trace_fact(model, REQUEST, SETTINGS, embedding_deviation(model, [REQUEST]))
    assert float(trace.restored["state"][-1, -1]) == pytest.approx(trace.clean, rel=1e-4)


def test_a_model_of_several_states_for_a_position_is_refused():
    model = LanguageModel(build(SHARED["gemma3n"]()), byte_level_tokenizer(), "tiny-gemma3n", site=DOWN)
    with pytest.raises(LayerMapError, match=r"tiny-gemma3n keeps several states .* cannot be traced"):
        trace_fact(model, REQUEST, SETTINGS, embedding_deviation(model, [REQUEST]))


def test_the_noise_is_measured_only_on_the_subjects():
    model = language_model("llama")
    requests = [REQUEST, EditRequest("The capital of France is", "-", "France")]
    spans = [model.encoder.encode(request.prompt, "", request.subject_span) for request in requests]
    ids = [id for text in spans for id in text.ids[slice(*text.subject)]]
    expected = model.model.get_input_embeddings().weight[ids].detach().numpy().std(ddof=1)
    assert embedding_deviation(model, requests) == pytest.approx(float(expected), rel=1e-5)
    assert (TraceSettings().noise, TraceSettings().samples, TraceSettings().window) == (3.0, 10, 10)


def test_the_picture_has_tokens_from_top_to_bottom_and_layers_from_left_to_right(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, draw = [], Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, values, **more: drawn.append(values) or draw(self, values, **more))
    trace = trace_of(torch.arange(20.0).view(5, 4) / 100, ("The", " $$", " $x", " is", " it"))
    draw_trace(replace(trace, answer="$"), tmp_path / "picture.png", 2)
    assert [values.shape for values in drawn] == [(5, 4)] * 3
    assert (drawn[0] == trace.restored["state"].numpy()).all()
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("severed", ["mlp", "attention"])
@torch.no_grad()
def test_severed_outputs_keep_their_noisy_values(severed):
    model = language_model("llama")
    deviation = embedding_deviation(model, [REQUEST])
    trace = trace_fact(model, REQUEST, SETTINGS, deviation, severed)
    whole = trace_fact(model, REQUEST, SETTINGS, deviation, kinds=("state",))
    last = trace.subject[1] - 1
    expected, _ = plain(model, REQUEST, SETTINGS, deviation, "state", last, [0], severed, [1, 2])
    assert float(trace.restored["state"][last, 0]) == pytest.approx(expected, rel=1e-3, abs=1e-7)
    # Outputs that are restored in a window are not severed.
    for kind in ("mlp", "attention"):
        expected, _ = plain(model, REQUEST, SETTINGS, deviation, kind, last, [0, 1], severed, [2])
        assert float(trace.restored[kind][last, 1]) == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert not torch.allclose(trace.restored["state"], whole.restored["state"], rtol=1e-3)


def test_restoring_the_last_state_of_the_last_token_restores_the_answer():
    model = language_model("llama")
    trace = trace_fact(model, REQUEST, SETTINGS, embedding_deviation(model, [REQUEST]))
    assert float(trace.restored["state"][-1, -1]) == pytest.approx(trace.clean, rel=1e-4)


def trace_of(effects, roles_of=("The", " South", " America", " is", " it")):
    shape = (len(roles_of), 4)
    restored = {kind: torch.full(shape, 0.1) + effects for kind in ("state", "mlp", "attention")}
    return Trace(list(roles_of), (1, 3), "x", 0.9, 0.1, restored)


def test_roles_and_averages():
    first = trace_of(torch.arange(20.0).view(5, 4) / 100)
    assert first.roles() == ["before", "first subject", "last subject", "next", "last"]
    second = trace_of(torch.zeros(5, 4))
    averages = average_effects([first, second], "mlp")
    assert list(averages) == ["first subject", "last subject", "next", "last"]
    mean, band = averages["last subject"]
    torch.testing.assert_close(mean, torch.tensor([0.04, 0.045, 0.05, 0.055]))
    values = torch.tensor([[0.08, 0.0], [0.09, 0.0], [0.1, 0.0], [0.11, 0.0]])
    torch.testing.assert_close(band, 1.96 * values.std(1) / 2**0.5)
    assert suggested_layers([first, second], 1) == [3]
    assert suggested_layers([first, second], 3) == [1, 2, 3]
    assert suggested_layers([first, second], 5) == [0, 1, 2, 3]
    assert average_effects([first], "mlp")["next"][1].tolist() == [0.0] * 4


def test_a_request_without_a_subject_cannot_be_traced():
    from lightning_edit.errors import RequestError

    model = language_model("llama")
    with pytest.raises((ConfigurationError, RequestError), match="no subject"):
        trace_fact(model, EditRequest("The capital is", "-"), SETTINGS, 1.0)


def test_the_command_writes_numbers_and_pictures(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fact = ["--prompt", "The capital of France is", "--subject", "France"]
    arguments = ["trace", "--name_or_path", str(tiny_folder), "--samples", "2", "--window", "2"]
    assert main([*arguments, *fact, "--output", str(tmp_path / "one")]) == 0
    assert "suggested layers " in capsys.readouterr().out
    assert (tmp_path / "one" / "trace-prompt.png").read_bytes().startswith(b"\x89PNG")
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([
        {"subject": "France", "prompt": "The capital of France is"},
        {"subject": "Brazil", "prompt": "On which continent is Brazil? It is"},
    ]))  # fmt: skip
    assert main([*arguments, "--facts", str(facts), "--output", str(tmp_path / "two"), "--wandb", "true"]) == 0
    content = json.loads((tmp_path / "two" / "traces.json").read_text())
    assert content["counts"] == {"given": 2, "asked": 2, "known": 2, "traced": 2}
    assert len(content["averages"]["mlp"]["last subject"]["mean"]) == 3
    assert content["averages"]["mlp"]["last subject"]["facts"] == 2
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "two").glob("*.png")}
    assert set(pictures) == {"trace-0.png", "trace-1.png", "averages.png"}
    sent = [path.read_bytes() for path in tmp_path.glob("runs/wandb/offline-run-*/files/media/images/trace/*.png")]
    assert sorted(sent) == sorted(pictures.values())
    capsys.readouterr()
    assert main([*arguments, *fact, "--severed", "mlp", "--output", str(tmp_path / "one")]) == 0
    assert "suggested layer" not in capsys.readouterr().out
    assert json.loads((tmp_path / "one" / "traces-mlp-severed.json").read_text())["suggested_layer"] is None
    assert (tmp_path / "one" / "trace-prompt-mlp-severed.png").exists()
    assert main([*arguments, "--output", str(tmp_path / "three")]) == 1
    assert "--prompt with --subject, or --facts" in capsys.readouterr().err


def test_facts_that_the_model_does_not_know_are_left_out(tiny_folder, tmp_path, capsys):
    facts = tmp_path / "facts.json"
    fact = {"subject": "France", "prompt": "The capital of France is", "attribute": "zzz"}
    facts.write_text(json.dumps([fact, fact]))
    assert main(["trace", "--name_or_path", str(tiny_folder), "--facts", str(facts), "--output", str(tmp_path)]) == 1
    assert "says the attribute of none of the 2 facts" in capsys.readouterr().err
    facts.write_text(json.dumps([fact]))
    assert main(["trace", "--name_or_path", str(tiny_folder), "--facts", str(facts), "--output", str(tmp_path)]) == 1
    assert "says the attribute of none of the 1 facts" in capsys.readouterr().err


def test_asking_stops_once_enough_facts_are_known(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_edit.tracing.report._ASKED_AT_ONCE", 2)
    facts = tmp_path / "facts.json"
    facts.write_text(
        json.dumps([{"subject": "France", "prompt": f"{n} times the capital of France is"} for n in range(9)])
    )
    arguments = ["trace", "--name_or_path", str(tiny_folder), "--facts", str(facts), "--limit", "3", "--samples", "1"]
    assert main([*arguments, "--output", str(tmp_path / "traces")]) == 0
    content = json.loads((tmp_path / "traces" / "traces.json").read_text())
    assert content["counts"] == {"given": 9, "asked": 4, "known": 3, "traced": 3}


@pytest.mark.parametrize("option", ["limit", "samples", "window", "noise"])
def test_numbers_out_of_range_are_named(option, tiny_folder, capsys):
    fact = ["--prompt", "The capital of France is", "--subject", "France"]
    assert main(["trace", "--name_or_path", str(tiny_folder), *fact, f"--{option}", "0"]) == 1
    assert f"trace.{option}: expected" in capsys.readouterr().err


def test_broken_files_of_facts(tmp_path, benchmark_data):
    path = tmp_path / "facts.json"
    for content, message in (
        ("{}", "expected a list"),
        ("[]", "no fact; give at least one"),
        ("[3]", "record 0: expected an object"),
        ('[{"subject": "a"}]', "record 0, field 'prompt'"),
        ("nonsense", "not valid JSON"),
        ('[{"subject": "b", "prompt": "a"}]', "record 0: the subject"),
    ):
        path.write_text(content)
        with pytest.raises(DataFormatError, match=message):
            read_known_facts(path)
    with pytest.raises(SourceNotFoundError, match="no such file"):
        read_known_facts(tmp_path / "none.json")
    assert len(read_known_facts(next(benchmark_data.rglob("known_1000.json")))) == 1209
