"""Claims about the pictures of a training: they show what was made, and change nothing."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import PIL.Image
import torch

from medvae3d.models.zoo import vae
from medvae3d.training.grids import SampleGrid, drawn, first_cases, made_of


def small():
    torch.manual_seed(0)
    return vae(
        spatial_shape=(8, 8, 8), image_channels=2, values=(0, 1), attributes=("log_volume",),
        channels=(4, 8), latent_channels=2, components=2, rank=2, grain_width=0,
    ).eval()  # fmt: skip


def batch_of(cases=3):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(cases, 1, 8, 8, 8)
    mask[:, :, 2:6, 3:6, 5:7] = 1
    return {
        "image": torch.rand(cases, 2, 8, 8, 8, generator=generator) * 2 - 1,
        "mask": mask,
        "attributes": torch.zeros(cases, 1),
        "case": [str(index) for index in range(cases)],
    }


def pixels(png):
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def validated(handler, model, epoch):
    state = SimpleNamespace(batch=batch_of(), device=torch.device("cpu"), epoch=epoch)
    engine = SimpleNamespace(
        state=state, models={"model": model}, selects={}, prepare_batch=lambda b, d, n: b
    )
    handler._draw(engine)


def test_all_pictures_of_a_run_have_the_same_latents(tmp_path):
    model, handler = small(), SampleGrid(str(tmp_path), cases=2)
    validated(handler, model, 5)
    validated(handler, model, 10)
    first, second = (tmp_path / f"model_epoch{n:04d}.png" for n in (5, 10))
    assert first.read_bytes() == second.read_bytes()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.3)
    validated(handler, model, 15)
    assert (tmp_path / "model_epoch0015.png").read_bytes() != first.read_bytes()


def test_a_picture_draws_nothing_from_the_global_generator(tmp_path):
    before = torch.get_rng_state()
    model = small()
    torch.set_rng_state(before)
    validated(SampleGrid(str(tmp_path)), model, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_are_the_case_its_reconstruction_and_a_sample():
    model, batch = small(), first_cases(batch_of(), 2)
    rows = made_of(model, batch, torch.Generator().manual_seed(0))
    assert [title for title, _, _ in rows] == ["case", "rebuilt", "sample"]
    assert torch.equal(rows[0][1], batch["image"]) and len(rows[0][1]) == 2
    again = made_of(model, batch, torch.Generator().manual_seed(0))
    other = made_of(model, batch, torch.Generator().manual_seed(1))
    assert torch.equal(rows[2][1], again[2][1]) and not torch.equal(rows[2][1], other[2][1])


def test_the_largest_section_is_shown_with_its_outline():
    image = torch.full((1, 1, 8, 8, 8), -1.0)
    mask = torch.zeros(1, 1, 8, 8, 8)
    mask[..., 2:6, 2:6, 6], mask[..., 3, 3, 1] = 1, 1
    image[..., 6] = 1.0  # only the plane of the large section is white
    found = pixels(drawn([("case", image, mask)]))
    inner = found[found.shape[0] // 2, found.shape[1] // 2 + 10]
    assert inner.min() > 240
    orange = (found[..., 0] > 220) & (found[..., 2] < 90) & (found[..., 1] > 100)
    assert orange.sum() > 50
    plain = pixels(drawn([("case", image, torch.zeros_like(mask))]))
    assert not ((plain[..., 0] > 220) & (plain[..., 2] < 90)).any()


def test_tensorboard_has_the_pictures_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    validated(SampleGrid(str(tmp_path / "grids"), log_dir=str(tmp_path)), small(), 5)
    events = EventAccumulator(str(tmp_path)).Reload()
    (shown,) = events.Images("model/grid")
    assert shown.step == 5
    png = (tmp_path / "grids" / "model_epoch0005.png").read_bytes()
    assert np.array_equal(pixels(shown.encoded_image_string), pixels(png))
