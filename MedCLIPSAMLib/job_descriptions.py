"""The training jobs that the panel offers."""

from __future__ import annotations

from MedCLIPSAMLib.job_form import Field, JobDescription

_TORCH = ("numpy", "scipy", "SimpleITK", "torch", "torchvision", "tqdm", "typer", "safetensors", "tokenizers")
_DEVICE = Field(
    "device",
    "Device",
    "choice",
    "auto",
    choices=("auto", "cpu", "cuda", "mps"),
    tooltip="Where to compute; auto takes a GPU where there is one.",
    advanced=True,
)
_SEED = Field(
    "seed",
    "Seed",
    "int",
    0,
    minimum=0,
    maximum=2**31 - 1,
    tooltip="Of every random draw; the same seed on the same machine gives the same result.",
    advanced=True,
)

FINETUNE = JobDescription(
    name="finetune",
    title="DHN-NCE fine-tuning of CLIP",
    help="Tunes a CLIP model on your own images and captions. The result can be chosen as engine finetuned:<folder>.",
    module="MedCLIPSAMTraining.finetune",
    fields=(
        Field(
            "data",
            "Images and captions",
            "file",
            tooltip="A CSV, TSV or JSONL file with the columns file and caption, and patient where it is known.",
        ),
        Field(
            "model",
            "Model",
            "choice",
            "biomedclip",
            choices=("biomedclip", "lite", "clip-vit-b-16"),
            tooltip="What is tuned; lite runs without a GPU.",
        ),
        Field("epochs", "Epochs", "int", 20, minimum=1, maximum=10_000, tooltip="Passes over all pairs."),
        Field(
            "batch", "Batch size", "int", 64, minimum=2, maximum=65_536, tooltip="Pairs per step; the paper took 64."
        ),
        Field(
            "learning_rate",
            "Learning rate",
            "float",
            0.0,
            minimum=0.0,
            maximum=1.0,
            tooltip="0 takes the model's own: 1e-6 for biomedclip, as the paper, and 1e-3 for lite.",
        ),
        Field(
            "validation",
            "Validation pairs",
            "file",
            "",
            tooltip="Such a file of their own; without it 15 % of the pairs are kept apart, by patient where known.",
            advanced=True,
        ),
        Field(
            "loss",
            "Loss",
            "choice",
            "dhn-nce",
            choices=("dhn-nce", "hn-nce", "dcl", "info-nce"),
            tooltip="dhn-nce is the paper's; the others are what it was compared with.",
            advanced=True,
        ),
        Field(
            "temperature",
            "Temperature τ",
            "float",
            0.0,
            minimum=0.0,
            maximum=10.0,
            tooltip="0 takes the model's own: 0.6 for biomedclip, as the paper, and 0.1 for lite.",
            advanced=True,
        ),
        Field(
            "beta",
            "Hardness β",
            "float",
            0.15,
            minimum=0.0,
            maximum=5.0,
            tooltip="How much more the harder negatives weigh; 0 weighs all alike.",
            advanced=True,
        ),
        Field(
            "minimum_characters",
            "Shortest caption",
            "int",
            20,
            minimum=0,
            maximum=1000,
            tooltip="Pairs whose caption has fewer characters are left out.",
            advanced=True,
        ),
        Field(
            "chunk",
            "Pairs at once",
            "int",
            0,
            minimum=0,
            maximum=65_536,
            tooltip="Where a batch does not fit into the memory: computed in such parts, with the same result. 0: all.",
            advanced=True,
        ),
        _SEED,
        _DEVICE,
    ),
    resumable=True,
    gpu=True,
    packages=_TORCH,  # what biomedclip needs beside it, the trainer itself asks for
    outputs=(("--output", "model"), ("--work", "work")),
)

