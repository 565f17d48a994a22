"""The tokenizer's known facts, and the folded vocabulary of small models."""

import logging

import numpy as np
import torch

from ldm.config import load_config
from ldm.models.build import CONFIGS
from ldm.modules.text import END, START, FrozenCLIPEmbedder, encode_words, fold_tokens, tokenize
from ldm.spriteworld.instructions import caption, random_edit


def test_known_token_ids():
    # OpenAI's published vocabulary: "a photo of a cat" is 320 1125 539 320 2368; "sks" is one token
    assert encode_words("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert encode_words("sks") == [48136]
    row = tokenize(["A photo of a CAT"])[0].tolist()
    assert row == [START, 320, 1125, 539, 320, 2368] + [END] * 71


def test_empty_and_overlong_texts(caplog):
    assert tokenize([""])[0].tolist() == [START] + [END] * 76
    with caplog.at_level(logging.WARNING):
        row = tokenize(["dog " * 200])[0].tolist()
    assert row[0] == START
    assert row[1:76] == [1929] * 75
    assert row[76] == END
    assert "200 tokens" in caplog.text


def test_folding_keeps_the_full_table_and_the_special_rows():
    ids = torch.tensor([0, 320, 48136, 49405, START, END])
    assert torch.equal(fold_tokens(ids, 49408), ids)
    assert fold_tokens(ids, 102).tolist() == [0, 320 % 100, 36, 49405 % 100, 100, 101]


def test_no_two_words_of_the_sprite_world_share_a_row():
    config = load_config(CONFIGS.parent / "spriteworld" / "model.yaml")
    rows = config.model.params.cond_stage_config.params.text_config.vocab_size
    rng, ids = np.random.default_rng(0), {48136}
    for _ in range(4000):
        edit = random_edit(rng, rare_share=0)
        ids.update(encode_words(edit.instruction), encode_words(caption(edit.source, rng, rare_share=0)))
    assert len(ids) > 60
    folded = fold_tokens(torch.tensor(sorted(ids)), rows)
    assert len(folded.unique()) == len(ids)


def test_a_small_encoder_reads_any_sentence():
    small = {"vocab_size": 102, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    encoder = FrozenCLIPEmbedder({**small, "num_attention_heads": 4})
    with torch.no_grad():
        states = encoder(["übergrößer 日本 qvkx", "a dog", ""])
    assert states.shape == (3, 77, 32)
    assert states.isfinite().all()
    assert not torch.allclose(states[0], states[1])
