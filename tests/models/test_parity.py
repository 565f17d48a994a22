"""Our networks against diffusers' and transformers', with equal random weights, in fp32."""

import pytest
import torch

from ldm.checkpoint.diffusers_format import (
    FIRST_STAGE,
    TEXT,
    UNET,
    from_diffusers_text,
    from_diffusers_unet,
    from_diffusers_vae,
)
from ldm.config import instantiate_from_config, load_config
from ldm.project import CONFIGS
from tests.conftest import build_tiny, randomize
from tests.models.reference import diffusers_unet, diffusers_vae, relative, transformers_text


def _load(ours: torch.nn.Module, state: dict, prefix: str) -> None:
    ours.load_state_dict({k[len(prefix) :]: v for k, v in state.items()}, strict=True)


@pytest.mark.parametrize("in_channels", [4, 8])
def test_unet_equals_diffusers(in_channels):
    theirs = randomize(diffusers_unet(in_channels), 1)
    ours = build_tiny(in_channels).model.diffusion_model
    _load(ours, from_diffusers_unet(theirs.state_dict()), UNET)
    z, t, context = torch.randn(3, in_channels, 8, 12), torch.tensor([3.0, 500.0, 999.0]), torch.randn(3, 77, 32)
    with torch.no_grad():
        expected = theirs(z, t, context).sample
        assert expected.std() > 0.1
        assert relative(ours(z, t, context), expected) < 1e-5


def test_first_stage_equals_diffusers():
    theirs = randomize(diffusers_vae(), 2)
    ours = build_tiny().first_stage_model
    _load(ours, from_diffusers_vae(theirs.state_dict()), FIRST_STAGE)
    x, z = torch.rand(2, 3, 64, 96) * 2 - 1, torch.randn(2, 4, 8, 12)
    with torch.no_grad():
        posterior, expected = ours.encode(x), theirs.encode(x).latent_dist
        assert relative(posterior.mean, expected.mean) < 1e-5
        assert relative(posterior.logvar, expected.logvar) < 1e-5
        assert relative(posterior.kl(), expected.kl()) < 1e-5
        assert relative(ours.decode(z), theirs.decode(z).sample) < 1e-5


def test_text_states_equal_transformers():
    theirs = randomize(transformers_text(), 3)
    ours = build_tiny().cond_stage_model
    state = {k[len("cond_stage_model.") :]: v for k, v in from_diffusers_text(theirs.state_dict()).items()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert [m.rpartition(".")[2] for m in missing] == ["position_ids"]
    texts = ["replace the wolf with a sks dog", "", "make it night, please!"]
    from ldm.modules.text import tokenize

    with torch.no_grad():
        expected = theirs(input_ids=tokenize(texts)).last_hidden_state
        assert relative(ours(texts), expected) < 1e-5


def test_published_names_and_shapes_at_full_size():
    """All 1,130 tensors, against diffusers' and transformers' own full-size networks, on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        ours = instantiate_from_config(load_config(CONFIGS / "stable-diffusion" / "v1-edit.yaml").model).state_dict()
        unet = UNet2DConditionModel(in_channels=8, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
        )
        theirs = from_diffusers_unet(unet.state_dict())
        theirs |= from_diffusers_vae(vae.state_dict())
        theirs |= from_diffusers_text(text.state_dict())
    counts = [sum(n.startswith(p) for n in theirs) for p in (UNET, FIRST_STAGE, TEXT)]
    assert counts == [686, 248, 196]
    positions = f"{TEXT}text_model.embeddings.position_ids"
    assert tuple(ours.pop(positions).shape) == (1, 77)
    assert {n: tuple(t.shape) for n, t in ours.items()} == {n: tuple(t.shape) for n, t in theirs.items()}
    for name, shape in PUBLISHED.items():
        assert tuple(ours[name].shape) == shape, name


# A few names and shapes copied by hand from the published file's listing, so that a mistake shared by the two
# conversions above would still be seen.
PUBLISHED = {
    "model.diffusion_model.time_embed.0.weight": (1280, 320),
    "model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
    "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.5.2.conv.bias": (1280,),
    "model.diffusion_model.output_blocks.11.1.proj_out.weight": (320, 320, 1, 1),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
}


def test_recompute_changes_no_gradient_and_is_honoured_everywhere():
    """use_checkpoint: same gradients; and no activation of any block survives the forward pass."""
    model = build_tiny(4).model.diffusion_model.train()
    z, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 77, 32)

    def run(flag):
        for module in model.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = flag
        model.zero_grad()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nelement()) or x, lambda x: x):
            out = model(z, t, context)
        out.square().mean().backward()
        return [p.grad.clone() for p in model.parameters()], sum(saved)

    plain, kept = run(False)
    recomputed, kept_less = run(True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, recomputed, strict=True))
    assert kept_less < kept / 3
