"""Train one model, tracked and resumable: `python train.py --dataset=shapes --epochs=3` (2 to 4
minutes on 2 cores).

    python train.py --config=recipes/NAME.yaml --max_lr=0.1    a recipe, with one key changed
    python train.py --run_id=ID ...                            begins this run, or goes on with it
    python train.py --evaluate=runs/ID                         measures a finished run again
    python train.py --find_lr ...                              a range test: suggests a max_lr

    torchrun --standalone --nproc_per_node=4 train.py ...      the same, by four GPUs together

Writes `runs/<run_id>/` and a W&B run (offline without a login); `--help` lists every
hyperparameter. Exit status: 0 done or stopped, 1 failed, 2 a mistake in the call, 143 preempted,
130 Ctrl-C; after the last two the same call with the run's id goes on.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
import suggestion
from cli import Mistake
from config import Config, add_arguments, from_arguments, given
from ending import STATES, Ending, die_of, in_one_line
from measures import Diverged, Evaluation, Tally
from ranks import Ranks, start_processes

if TYPE_CHECKING:
    from tqdm import tqdm

    from data import Data
    from learner import Learner
    from localisation import Looks
    from tracking import Tracker
    from training import Training

LOSSES_HELD = 50  # steps between two looks at the loss on a GPU: each waits for the device


def train_one_epoch(
    learner: "Learner",
    batches: Iterable,
    epoch: int,
    after_step: Callable[[float], None],
    title: str = "",
    steps: int | None = None,
) -> dict[str, float]:
    """One time through the training images; `after_step(lr)` is called after every batch."""
    learner.begin_epoch(epoch)
    hold = 1 if learner.device.type == "cpu" else LOSSES_HELD
    tally = Tally(epoch, hold, learner.ranks)
    waited = 0.0
    start = time.perf_counter()
    with progress(batches, title, "steps", learner.ranks, steps) as bar:
        for batch, seconds in timed(bar):
            waited += seconds
            lr = learner.lr
            loss, right = learner.train_step(batch)
            after_step(lr)  # where another process has gone it is seen here, and no GPU waited for
            tally.add(loss, right, len(batch.labels), lr)
            if tally.seen:
                loss, acc = f"{tally.mean_loss:.3f}", f"{tally.acc:.3f}"
                bar.set_postfix(loss=loss, acc=acc, lr=f"{lr:.3g}", refresh=False)
    tally.look()
    seconds = time.perf_counter() - start
    return {
        "train/loss": tally.mean_loss,
        "train/acc": tally.acc,
        "time/images_per_s": tally.seen / seconds,
        "time/loader_wait": waited / seconds,
    }


def progress(
    batches: Iterable, title: str, unit: str, ranks: Ranks, total: int | None = None
) -> "tqdm":
    """A bar on the first process's terminal, where there is one."""
    from tqdm import tqdm

    hidden = None if ranks.first else True
    return tqdm(batches, title, total, unit=f" {unit}", leave=False, disable=hidden)


def timed(batches: Iterable) -> Iterator[tuple[Any, float]]:
    """Each batch with the seconds that it was waited for."""
    asked = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - asked
        asked = time.perf_counter()


