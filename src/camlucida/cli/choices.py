"""What several verbs ask for in the same words: a network, a threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camlucida.boxes.from_map import Rule
    from camlucida.networks.network import Network


def network(options: Any) -> Network:
    """The network of --network, --weights, --device, --precision, --download and, where the verb has it, --labels."""
    from camlucida.networks import catalogue
    from camlucida.networks.labels import read_labels

    net = catalogue.load(
        options.network,
        weights=None if options.weights == "none" else options.weights,
        device=options.device,
        precision=options.precision,
        download=options.download,
    )
    labels = getattr(options, "labels", None)
    return replace(net, card=replace(net.card, labels=read_labels(labels))) if labels else net


def at_threshold(rule: Rule, threshold: float | None) -> Rule:
    """The rule with another threshold, quantile or level. Raises UsageError for a rule that has none."""
    from camlucida.errors import UsageError

    if threshold is None:
        return rule
    for field in ("threshold", "q", "value"):
        if hasattr(rule, field):
            return replace(rule, **{field: threshold})  # type: ignore[type-var]
    raise UsageError(
        f"--threshold {threshold}", got=f"the rule {type(rule).__name__}, which has none", do="leave it out"
    )
