"""Image regions of any size in one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_PACKED_AT_ONCE = 2**24  # pixels: bounds the temporaries


class RaggedImages(NamedTuple):
    """Regions of images of any size in one buffer. A region is a rectangle of its full image, often all of it.

    pixels: (bytes,) uint8; a region is its rows of interleaved RGB, without gaps. Or, see `packed`, (pixels,) int32.
    offset: (N,) int64, index in `pixels` of the region's first element.
    height, width: (N,) int64, the region's size in pixels.
    origin: (N, 2) int64, x and y of the region's top left pixel in its full image.
    full_width: (N,) int64, the full image's width, about which a flip mirrors.
    """

    pixels: Tensor
    offset: Tensor
    height: Tensor
    width: Tensor
    origin: Tensor
    full_width: Tensor

    @property
    def elements(self) -> int:
        """How many elements of `pixels` a pixel is."""
        return 1 if self.pixels.dtype == torch.int32 else 3

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> RaggedImages:
        """Whole images, each (H, W, 3) uint8 and on one device. Raises TypeError or ValueError for anything else."""
        if not images:
            raise ValueError("no images given; wanted at least one")
        for i, image in enumerate(images):
            if not isinstance(image, Tensor) or image.dtype != torch.uint8:
                given = image.dtype if isinstance(image, Tensor) else type(image).__name__
                raise TypeError(f"image {i} is {given}; wanted a uint8 tensor")
            if image.dim() != 3 or image.shape[2] != 3 or image.numel() == 0:
                raise ValueError(f"image {i} has shape {tuple(image.shape)}; wanted (H, W, 3)")
        device = images[0].device
        height = torch.tensor([image.shape[0] for image in images])
        width = torch.tensor([image.shape[1] for image in images])
        size = height * width * 3
        return cls(
            pixels=images[0].reshape(-1) if len(images) == 1 else torch.cat([image.reshape(-1) for image in images]),
            offset=(size.cumsum(0) - size).to(device),
            height=height.to(device),
            width=width.to(device),
            origin=torch.zeros(len(images), 2, dtype=torch.int64, device=device),
            full_width=width.to(device),
        )

    def packed(self) -> RaggedImages:
        """The same regions with an int32 for each pixel, R + 256 G + 65536 B: a third more memory, one load a pixel.

        Raises ValueError for regions that do not begin at whole pixels of the buffer.
        """
        if self.pixels.dtype == torch.int32:
            return self
        if self.pixels.numel() % 3 or bool((self.offset % 3).any()):
            raise ValueError("regions that do not begin at multiples of 3 bytes cannot be packed")
        pixels = torch.empty(self.pixels.numel() // 3, dtype=torch.int32, device=self.pixels.device)
        pieces = pixels.split(_PACKED_AT_ONCE), self.pixels.view(-1, 3).split(_PACKED_AT_ONCE)
        for part, triples in zip(*pieces, strict=True):
            red, green, blue = triples.int().unbind(1)
            torch.add(red, green, alpha=2**8, out=part).add_(blue, alpha=2**16)
        return self._replace(pixels=pixels, offset=self.offset // 3)

    def to(self, device: torch.device | str) -> RaggedImages:
        """The same regions on `device`."""
        return RaggedImages(*(column.to(device) for column in self))
