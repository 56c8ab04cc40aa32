"""Train one model, tracked and resumable: `python train.py --dataset=shapes --epochs=3` (2 minutes
on 2 cores).

    python train.py --config=recipes/NAME.yaml --max_lr=0.1    a recipe, with one key changed
    python train.py --run_id=ID ...                            begins this run, or goes on with it
    python train.py --evaluate=runs/ID                         measures a finished run again
    python train.py --find_lr ...                              a range test: suggests a max_lr

Writes `runs/<run_id>/` and a W&B run (offline without a login); `--help` lists every
hyperparameter. Exit status: 0 done or stopped, 1 failed, 2 a mistake in the call, 143 preempted,
130 Ctrl-C; after the last two the same call goes on.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
from cli import Failure, Mistake
from config import Config, add_arguments, from_arguments, from_mapping, given, to_dict
from ending import EXIT_CODES, STATES, Ended, Ending, as_failure, die_of, workers_may_end
from measures import Evaluation, Tally

if TYPE_CHECKING:
    from data import Data
    from learner import Learner
    from localisation import Looks
    from run_folder import RunFolder
    from tracking import Tracker

LOSSES_HELD = 50  # steps between two looks at the loss on a GPU: each waits for the device


def train_one_epoch(
    learner: "Learner",
    batches: Iterable,
    epoch: int,
    after_step: Callable[[float], None],
    title: str = "",
) -> dict[str, float]:
    """One time through the training images; `after_step(lr)` is called after every batch."""
    from tqdm import tqdm

    learner.begin_epoch(epoch)
    tally = Tally(epoch, hold=LOSSES_HELD if learner.device.type == "cuda" else 1)
    waited = 0.0
    start = time.perf_counter()
    with tqdm(batches, title, unit=" steps", leave=False, disable=None) as bar:
        for batch, seconds in timed(bar):
            waited += seconds
            lr = learner.lr
            loss, right = learner.train_step(batch)
            tally.add(loss, right, len(batch.labels), lr)
            if tally.seen:
                loss, acc = f"{tally.mean_loss:.3f}", f"{tally.acc:.3f}"
                bar.set_postfix(loss=loss, acc=acc, lr=f"{lr:.3g}", refresh=False)
            after_step(lr)
    tally.look()
    seconds = time.perf_counter() - start
    return {
        "train/loss": tally.mean_loss,
        "train/acc": tally.acc,
        "time/images_per_s": tally.seen / seconds,
        "time/loader_wait": waited / seconds,
    }


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
    """Measure on every image of `batches`, each counted once: sums over all, then divided."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    measure = measure or learner.measure
    learner.evaluated.eval()
    loss, top5, parts = 0.0, 0, []
    with torch.inference_mode():
        for batch in batches:
            labels = batch.labels.to(learner.device, non_blocking=True)
            logits, maps = measure(batch.images)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            best = logits.topk(min(5, logits.shape[1])).indices
            top5 += (best == labels[:, None]).sum().item()
            confidence = logits.softmax(1).gather(1, best[:, :1])
            parts.append(
                [x.flatten().cpu().numpy() for x in (batch.labels, best[:, 0], confidence)]
            )
            if maps is not None:
                looks.add(maps, learner.evaluated.get_classifier().weight, labels)
            check()
    true, predicted, confidence = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Evaluation(loss / len(true), top5 / len(true), true, predicted, confidence, looks)


