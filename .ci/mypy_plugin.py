"""Lets mypy take any attribute of a network: to PyTorch's types each is a tensor or a module."""

from mypy.plugin import Plugin
from mypy.types import AnyType, TypeOfAny


class Networks(Plugin):
    """Answers for attributes that only `nn.Module.__getattr__` knows."""

    def get_attribute_hook(self, fullname):
        return self._loosened if fullname.startswith(("torch.nn.", "timm.")) else None

    @staticmethod
    def _loosened(context):
        found = context.default_attr_type
        declared_by_getattr = str(found).endswith("Tensor | torch.nn.modules.module.Module")
        return AnyType(TypeOfAny.special_form) if declared_by_getattr else found


def plugin(version):
    return Networks
