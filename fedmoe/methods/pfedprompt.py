"""pFedPrompt: a shared prompt, and a personal attention over the client's own stored image features.

Guo, Guo, Wang, "pFedPrompt: Learning Personalized Prompt for Vision-Language Models in Federated Learning", WWW 2023.

Shape letters: b images, C classes, d feature width, n stored examples, V views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmoe.errors import UserError
from fedmoe.methods.promptfl import PromptFL

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client


def stored_attention(image_features: Tensor, keys: Tensor, values: Tensor, beta: float) -> Tensor:
    """exp(-beta (1 - I F^T)) L, the cache model of Tip-Adapter (Zhang et al., ECCV 2022, arXiv 2111.03930).

    Args:
        image_features: I [b, d], l2-normalized.
        keys: F, the stored examples' features [n, d], l2-normalized.
        values: L, their labels as one-hot rows [n, C].
        beta: sharpness.

    Returns:
        [b, C]: for each class, the sum over its stored examples of a number in (0, 1] that falls with the distance.
    """
    return (beta * (image_features @ keys.T - 1)).exp() @ values


class PFedPrompt(PromptFL):
    """PromptFL, whose clients add an attention over their own training images to their predictions.

    The idea is the paper's: users agree on a prompt in language space, and each adapts it to its own images in vision
    space, by a parameter-free attention over the features of its few examples. Neither the paper's text nor a release
    was available, so the details are our interpretation: the attention is Tip-Adapter's,

        logits = exp(logit_scale) * I . T + alpha * exp(-beta (1 - I F^T)) L,

    with the features F and one-hot labels L of all of the client's training examples, and alpha and beta as in
    Tip-Adapter. It is not used in training, where an image would find itself among the stored ones: the rounds are
    PromptFL's, bit for bit. A client that never took part predicts in the same way, with the current global prompt.
    With cached views, a key is the normalized mean of an image's views, as in Tip-Adapter's release.

    The features stay in the client's data set: they are neither sent nor part of a checkpoint. Classes of which no
    client has examples (the novel ones of ``evaluate --classes``) have no attention term.

    Args:
        alpha: weight of the attention term, in units of logits; 0 is PromptFL.
        beta: sharpness of the attention; at 0 all stored images of a class count equally, however near.
    """

    label = "pFedPrompt"

    def __init__(self, alpha: float = 1.0, beta: float = 5.5) -> None:
        for name, value in {"alpha": alpha, "beta": beta}.items():
            if value < 0:
                raise UserError(f"method.{name} is {value}; valid is a number of at least 0.")
        self.alpha = alpha
        self.beta = beta

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(super().logits(client, image_features), labels)

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        """Prediction: class logits [b, C] of image features [b, d].

        Raises:
            UserError: the training images are encoded online, so that no feature is stored.
        """
        from torch.nn.functional import normalize, one_hot

        logits = super().logits(client, image_features)
        if client.data is None:  # these are classes of which no client has examples
            return logits
        if client.data.online is not None:
            raise UserError(
                "views.kind is 'online', where no training features are stored, but PFedPrompt attends to them; "
                "valid is none or cached."
            )
        keys = client.data.train_features.to(image_features)  # [n, d] or [n, V, d]
        if client.data.views:
            keys = normalize(keys.mean(dim=1), dim=-1)
        values = one_hot(client.data.train_labels, logits.shape[1]).to(logits)  # [n, C]
        return logits + self.alpha * stored_attention(image_features, keys, values, self.beta)