class Job:
    """A run between its checks and its end: what is trained, on what, and what came out so far."""

    def __init__(self, config: Config, data: "Data"):
        from learner import Learner
        from loader import train_loader, val_loader

        augmentation = config.augmentation(data.images.shape[1])
        self.config, self.data = config, data
        self.train_loader = train_loader(
            data, augmentation, config.batch_size, config.seed, config.workers
        )
        self.val_loader = val_loader(data, config.batch_size, config.workers)
        self.learner = Learner(config, data, steps_per_epoch=len(self.train_loader))

    def open(self, folder: "RunFolder") -> None:
        """Take up what `folder` has of this run."""
        from record import Record

        folder.check_config(self.config)
        self.folder = folder
        self.record = Record(self.config, self.data, folder)
        self.record.resume(self.learner)

    def run(self, tracker: "Tracker", check: Callable[[], None]) -> None:
        for epoch in range(len(self.record.rows) + 1, self.config.epochs + 1):
            self.one_epoch(epoch, tracker, check)

    def one_epoch(self, epoch: int, tracker: "Tracker", check: Callable[[], None]) -> None:
        from loader import epoch_of

        start = time.perf_counter()
        step = (epoch - 1) * len(self.train_loader)

        def after_step(lr: float) -> None:
            nonlocal step
            step += 1
            tracker.log({"train/step": step, "train/lr_step": lr})
            check()

        title = f"epoch {epoch}/{self.config.epochs}"
        batches = EpochBatches(epoch_of(self.train_loader, epoch), len(self.train_loader))
        trained = train_one_epoch(self.learner, batches, epoch, after_step, title)
        batches = epoch_of(self.val_loader, epoch)
        measured = evaluate(self.learner, batches, looks_of(self.data), check)
        self.learner.schedule.step_epoch(measured.loss)
        row = {
            "epoch": epoch,
            "lr": self.learner.lr,
            "train/loss": trained["train/loss"],
            "train/acc": trained["train/acc"],
            **measured.metrics(),
            "time/images_per_s": trained["time/images_per_s"],
            "time/epoch_s": time.perf_counter() - start,
            "time/loader_wait": trained["time/loader_wait"],
        }
        self.record.keep(row, measured, self.learner)
        tracker.log(row)
        tracker.log_picture("val/gradcam", self.draw_panel(check))
        print(
            f"{title}: train loss {row['train/loss']:.4f} acc {row['train/acc']:.4f}, val loss "
            f"{row['val/loss']:.4f} acc {row['val/acc']:.4f} top5 {row['val/top5']:.4f}, lr "
            f"{self.learner.lr:.3g}, {row['time/images_per_s']:.0f} images/s, "
            f"{row['time/epoch_s']:.0f} s",
            flush=True,
        )

    def draw_panel(self, check: Callable[[], None]) -> Path:
        """The same images after every epoch: does it look at the object?"""
        from viz import gradcam_panel, panel_images, write_picture

        indices = panel_images(self.data, self.config.split_seed)
        panel = gradcam_panel(self.learner, self.data, indices, check)
        return write_picture(panel, self.folder.path / "figures" / "gradcam.jpg")

    def end(self, tracker: "Tracker", check: Callable[[], None]) -> None:
        """What follows the last epoch; from here on the learner has the best epoch's weights."""
        from record import load_weights
        from viz import draw_run

        check()
        best = self.folder.path / "best.pt"
        epoch = load_weights(self.learner, best)
        tracker.log_model(best, {**to_dict(self.config), **self.record.best}, check)
        check()
        pictures, mistakes = draw_run(
            self.folder.path, self.config, self.data, self.learner, self.record.rows, epoch, check
        )
        for key, path in pictures.items():
            if key != "mistakes":  # W&B has them as a table
                tracker.log_picture(key, path)
        check()
        if mistakes:
            tracker.log_mistakes(mistakes, check)
        told = f"{tracker.pictures} files for W&B, {tracker.picture_bytes / 1e6:.1f} MB"
        print(f"pictures: {self.folder.path / 'figures'}; {told}", flush=True)


def looks_of(data: "Data") -> "Looks":
    from localisation import Looks

    return Looks(data.cache.boxes[data.val], data.images.shape[1])


class EpochBatches:
    """An iterator with a length, for the progress bar."""

    def __init__(self, batches: Iterator, count: int):
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator:
        return self.batches

    def __len__(self) -> int:
        return self.count


def main(config: Config, run_id: str | None = None) -> dict[str, Any]:
    """Train as `config` says, or go on with this run; returns what summary.json has."""
    from about import note_start
    from run_folder import check_id, new_id
    from tracking import Tracker, in_sweep

    run_id = check_id(run_id or os.environ.get("WANDB_RUN_ID") or new_id())
    ending = Ending()
    ending.listen()
    tracker = None

    def start_tracker() -> Tracker:
        return Tracker(config, run_id, Path(config.output_dir) / run_id, lambda: ending.ask("stop"))

    if in_sweep():  # first of all: a suggestion that no run claims is handed out again
        tracker = start_tracker()
        try:
            config = from_mapping(tracker.config(), source="the sweep")
        except Mistake:
            tracker.finish(exit_code=2)
            raise
    try:
        job = prepare(config, run_id)
    except (Mistake, Failure) as problem:
        if tracker:
            tracker.finish(exit_code=2 if isinstance(problem, Mistake) else 1)
        raise
    if job.folder.state() == "finished":
        print(f"{job.folder.path} is finished: nothing to do")
        summary = job.folder.read_summary()
        job.folder.close()
        if tracker:
            tracker.finish(exit_code=0)
        return summary
    job.folder.begin(config, job.record.rows)
    note_start(job.folder, job.learner, job.data)
    tracker = tracker or start_tracker()
    return carry_out(job, tracker, ending)


