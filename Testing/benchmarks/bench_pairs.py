"""A generated set of image-text pairs: how fast a million open, in what memory, and whether loading keeps up.

    python Testing/benchmarks/bench_pairs.py [--quick] [--pairs 1000000] [--batches 60] [--workers 2] [--work DIR]

First, in a process of its own: a CSV of a million pairs is opened, cleaned, split, planned, and its saved form opened.
Then pictures of 512 x 512 pixels, as files and in a shard, are loaded ahead of a vision transformer (ViT-B/16 of 224
pixels, forward and backward, all cores): the share of the time that training does not wait is how busy it is kept. Then
they are loaded without training; the memory of all processes early and late shows that nothing piles up.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

OPEN_TARGET, MEMORY_TARGET, BUSY_TARGET = 5.0, 500, 90.0  # seconds, megabytes, per cent
WORDS = (
    "axial coronal sagittal image of the chest brain liver kidney shows a small large round mass lesion nodule with "
)
WORDS = (
    WORDS + "contrast enhancement oedema in left right upper lower lobe consistent normal without effusion"
).split()


def write_table(path: Path, pairs: int) -> None:
    """Write pairs with captions of 120 characters on average, of which some repeat, four to a patient."""
    rng = random.Random(0)
    halves = [" ".join(rng.choices(WORDS, k=9)) for _ in range(20_000)]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "caption", "patient"))
        for row in range(pairs):
            number = row if row % 7 else row // 2  # a seventh repeats an earlier one
            caption = f"{halves[number % 20_000]} {halves[number // 50]}" if row % 10 else "no acute abnormality seen"
            table.writerow((f"images/{row % 1000:03d}/picture-{row:08d}.png", caption, f"patient-{row // 4:07d}"))


def own_memory(key: str = "VmHWM") -> float:
    """Return this process's greatest (VmHWM) or present (VmRSS) memory in megabytes; 0 where Linux does not tell it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(key))


