"""Pictures and explanations: what is chosen for them, that they change nothing, the commands."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import charts
import data
import localisation
import record
import train
import viz
from charts import most_confused, short
from cli import Mistake
from config import Config
from conftest import all_files, assert_mistake, run
from gradcam import Explainer
from learner import Learner
from loader import epoch_of, train_loader, val_loader
from mistakes import choose_mistakes
from runs import flat, history, offline_record, summary
from shapes import write_shapes
from sheets import TEXT, contact_sheet, draw_box, fit, font, overlay


def load(folder, **changed) -> tuple[Config, data.Data, Learner]:
    base = {"dataset": "shapes", "data_dir": str(folder), "model": "small", "image_size": 16}
    config = Config(**{**base, "workers": 0, **changed})
    loaded = data.load("shapes", folder, center_crop=config.center_crop)
    return config, loaded, Learner(config, loaded, steps_per_epoch=7)


def test_half_of_the_mistakes_are_the_surest_and_half_a_seeded_sample():
    true = np.zeros(100, int)
    predicted = np.r_[np.zeros(40, int), np.ones(60, int)]
    confidence = np.linspace(0.9, 0.1, 100)
    chosen = choose_mistakes(true, predicted, confidence, 9, seed=0)
    assert len(set(chosen)) == 9
    assert (predicted[chosen] == 1).all()
    assert chosen[:5].tolist() == [40, 41, 42, 43, 44]
    assert chosen.tolist() == choose_mistakes(true, predicted, confidence, 9, seed=0).tolist()
    assert chosen.tolist() != choose_mistakes(true, predicted, confidence, 9, seed=1).tolist()
    assert len(choose_mistakes(true, predicted, confidence, 1000, seed=0)) == 60
    assert len(choose_mistakes(true, predicted, confidence, 0, seed=0)) == 0
    assert len(choose_mistakes(true, true, confidence, 9, seed=0)) == 0


def test_most_confused_pairs_are_counted_with_their_direction():
    true, predicted = np.array([0, 0, 0, 1, 2, 2, 1]), np.array([1, 1, 0, 0, 0, 0, 1])
    assert most_confused(true, predicted, 2) == [(0, 1, 2), (2, 0, 2)]
    assert most_confused(true, predicted, 9)[2:] == [(1, 0, 1)]
    assert most_confused(true, true, 9) == []


def test_the_panel_shows_the_same_images_for_the_same_split(shapes_dir):
    loaded = data.load("shapes", shapes_dir)
    indices = viz.panel_images(loaded, 0)
    assert indices.tolist() == viz.panel_images(loaded, 0).tolist()
    assert len(set(indices)) == viz.PANEL_IMAGES
    assert set(indices) <= set(loaded.val)
    assert set(loaded.labels[indices]) == set(range(10))  # each class before any has a second


def test_the_curves_tell_where_the_images_grew():
    sizes = [8, 8, 12, 16]
    rows = [{"epoch": n, "val/acc": 0.5, "pixels": px} for n, px in enumerate(sizes, 1)]
    accuracy = charts.curves(rows, 4, "run").axes[0]
    told = [(text.get_text().strip(), text.xy[0]) for text in accuracy.texts]
    assert told == [("8 px", accuracy.get_xlim()[0]), ("12 px", 2.5), ("16 px", 3.5)]


def test_a_box_is_drawn_around_its_pixels():
    blank = np.full((64, 64, 3), 128, np.uint8)
    tile = overlay(blank, np.zeros((64, 64)), tile=128)
    before = np.asarray(tile).copy()
    after = np.asarray(draw_box(tile, (10, 20, 29, 39), 64))
    rows, columns = np.nonzero((before != after).any(2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 79, 20, 59)
    untouched = np.asarray(draw_box(overlay(blank, np.zeros((64, 64)), 128), (-1,) * 4, 64))
    assert (untouched == before).all()


@pytest.mark.parametrize("tile", [64, 96, 128, 224])
@pytest.mark.parametrize("wide", [0, 1, 2, 3])
def test_a_thin_box_is_drawn_too(tile, wide):
    """Hundreds in the real data are less than two pixels wide or high."""
    for box in ((10, 20, 10 + wide, 40), (10, 20, 40, 20 + wide), (63 - wide, 63 - wide, 63, 63)):
        blank = Image.new("RGB", (tile, tile), (128, 128, 128))
        drawn = np.asarray(draw_box(blank, box, 64))
        assert wide + tile // 64 < 2 or (drawn != 128).any()


def test_overlay_is_red_where_the_map_is_high_and_blue_where_it_is_low():
    heat = np.zeros((64, 64))
    heat[:, 32:] = 0.9
    heat[:, :32] = 0.15
    picture = np.asarray(overlay(np.full((64, 64, 3), 128, np.uint8), heat, 64)).astype(int)
    low, high = picture[32, 8], picture[32, 56]
    assert high[0] > high[2] + 50
    assert low[2] > low[0] + 50


def test_words_fit_their_place():
    assert fit("short", 200) == "short"
    cut = fit("a name that is much too long for its tile", 100)
    assert cut.endswith("…")
    assert font(TEXT).getlength(cut) <= 100
    assert short("US$ and $") == r"US\$ and \$"
    labels = ["a long label before a row"]
    sheet = contact_sheet([[np.zeros((8, 8, 3), np.uint8)]], ["title"], labels, tile=32)
    ink = np.asarray(sheet.convert("L"))[:, : -32 - 6]
    assert (ink[:, -3:] > 250).all()  # the label ends before the images begin


SETTINGS = {
    "closed form": {"amp": "false"},
    "bf16, averaged weights": {"amp": "true", "ema": 0.9},
    "by the library": {"model": "convnext_atto", "image_size": 32, "amp": "false"},
    "no maps": {"model": "vit_tiny_patch16_224", "image_size": 32, "amp": "false"},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_explaining_changes_nothing_of_the_learner(shapes_dir, setting):
    _, loaded, learner = load(shapes_dir, **SETTINGS[setting])
    batches = epoch_of(val_loader(loaded, 16), 1)
    learner.begin_epoch(1)
    learner.train_step(next(batches))
    before = copy.deepcopy(flat(learner.state_dict()))
    gradients = {name: p.grad for name, p in learner.model.named_parameters()}
    values = {name: g if g is None else g.clone() for name, g in gradients.items()}
    stream = torch.get_rng_state()
    indices = loaded.val[:9]
    panel = viz.gradcam_panel(learner, loaded, indices)
    logits, maps = Explainer(learner)(loaded.images[indices], loaded.labels[indices])
    assert torch.equal(torch.get_rng_state(), stream)
    assert learner.model.training
    after = flat(learner.state_dict())
    for key, value in before.items():
        same = torch.equal(value, after[key]) if torch.is_tensor(value) else value == after[key]
        assert same, key
    for name, parameter in learner.model.named_parameters():
        assert parameter.grad is gradients[name]
        assert parameter.requires_grad
        assert parameter.grad is None or torch.equal(parameter.grad, values[name])
    rows = 1 if setting == "no maps" else 3
    assert panel.height > rows * viz.PANEL_TILE
    assert panel.height < (rows + 1) * viz.PANEL_TILE
    assert learner.explains == (setting not in ("by the library", "no maps"))
    assert logits.shape == (9, 10)
    if setting == "no maps":
        assert maps is None
    else:
        assert maps.shape == (9, 64, 64)
        assert maps.min() >= 0
        assert maps.max() <= 1


def test_the_panel_and_the_library_show_the_same_maps(shapes_dir):
    _, loaded, learner = load(shapes_dir, model="resnet18", image_size=64, amp="false")
    for block in learner.model.layer4:  # timm starts these at zero
        torch.nn.init.ones_(block.bn2.weight)
    images, true = loaded.images[loaded.val[:6]], loaded.labels[loaded.val[:6]]
    predicted, (ours, _) = viz.look(learner, images, true)
    logits, theirs = Explainer(learner)(images, true)
    assert (predicted == logits.argmax(1)).all()
    up = localisation.upsampling(8, 64).numpy()
    enlarged = viz.stretched(up @ ours @ up.T)
    assert (enlarged.std((1, 2)) > 0.1).any()
    np.testing.assert_allclose(enlarged, theirs, atol=1e-3)


def test_a_trained_model_looks_at_the_object_and_an_untrained_one_anywhere(tmp_path):
    def measure(learner, loaded) -> dict:
        batches = val_loader(loaded, 100)
        return train.evaluate(learner, batches, train.looks_of(loaded), lambda: None).metrics()

    untrained = []
    for seed in (0, 1, 2):
        _, loaded, learner = load(tmp_path, seed=seed)
        untrained.append(measure(learner, loaded))
    # Looking anywhere finds the box by its share; the centre, the other baseline, does better.
    assert abs(np.mean([told["val/cam_energy_lift"] for told in untrained])) < 0.06
    assert -0.4 < np.mean([told["val/cam_pointing_lift"] for told in untrained]) < 0.05

    epochs, batch_size = 4, 16
    changed = {"epochs": epochs, "batch_size": batch_size, "max_lr": 0.05, "aug_strength": 0.5}
    config, loaded, _ = load(tmp_path, **changed)
    augmentation = config.augmentation(64)
    batches = train_loader(loaded, augmentation, batch_size, config.seed)
    learner = Learner(config, loaded, steps_per_epoch=len(batches))
    for epoch in range(1, epochs + 1):
        train.train_one_epoch(learner, epoch_of(batches, epoch), epoch, lambda lr: None)
    told = measure(learner, loaded)
    assert told["val/cam_energy_lift"] > 0.15
    assert told["val/cam_pointing_lift"] > 0.15
    assert told["val/cam_images"] == 300


NO_PICTURES = """
import viz, localisation
viz.gradcam_panel = lambda *_: viz.Image.new("RGB", (8, 8))
localisation.Looks.add = lambda *_: None
"""


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    run = start(tmp_path_factory.mktemp("finished"), epochs=2)
    assert run.wait() == 0, run.text
    return run


def test_weights_and_history_are_the_same_without_pictures(start, tmp_path, finished):
    without = start(tmp_path, epochs=2, mistakes=0, patch=NO_PICTURES)
    assert without.wait() == 0, without.text
    one, two = (torch.load(r.folder / "last.pt", weights_only=True) for r in (finished, without))
    for part in ("model", "optimizer", "schedule"):
        a, b = flat(one[part]), flat(two[part])
        for key, value in a.items():
            same = torch.equal(value, b[key]) if torch.is_tensor(value) else value == b[key]
            assert same, key
    for row, plain in zip(history(finished.folder), history(without.folder), strict=True):
        assert {k: v for k, v in row.items() if "cam" not in k} == plain  # absent, not NaN


def test_a_model_that_ends_otherwise_goes_without_localisation_and_says_so(start, tmp_path):
    run = start(tmp_path, model="convnext_atto", image_size=32, epochs=1, mistakes=2, max_lr=0.001)
    assert run.wait() == 0, run.text
    assert "no val/cam_*: convnext_atto does not end in mean pooling" in run.text
    assert not [key for key in history(run.folder)[0] if "cam" in key]
    with np.load(run.folder / "predictions.npz") as told:
        assert np.isnan(told["cam_energy"]).all()


def test_the_run_says_what_it_logged_and_stages_nothing_at_home(finished):
    (line,) = (line for line in finished.text.splitlines() if line.startswith("pictures: "))
    told = int(line.split(" files")[0].split()[-1])
    assert told == 2 + 5 + 3 * 24  # panels, pictures, table
    megabytes = float(line.split(", ")[-1].split()[0])
    panel = (finished.folder / "figures" / "gradcam.jpg").stat().st_size / 1e6
    assert told + 48 <= 150  # of a run of 50 epochs
    assert megabytes + 48 * panel < 25
    home = finished.folder.parent.parent
    assert not (home / ".local/share/wandb").exists()
    assert list((finished.folder / "wandb" / "staging").rglob("*"))


def test_viz_draws_a_run_again_from_its_files_and_the_data_alone(finished, shapes_dir, tmp_path):
    shutil.copytree(shapes_dir / "shapes", tmp_path / "moved" / "shapes")
    figures = finished.folder / "figures"
    before = {path.name: pixels(path) for path in figures.iterdir()}
    for path in figures.iterdir():
        path.unlink()
    stamps = {p: p.stat().st_mtime_ns for p in finished.folder.glob("[!.]*.*")}
    done = run("viz.py", ".", f"--data_dir={tmp_path / 'moved'}", cwd=finished.folder)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(before) == 7
    for name, drawn in before.items():
        assert (pixels(figures / name) == drawn).all(), name
    assert stamps == {p: p.stat().st_mtime_ns for p in finished.folder.glob("[!.]*.*")}
    # Other images are another split, and what was measured is not about them.
    next((tmp_path / "moved").rglob("*.JPEG")).unlink()
    refused = run("viz.py", finished.folder, f"--data_dir={tmp_path / 'moved'}")
    assert_mistake(refused, "split", "other images")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_viz_explains_pictures_of_ones_own(finished, tmp_path):
    Image.new("L", (90, 50), 120).save(tmp_path / "grey.png")
    Image.new("RGBA", (30, 200), (200, 30, 30, 128)).save(tmp_path / "clear.png")
    files = [tmp_path / "grey.png", tmp_path / "clear.png"]
    done = run("viz.py", finished.folder, "--image", *files)
    assert done.returncode == 0, done.stderr
    shares = [line.split("%")[0] for line in done.stdout.splitlines() if "%" in line]
    assert len(shares) == 10
    assert [float(s) for s in shares[:5]] == sorted((float(s) for s in shares[:5]), reverse=True)
    for file in files:
        assert Image.open(f"{file}.explained.png").width > 400


def test_a_picture_of_ones_own_is_cut_as_the_images_are(shapes_dir):
    _, whole, _ = load(shapes_dir)
    _, part, _ = load(shapes_dir, center_crop=48, image_size=48)
    picture = Image.fromarray(whole.images[0]).resize((128, 128), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(viz.as_seen([picture], whole)[0], whole.images[0])
    np.testing.assert_array_equal(viz.as_seen([picture], part)[0], part.images[0])


def test_the_mean_over_mirror_images_does_not_know_left_from_right(shapes_dir):
    _, loaded, learner = load(shapes_dir)
    images = torch.from_numpy(loaded.images[:8].copy())
    learner.evaluated.eval()
    with torch.inference_mode():
        mean, other = (learner.measure_mirrored(x)[0] for x in (images, images.flip(2)))
        torch.testing.assert_close(mean, other)
        assert not torch.allclose(mean, learner.measure(images)[0], atol=1e-4)


def test_what_viz_refuses(finished, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    assert_mistake(run("viz.py", tmp_path), "config.yaml")
    assert_mistake(run("viz.py", finished.folder, "--max_lr=1"), "--max_lr")
    for name, word in (("text.jpg", "no whole picture"), ("none.jpg", "missing")):
        assert_mistake(run("viz.py", finished.folder, "--image", tmp_path / name), word)
    assert all_files(tmp_path) == ["text.jpg"]


def test_a_run_that_was_killed_while_it_kept_an_epoch_is_not_drawn(finished, tmp_path, shapes_dir):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    last = torch.load(folder / "last.pt", weights_only=True)
    best = {**last["best"], "best_epoch": len(last["history"]) + 1}
    torch.save({**last, "best": best}, folder / "last.pt")  # best.pt has not taken its place yet
    assert_mistake(run("viz.py", folder), "go on with the run first")


def test_images_in_another_order_are_not_drawn(finished, shapes_dir):
    loaded = data.load("shapes", shapes_dir)
    epoch = summary(finished.folder)["best_epoch"]
    assert record.read_predictions(finished.folder, loaded, epoch)
    labels = loaded.cache.labels.copy()
    labels[loaded.val] = labels[loaded.val][::-1]
    other = dataclasses.replace(loaded, cache=dataclasses.replace(loaded.cache, labels=labels))
    assert (labels != loaded.labels).any()
    for changed in (other, dataclasses.replace(loaded, val=loaded.val[::-1])):
        with pytest.raises(Mistake, match="another order"):
            record.read_predictions(finished.folder, changed, epoch)


def test_few_images_no_boxes_and_no_mistakes_to_show(start, tmp_path):
    """Two classes, three images to validate on, one class without any, no box anywhere."""
    root = tmp_path / "data" / "shapes"
    write_shapes(root, classes=2, train_per_class=20, val_per_class=3)
    wnids = (root / "wnids.txt").read_text().split()
    for path in root.rglob("*_boxes.txt"):
        path.unlink()
    lines = (root / "val/val_annotations.txt").read_text().splitlines()
    kept = [line for line in lines if wnids[0] in line]
    for line in set(lines) - set(kept):
        (root / "val/images" / line.split("\t")[0]).unlink()
    kept = [line.rsplit("\t", 4)[0] + "\t-1\t-1\t-1\t-1" for line in kept]
    (root / "val/val_annotations.txt").write_text("\n".join(kept) + "\n")
    changed = {"data_dir": tmp_path / "data", "split": "official", "epochs": 1, "mistakes": 0}
    few = start(tmp_path, **changed)
    assert few.wait() == 0, few.text
    assert not [key for key in history(few.folder)[0] if "cam" in key]
    assert not (few.folder / "figures" / "mistakes.png").exists()
    drawn = {path.name for path in (few.folder / "figures").iterdir()}
    assert {"curves.png", "classes.png", "gradcam.jpg"} <= drawn
    assert "table-file" not in json.dumps(offline_record(few.folder))
