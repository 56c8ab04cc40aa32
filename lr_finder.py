"""The range test for the learning rate: `python train.py --find_lr ...`, about 200 steps.

Trains with a rate that grows from step to step until the loss explodes, and draws loss and accuracy
over it. Suggested is the rate at which the smoothed loss falls fastest; where the accuracy rises
fastest is told beside it. It leaves `<output_dir>/find_lr-<id>/` with lr_range.csv and
lr_range.png, and in W&B a run of the job type `find_lr`: nothing that could be taken for a
training.
"""

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cli import Failure
from config import Config
from ending import EXIT_CODES, Ended, Ending, as_failure, die_of, in_one_line, workers_may_end

LOWEST, HIGHEST = 1e-5, 10.0
STEPS = 200
SMOOTHING = 0.9  # weight of the past in the moving average
EXPLODED = 3.0  # times the lowest smoothed loss
LEFT_OUT = 0.1  # share of the steps at the beginning, where the average still settles


def rates() -> np.ndarray:
    return np.geomspace(LOWEST, HIGHEST, STEPS)


def smooth(values: Sequence[float]) -> np.ndarray:
    """A moving average without the bias of its beginning (as Adam has it)."""
    mean, told = 0.0, []
    for number, value in enumerate(values, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        told.append(mean / (1 - SMOOTHING**number))
    return np.array(told)


def suggest(tried: Sequence[float], losses: np.ndarray) -> float | None:
    """The rate of the steepest fall of the smoothed loss (or of minus the accuracy) before its
    minimum, over log(rate).
    """
    first, last = int(LEFT_OUT * STEPS), int(np.argmin(losses))
    if last - first < 3:
        return None
    slope = np.gradient(losses, np.log(tried))[first : last + 1]
    if slope.min() >= 0:
        return None
    return float(tried[first + int(slope.argmin())])


def range_test(learner, batches: Iterator, check) -> list[tuple[float, float, float]]:
    """(rate, loss, accuracy) of each step until the loss explodes."""
    from tqdm import tqdm

    rows: list[tuple[float, float, float]] = []
    learner.begin_epoch(1)
    with tqdm(rates(), "range test", unit=" steps", leave=False, disable=None) as bar:
        for rate in bar:
            for group in learner.optimizer.param_groups:
                group["lr"] = rate
            batch = next(batches)
            loss, right = (part.item() for part in learner.train_step(batch))
            if not math.isfinite(loss):
                break
            rows.append((float(rate), loss, right / len(batch.labels)))
            losses = smooth([loss for _, loss, _ in rows])
            if losses[-1] > EXPLODED * losses.min():
                break
            bar.set_postfix(lr=f"{rate:.2g}", loss=f"{losses[-1]:.3f}", refresh=False)
            check()
    if not rows:
        raise Failure(f"the loss is {loss} at the first step, with a rate of {LOWEST:g}")
    return rows


def find_lr(config: Config) -> int:
    from learner import Learner
    from loader import epoch_of, train_loader
    from record import load_data
    from run_folder import check_output_dir, new_id
    from tracking import Tracker, check_project
    from wandb_client import check_settings

    check_project()
    check_settings()
    output_dir = Path(config.output_dir)
    check_output_dir(output_dir)
    name = f"find_lr-{new_id()}"
    folder = output_dir / name
    # At full size, without minutes of compiling for 200 steps, and nothing moves but the rate.
    config = dataclasses.replace(
        config,
        epochs=1,
        resolution_schedule="full",
        compile="false",
        schedule="constant",
        cycle_momentum=False,
    )
    with in_one_line(folder, "call it again"):
        data = load_data(config)
        learner = Learner(config, data, steps_per_epoch=STEPS)
        augmentation = dataclasses.replace(
            config.augmentation(data.images.shape[1]), mix_epochs=math.inf
        )
        pinned = learner.device.type == "cuda"
        loader = train_loader(
            data, augmentation, config.batch_size, config.seed, config.workers, pinned=pinned
        )
    ending = Ending()
    ending.listen()
    folder.mkdir(parents=True)
    tracker = Tracker(config, name, folder, lambda: ending.ask("stop"), job_type="find_lr")
    code, request = 1, None
    try:
        with workers_may_end(ending):
            endless = (batch for epoch in itertools.count(1) for batch in epoch_of(loader, epoch))
            rows = range_test(learner, endless, ending.check)
        suggestion, by_accuracy = write(folder, rows)
        tracker.log_picture("lr_range", folder / "lr_range.png")
        tracker.summarize({"suggested_max_lr": suggestion})
        code = 0
    except Ended as ended:
        code, request = EXIT_CODES[ended.request], ended.request
    except (MemoryError, RuntimeError, OSError) as error:
        raise as_failure(error, folder, "call it again") from error
    finally:
        tracker.finish(code)
    if request:
        die_of(request)
    print(f"{len(rows)} of {STEPS} steps, to a rate of {rows[-1][0]:.3g}; {folder}/lr_range.png")
    if suggestion is None:
        print("no suggestion: the loss did not fall; try a larger --batch_size, or more data")
    else:
        also = f"; by the accuracy: {by_accuracy:.3g}" if by_accuracy else ""
        print(f"suggested: --max_lr={suggestion:.3g}{also}")
    return 0


def write(
    folder: Path, rows: list[tuple[float, float, float]]
) -> tuple[float | None, float | None]:
    """The table, the picture, the suggestion that is marked in it, and that by the accuracy."""
    from charts import learning_rates
    from run_folder import writing
    from viz import write_picture

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("lr", "loss", "acc"))
    table.writerows(rows)
    with writing(folder / "lr_range.csv") as file:
        file.write(text.getvalue().encode())
    tried, losses, accs = (list(column) for column in zip(*rows, strict=True))
    smoothed = smooth(losses)
    suggestion = suggest(tried, smoothed)
    picture = learning_rates(tried, smoothed, smooth(accs), suggestion)
    write_picture(picture, folder / "lr_range.png")
    return suggestion, suggest(tried, -smooth(accs))
