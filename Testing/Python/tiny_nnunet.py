"""nnU-Net at the smallest size: plans, data sets and model folders for tests, without nnU-Net's planning."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DATASET = "Dataset001_Drawn"
PLANS = "tinyPlans"


def dataset_json(channels: int = 1, classes: Sequence[str] = ("disc",), volumes: bool = False) -> dict[str, Any]:
    """Return nnU-Net's description of a data set."""
    return {
        "channel_names": {str(number): "zscore" for number in range(channels)},
        "labels": {"background": 0, **{name: number for number, name in enumerate(classes, start=1)}},
        "numTraining": 6,
        "file_ending": ".nii.gz" if volumes else ".png",
        "overwrite_image_reader_writer": "SimpleITKIO" if volumes else "NaturalImage2DIO",
    }


def plans(
    volumes: bool = False, schedule: dict[str, Any] | None = None, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> dict[str, Any]:
    """Return plans as nnU-Net writes them, for a network of three stages with 4, 8 and 16 features."""
    dimensions = 3 if volumes else 2
    name = "3d_fullres" if volumes else "2d"
    patch = [16] * 3 if volumes else [32, 32]
    resampling = {"order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": f"{PLANS}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [float(size) for size in patch],
        "spacing": list(spacing) if volumes else [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 16],
                "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                "kernel_sizes": [[3] * dimensions] * 3,
                "strides": [[1] * dimensions, [2] * dimensions, [2] * dimensions],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    for part, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        configuration[f"resampling_fn_{part}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{part}_kwargs"] = {**resampling, "is_seg": is_seg, "order": order}
    content = {
        "dataset_name": DATASET,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": list(spacing) if volumes else [999.0, 1.0, 1.0],
        "original_median_shape_after_transp": [16, 16, 16] if volumes else [1, 64, 64],
        "image_reader_writer": "SimpleITKIO" if volumes else "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): dict.fromkeys(
                ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0
            )
            for channel in range(3)
        },
    }
    return content if schedule is None else content | {"medclipsam": schedule}


def drawn_image(seed: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (H, W) uint8 of a bright disc in noise, and the disc (H, W) bool."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    row, column = rng.integers(side // 3, 2 * side // 3, 2)
    disc = (rows - row) ** 2 + (columns - column) ** 2 < (side // 6) ** 2
    return np.clip(rng.normal(80, 20, disc.shape) + 90 * disc, 0, 255).astype(np.uint8), disc


def variables(folder: Path) -> dict[str, str]:
    """Return the environment in which nnU-Net works below ``folder``, with one process and one thread."""
    training = Path(__file__).resolve().parents[2] / "training"
    path = [str(training.parent), str(training), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_extTrainer": str(training / "nnunet_trainers"),
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "0",
        "nnUNet_compile": "f",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": os.pathsep.join(path),
    }


def write_preprocessed(folder: Path, schedule: dict[str, Any], cases: int = 6) -> None:
    """Write a preprocessed data set of drawn pictures below ``folder/preprocessed``, for training."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    base = folder / "preprocessed" / DATASET
    content = plans(schedule=schedule)
    data = base / content["configurations"]["2d"]["data_identifier"]
    data.mkdir(parents=True)
    whole = {"chunks": (1, 1, 64, 64), "blocks": (1, 1, 64, 64)}
    labelled = {"chunks_seg": (1, 1, 64, 64), "blocks_seg": (1, 1, 64, 64)}
    for number in range(cases):
        image, disc = drawn_image(number)
        scaled = ((image - image.mean()) / image.std()).astype(np.float32)[None, None]
        labels = disc.astype(np.int8)[None, None]
        properties = {"class_locations": {1: np.argwhere(labels == 1)}, "spacing": [999.0, 1.0, 1.0]}
        nnUNetDatasetBlosc2.save_case(scaled, labels, properties, str(data / f"case{number}"), **whole, **labelled)
    for name, value in ((f"{PLANS}.json", content), ("dataset.json", dataset_json()), ("dataset_fingerprint.json", {})):
        (base / name).write_text(json.dumps(value))


def write_trained(
    folder: Path,
    members: int = 3,
    *,
    volumes: bool = False,
    channels: int = 1,
    classes: Sequence[str] = ("disc",),
    change: Any = None,
) -> list[str]:
    """Write what a training leaves, with random weights; return the kept checkpoints.

    Args:
        change: Called with the plans before they are written.
    """
    import torch

    from MedCLIPSAMLib.nnunet_network import build_network

    content, dataset = plans(volumes), dataset_json(channels, classes, volumes)
    configuration = "3d_fullres" if volumes else "2d"
    content["configurations"][configuration]["normalization_schemes"] = ["ZScoreNormalization"] * channels
    content["configurations"][configuration]["use_mask_for_norm"] = [False] * channels
    kept = [f"fold_all/checkpoint_ep{10 * number + 9:04d}.pth" for number in range(members)]
    (folder / "fold_all").mkdir(parents=True)
    network = build_network(content, dataset, configuration).network
    for number, name in enumerate(kept):
        generator = torch.Generator().manual_seed(number)
        weights = {
            key: torch.randn(value.shape, generator=generator) * 0.5 for key, value in network.state_dict().items()
        }
        for key in (one for one in weights if "seg_layers" in one):  # so that no class wins everywhere
            weights[key] -= weights[key].mean(dim=1, keepdim=True) if key.endswith("weight") else weights[key]
        checkpoint = {
            "network_weights": weights,
            "trainer_name": "nnUNetTrainerCyclical",
            "init_args": {"configuration": configuration, "fold": "all"},
            "inference_allowed_mirroring_axes": (0, 1, 2)[: 3 if volumes else 2],
        }
        torch.save(checkpoint, folder / name)
    if change is not None:
        change(content)
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return kept


def write_model(folder: Path, members: int = 3, window: tuple[float, float] | None = None, **options: Any) -> Path:
    """Write a model folder with random weights; ``options`` as for :func:`write_trained`."""
    from MedCLIPSAMLib.ensemble_folder import ModelClass, write_model_folder

    trained = folder / "trained"
    kept = write_trained(trained, members, **options)
    write_model_folder(
        folder / "model",
        trained,
        kept=kept,
        classes=[
            ModelClass(number, name, f"a {name}")
            for number, name in enumerate(options.get("classes", ("disc",)), start=1)
        ],
        kind="volumes" if options.get("volumes") else "images",
        supervision="pseudo-labels",
        window=window,
        pseudo_labels={"engine": "lite", "cases": 6},
    )
    return folder / "model"
