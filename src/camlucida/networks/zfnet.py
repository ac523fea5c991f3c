"""ZFNet (ZF paper, section 9 of the specification): AlexNet with a finer first layer and without groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from camlucida.networks.alexnet import AlexNet, Conv

ZFNET = {
    1: Conv(96, 7, 2, 1, norm=True, pool=(2, 0)),
    2: Conv(256, 5, 2, norm=True, pool=(2, 0)),
    3: Conv(384, 3, 1, 1),
    4: Conv(384, 3, 1, 1),
    5: Conv(256, 3, 1, 1, pool=(2, 0)),
}


class ZFNet(AlexNet):
    """`(N, 3, size, size)` → logits; layers, `remove` and `widths` as in `AlexNet`; pooling before normalisation."""

    layers = ZFNET
    full, pool_first = 224, True


class ZFNetB(ZFNet):
    """Variant b: layers 3, 4, 5 with 512, 1024, 512 maps."""

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        size: int | None = None,
        remove: Sequence[int] = (),
        widths: Mapping[int | str, int] | None = None,
        dropout: float = 0.5,
    ) -> None:
        wider: dict[int | str, int] = {n: w for n, w in ((3, 512), (4, 1024), (5, 512)) if n not in remove}
        wider |= {int(n): w for n, w in (widths or {}).items()}
        super().__init__(num_classes, width, size, remove, wider, dropout)
