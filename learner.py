"""What learns: model, averaged weights, optimizer and schedule on a device, and their state as one
dictionary.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import compiling
import convolutions
import cpu
import dice
import model as models
import norms
import resolution
from average import Average
from cli import Mistake
from config import Config
from loader import Batch, to_input
from muon import Muon
from ranks import ALONE, Ranks, together
from schedules import create_schedule, moves_momentum

if TYPE_CHECKING:
    from data import Data

WINOGRAD_UP_TO_THREADS = 4  # that share the way to the memory; more have not been measured
INIT, EPOCH = 5, 6  # purposes of the dice, beside those of augment.py, loader.py and split.py


class Learner:
    def __init__(
        self,
        config: Config,
        data: "Data",
        steps_per_epoch: int,
        ranks: Ranks = ALONE,
        trains: bool = True,
    ):
        """`trains`: not only measures, so that each batch must be enough for its statistics."""
        self.config, self.ranks = config, ranks
        self.device = find_device(config.device, ranks)
        if self.device.type == "cpu":
            cpu.keep_memory()
            cpu.keep_to_allowed_cores()
        self.amp = wants_amp(config.amp, self.device)
        self.image_size = config.image_size or data.images.shape[1]
        self.stages = resolution.parse(config.resolution_schedule)
        resolution.check_sizes(self.stages, self.image_size)
        self.largest_batch = min(config.batch_size, len(data.train))
        self.pixels = self.image_size  # of the step, and of what is measured after it
        self.normalizer = config.normalizer()
        seed_torch(config.seed, INIT)
        classes = len(data.cache.classes)
        self.model = models.create_model(config.model, classes, self.image_size, config.init)
        self.model.to(self.device, memory_format=torch.channels_last)
        # What is compiled has torch's own convolutions.
        self.winograd = config.compile != "true" and wants_winograd(
            config.winograd, self.device, self.amp
        )
        if self.winograd:
            convolutions.replace(self.model)
        if ranks.several:
            most = self.largest_batch
            if trains and most < ranks.world:
                raise Mistake(f"batches of {most} images are too few for {ranks.world} processes")
            norms.synchronise(self.model)
        for pixels, _ in self.stages:
            models.check_fit(self.model, config.model, pixels)
        # Whether Grad-CAM has a closed form, see localisation.py.
        self.explains = models.try_out(self.model, config.model, self.image_size) is not None
        if trains and config.batch_size == 1 and not ranks.several:
            pixels = self.stages[0][0] if self.stages else self.image_size
            models.check_alone(self.model, config.model, pixels)
        self.average = Average(self.model, config.ema) if config.ema else None
        self.optimizer = _optimizer(self.model, config, self.amp)
        self.steps = config.epochs * steps_per_epoch
        self.schedule = create_schedule(self.optimizer, config, self.steps, steps_per_epoch)
        # What is trained: the model, with its gradients averaged over all processes.
        self.trained = self._parallel() if ranks.several else self.model
        self.compiled = self._compile()

    def _parallel(self) -> DistributedDataParallel:
        # Of a 1x1 kernel channels_last and the usual order are the same bytes, which torch copies.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        # Its new name is not known to torch 2.11.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        devices = None if self.device.type == "cpu" else [self.device.index]
        with together():
            # Norms have the same statistics everywhere by themselves.
            parallel = DistributedDataParallel(
                self.model, device_ids=devices, broadcast_buffers=False
            )
            # After its first gradients it arranges them anew, so that of three processes and more
            # they are added up in another order. A run that goes on would begin with the first one.
            pixels = self.stages[0][0] if self.stages else self.image_size
            image = torch.zeros(1, 3, pixels, pixels, device=self.device)
            parallel.eval()(image).sum().backward()
        self.model.zero_grad()
        return parallel

    def _compile(self) -> Callable:
        """One graph a resolution (`dynamic=False`); the short last batch runs without one."""
        wanted = compiling.wanted(self.config.compile, self.device, self.amp, self.steps)
        if self.winograd or not wanted:
            return self.trained
        if missing := compiling.missing(self.device):
            raise Mistake(f"compile=true needs {missing}")
        # Who did not ask for it gets no failure from it: what does not compile runs as it is.
        torch._dynamo.config.suppress_errors = self.config.compile == "auto"
        return torch.compile(self.trained, dynamic=False)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is measured and kept: with averaged weights where there are any."""
        return self.average.module if self.average else self.model

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def begin_epoch(self, epoch: int) -> None:
        """Dropout and the like draw from (seed, epoch), so nothing of the stream needs saving."""
        others = (self.ranks.rank,) if self.ranks.rank else ()
        seed_torch(self.config.seed, EPOCH, epoch, *others)
        self.trained.train()

    def be_after(self, epoch: int) -> None:
        """Measure as this epoch did."""
        self._be_at(epoch / self.config.epochs)

    def _be_at(self, done: float) -> None:
        self.pixels = resolution.pixels_at(self.stages, done, self.image_size)

    def train_step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the optimizer; the batch's loss and its weighted number of right answers.

        Of several processes each gives its own images' part of both: the mean over the processes
        is the loss of the whole batch, the sum the number of right answers in it.
        """
        self._be_at((self.schedule.step + 1) / self.steps)
        batch = batch.to(self.device)
        images, count = batch.images, len(batch.labels)
        several = self.ranks.several or self.config.batch_size > 1
        few = several and batch.whole < max(2, self.ranks.world)
        if few:  # for statistics, of which every process has a part; all know it alike
            norms.freeze(self.model)
        if not count:  # the others wait for our gradients, which are zero
            images = images.new_zeros(1, *images.shape[1:])
        # Of the whole batch, so that all decide alike: compiled, sums come in another order.
        whole = batch.whole == self.largest_batch
        forward = self.compiled if whole else self.trained
        self._search(whole)
        logits = self._run(forward, images).float()[:count]
        loss = self._loss(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if few:
            self.trained.train()
        if self.average:
            self.average.update_parameters(self.model)
        self.schedule.step_batch()
        predicted = logits.detach().argmax(1)
        right = batch.share * (predicted == batch.labels) + (1 - batch.share) * (
            predicted == batch.partners
        )
        return loss.detach(), right.sum()

    def begin_measuring(self) -> None:
        """All measure with what the first process's model keeps, which is what is saved."""
        self.ranks.share_tensors(self.evaluated.buffers())
        self.evaluated.eval()

    def measure(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """uint8 images -> logits of the evaluated model; the maps before them, if they explain."""
        images = images.to(self.device, non_blocking=True)
        self._search(len(images) == self.config.batch_size)
        if not self.explains:
            return self._run(self.evaluated, images).float(), None
        maps = self._run(self.evaluated.forward_features, images)
        with self._autocast():
            return self.evaluated.forward_head(maps).float(), maps

    def measure_mirrored(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `measure`, with the logits averaged over each image and its mirror image; the maps
        are the image's own.
        """
        images = images.to(self.device, non_blocking=True)
        logits, maps = self.measure(images)
        mirrored, _ = self.measure(images.flip(2))
        return (logits + mirrored) / 2, maps

    def _search(self, usual: bool) -> None:
        """Let cuDNN look for the fastest way for batches of the usual size alone: others come so
        seldom that the search would cost more than it gains.
        """
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = usual

    def _run(self, forward: Callable, images: torch.Tensor) -> torch.Tensor:
        """uint8 images on the device, normalised and at the step's pixels, through `forward`."""
        x = to_input(images, *self.normalizer, self.pixels)
        with self._autocast():
            return forward(x)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    def _loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        smoothing = self.config.label_smoothing
        losses = [
            cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            for labels in (batch.labels, batch.partners)
        ]
        loss = (batch.share * losses[0] + (1 - batch.share) * losses[1]).sum()
        loss = loss * (self.ranks.world / batch.whole)
        if self.config.l1:
            sizes = [weight.abs().sum() for weight in models.weights_of(self.model)]
            loss = loss + self.config.l1 * sum(sizes)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only: `torch.load(weights_only=True)` reads it."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def find_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    wanted = name
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available() and not ranks.several
            else "cpu"
        )
    if ranks.several and name not in ("cuda", "cpu"):
        raise Mistake(f"device={name}: several processes need --device=cuda, one each, or cpu")
    if ranks.several and name == "cuda" and ranks.local_world > torch.cuda.device_count():
        have = f"{ranks.local_world} processes and {torch.cuda.device_count()} GPUs"
        raise Mistake(f"device=cuda: this machine has {have}; use --nproc_per_node=gpu")
    try:
        device = torch.device(name)
        if ranks.several and name == "cuda":
            device = torch.device("cuda", ranks.local_rank)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # what is asked about "the" GPU is asked about this one
        if device.type == "meta":
            raise RuntimeError("it holds no values")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        other = "cpu" if wanted == "auto" else "auto"
        mistake = Mistake(f"device={name} cannot be used here ({reason}); try --device={other}")
        mistake.said_by_all = False  # the others' GPUs may be free
        raise mistake from error
    return device


def wants_amp(amp: str, device: torch.device) -> bool:
    """bf16 where the hardware multiplies it: a CPU with AVX-512 trains twice as fast in it, one
    with AMX three times, others slower.
    """
    if amp != "auto":
        return amp == "true"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu.multiplies_bf16()


def wants_winograd(winograd: str, device: torch.device, amp: bool) -> bool:
    """Our ways of a convolution, on CPUs on which they were seen to gain: a third of a step's time
    with AVX2, a tenth in bf16 at 64 px, a seventh at 24.
    """
    if device.type != "cpu":
        return False
    if winograd != "auto":
        return winograd == "true"
    return cpu.gains_by_fewer_products(amp) and torch.get_num_threads() <= WINOGRAD_UP_TO_THREADS


def seed_torch(*key: int) -> None:
    torch.manual_seed(int(dice.bits(*key)) >> 1)


def _optimizer(model: nn.Module, config: Config, amp: bool) -> torch.optim.Optimizer:
    groups = models.parameter_groups(model, config.weight_decay)
    # One kernel for all parameters; on a CPU an update is 0.2% of a step either way.
    kind = {"fused": True} if groups[0]["params"][0].is_cuda else {}
    # Where the schedule moves the momentum, only whether there is one matters here.
    momentum = 0.9 if moves_momentum(config) else config.momentum
    nesterov = config.nesterov and momentum > 0
    if config.optimizer == "muon":
        dtype = torch.bfloat16 if amp else torch.float32
        return Muon(model, groups, config.max_lr, momentum, dtype, nesterov=nesterov, **kind)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.max_lr, momentum, nesterov=nesterov, **kind)
    adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, config.max_lr, betas=(momentum, 0.999), **kind)
