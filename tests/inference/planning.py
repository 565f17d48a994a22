"""Edit jobs planned in one line: what most tests ask for, and no model."""

from ldm.inference.edit_job import EditJob, EditRequest, plan_job
from ldm.inference.settings import EditSettings
from ldm.models.build import ModelSource


def planned(
    photos: list[str],
    edits: list[str],
    output: str,
    settings: EditSettings,
    seed: int = 1,
    num_samples: int = 1,
    sweep: tuple = ((), ()),
    mask: str | None = None,
    batch_size: int = 1,
    auto_cfg: bool = False,
) -> EditJob:
    """Plan a request made of plain values; sweep: text scales and image scales."""
    request = EditRequest(
        source=ModelSource("no.ckpt"),
        input=tuple(photos),
        edit=tuple(edits),
        output=output,
        seed=seed,
        num_samples=num_samples,
        batch_size=batch_size,
        mask=mask,
        sweep_cfg_text=tuple((sweep or ((), ()))[0]),
        sweep_cfg_image=tuple((sweep or ((), ()))[1]),
        auto_cfg=auto_cfg,
    )
    return plan_job(request, settings)
