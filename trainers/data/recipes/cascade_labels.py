"""batchgeneratorsv2's transforms of the labels of a cascade's previous stage, each with draws that depend on its own sample alone."""

from typing import Any

from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import RemoveRandomConnectedComponentFromOneHotEncodingTransform


class BinaryOperator(ApplyRandomBinaryOperatorTransform):  # type: ignore[misc]
    """Grows, shrinks, closes or opens labels; the same draws for the same seed, whatever was drawn before."""

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """As the library's, from the channels in order."""
        self.channel_idx.sort()
        return super().get_parameters(**data_dict)  # type: ignore[no-any-return]


class ComponentRemoval(RemoveRandomConnectedComponentFromOneHotEncodingTransform):  # type: ignore[misc]
    """Removes a connected component of labels; likewise."""

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """As the library's, from the channels in order."""
        self.channel_idx.sort()
        return super().get_parameters(**data_dict)  # type: ignore[no-any-return]
