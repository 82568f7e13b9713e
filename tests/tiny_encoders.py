"""Folders with text encoders of a few thousand random weights, as `transformers` saves the real ones."""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WIDTH, WINDOW = 16, 20
_SIZES = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
_T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
_WORDS = ["a red disc and a green square", "ein rotes Quadrat neben 红苹果", "query: a blue bar"]


def clip(
    folder: Path, *, projection: int | None = None, width: int = WIDTH, pad: str = "<|endoftext|>"
) -> Any:
    """A CLIP text model, with ``projection`` the one that has such a head; its tokenizer knows single letters."""
    import transformers as hf

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=WINDOW, pad_token=pad).save_pretrained(
        folder
    )
    config = hf.CLIPTextConfig(
        **{**_SIZES, "hidden_size": width},
        vocab_size=len(pieces),
        max_position_embeddings=WINDOW,
        projection_dim=projection or 8,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
    )
    return _saved(hf.CLIPTextModelWithProjection if projection else hf.CLIPTextModel, config, folder)


def t5(folder: Path, family: str = "T5") -> Any:
    """The encoder of a T5, mT5 or UMT5 (``family``); texts end in </s>, windows are without bound."""
    import transformers as hf

    tokenizer = _unigram(["<pad>", "</s>", "<unk>"], "$A </s>")
    _keep(tokenizer, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = getattr(hf, f"{family}Config")(
        **_T5,
        vocab_size=tokenizer.get_vocab_size(),
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return _saved(getattr(hf, f"{family}EncoderModel"), config, folder)


def bert(folder: Path, family: str = "Bert") -> Any:
    """Like e5 and MiniLM (``family`` Bert), XLM-R (XLMRoberta), RoBERTa, MPNet or DistilBert."""
    import transformers as hf

    offset = 2 if family in ("XLMRoberta", "Roberta", "MPNet") else 0
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    _keep(tokenizer, folder, pad_token="<pad>", cls_token="<s>", sep_token="</s>", unk_token="<unk>")
    sizes: dict[str, Any] = (
        {"dim": WIDTH, "hidden_dim": 24, "n_layers": 3, "n_heads": 2} if family == "DistilBert" else _SIZES
    )
    config = getattr(hf, f"{family}Config")(
        **sizes,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=WINDOW + offset,
        pad_token_id=1,
    )
    return _saved(getattr(hf, f"{family}Model"), config, folder)


def _unigram(special: list[str], template: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_WORDS * 4, trainer)
    ends = [(name, special.index(name)) for name in special if name in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return tokenizer


def _keep(tokenizer: Tokenizer, folder: Path, **names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def _saved(model_class: Callable[[Any], Any], config: Any, folder: Path) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(len(folder.name))
    model = model_class(config).eval()
    with torch.no_grad():  # as the library starts them tokens hardly differ; a trained one's do
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


_KEPT = tempfile.TemporaryDirectory(prefix="carrara-tiny-encoders-")


@cache
def clip_folder() -> str:
    """One for all tests of a session that only need some encoder."""
    folder = Path(_KEPT.name) / "clip"
    clip(folder, projection=12)
    return str(folder)
