"""The tokenizer's known facts, and the folded vocabulary of small models."""

import logging

import torch

from ldm.modules.text import END, START, FrozenCLIPEmbedder, encode_words, fold_tokens, tokenize


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


def test_a_small_encoder_reads_any_sentence():
    small = {"vocab_size": 102, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    encoder = FrozenCLIPEmbedder({**small, "num_attention_heads": 4})
    with torch.no_grad():
        states = encoder(["übergrößer 日本 qvkx", "a dog", ""])
    assert states.shape == (3, 77, 32)
    assert states.isfinite().all()
    assert not torch.allclose(states[0], states[1])


def test_case_and_spaces_do_not_matter_and_words_do():
    expected = encode_words("a photo of a sks dog")
    assert expected == [320, 1125, 539, 320, 48136, 1929]
    for text in ("A Photo of a SKS dog", "  a  photo\tof a\nsks   dog "):
        assert encode_words(text) == expected
    assert encode_words("a photo of a sks cat") != expected
    assert encode_words("") == encode_words("   ") == []


def test_the_longest_text_that_fits_is_read_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        row = tokenize(["dog " * 75])[0].tolist()
        assert row == [START] + [1929] * 75 + [END]
        assert not caplog.records
        row = tokenize(["dog " * 75 + "cat"])[0].tolist()
    assert row == [START] + [1929] * 75 + [END]
    assert len(caplog.records) == 1
    assert "76 tokens" in caplog.text
    assert "first 75" in caplog.text


def test_texts_of_a_batch_do_not_touch_each_other():
    texts = ["", "a dog", "dog " * 300, "übergrößer 日本 🐺", "a photo of a cat"]
    together = tokenize(texts)
    assert together.shape == (5, 77)
    assert together.dtype == torch.long
    for row, text in zip(together, texts, strict=True):
        assert torch.equal(row, tokenize([text])[0])
        assert row[0] == START
        assert row[-1] == END
        inside = row[1 : row.tolist().index(END)]
        assert ((inside >= 0) & (inside < START)).all()
    assert tokenize(["a dog"], 8)[0].tolist() == [START, 320, 1929] + [END] * 5


def test_every_folded_id_has_a_row_and_none_takes_the_special_ones():
    every = torch.arange(49408)
    for rows in (4, 102, 1533, 49407):
        folded = fold_tokens(every, rows)
        assert folded.min() == 0
        assert folded.max() == rows - 1
        assert folded[START] == rows - 2
        assert folded[END] == rows - 1
        assert (folded[:START] < rows - 2).all()
        assert torch.equal(folded[: rows - 2], every[: rows - 2])  # the low ids keep their row
    assert torch.equal(fold_tokens(every, 60000), every)