def prepare(config: Config, run_id: str) -> Job:
    """Every check that needs the data, the device or the disk, before anything is written."""
    from record import load_data
    from run_folder import RunFolder, check_output_dir

    check_output_dir(Path(config.output_dir))
    data = load_data(config, meanwhile=import_libraries)
    import_libraries()  # where few files left no while
    job = Job(config, data)
    folder = RunFolder(Path(config.output_dir), run_id)
    try:
        job.open(folder)
    except Mistake:
        folder.close()
        raise
    return job


def import_libraries() -> None:
    """Those that take seconds."""
    from tracking import import_client

    import_client()  # before torch
    import timm

    assert timm


def carry_out(job: Job, tracker: "Tracker", ending: Ending) -> dict[str, Any]:
    """Train and end, in whichever way; every way leaves a summary and a finished W&B run."""
    code = 1
    state = "failed"
    try:
        with workers_may_end(ending):
            ending.check()
            say_what(job, tracker)
            job.run(tracker, ending.check)
            job.end(tracker, ending.check)
        state, code = "finished", 0
    except Ended as ended:
        state, code = STATES[ended.request], EXIT_CODES[ended.request]
        if ended.request == "preempt":
            tracker.mark_preempting()
    except (MemoryError, RuntimeError, OSError) as error:
        raise as_failure(error, job.folder.path) from error
    finally:
        summary = job.record.summary(state)
        try:
            job.folder.write_summary(summary)
        finally:
            tracker.summarize({k: v for k, v in summary.items() if k != "run_id"})
            tracker.finish(code)
            job.folder.close()
    print(f"{state}: {job.folder.path}", flush=True)
    return summary


def say_what(job: Job, tracker: "Tracker") -> None:
    learner, data = job.learner, job.data
    parameters = sum(p.numel() for p in learner.model.parameters())
    images = {"training_images": len(data.train), "validation_images": len(data.val)}
    tracker.add_config({"split_fingerprint": data.fingerprint, "parameters": parameters, **images})
    tracker.say_where()
    done = f", going on after epoch {len(job.record.rows)}" if job.record.rows else ""
    print(
        f"{job.folder.path}: {job.config.model} with {parameters:,} parameters on {learner.device}"
        f"{' in bf16' if learner.amp else ''}, {len(data.train):,} training and {len(data.val):,} "
        f"validation images of {len(data.cache.classes)} classes{done}",
        flush=True,
    )
    if not learner.explains:
        print(
            f"no val/cam_*: {job.config.model} does not end in mean pooling and a linear layer; "
            "pictures have maps where it has feature maps"
        )


def evaluate_run(path: Path, changed: dict[str, Any], mirrored: bool) -> int:
    """`--evaluate=RUN_DIR`: the best and the last weights of a run, measured again."""
    from loader import val_loader
    from record import load_weights, open_run

    config, data, learner = open_run(path, changed)
    batches = val_loader(data, config.batch_size, config.workers)
    for name in ("best.pt", "last.pt"):
        epoch = load_weights(learner, path / name)
        measure = learner.measure_mirrored if mirrored else learner.measure
        measured = evaluate(learner, batches, looks_of(data), lambda: None, measure)
        numbers = ", ".join(f"{key} {value:.7g}" for key, value in measured.metrics().items())
        how = ", mean of image and mirror image" if mirrored else ""
        print(
            f"{path / name}: epoch {epoch}, {numbers}, {len(measured.true):,} images{how}",
            flush=True,
        )
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
    options = parser.parse_args(arguments)
    if options.evaluate:
        if options.config or options.run_id or options.find_lr:
            raise Mistake("--evaluate goes with no --config, --run_id or --find_lr")
        return evaluate_run(options.evaluate, given(options), options.mirrored)
    if options.mirrored:
        raise Mistake("--mirrored goes with --evaluate")
    if options.find_lr:
        if options.run_id:
            raise Mistake("--find_lr makes no run, so there is no --run_id")
        from lr_finder import find_lr

        return find_lr(from_arguments(options))
    summary = main(from_arguments(options), options.run_id)
    for request, state in STATES.items():
        if summary["state"] == state:
            sys.stdout.flush()
            die_of(request)
    return 0


if __name__ == "__main__":
    cli.run(command)
