"""Encoders for dense prediction: feature maps from shallow to deep, with a chosen stride and dilation at the end.

Each has ``channels`` and ``strides``, one entry for each map that `forward` returns.
"""

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from components.weights import WeightsError, fit_state, read_state
from runs.errors import InputError, did_you_mean

CLASSIFIER = ("fc.", "classifier.", "head.")  # of weights trained to classify; an encoder has none


class TimmEncoder(nn.Module):
    """A convolutional network of timm without its classifier: five maps for a ResNet or ResNeSt.

    ISIM (arXiv 2211.12455, 3.2) takes the last stage at stride 1 and dilates it: 320 pixels become
    a map of 20 x 20. As DeepLab does it, the first block of that stage keeps the dilation of the one before.

    Args:
        backbone: timm's name, with the tag of the weights: ``resnet50.tv_in1k``, ``resnest101e.in1k``.
        pretrained: whether `load_initial_weights` downloads the weights of that tag.
        checkpoint_path: the user's own file of weights, instead of a download.
        last_stride: of the last stage, 1 or 2; the output stride is 16 or 32.
        last_dilation: of the last stage, 1 or 2; 2 needs ``last_stride=1``.
        freeze_batch_norm: BatchNorms use their running statistics in training too, and keep
            statistics, scale and shift as they came.

    Raises:
        InputError: timm knows no such backbone, or stride and dilation do not go together.
    """

    def __init__(
        self,
        backbone: str,
        pretrained: bool,
        checkpoint_path: str | None,
        last_stride: int,
        last_dilation: int,
        freeze_batch_norm: bool,
    ) -> None:
        super().__init__()
        architecture = backbone.partition(".")[0]
        if not timm.is_model(architecture):
            raise InputError(
                f"encoder.backbone={backbone} is no model of timm: {did_you_mean(architecture, timm.list_models())}"
            )
        if (last_stride, last_dilation) not in ((1, 1), (1, 2), (2, 1)):
            raise InputError(
                f"encoder.last_stride={last_stride} with encoder.last_dilation={last_dilation}: "
                "the last stage has stride 1 with dilation 1 or 2, or stride 2 with dilation 1"
            )
        self.backbone, self.pretrained, self.checkpoint_path = backbone, pretrained, checkpoint_path
        self.freeze_batch_norm = freeze_batch_norm
        self.output_stride = 32 // (2 if last_stride == 1 else 1)
        try:
            self.body = timm.create_model(backbone, features_only=True, output_stride=self.output_stride)
        except (NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"encoder.backbone={backbone} cannot give feature maps at output stride {self.output_stride}: "
                "take a ResNet or ResNeSt of timm"
            ) from error
        if last_dilation == 1:
            for layer in self.body.modules():
                if isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1):
                    layer.padding = tuple(p // d for p, d in zip(layer.padding, layer.dilation, strict=True))
                    layer.dilation = (1, 1)
        self.channels: list[int] = self.body.feature_info.channels()
        self.strides: list[int] = self.body.feature_info.reduction()
        if freeze_batch_norm:
            for layer in self.batch_norms():
                layer.requires_grad_(False)
            self.train()

    def batch_norms(self) -> list[_BatchNorm]:
        """Its BatchNorm layers."""
        return [layer for layer in self.modules() if isinstance(layer, _BatchNorm)]

    def train(self, mode: bool = True) -> "TimmEncoder":
        """Frozen BatchNorms stay in eval mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for layer in self.batch_norms():
                layer.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) to maps (B, channels[i], H / strides[i], W / strides[i])."""
        return self.body(image)

    def load_initial_weights(self) -> None:
        """Fills the network with the weights that ``pretrained`` or ``checkpoint_path`` ask for.

        Raises:
            InputError: a download fails, a file is missing or does not fit, or BatchNorms are
                frozen that no weights have set.
        """
        if self.checkpoint_path is not None:
            try:
                fit_state(self.body, read_state(self.checkpoint_path), self.checkpoint_path, free=CLASSIFIER)
            except WeightsError as error:
                raise InputError(f"encoder.checkpoint_path: {error}") from error
        elif self.pretrained:
            fit_state(self.body, self._download(), self.backbone, free=CLASSIFIER)
        elif self.freeze_batch_norm:
            raise InputError(
                "encoder.freeze_batch_norm=true keeps the statistics of pre-trained weights, but there are none: "
                "set encoder.pretrained=true or encoder.checkpoint_path=<file>, or encoder.freeze_batch_norm=false"
            )

    def _download(self) -> dict[str, Tensor]:
        try:
            return timm.create_model(
                self.backbone, pretrained=True, features_only=True, output_stride=self.output_stride
            ).state_dict()
        except Exception as error:  # whatever HTTP client the hub uses brings its own exceptions
            raise InputError(
                f"the pre-trained weights {self.backbone} could not be loaded ({type(error).__name__}): go online "
                "once, or point encoder.checkpoint_path at a file that holds them, or set encoder.pretrained=false"
            ) from error


class SmallEncoder(nn.Module):
    """A few stages of two 3x3 convolutions with BatchNorm, from scratch, for inputs of some 64 pixels.

    Args:
        widths: channels of each stage.
        stage_strides: stride of each stage's first convolution.
    """

    def __init__(self, widths: list[int], stage_strides: list[int]) -> None:
        super().__init__()
        if len(widths) != len(stage_strides):
            raise InputError(f"encoder.widths={widths} and encoder.stage_strides={stage_strides} differ in length")
        self.channels = list(widths)
        self.strides = torch.tensor(stage_strides).cumprod(0).tolist()
        self.stages = nn.ModuleList()
        before = 3
        for width, stride in zip(widths, stage_strides, strict=True):
            self.stages.append(nn.Sequential(*_conv(before, width, stride), *_conv(width, width, 1)))
            before = width

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) to one map for each stage."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps

    def load_initial_weights(self) -> None:
        """It has none: it learns from scratch."""


def _conv(before: int, width: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
