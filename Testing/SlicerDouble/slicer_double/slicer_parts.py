"""The modules ``ctk`` and ``slicer.*`` that slicer-core lacks."""

# ruff: noqa: N802, N803 (names of the application)
from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import logging
import sys
import types

import slicer
import slicer.util

from . import ctk_paths, ctk_sliders, ctk_widgets, modules, scripted, segment_widgets  # noqa: F401
from .api import class_api, functions
from .collect import NotInDoubleError
from .scene import World
from .stand_ins import STAND_INS

logger = logging.getLogger(__name__)
pip_calls: list[tuple[str, tuple, dict]] = []  # what the panel wanted pip to do; nothing is installed
samples: list[dict] = []  # what was registered with SampleData


class CtkModule(types.ModuleType):
    """``import ctk``"""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        record = class_api(name)
        if record is None or record.namespace != "ctk":
            raise AttributeError(f"ctk.{name} is not among the application's classes that this project may use")
        if name not in STAND_INS:
            raise NotInDoubleError(f"ctk.{name} is in the application, not in the double")
        return STAND_INS[name]


def _recorder(name: str, signature: str) -> object:
    """A function of slicer.packaging that only remembers its call, with the application's parameters."""

    def call(*args: object, **kwargs: object) -> None:
        parameters.bind(*args, **kwargs)
        pip_calls.append((name, args, kwargs))

    space: dict[str, object] = {}
    exec(f"from __future__ import annotations\ndef like{signature}: ...", space)
    parameters = inspect.signature(space["like"])
    call.__name__, call.__signature__ = name, parameters
    return call


def _pip_check(req: str | list[str], _seen: object = None) -> bool:
    """Whether the requirements' packages are installed, whatever their version."""
    names = [req] if isinstance(req, str) else req
    for requirement in names:
        word = str(requirement)
        for sign in "<>=!~;[ ":
            word = word.partition(sign)[0]
        try:
            importlib.metadata.version(word)
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


def _module(name: str, **members: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


class SampleDataLogic:
    """``SampleData.SampleDataLogic``: remembers what was registered."""

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: object = None,
        fileNames: object = None,
        nodeNames: object = None,
        customDownloader: object = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: object = None,
        loadFiles: object = None,
        loadFileProperties: object = None,
        checksums: object = None,
    ) -> None:
        """Function of the same name."""
        samples.append(dict(locals()))


def install(world: World) -> None:
    """Put everything in its place."""
    sys.modules["ctk"] = CtkModule("ctk", "Test double of Slicer's ctk module.")
    for name, kind in STAND_INS.items():
        if class_api(name).namespace == "slicer":
            setattr(slicer, name, kind)
    slicer.qSlicerScriptedLoadableModule = modules.qSlicerScriptedLoadableModule
    slicer.qSlicerScriptedLoadableModuleWidget = modules.qSlicerScriptedLoadableModuleWidget
    slicer.modules = modules.Modules(world)
    slicer.modules.sampleDataSources = {}
    packaging = {name: _recorder(name, signature) for name, signature in functions("slicer.packaging").items()}
    packaging |= {"pip_check": _pip_check, "isPipInstallInProgress": lambda: False}
    slicer.packaging = _module("slicer.packaging", **packaging)
    slicer.i18n = _module("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
    slicer.ScriptedLoadableModule = _module(
        "slicer.ScriptedLoadableModule", **{name: getattr(scripted, name) for name in scripted.__all__}
    )
    sys.modules["slicer.ScriptedLoadableModule"].__all__ = list(scripted.__all__)
    _module("SampleData", SampleDataLogic=SampleDataLogic)
    slicer.util.delayDisplay = lambda message, autoCloseMsec=1000, parent=None, **kwargs: logger.info("%s", message)
    for name in [name for name in vars(slicer.util) if _is_foreign(name)]:
        delattr(slicer.util, name)


def _is_foreign(name: str) -> bool:
    """A function of slicer-core's ``slicer.util`` that the application's does not have."""
    member = getattr(slicer.util, name)
    return inspect.isfunction(member) and not name.startswith("_") and name not in functions("slicer.util")
