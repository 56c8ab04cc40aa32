"""A run between its checks and its end: what is trained, on what, and what came out so far.

`prepare` checks everything that a run needs and gives a `Training`, opened. It begins, train.py
goes through its epochs, and it ends. Of several processes all train, and the first one alone opens
a folder, keeps, tells and ends.
"""

import atexit
import gc
import math
from collections.abc import Callable
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli import Mistake
from config import Config, to_dict
from ranks import Ranks
from suggestion import ADDED

if TYPE_CHECKING:
    import numpy as np

    from data import Data
    from run_folder import RunFolder
    from tracking import Tracker


@cache
def import_libraries(starts_client: bool) -> None:
    """Those that take seconds; a sixth less where nobody looks for garbage among their objects,
    which stay. `starts_client`: W&B's run begins after this.
    """
    from wandb_client import import_client, start_service

    service = None
    gc.disable()
    try:
        import_client()  # before torch
        service = start_service() if starts_client else None
        import timm

        import learner
        from augment import albumentations_functions

        albumentations_functions()
        assert timm and learner
    finally:
        gc.enable()
        if service:
            service.join()
    gc.freeze()  # nor look there later
    atexit.register(gc.unfreeze)  # or extensions complain of what is left at the end


class Training:
    def __init__(self, config: Config, data: "Data", ranks: Ranks, run_id: str):
        from learner import Learner
        from loader import train_loader, val_loader

        augmentation = config.augmentation(data.images.shape[1])
        self.config, self.data, self.ranks = config, data, ranks
        self.path = Path(config.output_dir) / run_id
        steps = math.ceil(len(data.train) / config.batch_size)
        self.learner = Learner(config, data, steps, ranks)
        pinned = self.learner.device.type == "cuda"
        self.train_loader = train_loader(
            data, augmentation, config.batch_size, config.seed, config.workers, ranks, pinned
        )
        self.val_loader = val_loader(data, config.batch_size, config.workers, ranks, pinned)

    def open(self, folder: "RunFolder | None") -> None:
        """Take up what `folder`, the first process's, has of this run."""
        from record import Record

        if folder:
            folder.check_config(self.config)
        self.folder = folder
        self.record = Record(self.config, self.data, folder)
        self.record.resume(self.learner)

    def begin(self) -> None:
        from about import note_start

        self.folder.begin(self.config, self.record.rows)
        note_start(self.folder, self.learner, self.data)

    def say_what(self, tracker: "Tracker") -> None:
        from about import about_run

        learner, data = self.learner, self.data
        facts = about_run(learner, data)
        tracker.add_config({key: facts[key] for key in ADDED})
        tracker.say_where()
        done = f", going on after epoch {len(self.record.rows)}" if self.record.rows else ""
        place = f"{self.ranks.world} processes, this one on " if self.ranks.several else ""
        print(
            f"{self.path}: {self.config.model} with {facts['parameters']:,} parameters on {place}"
            f"{learner.device}{' in bf16' if learner.amp else ''}, {len(data.train):,} training "
            f"and {len(data.val):,} validation images of {len(data.cache.classes)} classes{done}",
            flush=True,
        )
        if not learner.explains:
            print(
                f"no val/cam_*: {self.config.model} does not end in mean pooling and a linear "
                "layer; pictures have maps where it has feature maps"
            )

    def draw_panel(self, check: Callable[[], None]) -> Path:
        """The same images after every epoch: does it look at the object?"""
        from viz import gradcam_panel, write_picture

        panel = gradcam_panel(self.learner, self.data, self._of_panel, check)
        return write_picture(panel, self.path / "figures" / "gradcam.jpg")

    @cached_property
    def _of_panel(self) -> "np.ndarray":
        from viz import panel_images

        return panel_images(self.data, self.config.split_seed)

    def end(self, tracker: "Tracker", check: Callable[[], None]) -> None:
        """What follows the last epoch; from here on the learner has the best epoch's weights."""
        from record import load_weights
        from viz import draw_run

        check()
        best = self.path / "best.pt"
        epoch = load_weights(self.learner, best)
        pictures, mistakes = draw_run(
            self.path, self.config, self.data, self.learner, self.record.rows, epoch, check
        )
        for key, path in pictures.items():
            if key != "mistakes":  # W&B has them as a table
                tracker.log_picture(key, path)
        check()
        if mistakes:
            tracker.log_mistakes(mistakes, check)
        check()
        # Last, as it is large: who stops a run does not wait for it.
        tracker.log_model(best, {**to_dict(self.config), **self.record.best}, check)
        told = f"{tracker.pictures} files for W&B, {tracker.picture_bytes / 1e6:.1f} MB"
        print(f"pictures: {self.path / 'figures'}; {told}", flush=True)


def prepare(
    config: Config | None,
    ranks: Ranks,
    run_id: str | None = None,
    starts_client: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Training:
    """Every check that needs the data, the device or the disk, before anything of a new run is
    written but its empty folder.

    The config is the first process's, and so is the run. `starts_client`: W&B's run begins after
    this. `check` may end the wait for the data.
    """
    from record import load_data
    from run_folder import RunFolder, check_output_dir

    imports = partial(import_libraries, starts_client)
    if config:
        check_output_dir(Path(config.output_dir))
    config, run_id = ranks.share((config, run_id))
    with ranks.first_of_machine():  # it decodes the images, where nobody has done so yet
        data = load_data(config, imports, check)
    imports()  # where few files left no while
    training = Training(config, data, ranks, run_id)
    folder = RunFolder(Path(config.output_dir), run_id) if ranks.first else None
    try:
        training.open(folder)
    except Mistake:
        if folder:
            folder.close()
        raise
    return training
