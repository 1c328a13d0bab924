"""PNG, JPEG and TIFF at their full bit depth: pillow reads all but 16-bit and float colour, which ITK reads."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image, UnidentifiedImageError

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.medical_image import MedicalImage, file_label, plane_matrix

_ORIENTATION = 274  # EXIF and TIFF tags
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339

_TURNS = {  # EXIF orientation -> transpose, flip rows, flip columns, in this order
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def read_picture(path: Path) -> MedicalImage:
    """Read a PNG, JPEG or TIFF file as (H, W) or (H, W, 3); see :func:`MedCLIPSAMLib.file_io.read_image`.

    Palettes become RGB, an alpha channel is dropped, the EXIF orientation is applied, min-is-white is inverted.

    Raises:
        InputError: The file is damaged, has several pages, or stores its pixels in a way that neither reader knows.
    """
    try:
        # An open file keeps pillow from mapping it into memory, which garbles uncompressed TIFFs turned by 90 degrees.
        with path.open("rb") as file, Image.open(file) as image:
            if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
                raise InputError(
                    f"{file_label(path)} holds {image.n_frames} pages; save the page to segment as a file of its own, "
                    "or the stack as NRRD or NIfTI."
                )
            array = _colour_via_itk(path) if _has_deep_colour(image, path) else _pixels(image)
            array = _turn(array, image.getexif().get(_ORIENTATION, 1))
    except UnidentifiedImageError as error:
        array = _colour_via_itk(path, error)
    except Image.DecompressionBombError as error:
        raise InputError(f"{file_label(path)} is too large for one picture ({error}); cut it into parts.") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise InputError(
            f"{file_label(path)} cannot be read ({error}); it may be damaged or incomplete: copy or export it again."
        ) from error
    return MedicalImage(array, plane_matrix(), None, None, False, path, False)


def _has_deep_colour(image: Image.Image, path: Path) -> bool:
    """Whether the file stores several channels of more than 8 bits, which pillow would cut to 8."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        return len(bits) > 1 and max(bits) > 8
    if image.format == "PNG":
        with path.open("rb") as file:
            header = file.read(26)  # signature, IHDR; byte 24 is the bit depth, 25 the colour type
        return header[24] == 16 and header[25] != 0
    return False


def _pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of a pillow image: uint8 for 8-bit and colour, the stored type for 16 and 32 bit."""
    image.load()
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))
    if not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        signed = image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 2
        if array.dtype.kind in "iu":  # pillow hands out 16-bit signed and 32-bit unsigned alike as int32
            array = array.astype(np.dtype(f"{'i' if signed else 'u'}{max(bits // 8, 2)}"))
        if image.tag_v2.get(_PHOTOMETRIC) == 0 and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _turn(array: np.ndarray, orientation: int) -> np.ndarray:
    transpose, rows, columns = _TURNS.get(orientation, (False, False, False))
    array = array.swapaxes(0, 1) if transpose else array
    return np.ascontiguousarray(array[:: -1 if rows else 1, :: -1 if columns else 1])


def _colour_via_itk(path: Path, pillow_error: Exception | None = None) -> np.ndarray:
    """Read what pillow cannot: 16-bit colour PNG and TIFF, float colour TIFF."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(
            f"{file_label(path)} cannot be read as a picture; it is damaged, or stores its pixels in a rare way: "
            "export it as 8- or 16-bit PNG, or as 32-bit float TIFF."
        ) from error
    array = sitk.GetArrayFromImage(image)
    # ITK falls back to 8 bits for layouts that it does not know, and takes 16-bit floats for integers.
    trusted = array.dtype == np.float32 or (pillow_error is None and array.dtype == np.uint16)
    channels = image.GetNumberOfComponentsPerPixel()
    if not trusted or image.GetDimension() != 2 or channels > 4:
        raise InputError(
            f"{file_label(path)} stores its pixels in a way that cannot be read without loss; export it as 8- or "
            "16-bit PNG, or as 32-bit float TIFF."
        )
    if channels == 1:
        return array
    return array[..., 0] if channels == 2 else array[..., :3]
