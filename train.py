"""Train one model, tracked and resumable: `python train.py --dataset=shapes --epochs=3` (2 minutes
on 2 cores).

    python train.py --config=recipes/NAME.yaml --max_lr=0.1    a recipe, with one key changed
    python train.py --run_id=ID ...                            begins this run, or goes on with it
    python train.py --evaluate=runs/ID                         measures a finished run again

Writes `runs/<run_id>/` and a W&B run (offline without a login); `--help` lists every
hyperparameter. Exit status: 0 done or stopped, 1 failed, 2 a mistake in the call, 143 preempted,
130 Ctrl-C; after the last two the same call goes on.
"""

import errno
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cli
from cli import Failure, Mistake
from config import Config, add_arguments, from_arguments, from_mapping, to_dict
from ending import EXIT_CODES, STATES, Ended, Ending, die_of

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.data import DataLoader

    from data import Data
    from learner import Learner
    from run_folder import RunFolder
    from tracking import Tracker

CHECKPOINT_KEYS = ("model", "config", "epoch")
LOSSES_HELD = 50  # steps between two looks at the loss on a GPU: each waits for the device


class Diverged(Failure):
    pass


@dataclass
class Evaluation:
    """One pass over all validation images; the arrays are in the order of `data.val`."""

    loss: float
    top5: float
    true: "np.ndarray"
    predicted: "np.ndarray"
    confidence: "np.ndarray"  # float32: probability of the predicted class

    @property
    def acc(self) -> float:
        return float((self.predicted == self.true).mean())


def train_one_epoch(
    learner: "Learner",
    batches: Iterator,
    epoch: int,
    after_step: Callable[[float], None],
    title: str = "",
) -> dict[str, float]:
    """One time through the training images; `after_step(lr)` is called after every batch."""
    import torch
    from tqdm import tqdm

    learner.begin_epoch(epoch)
    held, total, right, seen, checked, waited = [], 0.0, 0.0, 0, 0, 0.0
    hold = LOSSES_HELD if learner.device.type == "cuda" else 1
    start = time.perf_counter()
    with tqdm(batches, title, unit=" steps", leave=False, disable=None) as bar:
        steps = iter(bar)
        while True:
            asked = time.perf_counter()
            batch = next(steps, None)
            waited += time.perf_counter() - asked
            if batch is not None:
                lr = learner.lr
                loss, hits = learner.train_step(batch)
                held.append((loss, hits, len(batch.labels), lr))
            if held and (batch is None or len(held) == hold):
                # Here the device is waited for.
                values = torch.stack([torch.stack((loss, hits.float())) for loss, hits, *_ in held])
                for (loss, hits), (_, _, count, lr) in zip(values.tolist(), held, strict=True):
                    if not abs(loss) < float("inf"):
                        last = f"{total / seen:.4f}" if seen else "none"
                        raise Diverged(
                            f"the loss is {loss} in epoch {epoch}, step {checked + 1}, learning "
                            f"rate {lr:.3g} (mean of the epoch until then: {last}); try a lower "
                            "--max_lr"
                        )
                    total, right, seen = total + loss * count, right + hits, seen + count
                    checked += 1
                held.clear()
                bar.set_postfix(
                    loss=f"{total / seen:.3f}", acc=f"{right / seen:.3f}", refresh=False
                )
            if batch is None:
                break
            after_step(lr)
    seconds = time.perf_counter() - start
    return {
        "train/loss": total / seen,
        "train/acc": right / seen,
        "time/images_per_s": seen / seconds,
        "time/loader_wait": waited / seconds,
    }


