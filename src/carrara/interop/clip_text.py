"""A text encoder that was trained here, as a CLIP text model and its tokenizer, as `transformers` reads them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from carrara.conditions.text import PAD, START, TextEncoder
from carrara.interop.diffusers.files import write_table
from carrara.model_folder import write_weights

_LAYER = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "out": "self_attn.out_proj", "up": "mlp.fc1", "down": "mlp.fc2"
}  # fmt: skip


def write_clip(encoder: TextEncoder, folder: Path) -> dict[str, list[str]]:
    """Writes ``text_encoder`` and ``tokenizer`` into the folder; returns their lines of the index.

    The encoder is one with ``causal``, which reads captions as CLIP does.
    """
    config, place, beside = encoder.config, folder / "text_encoder", folder / "tokenizer"
    place.mkdir()
    beside.mkdir()
    write_table(
        place / "config.json",
        {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "gelu",
            "hidden_size": config.width, "intermediate_size": 4 * config.width, "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads, "max_position_embeddings": config.length,
            "vocab_size": encoder.tokenizer.get_vocab_size(), "layer_norm_eps": 1e-5,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0,
        },
    )  # fmt: skip
    write_weights(place / "model.safetensors", _tensors(encoder))
    tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str())
    start = (START, tokenizer.token_to_id(START))
    tokenizer.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[start])
    tokenizer.save(str(beside / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "bos_token": START}
    write_table(beside / "tokenizer_config.json", {**names, "model_max_length": config.length})
    return {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }


def _tensors(encoder: TextEncoder) -> dict[str, Tensor]:
    state = encoder.state_dict()
    named = {
        "embeddings.token_embedding.weight": state["embedding.weight"],
        "embeddings.position_embedding.weight": state["position"],
    }
    for kind in ("weight", "bias"):
        named[f"final_layer_norm.{kind}"] = state[f"norm.{kind}"]
        for layer in range(encoder.config.depth):
            ours, theirs = f"layers.{layer}", f"encoder.layers.{layer}"
            for part, name in _LAYER.items():
                named[f"{theirs}.{name}.{kind}"] = state[f"{ours}.{part}.{kind}"]
            for letter, rows in zip("qkv", state[f"{ours}.qkv.{kind}"].chunk(3), strict=True):
                named[f"{theirs}.self_attn.{letter}_proj.{kind}"] = rows.clone()
    return {f"text_model.{name}": value for name, value in named.items()}
