"""Training: exact resume, separate players, guards, and loaders that are functions of the step."""

import itertools
import math

import pytest
import torch

from medvae3d.data.augmentation import Augmentation, RandomIntensity, RandomPose
from medvae3d.errors import BundleError, NonFiniteTermError, SettingError
from medvae3d.models.zoo import hvae, vae
from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.objectives.compositions import joint_objective
from medvae3d.objectives.terms import Objective, Term, nll
from medvae3d.training.checkpoints import TrainStateSaver, WeightsSaver, load_state
from medvae3d.training.ema import ExponentialMovingAverage
from medvae3d.training.fitting import PriorFitter, StatisticsFitter
from medvae3d.training.health import latent_health
from medvae3d.training.loading import BatchPreparation, CaseLoader, StepLoader
from medvae3d.training.logs import HistoryWriter, read_history
from medvae3d.training.optimizers import adamw, cosine
from medvae3d.training.players import DiscriminatorPlayer, ModelPlayer, Player, Turn
from medvae3d.training.precision import autocast_dtype
from medvae3d.training.trainer import PlayerTrainer
from medvae3d.training.validation import LatentEvaluator

SHAPE = (8, 8, 8)
SIZES = {"channels": (4, 8), "latent_channels": 2, "components": 2, "rank": 2}


def cases(count=6):
    generator = torch.Generator().manual_seed(1)
    items = []
    for index in range(count):
        label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
        label[:, 2 : 4 + index % 3, 2:6, 2:6] = 1
        noise = 0.1 * torch.randn(1, *SHAPE, generator=generator)
        items.append({"image": label.float() - 0.5 + noise, "label": label, "case": f"c{index}"})
    return items


class Run:
    """A small adversarial training, built the same way each time."""

    def __init__(self, folder, epochs=2, resume=False, flow=False, adversarial_start=3, **options):
        torch.manual_seed(0)
        # Its bits do not depend on what the CPU multiplies.
        options.setdefault("precision", "float32")
        make = hvae if flow else vae
        extra = {"num_steps": 1} if flow else {}
        self.network = make(SHAPE, attributes=("log_volume",), dropout=0.2, **SIZES, **extra)
        self.discriminator = PatchDiscriminator(2, channels=(4, 8))
        self.ema = ExponentialMovingAverage(self.network, 0.9)
        augmentation = Augmentation(pose=RandomPose(flip_axes=(0,), rotation_deg=5))
        self.loader = StepLoader(cases(), 2, seed=3, epoch_length=4, augmentation=augmentation)
        self.preparation = BatchPreparation(self.network.statistics, (1.0, 1.0, 1.0))
        objective = joint_objective(
            self.discriminator, alpha=0.1, warm_up_steps=4, adversarial_start=adversarial_start
        )
        self.players = [
            ModelPlayer(
                self.network, objective, adamw(self.network), clip_norm=1.0, rate=cosine(8, 2)
            ),
            DiscriminatorPlayer(
                self.discriminator,
                torch.optim.Adam(self.discriminator.parameters(), 1e-3),
                start=adversarial_start,
            ),
        ]
        self.saver = TrainStateSaver(
            folder / "train_state.pt", self.players, self.ema, every_steps=1, resume=resume
        )
        self.history = folder / "history.csv"
        self.trainer = PlayerTrainer(
            "cpu",
            epochs,
            self.loader,
            self.players,
            self.preparation,
            epoch_length=4,
            seed=5,
            ema=self.ema,
            train_handlers=[
                self.saver,
                StatisticsFitter(self.network.statistics, self.loader, self.preparation, 1),
                HistoryWriter(self.history, 1),
            ],
            **options,
        )


def weights(run):
    return {
        **run.network.state_dict(),
        **{f"ema.{k}": v for k, v in run.ema.module.state_dict().items()},
    }


def test_a_level_of_two_voxels_is_trained_in_float32_on_a_cpu(tmp_path):
    run = Run(tmp_path, precision="bfloat16", adversarial_start=1)
    made = []
    run.discriminator.logits.register_forward_hook(lambda layer, x, y: made.append(y.dtype))
    run.discriminator.layers[0].register_forward_hook(lambda layer, x, y: made.append(y.dtype))
    run.trainer.run()
    assert made[:2] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, stop, flow):
    whole = Run(tmp_path / "whole", flow=flow)
    whole.trainer.run()

    class Stopped(Exception):
        pass

    first = Run(tmp_path / "cut", flow=flow)

    def interrupt(engine):
        if engine.state.iteration == stop:
            raise Stopped

    from ignite.engine import Events

    first.trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
    with pytest.raises(Stopped):
        first.trainer.run()
    second = Run(tmp_path / "cut", flow=flow, resume=True)
    second.trainer.run()
    for (name, one), other in zip(weights(whole).items(), weights(second).values(), strict=True):
        assert torch.equal(one, other), name
    assert read_history(whole.history) == read_history(second.history)


