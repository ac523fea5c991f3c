"""Generic localisable features: vectors of a frozen network, linear SVMs on them, and their class maps (CAM paper, section
4; VGG paper, appendix B)."""

from camlucida.features.class_maps import ClassMaps, class_maps
from camlucida.features.crops import Cropping, FineGrained, chance, fine_grained, own_box
from camlucida.features.extract import Block, Described, Descriptor, Extractor, Wanted
from camlucida.features.folder import FeatureFolder, Features, stacked
from camlucida.features.judge import Judged, Split, figures_of, judge, published_split, random_splits, summary
from camlucida.features.layers import LayerScore, LayerVectors, judge_layers, layer_vectors
from camlucida.features.normalise import l2
from camlucida.features.pack import packed
from camlucida.features.svm import LinearSVM, choose_c, fit
from camlucida.features.transfer import Transfer, softmax, transfer

__all__ = [
    "Block",
    "ClassMaps",
    "Cropping",
    "Described",
    "Descriptor",
    "Extractor",
    "FeatureFolder",
    "Features",
    "FineGrained",
    "Judged",
    "LayerScore",
    "LayerVectors",
    "LinearSVM",
    "Split",
    "Transfer",
    "Wanted",
    "chance",
    "choose_c",
    "class_maps",
    "figures_of",
    "fine_grained",
    "fit",
    "judge",
    "judge_layers",
    "l2",
    "own_box",
    "layer_vectors",
    "packed",
    "published_split",
    "random_splits",
    "softmax",
    "stacked",
    "summary",
    "transfer",
]
