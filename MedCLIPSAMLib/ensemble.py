"""Prediction with an nnU-Net checkpoint ensemble (Eqs. 21 and 22 of Koleilat et al., arXiv 2409.19483).

The mean is that of the members' softmax probabilities; nnU-Net, given several checkpoints, averages their logits, which
is another thing. Preprocessing, sliding window and resampling are nnU-Net's own code. The members take their turn in
one network, and their probabilities become running sums, so the memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from MedCLIPSAMLib.ensemble_folder import ModelFolder, read_model_folder
from MedCLIPSAMLib.errors import DeviceMemoryError, InputError
from MedCLIPSAMLib.memory import MemoryGuard, is_out_of_memory
from MedCLIPSAMLib.nnunet_network import Checkpoint, build_network, load_weights, read_kept_checkpoint
from MedCLIPSAMLib.uncertainty import SampleMean

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

Members = Literal["all", "last"]
IMAGE_SPACING = (999.0, 1.0, 1.0)
"""What nnU-Net's reader of 2D images says: one pixel, and far away from a neighbour that does not exist."""


@dataclass(frozen=True)
class EnsemblePrediction:
    """One input's result; the maps are (H, W) of an image, (K, J, I) of a volume.

    Attributes:
        probabilities: (R, ...) float32, mean softmax of the members (Eq. 21); class 0 is the background.
        entropy: float32 in nats, Eq. 22 of the mean: [0, ln R].
        mutual_information: float32 in nats, entropy of the mean less the mean entropy of the members, at least 0.
        members: How many there were.
    """

    probabilities: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray
    members: int

    @property
    def labels(self) -> np.ndarray:
        """The most probable class of each pixel, uint8; of equally probable ones the first, so the background."""
        return np.argmax(self.probabilities, axis=0).astype(np.uint8)

    def mask(self, label: int, threshold: float | None = None) -> np.ndarray:
        """Return the mask of a class, bool: where it is the most probable, or above ``threshold`` in [0, 1).

        Raises:
            InputError: No such class, or a threshold outside its range.
        """
        if not 0 <= label < len(self.probabilities):
            raise InputError(f"there is no class {label}; there are 0 to {len(self.probabilities) - 1}.")
        if threshold is None:
            return self.labels == label
        if not 0 <= threshold < 1:
            raise InputError(f"threshold {threshold}: it must be at least 0 and below 1.")
        return self.probabilities[label] > threshold