def evaluate(learner: "Learner", batches: Iterator, check: Callable[[], None]) -> Evaluation:
    """Measure on every image of `batches`, each counted once: sums over all, then divided."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    model = learner.evaluated
    model.eval()
    loss, top5, parts = 0.0, 0, []
    with torch.inference_mode():
        for batch in batches:
            labels = batch.labels.to(learner.device, non_blocking=True)
            logits = learner.logits(model, batch.images.to(learner.device, non_blocking=True))
            loss += cross_entropy(logits, labels, reduction="sum").item()
            best = logits.topk(min(5, logits.shape[1])).indices
            top5 += (best == labels[:, None]).sum().item()
            confidence = logits.softmax(1).gather(1, best[:, :1])
            parts.append(
                [x.flatten().cpu().numpy() for x in (batch.labels, best[:, 0], confidence)]
            )
            check()
    true, predicted, confidence = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Evaluation(loss / len(true), top5 / len(true), true, predicted, confidence)


class Job:
    """A run between its checks and its end: what is trained, on what, and where it is kept."""

    def __init__(self, config: Config, data: "Data", learner: "Learner", folder: "RunFolder"):
        from loader import val_loader

        self.config, self.data, self.learner, self.folder = config, data, learner, folder
        self.train_loader = training_batches(config, data)
        self.val_loader = val_loader(data, config.batch_size, config.workers)
        self.rows: list[dict[str, Any]] = []  # of history.csv, one an epoch
        self.best: dict[str, Any] = {"best_val_acc": -1.0, "best_epoch": 0}
        self.resume()

    def resume(self) -> None:
        """Take up the last whole epoch, where there is one."""
        import checkpoint
        from run_folder import compare_configs

        path = self.folder.path / "last.pt"
        if not path.is_file():
            return
        keys = (*CHECKPOINT_KEYS, "average", "optimizer", "schedule", "history", "best")
        state = checkpoint.load(path, keys, self.learner.device)
        compare_configs(state["config"], self.config, path)
        self.learner.load_state_dict(state)
        self.rows, self.best = state["history"], state["best"]

    def run(self, tracker: "Tracker", check: Callable[[], None]) -> None:
        for epoch in range(len(self.rows) + 1, self.config.epochs + 1):
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
        measured = evaluate(self.learner, epoch_of(self.val_loader, epoch), check)
        self.learner.schedule.step_epoch(measured.loss)
        row = {
            "epoch": epoch,
            "lr": self.learner.lr,
            "train/loss": trained["train/loss"],
            "train/acc": trained["train/acc"],
            "val/loss": measured.loss,
            "val/acc": measured.acc,
            "val/top5": measured.top5,
            "time/images_per_s": trained["time/images_per_s"],
            "time/epoch_s": time.perf_counter() - start,
            "time/loader_wait": trained["time/loader_wait"],
        }
        self.keep(row, measured)
        tracker.log(row)
        print(
            f"{title}: train loss {row['train/loss']:.4f} acc {row['train/acc']:.4f}, val loss "
            f"{row['val/loss']:.4f} acc {row['val/acc']:.4f} top5 {row['val/top5']:.4f}, lr "
            f"{self.learner.lr:.3g}, {row['time/images_per_s']:.0f} images/s, "
            f"{row['time/epoch_s']:.0f} s",
            flush=True,
        )

    def keep(self, row: dict[str, Any], measured: Evaluation) -> None:
        """On disk in the order that a kill in between needs, see run_folder.py."""
        import checkpoint

        self.rows.append(row)
        config, epoch = to_dict(self.config), row["epoch"]
        if measured.acc > self.best["best_val_acc"]:
            self.best = {"best_val_acc": measured.acc, "best_epoch": epoch}
            self.write_predictions(measured)
            state = {"model": self.learner.evaluated.state_dict(), "config": config, "epoch": epoch}
            self.folder.write("best.pt", lambda file: checkpoint.save(state, file))
        state = {
            **self.learner.state_dict(),
            "config": config,
            "epoch": epoch,
            "history": self.rows,
            "best": self.best,
        }
        self.folder.write("last.pt", lambda file: checkpoint.save(state, file))
        self.folder.write_history(self.rows)

    def write_predictions(self, measured: Evaluation) -> None:
        import numpy as np

        arrays = {
            "index": self.data.val,
            "file": self.data.cache.files[self.data.val],
            "true": measured.true,
            "predicted": measured.predicted,
            "confidence": measured.confidence,
            "fingerprint": np.array(self.data.fingerprint),
        }
        self.folder.write("predictions.npz", lambda file: write_npz(file, arrays))

    def end(self, tracker: "Tracker", check: Callable[[], None]) -> None:
        """What follows the last epoch."""
        check()
        tracker.log_model(self.folder.path / "best.pt", {**to_dict(self.config), **self.best})

    def summary(self, state: str) -> dict[str, Any]:
        last = self.rows[-1] if self.rows else {}
        best = self.best if self.rows else {}
        counts = {"state": state, "epochs": len(self.rows), "run_id": self.folder.run_id}
        return {**last, **best, **counts}


def write_npz(file: BinaryIO, arrays: dict[str, "np.ndarray"]) -> None:
    """numpy's own `savez` cannot store an array of the name `file`."""
    import numpy as np

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


class EpochBatches:
    """An iterator with a length, for the progress bar."""

    def __init__(self, batches: Iterator, count: int):
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator:
        return self.batches

    def __len__(self) -> int:
        return self.count


def load_data(config: Config) -> "Data":
    import data as datasets

    data_dir = Path(config.data_dir)
    return datasets.load(
        config.dataset, data_dir, config.split, config.val_fraction, config.split_seed
    )


def training_batches(config: Config, data: "Data") -> "DataLoader":
    from loader import train_loader

    augmentation = config.augmentation(data.images.shape[1])
    return train_loader(data, augmentation, config.batch_size, config.seed, config.workers)


def main(config: Config, run_id: str | None = None) -> dict[str, Any]:
    """Train as `config` says, or go on with this run; returns what summary.json has."""
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
    job.folder.begin(config, job.rows)
    tracker = tracker or start_tracker()
    return carry_out(job, tracker, ending)


