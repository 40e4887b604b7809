"""The network of ISIM: a segmentation network with a classification branch on its encoder (Fig. 2)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from components.deeplab import conv_bn_relu, he_initialise, resized
from runs.errors import InputError


class CAMSegmenter(nn.Module):
    """Encoder, classification branch, decoder. With a DeepLab head it is DeepLabCAM, with a U-Net decoder UNetCAM.

    Args:
        encoder: images to feature maps; has ``channels``, ``strides`` and ``load_initial_weights``.
        decoder: called with the encoder's channels and strides and C + 1; its result takes the maps
            and the image's size to pixel logits.
        num_classes: C, without background.
    """

    def __init__(self, encoder: nn.Module, decoder: Callable[..., nn.Module], num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        # Without bias: class maps and logits are the same weights before and after averaging.
        self.classifier = nn.Conv2d(encoder.channels[-1], num_classes, 1, bias=False)
        self.decoder = decoder(encoder.channels, encoder.strides, num_classes + 1)

    def forward(self, image: Tensor, with_decoder: bool = True) -> tuple[Tensor, Tensor | None]:
        """Normalised images (B, 3, H, W) to class logits (B, C) and pixel logits (B, C + 1, H, W).

        ``with_decoder=False`` spares the decoder: the pixel logits are None.
        """
        features = self.encoder(image)
        pooled = features[-1].mean(dim=(2, 3), keepdim=True)
        logits = self.classifier(pooled).flatten(1)
        if not with_decoder:
            return logits, None
        return logits, self.decoder(features, (image.shape[-2], image.shape[-1]))

    def class_maps(self, image: Tensor) -> Tensor:
        """Class activation maps before ReLU, (B, C, h, w); their mean over pixels is the class logit."""
        return self.classifier(self.encoder(image)[-1])

    def load_initial_weights(self) -> None:
        """Fills the encoder with the weights that its config asks for."""
        self.encoder.load_initial_weights()


class UNetDecoder(nn.Module):
    """U-Net's expanding path with a skip from every encoder map (Table 3).

    Args:
        channels: of the encoder's maps, shallow to deep.
        strides: of the encoder's maps.
        num_classes: C + 1.
        widths: channels of each step up, one for each encoder map.
        upsampling: ``bilinear``, or ``transposed``, a learnable convolution.

    Raises:
        InputError: another number of widths than of encoder maps.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        widths: list[int],
        upsampling: Literal["bilinear", "transposed"],
    ) -> None:
        super().__init__()
        if len(widths) != len(channels):
            raise InputError(f"decoder.widths={widths}: give one width for each of the encoder's {len(channels)} maps")
        skips = [*reversed(channels[:-1]), 0]
        before = channels[-1]
        self.enlarge, self.convolve = nn.ModuleList(), nn.ModuleList()
        for skip, width in zip(skips, widths, strict=True):
            learnable = upsampling == "transposed"
            self.enlarge.append(nn.ConvTranspose2d(before, before, 2, stride=2) if learnable else nn.Identity())
            self.convolve.append(nn.Sequential(conv_bn_relu(before + skip, width, 3), conv_bn_relu(width, width, 3)))
            before = width
        self.classify = nn.Conv2d(before, num_classes, 3, padding=1)
        he_initialise(self)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The encoder's maps to logits (B, num_classes, *size)."""
        x = features[-1]
        for enlarge, convolve, skip in zip(
            self.enlarge, self.convolve, [*reversed(features[:-1]), None], strict=True
        ):  # fmt: skip
            target = size if skip is None else (skip.shape[-2], skip.shape[-1])
            x = enlarge(x)
            if (x.shape[-2], x.shape[-1]) != target:
                x = resized(x, target)  # sides that are no multiple of the stride
            x = convolve(x if skip is None else torch.cat([x, skip], dim=1))
        return self.classify(x)
