"""The network g of SITAR: a Swin transformer on super images, with a vector for each grid cell."""

import itertools
from typing import Literal

import timm
import torch
from timm.layers import trunc_normal_
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from components.weights import WeightsError, fit_state, read_state
from lightning_modules.sitar.super_image import grid_side
from runs.errors import InputError, did_you_mean, first_few

PATCH = 4  # pixels; Swin's patch side in every size of the paper
HEAD = "head."


class SuperImageSwin(nn.Module):
    """Swin transformer that classifies super images of two grids on one canvas size.

    All stages attend in windows of ``window`` tokens but the last, which attends over its whole
    map: with a 576 canvas the windows are 12, 12, 12, 18, and only these give the paper's
    multiply-adds (Table 7: 106 G for Swin-B; Table 4: 61 G and, on a 768 canvas, 109 G).

    Args:
        embed_dim: channels after patch embedding, a multiple of the first entry of ``num_heads``.
        depths: blocks in each stage.
        num_heads: attention heads in each stage.
        window: window side in tokens in all stages but the last.
        drop_path: rate of stochastic depth in the last block, growing linearly from 0.
        num_classes: C.
        frames_fast: frames in the fast super image, M.
        frames_slow: frames in the slow super image, N.
        cell_fast: side of a fast frame in pixels.
        cell_slow: side of a slow frame in pixels.
        frame_pos: learned vector for each grid cell, added to the tokens of that cell:
            ``per_grid`` a table for each grid, ``shared`` the fast table laid over both canvases,
            ``none``.
        weights: timm name of pre-trained weights: ``swin_small_patch4_window7_224.ms_in22k``.
        pretrained: start from ``weights``.
        checkpoint_path: the user's own file with Swin weights, instead of a download.

    Raises:
        InputError: where canvas, cells, windows and heads do not fit each other.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: list[int],
        num_heads: list[int],
        window: int,
        drop_path: float,
        num_classes: int,
        frames_fast: int,
        frames_slow: int,
        cell_fast: int,
        cell_slow: int,
        frame_pos: Literal["none", "per_grid", "shared"],
        weights: str | None,
        pretrained: bool,
        checkpoint_path: str | None,
    ) -> None:
        super().__init__()
        self.grid_fast, self.grid_slow = grid_side(frames_fast), grid_side(frames_slow)
        self.canvas = self.grid_fast * cell_fast
        self._check_sizes(cell_fast, cell_slow, embed_dim, depths, num_heads, window)
        self.frame_pos_mode = frame_pos
        self.weights, self.pretrained = weights, pretrained
        self.checkpoint_path = checkpoint_path

        last_map = self.canvas // PATCH // 2 ** (len(depths) - 1)
        self.swin = SwinTransformer(
            img_size=self.canvas,
            patch_size=PATCH,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            # pairs: timm reads a plain sequence of two as (height, width) of one window
            window_size=[(window, window)] * (len(depths) - 1) + [(last_map, last_map)],
            drop_path_rate=drop_path,
            weight_init="jax",  # timm's default, std 0.02, stalls narrow networks from scratch
        )
        grids = {"none": (), "shared": (self.grid_fast,)}.get(frame_pos, sorted({self.grid_fast, self.grid_slow}))
        self.frame_pos = nn.ParameterDict(
            {str(grid): trunc_normal_(torch.empty(grid * grid, embed_dim), std=0.02) for grid in grids}
        )

    def _check_sizes(
        self,
        cell_fast: int,
        cell_slow: int,
        embed_dim: int,
        depths: list[int],
        num_heads: list[int],
        window: int,
    ) -> None:
        if self.grid_slow * cell_slow != self.canvas:
            raise InputError(
                f"the fast canvas is {self.grid_fast} x {cell_fast} = {self.canvas} pixels wide "
                f"and the slow one {self.grid_slow} x {cell_slow} = {self.grid_slow * cell_slow}: "
                "choose data.cell_fast and data.cell_slow so that both are equal"
            )
        if cell_fast % PATCH or cell_slow % PATCH:
            raise InputError(
                f"data.cell_fast={cell_fast} and data.cell_slow={cell_slow} must be multiples of "
                f"the patch side, {PATCH} pixels"
            )
        if len(depths) != len(num_heads):
            raise InputError(
                f"model.network.depths has {len(depths)} stages and model.network.num_heads "
                f"{len(num_heads)}: give one number of heads for each stage"
            )
        badly_split = [
            f"{embed_dim * 2**stage} channels by {heads} heads"
            for stage, heads in enumerate(num_heads)
            if embed_dim * 2**stage % heads
        ]
        if badly_split:
            raise InputError(
                "model.network.num_heads must divide the channels of each stage, but does not "
                f"divide {first_few(badly_split)}"
            )
        tokens = self.canvas // PATCH
        halvings = 2 ** (len(depths) - 1)
        maps = [tokens // 2**stage for stage in range(len(depths) - 1)]
        if tokens % halvings or any(side % window for side in maps):
            raise InputError(
                f"a canvas of {self.canvas} pixels gives {tokens} tokens a side, which "
                f"{len(depths)} stages cannot halve and cut into windows of {window}: choose "
                "data.cell_fast and model.network.window so that each stage's map is a whole "
                "number of windows"
            )

    def no_weight_decay(self) -> set[str]:
        """Names of the position tables, which AdamW must not shrink."""
        swin = {f"swin.{name}" for name in self.swin.no_weight_decay()}
        return swin | {f"frame_pos.{grid}" for grid in self.frame_pos}

    def freeze_unseen(self, grids: set[int]) -> None:
        """Freezes the frame-position tables of grids that a phase never shows.

        DDP waits for a gradient of every trainable parameter, so none may be out of use.
        """
        if self.frame_pos_mode == "per_grid":
            for grid, table in self.frame_pos.items():
                table.requires_grad_(int(grid) in grids)

    def _tokens(self, canvas: Tensor, grid: int) -> Tensor:
        """Patch embedding plus frame position: (B, 3, S, S) to (B, S/4, S/4, D)."""
        tokens = self.swin.patch_embed(canvas)
        if self.frame_pos_mode == "none":
            return tokens
        side = self.grid_fast if self.frame_pos_mode == "shared" else grid
        across = tokens.shape[1] // side
        table = self.frame_pos[str(side)].view(side, 1, side, 1, -1)
        table = table.expand(side, across, side, across, -1)
        return tokens + table.reshape(1, side * across, side * across, -1)

    def features(self, *views: tuple[Tensor, int]) -> Tensor:
        """Pooled features of several views in one pass through the transformer.

        Args:
            views: pairs of a canvas batch (B_i, 3, S, S) and the side of its grid.

        Returns:
            (sum of B_i, D), the views one after the other.
        """
        x = torch.cat([self._tokens(canvas, grid) for canvas, grid in views])
        x = self.swin.norm(self.swin.layers(x))
        return self.swin.forward_head(x, pre_logits=True)

    def classify(self, features: Tensor) -> Tensor:
        """Logits z of pooled features: (B, D) to (B, C)."""
        return self.swin.head.fc(features)

    def forward(self, *views: tuple[Tensor, int]) -> Tensor:
        """Logits of several views, see `features`: (sum of B_i, C)."""
        return self.classify(self.features(*views))

    def load_initial_weights(self) -> None:
        """Fills the transformer with the pre-trained weights that the config asks for, if any.

        The classifier head and the frame-position tables keep their own start.

        Raises:
            InputError: if a download fails, or the file is missing or does not fit.
        """
        if self.checkpoint_path is not None:
            try:
                self._fit(read_state(self.checkpoint_path), self.checkpoint_path)
            except WeightsError as error:
                raise InputError(f"model.network.checkpoint_path: {error}") from error
        elif self.pretrained:
            self._fit(self._download(), str(self.weights))

    def _download(self) -> dict[str, Tensor]:
        known = timm.list_models("swin_*", pretrained=True)
        if self.weights not in known:
            raise InputError(
                f"model.network.weights={self.weights} names no Swin weights of timm: "
                + did_you_mean(str(self.weights), known)
            )
        try:
            return timm.create_model(self.weights, pretrained=True, num_classes=0).state_dict()
        except Exception as error:  # whatever HTTP client the hub uses brings its own exceptions
            raise InputError(
                f"the pre-trained weights {self.weights} could not be downloaded "
                f"({type(error).__name__}): go online once, or point model.network.checkpoint_path "
                "at a file that holds them, or set model.network.pretrained=false"
            ) from error

    def _fit(self, state: dict[str, Tensor], source: str) -> None:
        """Interpolates position tables to this network's windows, then loads strictly."""
        own = self.swin.state_dict()
        foreign = [
            name
            for name, value in state.items()
            if name.endswith("relative_position_bias_table")
            and (name not in own or value.ndim != 2 or value.shape[1] != own[name].shape[1])
        ]
        if foreign:
            raise WeightsError(
                f"{source} is of another Swin size: {len(foreign)} position tables do not fit: " + first_few(foreign)
            )
        fit_state(self.swin, checkpoint_filter_fn(state, self.swin), source, free=(HEAD,))

    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def multiply_adds(self) -> int:
        """Multiply-adds (papers call them FLOPs) of one fast super image, counted from shapes."""
        named = itertools.chain(self.named_parameters(), self.named_buffers())
        ghost = {name: tensor.to("meta") for name, tensor in named}
        canvas = torch.empty(1, 3, self.canvas, self.canvas, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(self, ghost, ((canvas, self.grid_fast),))
        return counter.get_total_flops() // 2
