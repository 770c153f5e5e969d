"""Images to train on, with no download: scikit-learn's digits, and IDX files (MNIST's format) from a folder.

An IDX file is a magic number (two zero bytes, a code for the type, the number of dimensions), the dimensions as
big-endian 32-bit integers, and the values in big-endian order, the last dimension fastest.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", its last section.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyro_latent.errors import DataError, MissingPackageError, check_choice, checked_call

__all__ = ["binarize", "load_digits", "load_mnist", "read_idx"]

#: The third byte of the magic number.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
#: What torch's tensors may have; the format's byte goes up to 255.
_MOST_DIMENSIONS = 64
_PARTS = {"train": "train", "test": "t10k"}


def load_digits(dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits that come with scikit-learn.

    Args:
        dtype: of the images; default torch's default dtype.

    Returns:
        Images ``[1797, 8, 8]`` in [0, 1] (17 grey levels, divided by 16), and labels ``[1797]``, 0 to 9.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise MissingPackageError(
            "Expected scikit-learn, which has the digits; got none. Run pip install scikit-learn."
        ) from None
    digits = load()
    images = torch.from_numpy(digits.images).to(dtype or torch.get_default_dtype()) / 16
    return images, torch.from_numpy(digits.target).long()


@checked_call
def load_mnist(
    folder: str | os.PathLike[str], part: Literal["train", "test"] = "train", dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """MNIST, or a data set with its file names (Fashion-MNIST, KMNIST), from a folder that holds its IDX files.

    Args:
        folder: holds ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, or ``t10k-…``, with ``.gz`` or not.
        part: ``"train"`` or ``"test"``.
        dtype: of the images; default torch's default dtype.

    Returns:
        Images ``[N, height, width]`` in [0, 1] (divided by 255), and labels ``[N]``.

    Raises:
        FileNotFoundError: if a file is not there.
        DataError: if a file is not a whole IDX file, or images and labels do not fit together.
    """
    check_choice("part", part, tuple(_PARTS))
    images = read_idx(_find(Path(folder), f"{_PARTS[part]}-images", "idx3-ubyte"))
    labels = read_idx(_find(Path(folder), f"{_PARTS[part]}-labels", "idx1-ubyte"))
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels) or images.dtype != torch.uint8:
        raise DataError(
            f"Expected images [N, height, width] of bytes with labels [N] in {str(folder)!r}; got images "
            f"{list(images.shape)} of {images.dtype} with labels {list(labels.shape)}. Take both from one data set."
        )
    return images.to(dtype or torch.get_default_dtype()) / 255, labels.long()


@checked_call
def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """The array of an IDX file, plain or compressed by gzip (told apart by the first bytes, not by the name).

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if the magic number is wrong, the dimensions are over 64, or the file is cut short or too long.
    """
    content = _content(Path(path))
    magic = content[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or magic[3] == 0:
        raise DataError(
            f"Expected an IDX file in {str(path)!r}, whose first bytes are 00 00, a type (08 to 0e) and the number of "
            f"dimensions; got {magic.hex(' ') or 'nothing'}. Name the file as it was downloaded, .gz or unpacked."
        )
    if magic[3] > _MOST_DIMENSIONS:
        raise DataError(
            f"Expected an IDX file of at most {_MOST_DIMENSIONS} dimensions in {str(path)!r}; got {magic[3]}. Download "
            "the file again."
        )
    start = 4 + 4 * magic[3]
    if len(content) < start:
        raise _wrong_length(path, f"a header of {start} bytes", len(content))
    shape = [int(n) for n in np.frombuffer(content[4:start], ">u4")]
    dtype = np.dtype(_TYPES[magic[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise _wrong_length(path, f"{expected} bytes for shape {shape}", len(content))
    # torch takes native byte order only, and must own what it may write to.
    values = np.frombuffer(content, dtype, offset=start).astype(dtype.newbyteorder("="))
    return torch.from_numpy(values).reshape(shape)


@checked_call
def binarize(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Black and white images, each pixel white with the probability that its grey level in [0, 1] gives.

    Source: Salakhutdinov and Murray 2008, "On the quantitative analysis of deep belief networks".
    """
    return torch.bernoulli(images, generator=generator)


class MissingImagesError(DataError, FileNotFoundError):
    """A folder has no file of images or labels."""


def _find(folder: Path, stem: str, ending: str) -> Path:
    names = [f"{stem}{mark}{ending}{packed}" for mark in "-." for packed in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingImagesError(
        f"Expected {names[0]} or {names[1]} in {str(folder)!r}; got neither. Download them, and name their folder."
    )


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"Expected a whole gzip file in {str(path)!r}; got {len(content)} bytes that do not unpack ({error}). "
            "Download it again."
        ) from None


def _wrong_length(path: str | os.PathLike[str], expected: str, found: int) -> DataError:
    return DataError(f"Expected {expected} in {str(path)!r}; got {found} bytes. Download the file again.")
