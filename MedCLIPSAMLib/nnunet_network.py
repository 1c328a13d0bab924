"""An nnU-Net network from a ``plans.json`` that somebody may have handed over.

nnU-Net imports whatever class the plans name, with ``pydoc.locate``, and unpickles checkpoints. Here only networks of
the package dynamic_network_architectures with layers of torch.nn are built, and weights are read as plain tensors.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib.checkpoint_file import read_checkpoint_file
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.torchvision_import import ensure_torchvision

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
    from torch import nn

_NETWORK = re.compile(r"dynamic_network_architectures\.architectures\.([a-z0-9_]+)\.([A-Za-z0-9_]+)")
_LAYER = re.compile(r"torch\.nn(?:\.modules\.[a-z]+)?\.([A-Za-z0-9]+)")
_PREPARATION = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_CHANNELS = 4096  # of any layer; the widest of nnU-Net's own plans have 512


@dataclass(frozen=True)
class Checkpoint:
    """What is used of a checkpoint file.

    Attributes:
        weights: The network's state, on the CPU.
        configuration: nnU-Net's name of what was trained: "2d", "3d_fullres".
        mirroring_axes: Along which the training mirrored, counted without batch and channel; empty for none.
    """

    weights: dict[str, Any]
    configuration: str
    mirroring_axes: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A network with random weights, and nnU-Net's managers that say how to feed it."""

    network: nn.Module
    plans: PlansManager
    configuration: ConfigurationManager
    labels: LabelManager


def require_nnunet() -> None:
    """Import nnU-Net.

    Raises:
        MedCLIPSAMError: It is not installed; the message says how to.
    """
    # nnU-Net would start eight processes for each image otherwise, whatever the machine; it reads this when imported.
    os.environ.setdefault("nnUNet_def_n_proc", str(max(1, min(8, os.cpu_count() or 1))))
    try:
        importlib.import_module("nnunetv2.inference.predict_from_raw_data")
    except ModuleNotFoundError as error:
        raise MedCLIPSAMError(
            f"a weakly trained network needs the package {error.name!r}, which is not installed: pip install nnunetv2."
        ) from error


def build_network(plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str) -> Network:
    """Return the network that the plans describe, on the CPU and in evaluation mode.

    Args:
        plans, dataset: The content of ``plans.json`` and ``dataset.json``.
        configuration: One of the plans' configurations.

    Raises:
        InputError: The plans name a class that is not on the short list, or do not describe a network.
        MedCLIPSAMError: nnU-Net is not installed.
    """
    require_nnunet()
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, dataset = copy.deepcopy(dict(plans)), copy.deepcopy(dict(dataset))
    if configuration not in plans.get("configurations", {}):
        known = ", ".join(plans.get("configurations", {})) or "none"
        raise InputError(f"the plans have no configuration {configuration!r}; they have: {known}.")
    try:
        manager = PlansManager(plans)
        chosen = manager.get_configuration(configuration)
        name, kwargs = _checked_architecture(
            chosen.network_arch_class_name,
            chosen.network_arch_init_kwargs,
            chosen.network_arch_init_kwargs_req_import,
        )
        _check_names(manager.plans, chosen.configuration)
        labels = manager.get_label_manager(dataset)
        if labels.has_regions or labels.has_ignore_label:
            raise InputError("the model has overlapping regions or an ignore label; only plain classes can be used.")
        network = get_network_from_plans(
            name,
            kwargs,
            (),  # the layers are classes already
            determine_num_input_channels(manager, chosen, dataset),
            labels.num_segmentation_heads,
            deep_supervision=False,
        )
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the plans do not describe a network ({type(error).__name__}: {error}).") from error
    return Network(network.eval(), manager, chosen, labels)


def read_kept_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint of an nnU-Net trainer; nothing in the file is run.

    Raises:
        InputError: Damaged, holding more than numbers, or no checkpoint of nnU-Net.
    """
    content = read_checkpoint_file(path)
    try:
        weights = dict(content["network_weights"])
        configuration = str(content["init_args"]["configuration"])
        axes = tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no checkpoint of an nnU-Net trainer; get the model folder again.") from error
    return Checkpoint(weights, configuration, axes)


def load_weights(network: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's weights into the network.

    Raises:
        InputError: They are not of this network.
    """
    try:
        network.load_state_dict(checkpoint.weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not fit the network of its plans; get the model folder again.") from error


def _checked_architecture(name: str, kwargs: Mapping[str, Any], imports: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Return the class's name and its arguments, whose layers are classes instead of names."""
    from torch import nn

    match = _NETWORK.fullmatch(str(name))
    if not match:
        raise InputError(f"the plans name the network {name!r}; only those of dynamic_network_architectures are built.")
    if match[1] != "unet":  # the others have parts of timm, which imports torchvision
        ensure_torchvision()
    module = importlib.import_module(str(name).rpartition(".")[0])
    found = getattr(module, match[2], None)
    if not (isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module.__name__):
        raise InputError(f"the plans name the network {name!r}, which does not exist.")
    checked = dict(kwargs)
    for key in imports:
        checked[key] = None if checked[key] is None else _layer(str(checked[key]))
    for value in _numbers(checked):
        if value > _MOST_CHANNELS:
            raise InputError(f"the plans describe a network with {value} in a layer; at most {_MOST_CHANNELS} fit.")
    return str(name), checked


def _layer(name: str) -> type:
    from torch import nn

    match = _LAYER.fullmatch(name)
    found = getattr(nn, match[1], None) if match else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(f"the plans name the layer {name!r}; only layers of torch.nn are used.")
    return found


def _check_names(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
    """Refuse names by which nnU-Net would look for its own functions, but that are no plain names."""
    names = [
        plans["image_reader_writer"],
        plans["label_manager"],
        configuration["preprocessor_name"],
        *configuration["normalization_schemes"],
        *(value for key, value in configuration.items() if re.fullmatch(r"resampling_fn_[a-z]+", key)),
    ]
    for name in names:
        if not _PREPARATION.fullmatch(str(name)):
            raise InputError(f"the plans name {name!r} where nnU-Net has a function of its own.")


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value
