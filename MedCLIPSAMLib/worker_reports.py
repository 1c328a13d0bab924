"""What a "result" event says beside its files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib.reporting import versions, weights_report
from MedCLIPSAMLib.results import Component, Presence, PromptResult, VolumeResult

if TYPE_CHECKING:
    from MedCLIPSAMLib.pipeline import TextSegmenter


def slice_report(result: PromptResult, segmenter: TextSegmenter) -> dict[str, Any]:
    """Return what there is to say of a result on one image; what the gate skipped is no coarse finding."""
    return {
        "prompt": result.prompt,
        "presence": presence_report(result.presence),
        "skipped": result.skipped,
        "threshold": result.coarse.threshold,
        "components": [] if result.skipped else _components(result.coarse.components),
        "seconds": result.seconds,
        "warnings": result.warnings,
        **_origin(result, segmenter),
    }


def volume_report(result: VolumeResult, segmenter: TextSegmenter) -> dict[str, Any]:
    """Return what there is to say of a result on a volume; the highest of the slices' scores stands for all."""
    scores = [one.presence for one in result.slices if one.presence is not None]
    presence = Presence(None, None, True)
    if scores and result.presence_threshold is not None:
        presence = Presence(max(scores), result.presence_threshold, max(scores) >= result.presence_threshold)
    return {
        "prompt": result.prompt,
        "axis": result.axis,
        "presence": presence_report(presence),
        "slices": [
            {
                "index": one.index,
                "status": one.status,
                "presence": one.presence,
                "threshold": one.threshold,
                "seconds": one.seconds,
                "components": _components(one.components),
                "warnings": one.warnings,
            }
            for one in result.slices
        ],
        "seconds": result.seconds,
        "warnings": result.warnings,
        **_origin(result, segmenter),
    }


def presence_report(presence: Presence) -> dict[str, Any]:
    """Return a presence as a JSON object."""
    return {"score": presence.score, "threshold": presence.threshold, "accepted": presence.accepted}


def _components(components: Sequence[Component]) -> list[dict[str, Any]]:
    return [{"box": one.box, "area": one.area, "confidence": one.confidence} for one in components]


def _origin(result: PromptResult | VolumeResult, segmenter: TextSegmenter) -> dict[str, Any]:
    """What says how a result came about."""
    return {
        "saliency_method": result.saliency_method,
        "seed": result.seed,
        "device": str(segmenter.device),
        "recipe": segmenter.recipe.as_dict(),
        "weights": weights_report(segmenter.weights),
        "versions": _versions(),
    }


_versions = cache(versions)  # takes as long as a quick slice
