"""The networks of the colouriser and of what starts from it: U-Net, patch discriminators, segmenter, classifier.

Names of the layers are ours, sizes those of the public code: an encoder ``e1 .. e7, b``, a decoder
``d1 .. d7`` and a last layer ``out``. They are the keys of a state dict too, so that the weights of the generator
go into segmenter and classifier key by key.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runs.errors import InputError

NormEval = Literal["batch", "running"]

SLOPE = 0.2  # of LeakyReLU; public code, as all constants here
NORM_EPS = 1e-3  # Keras' default
NORM_MOMENTUM = 0.01  # Keras' default: 0.99 of the old statistics stay
INITIAL_STD = 0.02
WIDEST = 8  # times the base width
DROPOUT_BLOCKS = 3  # the innermost blocks of the decoder


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses the statistics of its batch in evaluation too, unless ``norm_eval`` is ``running``.

    The running statistics are kept up in training either way.
    """

    def __init__(self, channels: int, norm_eval: NormEval) -> None:
        super().__init__(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        self.norm_eval = norm_eval

    def forward(self, features: Tensor) -> Tensor:
        if self.training or self.norm_eval == "running":
            return super().forward(features)
        return F.batch_norm(features, None, None, self.weight, self.bias, training=True, eps=self.eps)


class NoiseDropout(nn.Dropout):
    """Dropout that stays on in evaluation where ``always`` is set: it is the generator's only source of noise."""

    def __init__(self, probability: float, always: bool) -> None:
        super().__init__(probability)
        self.always = always

    def forward(self, features: Tensor) -> Tensor:
        return F.dropout(features, self.p, self.training or self.always)


class Down(nn.Module):
    """Halves a map: 4 x 4 convolution of stride 2, BatchNorm where asked, LeakyReLU."""

    def __init__(self, channels_in: int, channels: int, norm_eval: NormEval | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 4, stride=2, padding=1)
        self.norm = nn.Identity() if norm_eval is None else BatchNorm(channels, norm_eval)

    def forward(self, features: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(features)), SLOPE)


class Up(nn.Module):
    """Doubles a map and joins the encoder's map of that size; the ReLU comes last and so hits both."""

    def __init__(self, channels_in: int, channels: int, norm_eval: NormEval, dropout: NoiseDropout | None) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels, 4, stride=2, padding=1)
        self.norm = BatchNorm(channels, norm_eval)
        self.dropout = nn.Identity() if dropout is None else dropout

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        return F.relu(torch.cat([self.dropout(self.norm(self.conv(features))), skip], dim=1))


class Encoder(nn.Module):
    """``e1 .. e<depth - 1>`` and the bottleneck ``b``: (B, 1, H, W) lightness of -1..1 to (B, C, H/2^depth, W/2^depth).

    Args:
        width: channels of e1; they double with each layer, up to eight times.
        depth: how often the map is halved: 8 for 256 pixels, 6 for 64.
        norm_eval: statistics of the BatchNorms in evaluation.
    """

    def __init__(self, width: int, depth: int, norm_eval: NormEval) -> None:
        super().__init__()
        if depth < 3 or width < 1:
            raise InputError(f"a U-Net of width {width} and depth {depth}: give a width of 1 and a depth of 3 or more")
        self.depth = depth
        self.widths = [width * min(2**level, WIDEST) for level in range(depth - 1)]  # of e1 .. e<depth - 1>
        self.code_width = width * WIDEST  # of b
        for level, (channels_in, channels) in enumerate(pairwise([1, *self.widths]), start=1):
            self.add_module(f"e{level}", Down(channels_in, channels, None if level == 1 else norm_eval))
        self.b = nn.Conv2d(self.widths[-1], self.code_width, 4, stride=2, padding=1)

    def use_statistics(self, norm_eval: NormEval) -> None:
        """Switches the statistics of the BatchNorms in evaluation."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.norm_eval = norm_eval

    def encode(self, lightness: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The bottleneck's map after its ReLU, and those of e1, e2, …

        Raises:
            InputError: sides that cannot be halved ``depth`` times.
        """
        height, width = lightness.shape[-2:]
        if height % 2**self.depth or width % 2**self.depth:
            raise InputError(
                f"images of {width} x {height} pixels cannot be halved {self.depth} times: make their sides multiples "
                f"of {2**self.depth}, or change the depth of the network"
            )
        skips = []
        features = lightness
        for level in range(1, self.depth):
            features = self.get_submodule(f"e{level}")(features)
            skips.append(features)
        return F.relu(self.b(features)), skips