class CheckpointEnsemble:
    """The kept checkpoints of a model folder, ready to predict.

    Example:
        >>> ensemble = CheckpointEnsemble(read_model_folder("model"))
        >>> prediction = ensemble.predict(image[None, None], IMAGE_SPACING)

    Attributes:
        folder: The model folder.
        files: The members, relative to the folder.
        device: torch device; "cpu" after another one's memory ran out.
    """

    def __init__(
        self,
        folder: ModelFolder | str | Path,
        device: str = "cpu",
        *,
        members: Members = "all",
        mirroring: bool = False,
    ) -> None:
        """Check every file's SHA-256 and build the network.

        Args:
            folder: From :func:`read_model_folder`, or its path.
            device: torch device.
            members: "all" kept checkpoints, or the "last" alone: a single network, for comparison.
            mirroring: Average each member's logits over the mirrorings of its training, as nnU-Net does by default:
                4 times the time for images, 8 times for volumes. The paper does not say whether it did.

        Raises:
            InputError: A file that cannot be used, or plans that name foreign classes.
            ChecksumError: A file is not the one that was trained.
            MedCLIPSAMError: nnU-Net is not installed.
        """
        import torch

        if members not in ("all", "last"):
            raise InputError(f"members is {members!r}; pass 'all' or 'last'.")
        self.folder = folder if isinstance(folder, ModelFolder) else read_model_folder(folder)
        self.files = self.folder.kept if members == "all" else self.folder.kept[-1:]
        self.device = device
        for name in self.folder.sha256:
            if name in self.files or name not in self.folder.kept:
                self.folder.verify(name)
        first = self._read(self.files[0])
        built = build_network(self.folder.plans, self.folder.dataset, first.configuration)
        if built.labels.num_segmentation_heads != len(self.folder.classes) + 1:
            raise InputError(f"{self.folder.path}: its network and its classes do not fit; get the model folder again.")
        with _quiet():
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

            self._predictor: nnUNetPredictor = nnUNetPredictor(
                use_mirroring=mirroring,
                perform_everything_on_device=device.startswith("cuda"),
                device=torch.device(device),
                allow_tqdm=False,
            )
            self._predictor.manual_initialization(
                built.network, built.plans, built.configuration, None, self.folder.dataset, "", None
            )
        self._built = built
        self._memory = MemoryGuard("The trained network", device, self._to_cpu)
        self._configuration = first.configuration

    @property
    def channels(self) -> int:
        """How many channels the network takes."""
        return len(self.folder.dataset["channel_names"])

    def predict(
        self,
        array: np.ndarray,
        spacing: Sequence[float],
        *,
        cancelled: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> EnsemblePrediction:
        """Predict one input.

        Args:
            array: (C, K, J, I) real; an image has K = 1.
            spacing: Along K, J and I in mm; :data:`IMAGE_SPACING` for an image.
            cancelled: Called before each member; ends the run by raising.
            progress: Called with (members done, members in all).

        Raises:
            InputError: The input does not fit the network, or a checkpoint cannot be used.
        """
        return self.predict_together([array], [spacing], cancelled=cancelled, progress=progress)[0]

    def predict_together(
        self,
        arrays: Sequence[np.ndarray],
        spacings: Sequence[Sequence[float]],
        *,
        cancelled: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[EnsemblePrediction]:
        """Predict several inputs, each as :meth:`predict` alone would, opening each checkpoint once for all of them."""
        prepared = [self._preprocess(array, spacing) for array, spacing in zip(arrays, spacings, strict=True)]
        means = [SampleMean(classes=True) for _ in prepared]
        for number, name in enumerate(self.files):
            if cancelled is not None:
                cancelled()
            member = self._read(name)
            if member.configuration != self._configuration:
                raise InputError(f"{self.folder.path / name} is of another configuration than the other members.")
            self._predictor.allowed_mirroring_axes = member.mirroring_axes or None
            load_weights(self._built.network, member, self.folder.path / name)
            del member
            for (data, properties), mean in zip(prepared, means, strict=True):
                mean.add(self._memory.run(lambda _, data=data, properties=properties: self._softmax(data, properties)))
            if progress is not None:
                progress(number + 1, len(self.files))
        return [
            _finished(mean, array.shape[1:] if array.shape[1] > 1 or self.folder.kind == "volumes" else array.shape[2:])
            for mean, array in zip(means, arrays, strict=True)
        ]

    def _preprocess(self, array: np.ndarray, spacing: Sequence[float]) -> tuple[Any, dict[str, Any]]:
        """Return an input as the network takes it, and what its way back needs."""
        import torch

        if array.ndim != 4 or array.shape[0] != self.channels:
            raise InputError(f"an input of shape {array.shape} does not fit a network of {self.channels} channel(s).")
        configuration = self._built.configuration
        preprocessor = configuration.preprocessor_class(verbose=False)
        with _quiet():
            data, _, properties = preprocessor.run_case_npy(
                array.astype(np.float32),
                None,
                {"spacing": [float(value) for value in spacing]},
                self._built.plans,
                configuration,
                self.folder.dataset,
            )
        return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)), properties

    def take_notes(self) -> list[str]:
        """Return the sentences for the user since the last call, such as that it now runs on the CPU."""
        return self._memory.take_notes()

    def _softmax(self, data: Any, properties: dict[str, Any]) -> np.ndarray:
        """Return one member's softmax, (R, K, J, I) float32 on the input's own grid.

        Raises:
            DeviceMemoryError: The memory ran out, and there is no other device.
        """
        import torch

        try:
            with _quiet(), torch.inference_mode():
                return self._probabilities(data, properties)
        except (MemoryError, RuntimeError) as error:
            if self.device == "cpu" and is_out_of_memory(error):
                raise DeviceMemoryError(
                    f"the memory ran out for an input of {data.nbytes / 2**20:.0f} MB; close other programs, or pass a "
                    "smaller input."
                ) from error
            raise

    def _to_cpu(self) -> None:
        import torch

        self.device = "cpu"
        self._predictor.device = torch.device("cpu")
        self._predictor.perform_everything_on_device = False
        self._predictor.network.to("cpu")

    def _probabilities(self, data: Any, properties: dict[str, Any]) -> np.ndarray:
        """See :meth:`_softmax`."""
        import torch
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        # nnU-Net's loop over several checkpoints would average logits; this is the part inside it.
        logits = self._predictor.predict_sliding_window_return_logits(data).to("cpu")
        _, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self._built.plans,
            self._built.configuration,
            self._built.labels,
            properties,
            return_probabilities=True,
            num_threads_torch=torch.get_num_threads(),
        )
        return probabilities

    def _read(self, name: str) -> Checkpoint:
        return read_kept_checkpoint(self.folder.path / name)


def _finished(mean: SampleMean, shape: tuple[int, ...]) -> EnsemblePrediction:
    probabilities = mean.mean
    return EnsemblePrediction(
        probabilities=probabilities.reshape(len(probabilities), *shape),
        entropy=mean.entropy().reshape(shape),
        mutual_information=mean.mutual_information().reshape(shape),
        members=mean.count,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what nnU-Net prints away from the output of a command."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