def evaluate(
    learner: "Learner",
    batches: Iterable,
    looks: "Looks",
    check: Callable[[], None],
    measure: Callable | None = None,
) -> Evaluation:
    """Measure on every image of `batches`, each counted once: sums over all, then divided.

    A GPU is not waited for until the last batch.
    """
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    measure = measure or learner.measure
    learner.begin_measuring()
    parts = []
    with torch.inference_mode(), progress(batches, "measuring", "batches", learner.ranks) as bar:
        for batch in bar:
            if len(batch.labels):
                labels = batch.labels.to(learner.device, non_blocking=True)
                logits, maps = measure(batch.images)
                loss = cross_entropy(logits, labels, reduction="sum")
                best = logits.topk(min(5, logits.shape[1])).indices
                top5 = (best == labels[:, None]).sum()
                predicted = best[:, 0]
                confidence = logits.softmax(1).gather(1, best[:, :1])[:, 0]
                # A copy: a worker's own tensor holds a file open for as long as it is kept.
                parts.append((loss, top5, batch.labels.clone(), predicted, confidence))
                if maps is not None:
                    weight = learner.evaluated.get_classifier().weight
                    looks.add(batch.start, maps, weight, labels)
            check()
    parts = [[value.cpu().numpy() for value in part] for part in parts]
    losses, top5, *arrays = zip(*learner.ranks.in_turn(parts), strict=True)
    looks.gather(learner.ranks)
    true, predicted, confidence = map(np.concatenate, arrays)
    loss, top5 = sum(map(float, losses)) / len(true), sum(map(int, top5)) / len(true)
    return Evaluation(loss, top5, true, predicted, confidence, looks)


def train_epochs(
    training: "Training", tracker: "Tracker | None", check: Callable[[], None]
) -> None:
    """From the first one that is not done to the last."""
    for epoch in range(len(training.record.rows) + 1, training.config.epochs + 1):
        one_epoch(training, epoch, tracker, check)
    training.ranks.leave()


def one_epoch(
    training: "Training", epoch: int, tracker: "Tracker | None", check: Callable[[], None]
) -> None:
    """Train, measure, and of several processes the first one: keep and tell."""
    from loader import epoch_of

    start = time.perf_counter()
    learner, steps = training.learner, len(training.train_loader)
    step = (epoch - 1) * steps

    def after_step(lr: float) -> None:
        nonlocal step
        step += 1
        if tracker:
            tracker.log({"train/step": step, "train/lr_step": lr})
        check()

    title = f"epoch {epoch}/{training.config.epochs}"
    batches = epoch_of(training.train_loader, epoch)
    trained = train_one_epoch(learner, batches, epoch, after_step, title, steps)
    batches = epoch_of(training.val_loader, epoch)
    measured = evaluate(learner, batches, looks_of(training.data), check)
    if not math.isfinite(measured.loss):  # by the last step of the epoch, whose loss was none yet
        raise Diverged(
            f"the validation loss is {measured.loss} after epoch {epoch}; try a lower --max_lr"
        )
    learner.schedule.step_epoch(measured.loss, learner.pixels)
    row = {
        "epoch": epoch,
        "lr": learner.lr,
        **({"pixels": learner.pixels} if learner.stages else {}),
        "train/loss": trained["train/loss"],
        "train/acc": trained["train/acc"],
        **measured.metrics(),
        "time/images_per_s": trained["time/images_per_s"],
        "time/epoch_s": time.perf_counter() - start,
        "time/loader_wait": trained["time/loader_wait"],
    }
    if not training.folder:
        training.record.rows.append(row)
        return
    training.record.keep(row, measured, learner)
    tracker.log(row)
    # Of several processes the others are in the next epoch by now, where they cannot be asked.
    alone = check if not training.ranks.several else lambda: None
    tracker.log_picture("val/gradcam", training.draw_panel(alone))
    at = f" at {learner.pixels} px" if learner.stages else ""
    print(
        f"{title}{at}: train loss {row['train/loss']:.4f} acc {row['train/acc']:.4f}, val "
        f"loss {row['val/loss']:.4f} acc {row['val/acc']:.4f} top5 {row['val/top5']:.4f}, lr "
        f"{learner.lr:.3g}, {row['time/images_per_s']:.0f} images/s, {row['time/epoch_s']:.0f} s",
        flush=True,
    )


def looks_of(data: "Data") -> "Looks":
    from localisation import Looks

    return Looks(data.cache.boxes[data.val], data.images.shape[1])


