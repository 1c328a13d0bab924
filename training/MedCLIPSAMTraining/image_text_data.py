"""Image-text pairs for fine-tuning, from the user's list to the batches: the parts by name, in the order of use.

    index = PairIndex.read(Path("pairs.csv"))                       # files, captions, patients
    index, report = clean(index, CleaningSettings())                # the paper's cleaning
    train, validation = split(index, 0.15, seed=0)                  # by patient
    plan = BatchPlan(index, train, batch=64, seed=0)                # no equal captions or images in one batch
    loader = PairLoader(index, plan, load, workers=2)               # load: (image tensor, caption) of a Pair
    for batch in loader.batches(epoch, position, epochs=10): ...    # resumes at any place
    for batch in loader.in_order(validation, 64): ...

``load`` opens a pair's image by ``with local_image(pair.file) as path``, which serves files and shards alike.
"""

from __future__ import annotations

from MedCLIPSAMTraining.caption_cleaning import CleaningReport, CleaningSettings, clean, clean_caption
from MedCLIPSAMTraining.pair_batches import BatchPlan, Turn
from MedCLIPSAMTraining.pair_broken import BrokenImages
from MedCLIPSAMTraining.pair_index import Pair, PairIndex
from MedCLIPSAMTraining.pair_loader import PairLoader
from MedCLIPSAMTraining.pair_reading import LoadedBatch, Skipped
from MedCLIPSAMTraining.pair_shards import local_image
from MedCLIPSAMTraining.pair_split import marked_rows, split

__all__ = [
    "BatchPlan",
    "BrokenImages",
    "CleaningReport",
    "CleaningSettings",
    "LoadedBatch",
    "Pair",
    "PairIndex",
    "PairLoader",
    "Skipped",
    "Turn",
    "clean",
    "clean_caption",
    "local_image",
    "marked_rows",
    "split",
]