class UNet(Encoder):
    """Encoder, decoder with skip connections, and a last layer with ``channels_out``.

    Args:
        channels_out: of the last layer.
        width: see `Encoder`.
        depth: see `Encoder`.
        dropout: probability in the innermost blocks of the decoder.
        dropout_in_evaluation: whether it stays on there.
        norm_eval: see `Encoder`.
    """

    def __init__(
        self,
        channels_out: int,
        width: int,
        depth: int,
        dropout: float,
        dropout_in_evaluation: bool,
        norm_eval: NormEval,
    ) -> None:
        super().__init__(width, depth, norm_eval)
        channels_in = self.code_width
        for level, channels in enumerate(reversed(self.widths), start=1):
            noise = NoiseDropout(dropout, dropout_in_evaluation) if level <= DROPOUT_BLOCKS else None
            self.add_module(f"d{level}", Up(channels_in, channels, norm_eval, noise))
            channels_in = 2 * channels
        self.out = nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1)
        self.apply(draw_weights)

    def keep_dropout(self, always: bool) -> None:
        """Switches the decoder's dropout in evaluation."""
        for module in self.modules():
            if isinstance(module, NoiseDropout):
                module.always = always

    def decode(self, lightness: Tensor) -> Tensor:
        """The last layer's map, (B, channels_out, H, W), without activation."""
        features, skips = self.encode(lightness)
        for level, skip in enumerate(reversed(skips), start=1):
            features = self.get_submodule(f"d{level}")(features, skip)
        return self.out(features)


class Generator(UNet):
    """Lightness (B, 1, H, W) of -1..1 to colour (B, 2, H, W): a and b divided by 128, by tanh.

    Args: as for `UNet`, which makes two channels.
    """

    def __init__(
        self, width: int, depth: int, dropout: float, dropout_in_evaluation: bool, norm_eval: NormEval
    ) -> None:
        super().__init__(2, width, depth, dropout, dropout_in_evaluation, norm_eval)

    def forward(self, lightness: Tensor) -> Tensor:
        return torch.tanh(self.decode(lightness))


class Segmenter(UNet):
    """The generator with another last layer: lightness (B, 1, H, W) to logits (B, num_classes + 1, H, W).

    Args: as for `UNet`; num_classes: without background.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        depth: int,
        dropout: float,
        dropout_in_evaluation: bool,
        norm_eval: NormEval,
    ) -> None:
        super().__init__(num_classes + 1, width, depth, dropout, dropout_in_evaluation, norm_eval)

    def forward(self, lightness: Tensor) -> Tensor:
        return self.decode(lightness)


class Classifier(Encoder):
    """The generator's encoder and three fully connected layers: lightness (B, 1, S, S) to logits (B, num_classes).

    Its images have the side S = 2^depth, which the encoder takes to one place.

    Args:
        num_classes: C.
        width: see `Encoder`.
        depth: see `Encoder`.
        hidden: units of the two layers before the last.
        dropout: probability after each of them, in training alone.
        norm_eval: see `Encoder`.
    """

    def __init__(
        self, num_classes: int, width: int, depth: int, hidden: int, dropout: float, norm_eval: NormEval
    ) -> None:
        super().__init__(width, depth, norm_eval)
        self.apply(draw_weights)
        self.head = nn.Sequential(
            nn.Linear(self.code_width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, lightness: Tensor) -> Tensor:
        code, _ = self.encode(lightness)
        if code.shape[-2:] != (1, 1):
            raise InputError(
                f"a classifier of depth {self.depth} takes images of {2**self.depth} x {2**self.depth} pixels, not "
                f"{lightness.shape[-1]} x {lightness.shape[-2]}"
            )
        return self.head(code.flatten(1))


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches: lightness (B, 1, H, W) and colour (B, 2, H, W) to logits (B, 1, h, w), real above 0.

    Args:
        width: channels of the first layer; they double with each, up to eight times.
        variant: ``patch70``: the paper's receptive field of 70 pixels, four blocks, the last of stride 1
            (pix2pix); ``patch142``: the public code's five blocks with a field of 142 pixels.
    """

    def __init__(self, width: int, variant: Literal["patch70", "patch142"]) -> None:
        super().__init__()
        halvings = {"patch70": 3, "patch142": 4}[variant]
        # Keras pads an even kernel so that the map keeps its size; pix2pix lets it shrink by one.
        left, right = {"patch70": (1, 1), "patch142": (1, 2)}[variant]
        layers: list[nn.Module] = []
        channels_in = 3
        for level in range(halvings):
            channels = width * min(2**level, WIDEST)
            layers.append(Down(channels_in, channels, None if level == 0 else "batch"))
            channels_in = channels
        channels = width * WIDEST
        layers += [
            nn.ZeroPad2d((left, right, left, right)),
            nn.Conv2d(channels_in, channels, 4),
            BatchNorm(channels, "batch"),
            nn.LeakyReLU(SLOPE),
            nn.ZeroPad2d((left, right, left, right)),
            nn.Conv2d(channels, 1, 4),
        ]
        self.layers = nn.Sequential(*layers)
        self.apply(draw_weights)

    def forward(self, lightness: Tensor, colour: Tensor) -> Tensor:
        return self.layers(torch.cat([lightness, colour], dim=1))


def draw_weights(module: nn.Module) -> None:
    """Convolutions start from N(0, 0.02) with biases of 0."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, INITIAL_STD)
        nn.init.zeros_(module.bias)
