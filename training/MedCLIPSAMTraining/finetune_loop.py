"""One optimiser step of contrastive fine-tuning, in one go or with gradient caching, on one process or several.

A contrastive loss needs the features of the whole batch at once, but not their computation graphs: with gradient
caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021) the batch
is computed chunk by chunk without graphs, the loss gives the gradient of every feature, and each chunk is computed
again with its graph to bring that gradient to the weights. The result is that of the whole batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.memory import is_out_of_memory
from MedCLIPSAMTraining.finetune_distributed import Processes
from MedCLIPSAMTraining.finetune_models import TrainableClip
from MedCLIPSAMTraining.finetune_settings import LOSSES, Course, FinetuneSettings

_ADAM = {"betas": (0.9, 0.98), "eps": 1e-6}
"""As CLIP's own training (Radford et al., 2021) for vision transformers."""


@dataclass(frozen=True)
class PairBatch:
    """This process's part of one global batch.

    Attributes:
        images: (b, ...), see ``TrainableClip.image_input``.
        captions: b texts.
        keys: (b,) int64, equal where captions are.
    """

    images: Tensor
    captions: list[str]
    keys: Tensor


@dataclass(frozen=True)
class StepReport:
    """What one step did: the loss of the global batch, the gradient's norm before clipping, the learning rate."""

    loss: float
    gradient: float
    learning_rate: float


