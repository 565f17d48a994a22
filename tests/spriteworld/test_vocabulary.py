"""The folded vocabulary holds the small world's words apart."""

import numpy as np
import torch

from ldm.config import load_config
from ldm.modules.text import encode_words, fold_tokens
from ldm.project import CONFIGS
from ldm.spriteworld.world.sentences import caption, random_edit


def test_no_two_words_of_the_sprite_world_share_a_row():
    config = load_config(CONFIGS / "spriteworld" / "model.yaml")
    rows = config.model.params.cond_stage_config.params.text_config.vocab_size
    rng, ids = np.random.default_rng(0), {48136}
    for _ in range(4000):
        edit = random_edit(rng, rare_share=0)
        ids.update(encode_words(edit.instruction), encode_words(caption(edit.source, rng, rare_share=0)))
    assert len(ids) > 60
    folded = fold_tokens(torch.tensor(sorted(ids)), rows)
    assert len(folded.unique()) == len(ids)
