"""The adversarial loss: each network gets its own gradient, of the size that was asked for, and the judge learns."""

import pytest
import torch
import torch.nn.functional as F

from ldm.modules.first_stage_loss import (
    AdversarialReconstructionLoss,
    PatchDiscriminator,
    ReconstructionLoss,
    _gradient,
)


@pytest.fixture
def pictures():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 32, 32, generator=g) * 2 - 1
    return x, (x + 0.3 * torch.randn(x.shape, generator=g)).requires_grad_()


def gradients(loss, x, made):
    """What a loss' backward pass leaves at the reconstruction and at the discriminator."""
    total, parts = loss(x, made, None, None)
    made.grad = None
    loss.zero_grad()
    total.backward()
    return made.grad.clone(), [p.grad for p in loss.discriminator.parameters()], parts


def adversarial(**given):
    torch.manual_seed(0)
    return AdversarialReconstructionLoss(**{"adversarial": 0.0, "features": 0.0, "disc_width": 8, **given}).eval()


def without(x, made):
    """The gradient of the reconstruction's errors alone."""
    return torch.autograd.grad(ReconstructionLoss()(x, made, None, None)[0], made)[0]


def test_each_part_pulls_at_the_picture_as_hard_as_it_was_told_to(pictures):
    x, made = pictures
    plain = without(x, made)
    for name, share in (("adversarial", 0.5), ("features", 2.0)):
        more = gradients(adversarial(**{name: share}), x, made)[0] - plain
        assert (more.norm() / plain.norm()).item() == pytest.approx(share, rel=1e-3)


def test_the_discriminator_learns_from_its_own_term_alone(pictures):
    x, made = pictures
    loss = adversarial(adversarial=3.0, features=3.0)
    _, found, parts = gradients(loss, x, made)
    judge = loss.discriminator
    hinge = F.relu(1 - judge(x)[0]).mean() + F.relu(1 + judge(made.detach())[0]).mean()
    assert parts["discriminator"].item() == pytest.approx(hinge.item())
    for a, b in zip(found, torch.autograd.grad(hinge, list(judge.parameters())), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_it_begins_to_count_when_it_was_told_to(pictures):
    x, made = pictures
    loss, plain = adversarial(adversarial=1.0, disc_start=2), without(x, made)
    same = [torch.allclose(gradients(loss, x, made)[0], plain) for _ in range(4)]
    assert same == [True, True, False, False]


def test_a_discriminator_learns_to_tell_soft_pictures_from_true_ones():
    torch.manual_seed(0)
    judge = PatchDiscriminator(width=8, levels=2)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=5e-3)

    def pair(seed):
        x = (torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) > 0.5).float() * 2 - 1
        return x, F.avg_pool2d(x, 3, stride=1, padding=1)

    for seed in range(60):
        x, soft = pair(seed)
        loss = F.relu(1 - judge(x)[0]).mean() + F.relu(1 + judge(soft)[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, soft = pair(1000)
    assert (judge(x)[0].mean((1, 2, 3)) > judge(soft)[0].mean((1, 2, 3)).max()).all()
    assert judge(x)[0].shape == (8, 1, 8, 8)


def test_numbers_without_sense_are_refused():
    for given in ({"adversarial": -1.0}, {"features": -0.1}, {"disc_start": -1}, {"disc_start": 1.5}):
        with pytest.raises(ValueError, match=next(iter(given))):
            AdversarialReconstructionLoss(**given)
    with pytest.raises(ValueError, match="both 0: take"):
        AdversarialReconstructionLoss(adversarial=0, features=0)
    with pytest.raises(ValueError, match="at least 1"):
        PatchDiscriminator(levels=0)


def test_in_mixed_precision_all_of_the_discriminator_learns_and_small_gradients_count():
    """Of large pictures the gradient of a mean is below what fp16 can tell from 0."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 256, 256, generator=g) * 2 - 1
    made = (x + 0.01 * torch.randn(x.shape, generator=g)).requires_grad_()
    loss = adversarial(adversarial=1.0, l1=0.0, edges=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        _, found, _ = gradients(loss, x, made)
    assert all(part is not None and part.abs().max() > 0 for part in found[:-2])
    whole = made.grad.norm() / torch.autograd.grad((made - x).square().mean(), made)[0].norm()
    assert whole > 1.0
    half = made.detach().half().requires_grad_()
    size = _gradient((half - x.half()).float().square().mean(), half)
    assert size.item() == pytest.approx(
        torch.autograd.grad((made - x).square().mean(), made)[0].norm().item(), rel=0.05
    )
