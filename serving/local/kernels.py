"""Reports the kernels that vLLM chose for a model; they can change an answer."""

from typing import Any

EXTENSION = "serving.local.kernels.KernelReport"
"""For vLLM's worker_extension_cls."""


class KernelReport:
    """Mixed into vLLM's worker, which holds the loaded model as `model_runner`."""

    model_runner: Any

    def narrowgate_kernels(self) -> dict[str, str]:
        """Return the class that computes each kind of layer, by kind."""
        return kernels_of(self.model_runner.get_model())


def kernels_of(model: Any) -> dict[str, str]:
    """Return the classes that compute a model's layers, by kind of layer, and its number format.

    model: a torch module as vLLM builds it.
    """
    found: dict[str, set[str]] = {}
    for module in model.modules():
        for attribute, kind in (("impl", "attention"), ("quant_method", type(module).__name__)):
            chosen = getattr(module, attribute, None)
            if chosen is not None and not isinstance(chosen, str):
                found.setdefault(kind, set()).add("/".join([_name(chosen), *_scheme(module)]))
    formats = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    found["formats"] = formats
    return {kind: ", ".join(sorted(names)) for kind, names in sorted(found.items())}


def _scheme(module: Any) -> list[str]:
    scheme = getattr(module, "scheme", None)
    if scheme is None:
        return []
    # vLLM's names for the object that runs the multiplication have changed between releases.
    kernels = [getattr(scheme, name, None) for name in ("kernel", "linear_kernel", "fp8_linear")]
    return [_name(scheme), *(_name(kernel) for kernel in kernels if kernel is not None)]


def _name(value: object) -> str:
    return type(value).__name__