def test_the_state_of_another_run_is_refused(tmp_path):
    Run(tmp_path, epochs=1).trainer.run()
    other = Run(tmp_path, epochs=1, resume=True)
    other.players[0].name = "somebody else"
    with pytest.raises(SettingError, match="another run"):
        other.trainer.run()


def test_the_state_of_a_network_of_another_size_is_refused(tmp_path):
    Run(tmp_path, epochs=1).trainer.run()
    other = Run(tmp_path, epochs=1, resume=True)
    other.network.decoder.stem = torch.nn.Conv3d(3, 8, 3, padding=1)
    with pytest.raises(SettingError, match="another network.*configs/train.json"):
        other.trainer.run()


def test_before_its_start_the_discriminator_stays_as_it_was(tmp_path):
    run = Run(tmp_path, epochs=1, adversarial_start=100)
    before = {k: v.clone() for k, v in run.discriminator.state_dict().items()}
    run.trainer.run()
    after = run.discriminator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(row.get("model/adversarial", 0.0) == 0.0 for row in read_history(run.history))


def test_players_own_disjoint_parameters(tmp_path):
    one, other = ({id(p) for p in player.parameters()} for player in Run(tmp_path).players)
    assert one
    assert other
    assert not one & other


def test_the_discriminators_turn_leaves_no_gradient_in_the_decoder(tmp_path):
    run = Run(tmp_path, adversarial_start=0)
    model, judge = run.players
    batch = run.preparation(run.loader.batch(0), "cpu")
    turn = Turn(batch, 0, torch.Generator().manual_seed(0))
    import contextlib

    model.play(turn, contextlib.nullcontext)
    run.network.zero_grad(set_to_none=True)
    judge.play(turn, contextlib.nullcontext)
    assert all(p.grad is None for p in run.network.parameters())
    assert all(not p.requires_grad for p in run.discriminator.parameters())


def test_accumulated_gradients_are_those_of_the_larger_batch():
    torch.manual_seed(0)
    parameter = torch.nn.Linear(3, 1)

    class Plain(Player):
        def play(self, turn, autocast):
            self._update((self.network(turn.batch["x"]) ** 2).mean(), turn)

    x = torch.randn(4, 3)
    results = []
    for parts in (1, 2):
        network = torch.nn.Linear(3, 1)
        network.load_state_dict(parameter.state_dict())
        player = Plain("p", network, torch.optim.SGD(network.parameters(), 0.1))
        for step, part in enumerate(x.chunk(parts)):
            turn = Turn({"x": part, "case": []}, step, torch.Generator(), accumulate=parts)
            player.play(turn, None)
        results.append(network.weight.detach().clone())
    torch.testing.assert_close(results[0], results[1])


def test_the_first_value_that_is_not_finite_stops_the_run_by_name(tmp_path):
    run = Run(tmp_path)

    def poison(trace, batch):
        return nll(trace, batch) * math.nan

    run.players[0].objective = Objective(Term("nll", nll), Term("poison", poison))
    with pytest.raises(NonFiniteTermError, match=r"step 0: poison .*c\d"):
        run.trainer.run()


def test_batches_are_a_function_of_the_step():
    loader = StepLoader(cases(), 2, seed=1, augmentation=Augmentation(RandomPose(rotation_deg=9)))
    loader.start_at(7)
    first = next(iter(loader))
    torch.testing.assert_close(first["image"], loader.batch(7)["image"], rtol=0, atol=0)
    assert first["case"] == loader.batch(7)["case"]


def test_every_case_comes_once_before_any_comes_twice():
    loader = StepLoader(cases(6), 4, seed=1)
    order = list(itertools.chain.from_iterable(loader.indices(step) for step in range(3)))
    assert sorted(order[:6]) == sorted(order[6:]) == list(range(6))


