"""The text encoders: small ones of the classes that FLUX has, CLIP for the whole caption and T5 for its words.

Both are trained together with the flow. Their tokenizers know the words of its captions, and letters.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from hicache_compile.demo.emoji import TOKENS

WIDTH = 128
HEADS = 4
LAYERS = 2
SPACE = "\u2581"  # before a word, in the pieces of T5
PIECES = 4000  # at most, of the vocabulary of CLIP


def clip_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's class, trained on ``captions`` until their words are one piece each."""
    trained = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for letter in pre_tokenizers.ByteLevel.alphabet():  # at the end of an unknown word too
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    # its merges are annotated as strings, but have to be pairs
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)  # type: ignore[arg-type]


def t5_tokenizer(captions: Sequence[str]) -> T5Tokenizer:
    """A unigram tokenizer of T5's class: the words of ``captions`` by their frequency, and, far less likely, letters.

    It knows lower case only: the class keeps no normalizer of its own when it is saved.
    """
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = Counter(word for caption in captions for word, _ in split.pre_tokenize_str(caption))
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = dict.fromkeys((SPACE, *string.ascii_lowercase, *string.digits, *string.punctuation), -20.0)
    whole = {f"{SPACE}{word}": math.log(count / words.total()) for word, count in sorted(words.items())}
    vocabulary = [*special, *letters.items(), *whole.items()]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)


class TextEncoders(nn.Module):
    """Both tokenizers and encoders, with random weights of ``WIDTH`` channels."""

    def __init__(self, captions: Sequence[str]) -> None:
        super().__init__()
        self.clip_tokenizer = clip_tokenizer(captions)
        self.t5_tokenizer = t5_tokenizer(captions)
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.clip_tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                max_position_embeddings=TOKENS,
                bos_token_id=self.clip_tokenizer.bos_token_id,
                eos_token_id=self.clip_tokenizer.eos_token_id,
                pad_token_id=self.clip_tokenizer.pad_token_id,
            )
        )
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.t5_tokenizer),
                d_model=WIDTH,
                d_ff=2 * WIDTH,
                d_kv=WIDTH // HEADS,
                num_heads=HEADS,
                num_layers=LAYERS,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        )

    def token_ids(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids of ``captions`` for CLIP and for T5, int64 ``[B, TOKENS]`` each, padded and cut as FLUX does."""
        how = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
        clip, t5 = (tokenizer(list(captions), **how) for tokenizer in (self.clip_tokenizer, self.t5_tokenizer))
        return clip.input_ids, t5.input_ids

    def forward(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What FLUX is given of ``captions``: pooled vectors ``[B, WIDTH]`` and tokens ``[B, TOKENS, WIDTH]``."""
        clip_ids, t5_ids = self.token_ids(captions)
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids).last_hidden_state