def open_million(table: Path, further: bool) -> dict[str, float]:
    """Open the table and go on to the first batch; runs in a process of its own for the sake of its memory."""
    from MedCLIPSAMTraining.caption_cleaning import clean
    from MedCLIPSAMTraining.pair_batches import BatchPlan
    from MedCLIPSAMTraining.pair_index import PairIndex
    from MedCLIPSAMTraining.pair_split import split

    figures: dict[str, float] = {}
    before = own_memory()
    began = time.perf_counter()
    index = PairIndex.read(table, check_files=False)
    figures["open_seconds"] = time.perf_counter() - began
    figures["pairs"] = len(index)
    figures["index_megabytes"] = index.nbytes / 2**20
    figures["libraries_megabytes"] = before
    figures["open_peak_megabytes"] = own_memory()
    if not further:
        return figures
    began = time.perf_counter()
    index, report = clean(index)
    figures["clean_seconds"] = time.perf_counter() - began
    gc.collect()
    began = time.perf_counter()
    train, _ = split(index)
    figures["split_seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    plan = BatchPlan(index, train, batch=64)
    next(plan.turns())
    figures["plan_seconds"] = time.perf_counter() - began
    figures["equal_captions_in_a_batch"], figures["equal_images_in_a_batch"] = plan.collisions(0)
    figures["repeated_captions"] = report.repeated_captions
    figures["peak_megabytes"] = own_memory()
    saved = table.with_suffix(".pairs")
    index.save(saved)
    began = time.perf_counter()
    PairIndex.read(saved)[len(index) - 1]
    figures["open_saved_seconds"] = time.perf_counter() - began
    return figures


def write_pictures(folder: Path, count: int) -> None:
    """Write speckled pictures and a table of many pairs that name them, and the same in a shard."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "part-000.tar", "w") as shard:
        for number in range(count):
            rng = np.random.default_rng(number)
            blocks = np.kron(rng.integers(0, 200, (64, 64)), np.ones((8, 8)))
            pixels = (blocks + rng.normal(20, 8, blocks.shape)).clip(0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            (folder / f"{number:05d}.png").write_bytes(stream.getvalue())
            for name, content in ((f"{number:05d}.png", stream.getvalue()), (f"{number:05d}.txt", b"a caption of it")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


def load(pair):
    """Read and prepare one pair as BiomedCLIP wants it."""
    import numpy as np
    import torch
    from PIL import Image

    from MedCLIPSAMLib.file_io import read_image
    from MedCLIPSAMLib.images import to_rgb
    from MedCLIPSAMTraining.pair_shards import local_image

    with local_image(pair.file) as path:
        pixels = to_rgb(read_image(path).array)
    resized = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized.transpose(2, 0, 1).astype(np.float32) / 255), pair.caption


def all_memory() -> float:
    """Return the memory of this process and its children in megabytes, what they share counted once (PSS)."""
    import multiprocessing
    import os

    total = 0.0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
    return total


def train(source: Path, batches: int, batch: int, workers: int, repeats: int) -> dict[str, float]:
    """Train on the pictures and return how long it took and how long it waited."""
    import numpy as np
    import torch

    from MedCLIPSAMTraining.pair_batches import BatchPlan
    from MedCLIPSAMTraining.pair_index import PairIndex
    from MedCLIPSAMTraining.pair_loader import PairLoader

    read = PairIndex.read(source)
    index = read.take(np.tile(np.arange(len(read)), repeats))
    plan = BatchPlan(index, batch=batch)
    loader = PairLoader(index, plan, load, workers=workers)
    patches = torch.nn.Conv2d(3, 768, 16, 16)
    block = torch.nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", batch_first=True, norm_first=True)
    blocks = torch.nn.TransformerEncoder(block, 12, enable_nested_tensor=False)  # the size of ViT-B/16
    images = loader.batches()
    next(images)  # the workers' start is not counted
    loader.waited, began = 0.0, time.perf_counter()
    for _ in range(batches):
        blocks(patches(next(images).images).flatten(2).mT).square().mean().backward()
        blocks.zero_grad()
        patches.zero_grad()
    seconds = time.perf_counter() - began
    images.close()
    memory, count, began = [], 0, time.perf_counter()
    for number, loaded in enumerate(PairLoader(index, plan, load, workers=workers).batches()):
        count += len(loaded.rows)
        if number in (batches, 9 * batches):
            memory.append(all_memory())
        if len(memory) == 2:
            break
    alone = count / (time.perf_counter() - began)
    return {
        "images_per_second": batches * batch / seconds,
        "loading_alone_images_per_second": alone,
        "waited_seconds": loader.waited,
        "busy_per_cent": 100 * (1 - loader.waited / seconds),
        "memory_early_megabytes": memory[0],
        "memory_late_megabytes": memory[1],
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="4 batches only")
    parser.add_argument("--open-only", action="store_true", help="only open the million pairs")
    parser.add_argument("--work", type=Path, help="folder for the generated set; a temporary one by default")
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(json.dumps(open_million(options.table, not options.open_only)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        table = work / "pairs.csv"
        write_table(table, options.pairs)
        command = [sys.executable, __file__, "--table", str(table), *(["--open-only"] if options.open_only else [])]
        figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        if options.open_only:
            print(json.dumps(figures))
            return
        show("Opening", figures)
        met = figures["open_seconds"] < OPEN_TARGET and figures["open_peak_megabytes"] < MEMORY_TARGET
        write_pictures(work / "pictures", 256)
        rows = [(f"{number:05d}.png", f"caption number {number}") for number in range(256)]
        with (work / "pictures" / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file", "caption"), *rows])
        batches = 4 if options.quick else options.batches
        for kind, source in (("files", "pairs.csv"), ("a shard", "part-000.tar")):
            loading = train(work / "pictures" / source, batches, options.batch, options.workers, 100)
            show(f"Training from {kind}", loading)
            met = met and loading["busy_per_cent"] >= BUSY_TARGET
            figures[kind] = loading
        print(json.dumps(figures))
        print("all targets met" if met else "a target was missed")
        raise SystemExit(0 if met else 1)


def show(title: str, figures: dict[str, float]) -> None:
    """Print figures one a line."""
    print(title)
    for name, value in figures.items():
        print(f"  {name.replace('_', ' '):34} {value:12.2f}")


if __name__ == "__main__":
    main()