def test_processes_share_the_batches_of_one():
    whole = StepLoader(cases(), 4, seed=1)
    parts = [StepLoader(cases(), 2, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for step in range(5):
        assert whole.indices(step) == parts[0].indices(step) + parts[1].indices(step)


def test_cases_without_an_image_are_marked_as_unseen():
    mixed = cases(2)
    del mixed[1]["image"]
    batch = next(iter(CaseLoader(mixed, 2)))
    assert batch["valid"][0].min() == 1
    assert batch["valid"][1].max() == 0


def test_what_comes_in_from_beyond_the_border_is_not_observed():
    items = [dict(case, valid=torch.ones(1, *SHAPE)) for case in cases(2)]
    for item in items:
        item["valid"][:, :2] = 0
    pose = Augmentation(RandomPose(translation=3))
    batch = StepLoader(items, 2, seed=0, augmentation=pose).batch(0)
    assert 0 < batch["valid"].mean() < 0.75


def test_intensities_change_nothing_of_what_was_observed():
    items = [dict(case, valid=torch.ones(1, *SHAPE)) for case in cases(4)]
    for item in items:
        item["valid"][:, :2] = 0
    pose = RandomPose(flip_axes=(1,), rotation_deg=9)
    plain, strong = (
        StepLoader(items, 4, seed=0, augmentation=Augmentation(pose, intensity)).batch(0)
        for intensity in (RandomIntensity(), RandomIntensity(gain=0.9, offset=0.5, noise=0.3))
    )
    assert torch.equal(plain["valid"], strong["valid"])
    assert not torch.equal(plain["image"], strong["image"])


@pytest.mark.parametrize(
    "pose", [RandomPose(flip_axes=(0, 1)), RandomPose((0,), rotation_deg=9, elastic=1.0)]
)
def test_batches_are_augmented_on_the_device_that_is_asked_for(pose):
    """The device without voxels refuses tensors of others, as a GPU does."""
    items = [dict(case, valid=torch.ones(1, *SHAPE)) for case in cases(2)]
    items[0]["valid"][:, :2] = 0
    augmentation = Augmentation(pose, RandomIntensity(gain=0.1, gamma=0.1, noise=0.1), (1,))
    loader = StepLoader(items, 2, seed=0, augmentation=augmentation, device="meta")
    for part in (loader, loader.alone()):
        batch = part.batch(0)
        assert {batch[key].device.type for key in ("image", "mask", "valid")} == {"meta"}


def test_networks_are_on_the_device_before_a_state_is_restored(tmp_path):
    run = Run(tmp_path)
    PlayerTrainer("meta", 1, run.loader, run.players, run.preparation, precision="float32")
    for player in run.players:
        assert {each.device.type for each in player.network.parameters()} == {"meta"}


def test_the_slow_copy_follows():
    network = torch.nn.Linear(2, 2)
    ema = ExponentialMovingAverage(network, 0.9)
    for _ in range(200):
        ema.update()
    with torch.no_grad():
        network.weight.add_(1.0)
    before = ema.module.weight.clone()
    ema.update()
    torch.testing.assert_close(ema.module.weight, before + 0.1)


def test_a_collapsed_latent_is_seen():
    network = vae(SHAPE, **SIZES)
    posterior = network.trace(
        dict(image=torch.zeros(4, 1, *SHAPE), mask=torch.zeros(4, 1, *SHAPE))
    ).posterior
    from medvae3d.probability.posteriors import DiagonalGaussian

    collapsed = DiagonalGaussian(torch.zeros_like(posterior.mean), torch.ones_like(posterior.scale))
    health = latent_health([collapsed])
    assert health.active_share == 0
    assert health.kl == pytest.approx(0)
    spread = torch.linspace(-3, 3, 4).reshape(-1, 1, 1, 1, 1).expand_as(posterior.mean)
    used = latent_health([DiagonalGaussian(spread, torch.full_like(spread, 0.1))])
    assert used.active_share == 1


def test_validation_repeats_and_reports_the_latent(tmp_path):
    run = Run(tmp_path, epochs=1)
    run.trainer.run()
    evaluator = LatentEvaluator(
        "cpu", CaseLoader(cases(3), 2), {"model": run.ema.module}, run.preparation
    )
    evaluator.run()
    first = dict(evaluator.state.metrics)
    evaluator.run()
    assert first == dict(evaluator.state.metrics)
    assert {"score", "model/dice", "model/nmse", "model/latent_active_share"} <= set(first)


def test_fitted_priors_travel_with_the_weights(tmp_path):
    run = Run(tmp_path, epochs=1)
    run.trainer.run()
    fitter = PriorFitter({"model": run.ema.module}, run.loader, run.preparation, passes=4)
    fitter.fit()
    WeightsSaver(tmp_path / "model.pt", run.ema.module).save()
    other = vae(SHAPE, attributes=("log_volume",), **SIZES)
    other.load_state_dict(load_state(tmp_path / "model.pt"))
    draw = lambda net: net.sample_latent(
        2, torch.zeros(2, 1), [torch.Generator().manual_seed(i) for i in range(2)]
    )
    torch.testing.assert_close(draw(other), draw(run.ema.module), rtol=0, atol=0)
    assert not other.sampling_prior.is_standard


def test_a_file_that_could_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("sprung",))

    torch.save({"weight": Trap()}, tmp_path / "model.pt")
    with pytest.raises(BundleError, match=r"model\.pt"):
        load_state(tmp_path / "model.pt")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BundleError, match="again"):
        load_state(path)


def test_formats_that_a_device_lacks_are_refused():
    assert autocast_dtype("cpu", "float32") is None
    with pytest.raises(SettingError, match="GPU"):
        autocast_dtype("cpu", "float16")
    with pytest.raises(SettingError, match="auto"):
        autocast_dtype("cpu", "bf16")
