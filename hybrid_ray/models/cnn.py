"""A small convolutional classifier for experiments at the scale of MNIST.

Shape suffixes: B batch, C channels, H and W pixels, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CNN"]


class CNN(nn.Module):
    """Two convolutions and two linear layers, 49,022 parameters.

    ``model(images_B1HW, labels_B)`` returns the mean loss, in nats per image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv_2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.hidden = nn.Linear(32 * 7 * 7, 28)
        self.classes = nn.Linear(28, 10)

    def logits(self, images_B1HW: Tensor) -> Tensor:
        """Logits of the ten classes, shape BK, for images of 28 x 28 pixels."""
        x_BCHW = F.max_pool2d(F.relu(self.conv_1(images_B1HW)), 2)
        x_BCHW = F.max_pool2d(F.relu(self.conv_2(x_BCHW)), 2)
        logits_BK: Tensor = self.classes(F.relu(self.hidden(x_BCHW.flatten(1))))
        return logits_BK

    def forward(self, images_B1HW: Tensor, labels_B: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images_B1HW).float(), labels_B)

    @torch.no_grad()
    def loss_and_accuracy(self, images_B1HW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and the accuracy (0 to 1), two scalars from one forward pass."""
        logits_BK = self.logits(images_B1HW).float()
        right = (logits_BK.argmax(dim=1) == labels_B).float().mean()
        return F.cross_entropy(logits_BK, labels_B), right
