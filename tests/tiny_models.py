"""Tiny random instances of every supported family, and tiny tokenizers, built without a download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lightning_edit.models import LanguageModel

VOCAB = 512
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}
_GPT = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Family -> (configuration, name of the MLP output projection of layer 1, fan-in, orientation).
FAMILIES: dict[str, tuple[Callable[[], Any], str, int, str]] = {
    "gpt2": (
        lambda: hf.GPT2Config(**_GPT, n_inner=48, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0),
        "transformer.h.1.mlp.c_proj",
        48,
        "conv1d",
    ),
    "gptj": (
        lambda: hf.GPTJConfig(**_GPT, n_inner=48, rotary_dim=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0),
        "transformer.h.1.mlp.fc_out",
        48,
        "linear",
    ),
    "gpt_neo": (
        lambda: hf.GPTNeoConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_layers=3,
            num_heads=4,
            intermediate_size=48,
            attention_types=[[["global", "local", "global"], 1]],
            window_size=4,
            max_position_embeddings=64,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "transformer.h.1.mlp.c_proj",
        48,
        "linear",
    ),
    "gpt_neox": (lambda: hf.GPTNeoXConfig(**_COMMON), "gpt_neox.layers.1.mlp.dense_4h_to_h", 48, "linear"),
    "opt": (
        lambda: hf.OPTConfig(
            **{k: v for k, v in _COMMON.items() if k not in ("intermediate_size", "initializer_range")},
            ffn_dim=48,
            word_embed_proj_dim=32,
            init_std=0.3,
            dropout=0.0,
        ),
        "model.decoder.layers.1.fc2",
        48,
        "linear",
    ),
    "bloom": (
        lambda: hf.BloomConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            n_layer=3,
            n_head=4,
            initializer_range=0.3,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        "transformer.h.1.mlp.dense_4h_to_h",
        128,
        "linear",
    ),
    "falcon": (
        lambda: hf.FalconConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            ffn_hidden_size=48,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "transformer.h.1.mlp.dense_4h_to_h",
        48,
        "linear",
    ),
    "phi": (lambda: hf.PhiConfig(**_COMMON, partial_rotary_factor=0.5), "model.layers.1.mlp.fc2", 48, "linear"),
    "llama": (lambda: hf.LlamaConfig(**_GQA), "model.layers.1.mlp.down_proj", 48, "linear"),
    "mistral": (lambda: hf.MistralConfig(**_GQA, sliding_window=8), "model.layers.1.mlp.down_proj", 48, "linear"),
    "qwen2": (lambda: hf.Qwen2Config(**_GQA), "model.layers.1.mlp.down_proj", 48, "linear"),
    "qwen3": (lambda: hf.Qwen3Config(**_GQA, head_dim=8), "model.layers.1.mlp.down_proj", 48, "linear"),
    "gemma2": (
        lambda: hf.Gemma2Config(**_GQA, head_dim=8, sliding_window=8),
        "model.layers.1.mlp.down_proj",
        48,
        "linear",
    ),
    "gemma3": (
        lambda: hf.Gemma3TextConfig(**_GQA, head_dim=8, sliding_window=8),
        "model.layers.1.mlp.down_proj",
        48,
        "linear",
    ),
    "stablelm": (lambda: hf.StableLmConfig(**_GQA), "model.layers.1.mlp.down_proj", 48, "linear"),
    "olmo2": (lambda: hf.Olmo2Config(**_GQA), "model.layers.1.mlp.down_proj", 48, "linear"),
    "granite": (
        lambda: hf.GraniteConfig(**_GQA, logits_scaling=4.0, residual_multiplier=0.5),
        "model.layers.1.mlp.down_proj",
        48,
        "linear",
    ),
    "smollm3": (lambda: hf.SmolLM3Config(**_GQA), "model.layers.1.mlp.down_proj", 48, "linear"),
}

_GEMMA = {**_GQA, "head_dim": 8, "sliding_window": 64, "vocab_size_per_layer_input": VOCAB}
_GEMMA |= {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 1, "num_hidden_layers": 4}
_GEMMA |= {"layer_types": ["sliding_attention", "full_attention"] * 2}

SHARED: dict[str, Callable[[], Any]] = {
    "gemma3n": lambda: hf.Gemma3nTextConfig(
        **{**_GEMMA, "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4}, laurel_rank=4
    ),
    "gemma4": lambda: hf.Gemma4TextConfig(**_GEMMA),
}
"""Families whose blocks share keys and values, and read additional inputs."""

_MIXTURE = {**_GQA, "num_experts_per_tok": 2}

MIXTURES: dict[str, tuple[Callable[[], Any], str]] = {
    "mixtral": (lambda: hf.MixtralConfig(**_MIXTURE, num_local_experts=4), "mlp.experts"),
    "qwen2_moe": (
        lambda: hf.Qwen2MoeConfig(
            **_MIXTURE, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=24
        ),
        "mlp.experts",
    ),
    "qwen3_moe": (
        lambda: hf.Qwen3MoeConfig(**_MIXTURE, head_dim=8, num_experts=4, moe_intermediate_size=24),
        "mlp.experts",
    ),
    "olmoe": (lambda: hf.OlmoeConfig(**_MIXTURE, num_experts=4), "mlp.experts"),
    "deepseek_v3": (
        lambda: hf.DeepseekV3Config(
            **{**_MIXTURE, "num_key_value_heads": 4},
            n_routed_experts=4,
            n_shared_experts=1,
            moe_intermediate_size=24,
            kv_lora_rank=8,
            q_lora_rank=None,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
            first_k_dense_replace=0,
            n_group=1,
            topk_group=1,
        ),
        "mlp.experts",
    ),
    "llama4": (
        lambda: hf.Llama4TextConfig(
            **{**_MIXTURE, "num_experts_per_tok": 1}, head_dim=8, num_local_experts=4, intermediate_size_mlp=48
        ),
        "feed_forward.experts",
    ),
    "gpt_oss": (
        lambda: hf.GptOssConfig(
            **_MIXTURE,
            head_dim=8,
            num_local_experts=4,
            sliding_window=64,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        "mlp.experts",
    ),
}
"""Mixtures of experts whose projections are stored in one tensor, and where they are in a block."""

REFUSED: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: hf.MixtralConfig(**_GQA, num_local_experts=2, num_experts_per_tok=1),
    "mamba": lambda: hf.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, state_size=4, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    ),
}  # fmt: skip


def build(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A random model in eval mode, the same for every call."""
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


_CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome. What is the capital of Germany? It is Berlin.",
    "On which continent is Brazil? South America. Über naïve 東京 Zürich São Paulo, e.g. the U.S. and D.C.",
    "Answer: the currency of Japan is the Yen; +33, .fr, a city called New York.",
]


def byte_level_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as in GPT-2, with or without a beginning-of-sequence token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]),
            ]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="right"
    )


def sentencepiece_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer in SentencePiece's manner (metaspace, byte fallback), with or without a beginning token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<pad>", "<s>", "</s>", "<unk>", *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def language_model(
    family: str = "llama", dtype: torch.dtype = torch.float32, tokenizer: str = "byte_level"
) -> LanguageModel:
    """A tiny language model of a family, with the byte-level or the "sentencepiece" tokenizer."""
    hf_tokenizer = byte_level_tokenizer() if tokenizer == "byte_level" else sentencepiece_tokenizer()
    return LanguageModel(build(FAMILIES[family][0](), dtype), hf_tokenizer, name=f"tiny-{family}")
