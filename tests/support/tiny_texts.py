"""Tiny tokenizers and text encoders of the model families, in the files that published folders have."""

import functools
import inspect
import io
import json
import re
from pathlib import Path
from typing import Any

from torch import nn

__all__ = [
    "chatglm",
    "clip_encoder",
    "gemma_tokenizer",
    "qwen_tokenizer",
    "save_chatglm_tokenizer",
    "save_t5_tokenizer",
    "sentencepiece_model",
    "t5_encoder",
]

_SENTENCES = ("a photo of the top", "a photo of the digit", "the middle of a photo", "the bottom of a digit")
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def sentencepiece_model(**ids: int) -> bytes:
    """A SentencePiece model that knows letters and a few syllables, as the file that `spiece.model` is.

    Args:
        ids: of pad, unk, bos and eos, such as pad_id=0.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*_SENTENCES, *"abcdefghijklmnopqrstuvwxyz"] * 4),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


def save_t5_tokenizer(folder: Path) -> Any:
    """T5's tokenizer as its folders have it, which is all that is left there: spiece.model, tokenizer_config.json."""
    from transformers import T5TokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / "spiece.model").write_bytes(sentencepiece_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    extra = [f"<extra_id_{number}>" for number in range(100)]
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "additional_special_tokens": extra}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 512, "sp_model_kwargs": {}}))
    return T5TokenizerFast.from_pretrained(folder)


def t5_encoder(width: int = 32) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=176, d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    return T5EncoderModel(config)


def clip_encoder(*, projection: bool = True, width: int = 32) -> nn.Module:
    """CLIP's text encoder of a width, for the tokenizer of `tiny_checkpoints`."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=256,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_factor=10.0,  # embeddings of 0.02, as CLIP's start, would make every prompt look the same
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def save_chatglm_tokenizer(folder: Path) -> Any:
    """ChatGLM's tokenizer, of Kolors: tokenizer.model and tokenizer_config.json."""
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pad_id=-1, unk_id=0, bos_id=1, eos_id=2))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMTokenizer"}))
    return ChatGLMTokenizer.from_pretrained(folder)


def chatglm() -> nn.Module:
    """ChatGLM of width 32, whose weights diffusers leaves unset."""
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=80,
        hidden_size=32,
        ffn_hidden_size=37,
        kv_channels=8,
        num_attention_heads=4,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
    )
    model = ChatGLMModel(config, empty_init=False)
    for name, weight in model.named_parameters():
        nn.init.ones_(weight) if "norm" in name else nn.init.normal_(weight, std=0.2)
    return model


def qwen_tokenizer() -> Any:
    """Qwen's tokenizer with bytes alone, for Qwen-Image and Z-Image."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {letter: number for number, letter in enumerate(bytes_to_unicode().values())}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary |= {token: len(vocabulary) + number for number, token in enumerate(special)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=special[1:])
    tokenizer.chat_template = _CHAT
    return tokenizer


def gemma_tokenizer() -> Any:
    """Gemma's tokenizer with letters alone, for Sana, and the words that Sana puts before each prompt."""
    from diffusers import SanaPipeline
    from transformers import GemmaTokenizer

    usual = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    words = re.findall(r"[a-z]+", " ".join(usual))  # letter by letter they would be a thousand tokens
    merges = {(word[:end], word[end]): None for word in words for end in range(1, len(word))}
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    tokens = dict.fromkeys([*letters, *(first + second for first, second in merges)])
    return GemmaTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=list(merges))
