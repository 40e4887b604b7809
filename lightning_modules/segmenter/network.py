"""An encoder with a segmentation head."""

from collections.abc import Callable

from torch import Tensor, nn


class Segmenter(nn.Module):
    """DeepLabV3 or V3+, or any other head of `components.deeplab`'s form.

    Args:
        encoder: images to feature maps; has ``channels``, ``strides`` and ``load_initial_weights``.
        head: called with the encoder's channels and strides and C + 1; its result takes the maps
            and the image's size to pixel logits.
        num_classes: C, without background.
    """

    def __init__(self, encoder: nn.Module, head: Callable[..., nn.Module], num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head(encoder.channels, encoder.strides, num_classes + 1)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, C + 1, H, W)."""
        return self.head(self.encoder(image), (image.shape[-2], image.shape[-1]))

    def load_initial_weights(self) -> None:
        """Fills the encoder with the weights that its config asks for."""
        self.encoder.load_initial_weights()
