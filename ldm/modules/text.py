"""The CLIP text encoder: tokens by the vocabulary that ships with the project's packages, weights by the checkpoint."""

from __future__ import annotations

import functools
import logging

import torch
from torch import nn

from ldm.errors import UserError

logger = logging.getLogger(__name__)

START, END = 49406, 49407
VOCABULARY = 49408

# openai/clip-vit-large-patch14, the text half: what Stable Diffusion 1.x and InstructPix2Pix hold.
CLIP_VIT_L_14 = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


@functools.cache
def _vocabulary():
    from instant_clip_tokenizer import Tokenizer

    return Tokenizer()


def encode_words(text: str) -> list[int]:
    """Return CLIP's token ids of a text, without start and end (byte-pair encoding, lower-cased)."""
    return _vocabulary().encode(text)


def tokenize(texts: list[str], length: int = 77) -> torch.Tensor:
    """Return CLIP token ids ``len(texts) length``: start, the words, then the end token 49407 to the full length.

    A text of more than ``length - 2`` tokens is cut, with a warning that names it.
    """
    rows = torch.full((len(texts), length), END, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = encode_words(text)
        if len(ids) > length - 2:
            logger.warning(
                "the text has %d tokens and only its first %d are read: '%s ...'", len(ids), length - 2, text[:40]
            )
            ids = ids[: length - 2]
        row[0] = START
        row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.long)
    return rows


def fold_tokens(tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """Map CLIP token ids to the rows of an embedding table of ``rows`` entries; the full table maps to itself.

    A smaller table keeps its last two rows for start and end and shares the others: id modulo (rows - 2). So every
    sentence still encodes, unknown words too, with no second tokenizer; the cost is that some words share a row.
    """
    if rows >= VOCABULARY:
        return tokens
    shared = rows - 2
    return torch.where(tokens >= START, tokens - START + shared, tokens % shared)


class _Transformer(nn.Module):
    """Holds the text model under the name that the published files use."""

    def __init__(self, text_model: nn.Module):
        super().__init__()
        self.text_model = text_model


class FrozenCLIPEmbedder(nn.Module):
    """CLIP ViT-L/14's text states, ``b 77 768``; another size by ``text_config``.

    Built from known constants: nothing is fetched. The parameter names are the published
    ``transformer.text_model.*`` (``position_ids`` included), whatever the installed transformers calls them.
    "Frozen" is upstream's name; whether it trains is the caller's choice.
    """

    def __init__(self, text_config: dict | None = None, max_length: int = 77):
        """Build the encoder with random weights.

        text_config: fields of transformers' CLIPTextConfig that differ from ViT-L/14. A ``vocab_size`` below CLIP's
        49408 folds the token ids into that many embedding rows (``fold_tokens``), for small models.
        Raises UserError for unknown fields.
        """
        super().__init__()
        from transformers import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel

        fields = {**CLIP_VIT_L_14, **dict(text_config or {})}
        unknown = set(fields) - set(CLIP_VIT_L_14)
        if unknown:
            raise UserError(f"unknown text_config field(s) {sorted(unknown)}; known: {', '.join(CLIP_VIT_L_14)}")
        self.max_length = min(max_length, fields["max_position_embeddings"])
        if self.max_length < 3:
            raise UserError(f"a text of {self.max_length} tokens has no room between its start and its end")
        rows = fields["vocab_size"]
        special = {"bos_token_id": min(START, rows - 2), "eos_token_id": min(END, rows - 1)}
        config = CLIPTextConfig(**fields, **special, attn_implementation="sdpa")
        self.transformer = _Transformer(CLIPTextModel(config))
        embeddings = self.transformer.text_model.embeddings
        positions = torch.arange(fields["max_position_embeddings"], device="cpu")[None]
        del embeddings.position_ids
        embeddings.register_buffer("position_ids", positions, persistent=True)

    def forward(self, texts: list[str]) -> torch.Tensor:
        """Return the last hidden states after the final layer norm, ``b 77 d``, in the weights' type."""
        device = self.transformer.text_model.final_layer_norm.weight.device
        return self.encode_tokens(tokenize(list(texts), self.max_length).to(device))

    encode = forward

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the states of CLIP token ids ``b n`` (n <= 77) as ``b n d``."""
        text_model = self.transformer.text_model
        rows = fold_tokens(tokens, text_model.embeddings.token_embedding.num_embeddings)
        return text_model(input_ids=rows).last_hidden_state