class _Towers(nn.Module):
    """Both towers as one module with a ``forward``, which ``DistributedDataParallel`` asks for."""

    def __init__(self, model: TrainableClip, autocast: bool, device: torch.device):
        super().__init__()
        self.weights = model.module
        self._model, self._autocast, self._device = model, autocast, device

    def forward(self, images: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            return self._model.image_features(images), self._model.text_features(captions)


class Trainer:
    """Model and optimiser, and the number of steps that they have done.

    Attributes:
        step: Optimiser steps done.
        optimiser: AdamW.
        course: Length and learning rates of the run.
    """

    def __init__(
        self, model: TrainableClip, settings: FinetuneSettings, course: Course, processes: Processes, chunk: int = 0
    ):
        """Prepare a run from its beginning.

        Args:
            model: On the device of ``processes``.
            settings: Filled.
            course: Of this run.
            processes: All of the run.
            chunk: Pairs that are computed at once on each process, for the memory; 0 for the whole batch.

        Raises:
            InputError: The batch does not divide among the processes, everything is locked, or the precision does not
                exist on the device.
        """
        if settings.batch % processes.count:
            raise InputError(
                f"a batch of {settings.batch} does not divide among {processes.count} processes; pass a multiple."
            )
        self.model, self.settings, self.course, self.processes = model, settings, course, processes
        self.chunk = chunk
        self.step = 0
        self.optimiser = torch.optim.AdamW(model.parameters_to_train(), lr=settings.learning_rate, **_ADAM)
        self._parameters = [one for group in self.optimiser.param_groups for one in group["params"]]
        self._towers = _Towers(model, use_bfloat16(settings.precision, processes.device), processes.device)
        self._joint: nn.Module = self._towers
        if processes.group is not None:
            self._joint = DistributedDataParallel(
                self._towers, process_group=processes.group, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def train_step(self, batch: PairBatch) -> StepReport:
        """Do one step.

        Raises:
            InputError: See :mod:`MedCLIPSAMTraining.losses`.
            MedCLIPSAMError: The loss or its gradient is not finite, or memory ran out; the weights are those before the
                step.
        """
        with self._memory(len(batch.captions)):
            return self._train_step(batch)

    @contextlib.contextmanager
    def _memory(self, pairs: int) -> Iterator[None]:
        """Say what helps where memory runs out."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            at_once = min(self.chunk or pairs, pairs)
            smaller = f"pass --chunk {max(1, at_once // 4)}"
            remedy = smaller if at_once > 1 else "take a device with more, or --device cpu"
            raise MedCLIPSAMError(
                f"the memory of {self.processes.device} ran out with {at_once} pairs at once; {remedy}. The result "
                "stays the same, and the run goes on where it was saved."
            ) from error

    def _train_step(self, batch: PairBatch) -> StepReport:
        rate = self.course.learning_rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.set_training(True)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.backward(batch)
        limit = self.settings.clip_gradient or math.inf
        norm = float(nn.utils.clip_grad_norm_(self._parameters, limit))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise MedCLIPSAMError(
                f"the loss of step {self.step + 1} is {loss} and its gradient's norm {norm}; resume with a smaller "
                "learning rate or a higher temperature, in another work folder."
            )
        self.optimiser.step()
        self.step += 1
        return StepReport(loss, norm, rate)

    def backward(self, batch: PairBatch) -> float:
        """Add the gradient of one batch to the weights' and return its loss, without the model's own term."""
        size = len(batch.captions)
        length = self.chunk or size
        chunks = [slice(start, min(start + length, size)) for start in range(0, size, length)]
        if len(chunks) == 1:
            self._seed(0, 1)
            loss = self._loss(*self._joint(batch.images, batch.captions), batch.keys)
            torch.autograd.backward([loss, *self._penalty()])
            return float(loss.detach())

        with torch.no_grad():
            parts = []
            for number, part in enumerate(chunks):
                self._seed(number, len(chunks))
                parts.append(self._towers(batch.images[part], batch.captions[part]))
        images, texts = (torch.cat(some).requires_grad_() for some in zip(*parts, strict=True))
        loss = self._loss(images, texts, batch.keys)
        image_gradient, text_gradient = torch.autograd.grad(loss, (images, texts))
        for number, part in enumerate(chunks):
            self._seed(number, len(chunks))
            last = number == len(chunks) - 1
            with contextlib.nullcontext() if last or self.processes.group is None else self._joint.no_sync():
                features = self._joint(batch.images[part], batch.captions[part])
                pairs = zip(features, (image_gradient[part], text_gradient[part]), strict=True)
                # A locked tower's features need no gradient.
                wanted = [(one, gradient) for one, gradient in pairs if one.requires_grad]
                wanted += [(one, None) for one in (self._penalty() if last else ())]
                torch.autograd.backward(*zip(*wanted, strict=True))
        return float(loss.detach())

    def _loss(self, images: Tensor, texts: Tensor, keys: Tensor) -> Tensor:
        return LOSSES[self.settings.loss](
            images,
            texts,
            **self.settings.loss_arguments(),
            same_caption=keys.to(images.device),
            group=self.processes.group,
        )

    def _penalty(self) -> list[Tensor]:
        """Return the model's own term, if it has one: the same on all processes, as then is its gradients' mean."""
        penalty = self.model.penalty()
        locked = penalty is not None and not penalty.requires_grad  # what it would keep cannot move
        return [] if penalty is None or locked else [penalty]

    def _seed(self, chunk: int, chunks: int) -> None:
        """Draw dropout by step and chunk of the global batch: the same after a resume, and for any division of equal
        chunks among processes."""
        number = self.processes.rank * chunks + chunk
        state = np.random.SeedSequence([self.settings.seed, self.step, number]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    @torch.no_grad()
    def encode(self, batch: PairBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return the image and text features of a batch, (b, D) float32 each, not normalised, for validation."""
        self.model.set_training(False)
        size = len(batch.captions)
        length = self.chunk or size
        with self._memory(size):
            parts = [
                self._towers(batch.images[start : start + length], batch.captions[start : start + length])
                for start in range(0, size, length)
            ]
        images, texts = (torch.cat(some).float().cpu().numpy() for some in zip(*parts, strict=True))
        return images, texts


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16.

    Raises:
        InputError: It is asked for on a GPU that does not have it.
    """
    cuda = device.type == "cuda"
    able = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and not able:
        raise InputError("this GPU has no bfloat16; pass --precision float32.")
    return precision == "bfloat16" or (precision == "auto" and cuda and able)
