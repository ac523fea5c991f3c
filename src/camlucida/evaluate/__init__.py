"""How good it is: classification and localization on labelled pictures, baselines beside every figure."""
