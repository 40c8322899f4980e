"""The Selector: two layers that tell how right an answer is, and the score from which on it is given.

training   features and accuracies of held-out answers → layers
threshold  scores and accuracies of answers that trained nothing → the score to answer from
files      layers → the file that a runtime executes, read back and compared
"""

from __future__ import annotations

from edgevlm_deploy.selector.files import NAMES, write
from edgevlm_deploy.selector.threshold import Threshold, choose
from edgevlm_deploy.selector.training import Layers, Trained, train

__all__ = ["NAMES", "Layers", "Threshold", "Trained", "choose", "train", "write"]