WEAK_SUPERVISION = JobDescription(
    name="weak-supervision",
    title="Weakly supervised nnU-Net",
    help=(
        "Segments unlabelled images with a prompt and trains an nnU-Net on the result, with an uncertainty map from "
        "its checkpoints. The result can be chosen as engine weak:<folder>."
    ),
    module="MedCLIPSAMTraining.weak_supervision",
    fields=(
        Field(
            "data",
            "Images",
            "folder",
            tooltip="A folder of images, volumes or DICOM without masks; or a reviewed cohort of segment-cohort.",
        ),
        Field(
            "prompt",
            "Prompt",
            "text",
            tooltip="What to segment, for example brain tumor. Of a cohort, one of its prompts.",
        ),
        Field(
            "plans",
            "Network",
            "choice",
            "default",
            choices=("default", "small"),
            tooltip="default is planned by nnU-Net for a GPU; small, with coarser images, can be trained on a CPU.",
        ),
        Field(
            "epochs",
            "Epochs",
            "int",
            600,
            minimum=1,
            maximum=10_000,
            tooltip="Of all cycles together, a multiple of them; the paper took 600.",
        ),
        Field("cycles", "Cycles", "int", 3, minimum=1, maximum=100, tooltip="The learning rate restarts in each."),
        Field(
            "checkpoints",
            "Checkpoints per cycle",
            "int",
            10,
            minimum=1,
            maximum=100,
            tooltip="The last ones of each cycle are kept for the ensemble.",
            advanced=True,
        ),
        Field(
            "iterations",
            "Batches per epoch",
            "int",
            0,
            minimum=0,
            maximum=100_000,
            tooltip="0 takes nnU-Net's 250; on a CPU 50 are bearable.",
            advanced=True,
        ),
        Field("engine", "Engine", "text", "lite", tooltip="What segments the images first.", advanced=True),
        Field(
            "min_confidence",
            "Least confidence",
            "float",
            0.0,
            minimum=0.0,
            maximum=1.0,
            tooltip="Images whose finding is less confident are left out.",
            advanced=True,
        ),
        Field(
            "max_entropy",
            "Largest entropy",
            "float",
            0.0,
            minimum=0.0,
            maximum=0.6931,
            tooltip="Images whose mean entropy (nats) is higher are left out; 0 leaves none out.",
            advanced=True,
        ),
        Field(
            "configuration",
            "Configuration",
            "choice",
            "2d",
            choices=("2d", "3d_fullres"),
            tooltip="Of nnU-Net; 3d_fullres is for volumes.",
            advanced=True,
        ),
        Field(
            "masks",
            "True masks",
            "folder",
            "",
            tooltip="Of the same file names, in place of the engine's: for a comparison with full supervision.",
            advanced=True,
        ),
        _SEED,
        _DEVICE,
    ),
    resumable=True,
    gpu=True,
    packages=(*_TORCH, "nnunetv2"),
    outputs=(("--output", "model"), ("--work", "work")),
)

ALIGN_LITE = JobDescription(
    name="align-lite",
    title="Alignment of the lite engine",
    help=(
        "Trains the small image tower of the lite engine on images with masks. Minutes to an hour on a CPU, "
        "and about 1.5 MB of disk for each view of an image."
    ),
    module="MedCLIPSAMTraining.align_lite",
    fields=(
        Field("data", "Data sets", "folder", tooltip="The folder of the four data sets and of volumes/."),
        Field("steps", "Steps", "int", 1400, minimum=1, maximum=1_000_000, tooltip="Optimiser steps."),
        Field(
            "half",
            "Half of the subjects",
            "choice",
            "",
            choices=("", "A", "B"),
            tooltip="Train on one half of the subjects only; empty trains on all.",
            advanced=True,
        ),
        Field(
            "with_chest_ct",
            "Chest CT slices as well",
            "bool",
            False,
            tooltip="They state no licence: the result is then not for sharing.",
            advanced=True,
        ),
        _SEED,
        _DEVICE,
    ),
    resumable=True,
    gpu=True,
    packages=_TORCH,
    outputs=(("--work", "work"), ("--output", "lite-alignment.safetensors")),
)


def descriptions() -> list[JobDescription]:
    """Return the jobs in the order of the form; :meth:`JobDescription.unavailable` says which cannot be started."""
    return [FINETUNE, WEAK_SUPERVISION, ALIGN_LITE]
