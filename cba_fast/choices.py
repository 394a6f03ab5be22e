"""Words and numbers of the study that all floors share: what can be chosen, and the usual values.

Nothing is imported here, so the command line can show them without loading PyTorch.
"""

from typing import Literal

Family = Literal["convnext", "replknet", "slak", "slak_flex"]
Preprocess = Literal["study", "model"]
Method = Literal[
    "cam",
    "pc1",
    "grad-cam",
    "grad-cam++",
    "x-grad-cam",
    "hires-cam",
    "layer-cam",
    "grad-cam-elementwise",
    "eigen-cam",
    "eigen-grad-cam",
    "attention-rollout",
    "chefer",
]
Pc1Range = Literal["wrap", "clip", "minmax"]
MapNames = Literal["study", "official"]
Score = Literal["prob", "logit", "logprob"]
Checkpoint = Literal["auto", "none", "block", "stage"]
Precision = Literal["fp32", "bf16", "fp16"]
Contours = Literal["largest", "all", "both"]
Intervention = Literal["outer", "random", "inner", "blur", "drop"]

INPUT_SIZE = 384  # side of the study's images
CAM_CURVE_INTERVAL = 0.01  # step between the thresholds of a score
CONFIDENCE = 0.95  # of the bootstrap's intervals
SCORE_RESAMPLES, CORRELATION_RESAMPLES = 1000, 2000  # of the bootstrap
ERF_SHARE = 0.2  # of the gradient, inside the ERF
CHECKPOINT: Checkpoint = "auto"  # whether backward passes recompute activations
READERS = 2  # threads that read stored maps
CUB_FOLDER = "datasets/cub-200-2011"
# The generated data set: classes, images of each, how many of these are for the test, their side.
SYNTH_CLASSES, SYNTH_IMAGES, SYNTH_TEST, SYNTH_SIZE = 10, 60, 20, 256
