"""ZFNet (ZF paper, section 9 of the specification): AlexNet with a finer first layer and without groups."""

from __future__ import annotations

from dataclasses import replace

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

    layers = ZFNET | {n: replace(ZFNET[n], channels=c) for n, c in ((3, 512), (4, 1024), (5, 512))}