def prepare(config: Config, run_id: str) -> Job:
    """Every check that needs the data, the device or the disk, before anything is written."""
    from run_folder import RunFolder, check_output_dir

    check_output_dir(Path(config.output_dir))
    data = load_data(config)
    from learner import Learner

    learner = Learner(config, data, steps_per_epoch=len(training_batches(config, data)))
    folder = RunFolder(Path(config.output_dir), run_id)
    try:
        folder.check_config(config)
        return Job(config, data, learner, folder)
    except Mistake:
        folder.close()
        raise


def carry_out(job: Job, tracker: "Tracker", ending: Ending) -> dict[str, Any]:
    """Train and end, in whichever way; every way leaves a summary and a finished W&B run."""
    code = 1
    state = "failed"
    try:
        work(job, tracker, ending)
        state, code = "finished", 0
    except Ended as ended:
        forget_workers()
        state, code = STATES[ended.request], EXIT_CODES[ended.request]
        if ended.request == "preempt":
            tracker.mark_preempting()
    except (MemoryError, RuntimeError, OSError) as error:
        raise as_failure(error, job) from error
    finally:
        summary = job.summary(state)
        try:
            job.folder.write_summary(summary)
        finally:
            tracker.summarize({k: v for k, v in summary.items() if k != "run_id"})
            tracker.finish(code)
            job.folder.close()
    print(f"{state}: {job.folder.path}", flush=True)
    return summary


def work(job: Job, tracker: "Tracker", ending: Ending) -> None:
    try:
        ending.check()
        say_what(job, tracker)
        job.run(tracker, ending.check)
        job.end(tracker, ending.check)
    except RuntimeError as error:
        # A SIGTERM to the whole group ends the loader's workers, too: torch raises that here.
        if "DataLoader worker" not in str(error):
            raise
        forget_workers()
        if not ending.settle():
            raise
        raise Ended(ending.request) from error


def forget_workers() -> None:
    """Take away torch's handler, which raises, wherever we are, for each worker that ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def as_failure(error: Exception, job: Job) -> Exception:
    """One line for what is no fault of the program: memory or disk at an end, a diverged loss."""
    if isinstance(error, Failure):
        return error
    where = job.folder.path
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return Failure(f"{where}: out of memory; try a smaller --batch_size")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(f"{where}: disk full; make room and run the same command again to go on")
    return error


def say_what(job: Job, tracker: "Tracker") -> None:
    learner, data = job.learner, job.data
    parameters = sum(p.numel() for p in learner.model.parameters())
    tracker.add_config({"split_fingerprint": data.fingerprint, "parameters": parameters})
    tracker.say_where()
    done = f", going on after epoch {len(job.rows)}" if job.rows else ""
    print(
        f"{job.folder.path}: {job.config.model} with {parameters:,} parameters on {learner.device}"
        f"{' in bf16' if learner.amp else ''}, {len(data.train):,} training and {len(data.val):,} "
        f"validation images of {len(data.cache.classes)} classes{done}",
        flush=True,
    )


def evaluate_run(path: Path) -> int:
    """`--evaluate=RUN_DIR`: the best and the last weights of a run, measured again."""
    import yaml

    import checkpoint
    from learner import Learner
    from loader import val_loader

    if not (path / "config.yaml").is_file():
        raise Mistake(f"--evaluate={path} is no run's folder: it has no config.yaml")
    config = from_mapping(yaml.safe_load((path / "config.yaml").read_text()), source=str(path))
    data = load_data(config)
    learner = Learner(config, data, steps_per_epoch=1)
    for name in ("best.pt", "last.pt"):
        state = checkpoint.load(path / name, CHECKPOINT_KEYS, learner.device)
        if name == "last.pt" and learner.average:
            learner.average.load_state_dict(state["average"])
        else:
            learner.evaluated.load_state_dict(state["model"])
        batches = val_loader(data, config.batch_size, config.workers)
        measured = evaluate(learner, iter(batches), lambda: None)
        print(
            f"{path / name}: epoch {state['epoch']}, val acc {measured.acc:.6f}, top5 "
            f"{measured.top5:.6f}, loss {measured.loss:.6f}, {len(measured.true):,} images",
            flush=True,
        )
    return 0


def command(arguments: list[str]) -> int:
    parser = cli.Parser(
        prog="python train.py", description=__doc__, usage="%(prog)s [--key=value ...]"
    )
    parser.add_argument("--run_id", metavar="ID", help="the run's folder and its id in W&B")
    parser.add_argument("--evaluate", type=Path, metavar="RUN_DIR", help="measure a finished run")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.evaluate:
        return evaluate_run(options.evaluate)
    summary = main(from_arguments(options), options.run_id)
    for request, state in STATES.items():
        if summary["state"] == state:
            sys.stdout.flush()
            die_of(request)
    return 0


if __name__ == "__main__":
    cli.run(command)
