"""Maps from features and the target logit's gradients: Grad-CAM and its kin, and Eigen-CAM.

With F[c] the features and G[c] the gradients of an image's target logit with respect to them, each
method weighs and adds up the channels c. What is negative speaks against the class or lies off the
axis and becomes zero, as in the package ``grad-cam`` (pytorch-grad-cam), whose numbers these are.
All arguments are (N, C, h, w) float32 and all results (N, h, w) float32, 0 or positive.
"""

import torch
from torch import Tensor

from .principal_component import first_principal_axis


def grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Weigh each channel by its mean gradient: relu(sum_c mean(G[c]) * F[c]).

    Source: Selvaraju et al. 2017, "Grad-CAM" (arXiv 1610.02391).
    """
    return _weighted(features, gradients.mean((2, 3)))


def grad_cam_plus_plus(features: Tensor, gradients: Tensor) -> Tensor:
    """Weigh each channel by its positive gradients, those of weak positions more.

    relu(sum_c w[c] * F[c]) with w[c] = sum over positions of a * relu(G[c]) and
    a = G[c]^2 / (2 * G[c]^2 + G[c]^3 * sum(F[c]) + 1e-6).

    Source: Chattopadhyay et al. 2018, "Grad-CAM++" (arXiv 1710.11063), equation 19.
    """
    squares = gradients.square()
    total = features.sum((2, 3), keepdim=True)
    share = squares / (2 * squares + total * squares * gradients + 1e-6)
    return _weighted(features, (gradients.relu() * share).sum((2, 3)))


def x_grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Weigh each channel by its gradients where it is active: w[c] = sum(G[c] * F[c]) / sum(F[c]).

    Source: Fu et al. 2020, "Axiom-based Grad-CAM" (arXiv 2008.02312).
    """
    total = features.sum((2, 3), keepdim=True)
    return _weighted(features, (gradients * features / (total + 1e-7)).sum((2, 3)))


def hires_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Weigh each position by its own gradient: relu(sum_c G[c] * F[c]).

    Source: Draelos and Carin 2020, "HiResCAM" (arXiv 2011.08891).
    """
    return (gradients * features).sum(1).relu()


def grad_cam_elementwise(features: Tensor, gradients: Tensor) -> Tensor:
    """Add up what speaks for the class at each position: sum_c relu(G[c] * F[c]).

    Source: pytorch-grad-cam's ``GradCAMElementWise``.
    """
    return (gradients * features).relu().sum(1)


def layer_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Weigh each position by its own positive gradient: relu(sum_c relu(G[c]) * F[c]).

    Source: Jiang et al. 2021, "LayerCAM" (IEEE TIP 30, 5875).
    """
    return (gradients.relu() * features).sum(1).relu()


def eigen_cam(features: Tensor) -> Tensor:
    """Project the features of each position on their first principal component.

    The positions are the samples and the channels the variables, centred. An axis has no sign by
    itself; here the value farthest from zero becomes positive. pytorch-grad-cam keeps the sign that
    LAPACK happens to return, which differs between machines.

    Source: Muhammad and Yeasin 2020, "Eigen-CAM" (arXiv 2008.00299); the sign as in equation 13 of
    Chung and Ying 2025, "Seg-Eigen-CAM" (Applied Sciences 15, 7562).
    """
    n, _, h, w = features.shape
    positions = features.flatten(2).mT.double()
    positions = positions - positions.mean(1, keepdim=True)
    scores = (positions @ first_principal_axis(positions)[..., None])[..., 0]
    high, low = scores.amax(1, keepdim=True), scores.amin(1, keepdim=True)
    return torch.where(-low > high, -scores, scores).relu().float().view(n, h, w)


def eigen_grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Project the products G * F of each position on their first principal component.

    Source: pytorch-grad-cam's ``EigenGradCAM``; the sign as in :func:`eigen_cam`.
    """
    return eigen_cam(gradients * features)


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """Return relu(sum_c w[c] * F[c])."""
    return torch.einsum("nc,nchw->nhw", weights, features).relu()
