"""A training step of ours against that of other libraries, by turns, in one process.

    python tests/benchmarks/peers.py [--only vae hvae rhvae autoencoderkl] [--threads 2]

Against pythae 0.1.2 both sides train the very same layers: strided convolutions 16-32-64-128 and a
dense layer, and back by repeated voxels and convolutions, the last two at full resolution. pythae
trains in float32 with the default layout, as its trainer does, ours as ``medvae3d train`` does:
the `ModelPlayer` under its autocast. pythae's HVAE takes first-order gradients, ours exact
second-order ones; its RHVAE makes a metric of the batch, ours of the batch and 256 further cases.

Against MONAI's ``AutoencoderKL`` and ``VQVAE`` the networks differ, so operations a second are
compared: theirs as its tutorials set them up, ours with the trunk of the shipped bundles. Counted
there are the operations of the layers as they are written. Ours does not compute on repeated voxels
(`medvae3d.networks.folding`), in both comparisons; with ``--plain`` it does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from medvae3d.evaluation.speed import by_turns, matrix_rate, operations
from medvae3d.flows import HamiltonianFlow
from medvae3d.flows.riemannian import RiemannianFlow
from medvae3d.models import zoo
from medvae3d.models.latent import LatentModel
from medvae3d.networks.blocks import channels_last
from medvae3d.networks.folding import Folded
from medvae3d.networks.metrics import MetricNetwork
from medvae3d.objectives.terms import Objective, Term, nll, one_sample_kl
from medvae3d.probability.likelihoods import GaussianHead
from medvae3d.training.optimizers import adamw
from medvae3d.training.players import ModelPlayer, Turn

CHANNELS, LATENT, STEPS, CASES = (16, 32, 64, 128), 64, 3, 256


def encoder_layers(in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in CHANNELS:
        layers += [nn.Conv3d(in_channels, width, 3, stride=2, padding=1), nn.SiLU()]
        in_channels = width
    return nn.Sequential(*layers)


def decoder_layers(edge: int, kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    side = edge // 16
    layers: list[nn.Module] = [
        nn.Linear(LATENT, CHANNELS[-1] * side**3),
        nn.Unflatten(1, (CHANNELS[-1], side, side, side)),
    ]
    width = CHANNELS[-1]
    for narrower in (*CHANNELS[-2::-1], CHANNELS[0]):
        layers += [nn.Upsample(scale_factor=2), nn.Conv3d(width, narrower, 3, padding=1), nn.SiLU()]
        width = narrower
    return kind(*layers, nn.Conv3d(width, 1, 3, padding=1))


class OurEncoder(nn.Module):
    def __init__(self, edge: int) -> None:
        super().__init__()
        self.body = encoder_layers(2)  # the image, and where it was observed
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(CHANNELS[-1] * (edge // 16) ** 3, 2 * LATENT)
        )

    def features(self, x: torch.Tensor, vector: Any = None) -> torch.Tensor:
        return self.body(x)


class OurDecoder(nn.Module):
    def __init__(self, edge: int, folded: bool) -> None:
        super().__init__()
        self.body = decoder_layers(edge, Folded if folded else nn.Sequential)
        self.output = SimpleNamespace(conv=self.body[-1], stride=(1, 1, 1))

    def forward(self, z: torch.Tensor, vector: Any = None, maps: Any = None) -> torch.Tensor:
        return self.body(z)


def player_step(network: LatentModel, batch: dict[str, Any], autocast: Any) -> Any:
    channels_last(network.train())
    objective = Objective(Term("nll", nll), Term("kl", one_sample_kl), per_voxel=True)
    player = ModelPlayer(network, objective, adamw(network, 1e-4), clip_norm=5.0)
    generator = torch.Generator().manual_seed(0)
    return lambda: player.play(Turn(batch, 0, generator), autocast)


def our_flow(kind: str) -> nn.Module | None:
    if kind == "hvae":
        return HamiltonianFlow(STEPS, step_size=1e-3, step_shape=(LATENT,))
    if kind == "rhvae":
        flow = RiemannianFlow(LATENT, MetricNetwork(CHANNELS[-1], LATENT), STEPS, queue=CASES)
        factors = torch.eye(LATENT).expand(CASES, -1, -1)
        flow.pairs.fit(torch.randn(CASES, LATENT), factors, [str(n) for n in range(CASES)])
        return flow
    return None


def our_step(
    kind: str, image: torch.Tensor, autocast: Any, folded: bool = True, compiled: bool = False
) -> Any:
    edge = image.shape[-1]
    network = LatentModel(
        OurEncoder(edge),  # type: ignore[arg-type]
        OurDecoder(edge, folded),  # type: ignore[arg-type]
        {"image": GaussianHead(1, scale=1.0, learn_scale=False)},
        (LATENT,),
        inputs=("image",),
        flow=our_flow(kind),
        flow_autocast=True,
    )
    if compiled:
        for part in (network.encoder, network.decoder):
            part.body.compile()  # type: ignore[union-attr]
    cases = [f"case{n}" for n in range(len(image))]
    return player_step(network, {"image": image, "mask": image, "case": cases}, autocast)


def pythae_step(kind: str, image: torch.Tensor, small_metric: bool) -> Any:
    from pythae.models import HVAE, RHVAE, VAE, HVAEConfig, RHVAEConfig, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder, BaseMetric

    edge = image.shape[-1]

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.body = encoder_layers(1)
            features = CHANNELS[-1] * (edge // 16) ** 3
            self.mean, self.log_var = nn.Linear(features, LATENT), nn.Linear(features, LATENT)

        def forward(self, x: torch.Tensor) -> Any:
            h = self.body(x).flatten(1)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.body = decoder_layers(edge)

        def forward(self, z: torch.Tensor) -> Any:
            return ModelOutput(reconstruction=self.body(z))

    class Metric(BaseMetric):
        """As small as ours; the default reads the voxels through a dense layer of 44 million."""

        def __init__(self) -> None:
            BaseMetric.__init__(self)
            self.layers = nn.Sequential(
                nn.AdaptiveAvgPool3d(8), nn.Flatten(), nn.Linear(512, 400), nn.ReLU()
            )
            self.diagonal = nn.Linear(400, LATENT)
            self.below = nn.Linear(400, LATENT * (LATENT - 1) // 2)

        def forward(self, x: torch.Tensor) -> Any:
            h = self.layers(x)
            factor = torch.diag_embed(self.diagonal(h).exp())
            rows, columns = torch.tril_indices(LATENT, LATENT, -1)
            factor[:, rows, columns] = self.below(h)
            return ModelOutput(L=factor)

    given = {"input_dim": tuple(image.shape[1:]), "latent_dim": LATENT}
    flow = {"n_lf": STEPS, "eps_lf": 1e-3, "beta_zero": 0.3}
    if kind == "vae":
        network = VAE(VAEConfig(**given), Encoder(), Decoder())
    elif kind == "hvae":
        network = HVAE(HVAEConfig(**given, **flow), Encoder(), Decoder())
    else:
        metric = Metric() if small_metric else None
        network = RHVAE(RHVAEConfig(**given, **flow), Encoder(), Decoder(), metric=metric)
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        network({"data": image}).loss.backward()
        optimizer.step()

    return step


def monai_step(kind: str, image: torch.Tensor) -> Any:
    from monai.networks.nets import VQVAE, AutoencoderKL

    if kind == "autoencoderkl":  # tutorials: 3d_autoencoderkl, 3d_ldm
        network: nn.Module = AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            num_res_blocks=(1, 1, 1),
            channels=(16, 32, 64),
            attention_levels=(False, False, False),
            latent_channels=3,
            norm_num_groups=16,
        )
    else:  # tutorials: 3d_vqvae
        network = VQVAE(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(32, 64),
            num_res_layers=1,
            num_res_channels=(32, 64),
            downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
            upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
            num_embeddings=256,
            embedding_dim=32,
        )
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if kind == "autoencoderkl":
            made, mean, scale = network(image)
            kl = 0.5 * (mean.square() + scale.square() - scale.square().log() - 1).flatten(1).sum(1)
            loss = F.l1_loss(made, image) + 1e-6 * kl.mean()
        else:
            made, quantisation = network(image)
            loss = F.l1_loss(made, image) + quantisation
        loss.backward()
        optimizer.step()

    return step


def trunk_step(image: torch.Tensor, autocast: Any, folded: bool = True) -> Any:
    """A VAE of ours of about as many channels: strided stem, sub-pixel output, norm in a voxel."""
    network = zoo.vae(
        tuple(image.shape[2:]),
        channels=(32, 64, 128),
        latent_channels=3,
        components=0,
        folded=folded,
    )
    return player_step(network, {"image": image, "mask": (image > 0.9).float()}, autocast)


def compare(
    name: str, ours: Any, plain: Any, theirs: Any, rounds: int, peak: float, clock: Any
) -> dict[str, Any]:
    """Times of both, and their operations; ``plain`` is ours with repeated voxels computed on."""
    seconds = by_turns({"theirs": theirs, "ours": ours}, rounds, warm_up=2, clock=clock)
    counts = {"theirs": operations(theirs), "ours": operations(ours)}
    of_layers = operations(plain)
    median = {who: statistics.median(each) for who, each in seconds.items()}
    row: dict[str, Any] = {"what": name, "ratio": median["theirs"] / median["ours"]}
    row["ratio_per_operation"] = row["ratio"] * of_layers / counts["theirs"]
    row["ours_gflop_of_layers"] = of_layers / 1e9
    for who, value in median.items():
        row[f"{who}_ms"] = 1e3 * value
        row[f"{who}_gflop"] = counts[who] / 1e9
        row[f"{who}_share"] = counts[who] / value / peak
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ["vae", "hvae", "rhvae", "autoencoderkl", "vqvae"]
    parser.add_argument("--only", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--edge", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--processor-time", action="store_true", help="on a busy machine")
    parser.add_argument("--small-metric", action="store_true", help="for pythae's RHVAE too")
    parser.add_argument("--float32", action="store_true", help="ours without autocast")
    parser.add_argument("--plain", action="store_true", help="ours computes on repeated voxels")
    parser.add_argument("--compile", action="store_true", help="encoder and decoder of a VAE")
    parser.add_argument("--profile", action="store_true", help="show what takes our time instead")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    clock = time.process_time if settings.processor_time else time.perf_counter
    image = torch.rand(settings.batch, 1, *(settings.edge,) * 3)
    autocast = (
        contextlib.nullcontext
        if settings.float32
        else lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    if not settings.profile:
        peak = matrix_rate(torch.bfloat16, clock=clock)
        print(f"matrix products in bfloat16: {peak / 1e9:.0f} GFLOP/s, {settings.threads} threads")
        print("| step | theirs, ms | ours, ms | ratio | per operation | GFLOP | share of peak |")
        print("|---|---|---|---|---|---|---|")
    for kind in settings.only:
        is_monai = kind in ("autoencoderkl", "vqvae")
        ours, plain = (
            trunk_step(image, autocast, folded)
            if is_monai
            else our_step(kind, image, autocast, folded)
            for folded in (not settings.plain, False)
        )
        if settings.compile and not is_monai:  # what follows a flow twice cannot be compiled
            ours = our_step(kind, image, autocast, not settings.plain, compiled=True)
        if settings.profile:
            ours()
            with torch.profiler.profile(record_shapes=True) as profile:
                ours()
            table = profile.key_averages(group_by_input_shape=True)
            print(
                table.table(sort_by="self_cpu_time_total", row_limit=30, max_shapes_column_width=70)
            )
            continue
        theirs = (
            monai_step(kind, image) if is_monai else pythae_step(kind, image, settings.small_metric)
        )
        row = compare(kind, ours, plain, theirs, settings.rounds, peak, clock)
        print(
            f"| {kind} | {row['theirs_ms']:.0f} | {row['ours_ms']:.0f} | {row['ratio']:.2f} "
            f"| {row['ratio_per_operation']:.2f} "
            f"| {row['theirs_gflop']:.0f} / {row['ours_gflop']:.0f} "
            f"| {row['theirs_share']:.0%} / {row['ours_share']:.0%} |"
        )
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
