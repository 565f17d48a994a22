"""VQModel: quantises by taming's own module; says what to install where that is missing."""

import sys

import pytest
import torch

from ldm.models.vq import VQModel

SMALL = {
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "attn_resolutions": [],
}


def test_decoding_moves_each_position_to_its_nearest_code():
    pytest.importorskip("taming.modules.vqvae.quantize")
    torch.manual_seed(0)
    model = VQModel(SMALL, n_embed=16, embed_dim=4).eval()
    z = model.encode(torch.rand(2, 3, 16, 16) * 2 - 1).mode()
    assert z.shape == (2, 4, 8, 8)
    codes = model.quantize.embedding.weight
    flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = codes[torch.cdist(flat, codes).argmin(1)].view(2, 8, 8, 4).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.decoder(model.post_quant_conv(nearest))
        found = model.decode(z)
        assert ((found - expected).norm() / expected.norm()).item() < 1e-4


def test_missing_taming_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "taming.modules.vqvae.quantize", None)
    with pytest.raises(ImportError, match="pip install --no-deps taming-transformers-rom1504"):
        VQModel(SMALL, n_embed=16, embed_dim=4)