def main(config: Config, run_id: str | None = None) -> dict[str, Any]:
    """Train as `config` says, or go on with this run; returns what summary.json has."""
    import lifetime
    from run_folder import check_unused, choose_id
    from tracking import check_project
    from wandb_client import check_settings, client_of

    ranks = Ranks.of_environment()
    ending = Ending(ranks)
    ranks.join()  # until then a signal ends it as any program, with nothing begun
    ending.listen()
    if not ranks.first:
        return lifetime.help_out(train_epochs, ranks, ending)
    check_project()
    check_settings()
    folder = suggestion.output_dir(config) / choose_id(run_id)
    if not suggestion.in_sweep():  # there W&B's run comes first
        check_unused(folder, config.resume)
    try:
        with client_of(folder):
            return lifetime.begin_or_go_on(train_epochs, config, folder, ranks, ending)
    finally:
        ending.over = True


def evaluate_run(path: Path, changed: dict[str, Any], mirrored: bool) -> int:
    """`--evaluate=RUN_DIR`: the best and the last weights of a run, measured again."""
    from loader import val_loader
    from record import load_weights, open_run

    ranks = Ranks.of_environment()
    with in_one_line(path, "call it again"):
        ranks.join()
        config, data, learner = open_run(path, changed, ranks)
        pinned = learner.device.type == "cuda"
        batches = val_loader(data, config.batch_size, config.workers, ranks, pinned)
        for name in ("best.pt", "last.pt"):
            epoch = load_weights(learner, path / name)
            measure = learner.measure_mirrored if mirrored else learner.measure
            measured = evaluate(learner, batches, looks_of(data), lambda: None, measure)
            numbers = ", ".join(f"{key} {value:.7g}" for key, value in measured.metrics().items())
            how = f" at {learner.pixels} px" if learner.stages else ""
            how += ", mean of image and mirror image" if mirrored else ""
            if ranks.first:
                images = f"{len(measured.true):,} images{how}"
                print(f"{path / name}: epoch {epoch}, {numbers}, {images}", flush=True)
        ranks.leave()
    return 0


def command(arguments: list[str]) -> int:
    parser = cli.Parser(
        prog="python train.py", description=__doc__, usage="%(prog)s [--key=value ...]"
    )
    parser.add_argument("--run_id", metavar="ID", help="the run's folder and its id in W&B")
    parser.add_argument("--evaluate", type=Path, metavar="RUN_DIR", help="measure a finished run")
    parser.add_argument(
        "--mirrored",
        action="store_true",
        help="with --evaluate: average over image and mirror image",
    )
    parser.add_argument("--find_lr", action="store_true", help="range test: suggests a max_lr")
    add_arguments(parser)
    arguments = suggestion.take(arguments)
    try:
        options = parser.parse_args(arguments)
        config = from_arguments(options)
        run_id = None
        if not (options.evaluate or options.find_lr):
            from run_folder import choose_id

            run_id = choose_id(options.run_id)
    except Mistake:
        if suggestion.in_sweep() and Ranks.of_environment().first:
            from tracking import refuse_suggestion

            with suppress(Mistake):  # of its own; this one is what there is to say
                refuse_suggestion(arguments)
        raise
    if options.evaluate:
        if options.config or options.run_id or options.find_lr:
            raise Mistake("--evaluate goes with no --config, --run_id or --find_lr")
        return evaluate_run(options.evaluate, given(options), options.mirrored)
    if options.mirrored:
        raise Mistake("--mirrored goes with --evaluate")
    if options.find_lr:
        if Ranks.of_environment().several:
            raise Mistake("--find_lr is for one process; the rate that it finds is good for more")
        if options.run_id:
            raise Mistake("--find_lr makes no run, so there is no --run_id")
        from lr_finder import find_lr

        return find_lr(config)
    start_processes(__file__, arguments)
    summary = main(config, run_id)
    for request, state in STATES.items():
        if summary.get("state") == state:
            die_of(request)
    return 0


if __name__ == "__main__":
    cli.run(command)
