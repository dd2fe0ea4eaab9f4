"""Lets torchvision be imported beside a torch without CUDA, and makes SGLang's imports cheaper. Python runs this at
start where the folder is on its path.

Its wheel registers fake versions of operators that only its CUDA library would define, and fails where they are not
declared. SGLang needs the module, never the operators.
"""

import gc
import importlib.abc
import importlib.machinery
import sys


class _DeclareBefore(importlib.abc.MetaPathFinder):
    """Declares the operators just before torchvision is found, and never again."""

    declared = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.declared is None:
            import torch

            if torch.version.cuda is not None:  # then its library can be loaded, and defines them
                return None
            type(self).declared = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None  # the ordinary finders find it


sys.meta_path.insert(0, _DeclareBefore())

gc.set_threshold(100_000)  # by default the search for garbage takes a quarter of the imports, which leave hardly any
