"""The frozen feature extractor (3.1): two stages of an ImageNet network, upscaled, joined, averaged over 3 x 3."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from components.weights import WeightsError, fit_state, read_state
from runs.errors import InputError, did_you_mean

KEY = "model.network.extractor"  # where the config has it, for sentences


class FrozenFeatureExtractor(nn.Module):
    """Feature maps of a network that never learns: no gradient, BatchNorms always in eval mode.

    Its weights come from ``pretrained`` or ``checkpoint_path``, or are random; random ones are of use once
    `calibrate` has set the statistics of their BatchNorms.

    Args:
        backbone: timm's name, with the tag of the weights; ``wide_resnet50_2.tv_in1k`` is torchvision's
            IMAGENET1K_V1. Other weights have features of another scale: see ``noise_rel`` of `AnomalyGenerator`.
        layers: the stages whose outputs are joined, ascending; for a ResNet the numbers of its layers.
            Deeper stages are not built.
        pretrained: whether `load_initial_weights` downloads the weights of the tag.
        checkpoint_path: the user's own file of weights, instead of a download.
        upscale: size of the joined map, in sizes of the first stage; paper: 2, SimpleNet: 1.

    Attributes:
        channels: of the joined map.

    Raises:
        InputError: timm knows no such backbone, or it has no such stages.
    """

    def __init__(
        self, backbone: str, layers: list[int], pretrained: bool, checkpoint_path: str | None, upscale: int
    ) -> None:
        super().__init__()
        architecture = backbone.partition(".")[0]
        if not timm.is_model(architecture):
            raise InputError(
                f"{KEY}.backbone={backbone} is no model of timm: {did_you_mean(architecture, timm.list_models())}"
            )
        if not layers or sorted(set(layers)) != list(layers):
            raise InputError(f"{KEY}.layers={layers} must list stages in rising order, for example [2,3]")
        if upscale < 1:
            raise InputError(f"{KEY}.upscale={upscale} must be 1 or more")
        self.backbone, self.layers, self.upscale = backbone, list(layers), upscale
        self.pretrained, self.checkpoint_path = pretrained, checkpoint_path
        self.body = self._build(pretrained=False)
        self.channels: int = sum(self.body.feature_info.channels())
        self._digest: str | None = None
        self.requires_grad_(False)
        self.train()

    def _build(self, pretrained: bool) -> nn.Module:
        try:
            return timm.create_model(
                self.backbone, pretrained=pretrained, features_only=True, out_indices=tuple(self.layers)
            )
        except (AssertionError, IndexError, NotImplementedError, TypeError, AttributeError) as error:
            raise InputError(
                f"{KEY}.backbone={self.backbone} has no maps of the stages {self.layers}: take a ResNet of timm, "
                "and layers of 1 to 4"
            ) from error

    def train(self, mode: bool = True) -> "FrozenFeatureExtractor":
        """Stays in eval mode whatever is asked for: a moving statistic would move the features."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to features (B, C, h, w); h = H / 4 with layers 2, 3 and upscale 2."""
        maps = self.body(image)
        # align_corners: official code.
        maps = [F.interpolate(one, self.joined_size(maps), mode="bilinear", align_corners=True) for one in maps]
        return F.avg_pool2d(torch.cat(maps, dim=1), kernel_size=3, stride=1, padding=1)

    def joined_size(self, maps: Sequence[Tensor]) -> list[int]:
        """Height and width of the joined map."""
        return [self.upscale * side for side in maps[0].shape[-2:]]

    # ---- weights ---------------------------------------------------------------------------------

    @property
    def is_random(self) -> bool:
        """Whether nothing but a checkpoint of the run can give these weights again."""
        return self.checkpoint_path is None and not self.pretrained

    def load_initial_weights(self) -> None:
        """Fills the backbone with the weights that ``checkpoint_path`` or ``pretrained`` ask for.

        Raises:
            InputError: a download fails, or a file is missing or does not fit.
        """
        deeper = tuple(f"layer{number}." for number in range(max(self.layers) + 1, 5))
        if self.checkpoint_path is not None:
            try:
                state = read_state(self.checkpoint_path)
                fit_state(self.body, state, self.checkpoint_path, free=("fc.", "classifier.", "head.", *deeper))
            except WeightsError as error:
                raise InputError(f"{KEY}.checkpoint_path: {error}") from error
        elif self.pretrained:
            self.body.load_state_dict(self._download())
        self._digest = None

    def _download(self) -> dict[str, Tensor]:
        try:
            return self._build(pretrained=True).state_dict()
        except Exception as error:  # whatever HTTP client the hub uses brings its own exceptions
            raise InputError(
                f"the pre-trained weights {self.backbone} could not be loaded ({type(error).__name__}): go online "
                f"once, or point {KEY}.checkpoint_path at a file that holds them, or try random ones with "
                "model=supersimplenet_small (for a CPU) or model=supersimplenet_random"
            ) from error

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Sets the BatchNorms of random weights to the statistics of some normalised images, and freezes them."""
        norms = [layer for layer in self.body.modules() if isinstance(layer, _BatchNorm)]
        kept = [layer.momentum for layer in norms]
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.training = True
        for image in batches:
            self.body(image)
        for layer, momentum in zip(norms, kept, strict=True):
            layer.momentum, layer.training = momentum, False
        self._digest = None

    def digest(self) -> str:
        """Checksum of the weights, which tells two sets of one backbone apart."""
        if self._digest is None:
            whole = hashlib.blake2b(digest_size=16)
            for name, value in sorted(self.body.state_dict().items()):
                whole.update(name.encode())
                whole.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
            self._digest = whole.hexdigest()
        return self._digest

    # ---- checkpoints -----------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """What a checkpoint says about the backbone: its name, where its weights come from, their checksum."""
        return {
            "backbone": self.backbone,
            "pretrained": self.pretrained,
            "checkpoint_path": self.checkpoint_path,
            "digest": self.digest(),
        }

    def take_origin(self, record: dict[str, Any], holds_backbone: bool) -> None:
        """Remembers where the weights of a checkpoint came from.

        A ``checkpoint_path`` of this extractor stands over the recorded one, which may lie on another machine.

        Raises:
            InputError: a file is named although the checkpoint brings random weights of its own.
        """
        if self.checkpoint_path is None:
            self.pretrained, self.checkpoint_path = record["pretrained"], record["checkpoint_path"]
        elif holds_backbone:
            raise InputError(
                f"{KEY}.checkpoint_path={self.checkpoint_path}: the checkpoint holds the backbone that it was "
                "trained with: leave that setting out"
            )

    def restore(self, record: dict[str, Any]) -> None:
        """Fetches again the weights that a checkpoint was trained with and did not keep.

        Raises:
            InputError: they cannot be found, or they are other ones.
        """
        try:
            self.load_initial_weights()
        except InputError as error:
            raise InputError(
                f"the checkpoint holds no backbone, and its weights are not to be had: {error}; name their file by "
                f"{KEY}.checkpoint_path=<file>"
            ) from error
        if self.digest() != record["digest"]:
            source = self.checkpoint_path or self.backbone
            raise InputError(
                f"{KEY}: {source} holds other weights than the checkpoint was trained with (checksum "
                f"{self.digest()} instead of {record['digest']}): name the file of those weights by "
                f"{KEY}.checkpoint_path=<file>"
            )
