"""SAda-Net on one page: a stereo network that learns from its own consistent disparities (Fig. 4, Eq. 1-5)."""

from collections.abc import Callable
from typing import Any, Literal

import matplotlib
import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer

from components.metrics.stereo import DisparityErrors
from lightning_modules.sada_net.losses import hinge
from lightning_modules.sada_net.matcher import Estimate, Pair, StereoMatcher
from runs.errors import InputError

SHOWN_PAIRS = 3  # in the figure of an evaluation
UNKNOWN_SIGN = 0  # before the first round of a run with data.disparity_sign=auto
Which = Literal["untrained", "current", "best"]
Batch = dict[str, Any]


class SadaNetModule(pl.LightningModule):
    """Self-supervised adaptive stereo network.

    Between epochs `callbacks.consistency_map_update` matches all training pairs with `match`, keeps the
    disparities that pass the left-right check, and calls `keep_best` whenever fewer pixels than ever
    failed it. The weights of that round are what is tested and predicted with; they are part of the
    state, and so are the untrained ones, the floor of every score.

    Batches: training takes patches ``{"left", "match", "other": (B, 1, p, p), "index"}``, normalised;
    evaluation takes one pair at a time: the fields of `StereoMatcher` with a leading 1, ``sign``,
    ``index``, ``name`` and, where it is known, ``truth`` (1, H, W), NaN where a pixel has none. A pair with
    the field ``spare`` counts for nothing.
    Errors and shares are percent; thresholds are pixels of the maps as they are matched.

    Args:
        matcher: the two networks and what is done with their similarities.
        optimizer: called with the weights that train; not at all where there are none.
        margin: of the hinge (Eq. 1).
        thresholds: k of the k-PE.
        fill: give removed pixels a value, in predictions; scores never use it.
    """

    def __init__(
        self,
        matcher: StereoMatcher,
        optimizer: Callable[..., Optimizer],
        margin: float,
        thresholds: list[int],
        fill: bool,
    ) -> None:
        super().__init__()
        self.matcher, self.make_optimizer = matcher, optimizer
        self.margin, self.fill = margin, fill
        self.unused = torch.nn.Parameter(torch.zeros(()))  # DistributedDataParallel refuses a module without any
        # Of the branch as it was initialised; ZNCC is its own beginning.
        self.untrained = matcher.frozen_copy("zncc" if matcher.similarity == "zncc" else "cosine")
        self.best = matcher.frozen_copy(matcher.similarity)
        self.register_buffer("best_is_trained", torch.tensor(False))
        self.register_buffer("sign", torch.tensor(UNKNOWN_SIGN))
        self.test_errors, self.floor_errors = DisparityErrors(thresholds), DisparityErrors(thresholds)
        self.shown: list[tuple[str, list[np.ndarray]]] = []

    # ---- training (Fig. 5) -----------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Eq. 1 on a batch of patch triples; both networks learn from the first step."""
        if not self.trained_weights():
            return 0 * self.unused  # ZNCC has nothing to learn, but several processes may leave out no step
        patches = torch.cat([batch["left"], batch["match"], batch["other"]])
        F_left, F_match, F_other = self.matcher.branch(patches).chunk(3)
        s_plus = self.matcher.score(F_left, F_match).float()
        s_minus = self.matcher.score(F_left, F_other).float()
        loss = hinge(s_plus, s_minus, self.margin)  # Eq. 1
        gap = (s_plus - s_minus).detach().mean()
        for name, value in {"loss": loss.detach(), "similarity_gap": gap}.items():
            self.log(
                f"train/{name}", value, on_step=False, on_epoch=True, sync_dist=True,
                batch_size=len(batch["index"]), prog_bar=name == "loss",
            )  # fmt: skip
        return loss

    def trained_weights(self) -> list[torch.nn.Parameter]:
        """Both networks, or the branch alone where similarity is the cosine."""
        return [weight for weight in self.matcher.parameters() if weight.requires_grad]

    def configure_optimizers(self) -> Optimizer | None:
        weights = self.trained_weights()
        return self.make_optimizer(weights) if weights else None

    # ---- matching (Eq. 3 to 5) -------------------------------------------------------------

    @torch.no_grad()
    def match(self, pair: Pair, which: Which, sign: int) -> Estimate:
        """Disparities of one pair.

        Args:
            pair: see `StereoMatcher`; moved to this device.
            which: ``untrained`` (cosine of the initial features, where the maps begin), ``current``, or
                ``best`` (of the round with the fewest inconsistent pixels; untrained until one is better).
            sign: of the geometry, -1 or 1.
        """
        if which == "best" and not self.best_is_trained:
            which = "untrained"
        matcher = {"untrained": self.untrained, "current": self.matcher, "best": self.best}[which]
        return self.run_matcher(matcher, pair, sign, smooth=True)

    @torch.no_grad()
    def count_consistent(self, pair: Pair, sign: int) -> int:
        """Pixels that the untrained cosine leaves consistent at a sign of the geometry.

        Without the guided filter: it makes any volume smooth, and maps of the wrong geometry agree.
        """
        return int(self.run_matcher(self.untrained, pair, sign, smooth=False).consistent.sum())

    def run_matcher(self, matcher: StereoMatcher, pair: Pair, sign: int, smooth: bool) -> Estimate:
        """Moves a pair to this device and matches it in the weights' full precision.

        Raises:
            InputError: weights of fewer than 32 bits, or a device without float64.
        """
        if self.dtype.itemsize < 4:
            raise InputError(
                f"matching needs weights of 32 bits, they are {self.dtype} by trainer.precision: take 32-true, or "
                "bf16-mixed, which trains in 16 bits and matches in 32"
            )
        if self.device.type == "mps":
            raise InputError("the guided filter needs float64, which Apple's GPUs do not have: add trainer=cpu")
        on_device = {key: value.to(self.device) for key, value in pair.items() if isinstance(value, Tensor)}
        for image in ("left", "right"):
            on_device[image] = on_device[image].to(self.dtype)
        # Winners need every digit of the similarities: no autocast, and no TF32, cuDNN's default. Matrix products
        # have none by torch's default.
        cudnn = torch.backends.cudnn
        every_digit = cudnn.flags(
            enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
        )
        with torch.autocast(self.device.type, enabled=False), every_digit:
            return matcher(on_device, sign, smooth)

    def keep_best(self) -> None:
        """Remembers the weights as they are now."""
        self.best.load_state_dict(self.matcher.state_dict())
        self.best_is_trained.fill_(True)

    def use_sign(self, sign: int) -> None:
        """The geometry that the first round found, or that the data name."""
        self.sign.fill_(sign)

    def sign_of(self, pair: Pair) -> int:
        """What the data say, or what the first round found."""
        return int(pair["sign"]) or int(self.sign)

    # ---- evaluation ------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        self.shown = []

    def on_predict_epoch_start(self) -> None:
        self.shown = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts the errors of the best weights, and of the untrained ones beside them."""
        if "spare" in batch:  # more processes than pairs
            return
        pair = {key: value[0] for key, value in batch.items()}
        sign = self.sign_of(pair)
        for errors, which in ((self.test_errors, "best"), (self.floor_errors, "untrained")):
            estimate = self.match(pair, which, sign)
            errors.update(
                estimate.disparity, estimate.refined, estimate.consistent, pair["valid"], pair.get("truth")
            )  # fmt: skip
            if which == "best":
                self.show(pair, estimate)

    def on_test_epoch_end(self) -> None:
        """Logs test/<k>pe_all, <k>pe_cons, completion, inconsistent, each with its floor."""
        # Here and not in the step: a process without a pair must take part in the gathering.
        for stage, errors in (("test", self.test_errors), ("floor", self.floor_errors)):
            self.log_dict({f"{stage}/{name}": value for name, value in errors.compute().items()})
            errors.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """One row: name, disparity map in pixels (NaN where removed), its picture, and the share that is left, percent.

        Under ``data.disparity_sign=auto`` each pair has the sign of its own: it may be of another geometry
        than the pairs that were trained on.
        """
        if "spare" in batch:
            return []
        pair = {key: value[0] for key, value in batch.items()}
        sign = int(pair["sign"]) or max((-1, 1), key=lambda sign: self.count_consistent(pair, sign))
        estimate = self.match(pair, "best", sign)
        disparity = self.best.fill(pair, estimate, sign) if self.fill else estimate.sparse
        self.show(pair, estimate)
        consistent = 100.0 * float(estimate.consistent.sum() / pair["valid"].sum())
        map_ = disparity.cpu().numpy()
        picture = Image.fromarray(coloured(map_, *(int(end) for end in pair["range"])))
        row = {"name": pair["name"], "disparity": map_, "picture": picture}
        return [{**row, "consistent_percent": round(consistent, 2), "sign": sign}]

    # ---- figures ---------------------------------------------------------------------------

    def show(self, pair: Pair, estimate: Estimate) -> None:
        """Keeps the maps of the first pairs for the figure."""
        if len(self.shown) < SHOWN_PAIRS:
            maps = [pair["guide_left"], estimate.disparity, estimate.sparse]
            if "truth" in pair:
                maps += [pair["truth"], (estimate.disparity - pair["truth"]).abs()]
            self.shown.append((pair["name"], [map_.cpu().numpy() for map_ in maps]))

    def figures(self, stage: str) -> dict[str, Figure]:
        """Left image, dense and consistent disparities, truth and error of the first pairs."""
        if not self.shown:
            return {}
        titles = ("left image", "disparity", "consistent", "truth", "error")
        columns = max(len(maps) for _, maps in self.shown)
        figure = Figure(figsize=(3.2 * columns, 2.6 * len(self.shown)), layout="constrained")
        for (name, maps), axes in zip(
            self.shown, figure.subplots(len(self.shown), columns, squeeze=False), strict=True
        ):
            low, high = np.nanmin(maps[1]), np.nanmax(maps[1])
            colours = [{"cmap": "gray"}, *3 * [{"cmap": DISPARITY_COLOURS, "vmin": low, "vmax": high}]]
            colours.append({"cmap": "magma", "vmin": 0, "vmax": 4})
            for ax, title, map_, colour in zip(axes, titles, maps, colours, strict=False):
                picture = ax.imshow(map_, **colour)
                ax.set_title(f"{name}: {title}" if title == titles[0] else title, fontsize=8)
                if title != titles[0]:
                    figure.colorbar(picture, ax=ax, fraction=0.046)
            for ax in axes:
                ax.axis("off")
        return {"disparity": figure}


DISPARITY_COLOURS = matplotlib.colormaps["turbo"].with_extremes(bad="black")


def coloured(disparity: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) disparities as (H, W, 3) uint8 colours, black where NaN."""
    share = np.ma.masked_invalid((disparity - low) / max(high - low, 1))
    return DISPARITY_COLOURS(share, bytes=True)[..., :3]
