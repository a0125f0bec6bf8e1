"""Where in a model numbers stop being finite."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def nonfinite_origin(model: "PreTrainedModel", ids: "Tensor") -> str:
    """The first module, in the order of computation, that makes non-finite numbers of finite ones.

    Args:
        model: The model whose logits are not finite.
        ids: Token ids that show it, [n] or [b, n].

    Returns:
        Words to follow "the logits are not finite: ", such as ``they begin in
        model.layers.2.mlp.down_proj (its weights are not finite): 3 of 65536 in weight``.
    """
    import torch

    from qsweep.models.streaming import holding_part

    found: list[str] = []
    hooks = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: Any, inputs: Any, output: Any) -> None:
        # Hooks fire when a module is done, so the innermost culprit is the first one seen.
        if not found and not _finite(output) and _finite(inputs):
            found.append(names[module] or type(module).__name__)

    for module in names:
        hooks.append(module.register_forward_hook(look))
    try:
        with torch.inference_mode():
            model(input_ids=ids.view(-1, ids.shape[-1]).to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return "no module shows them when it is run again"
    broken = []
    if found[0] in set(names.values()):
        with holding_part(model, found[0]):
            broken = [
                f"{count} of {weight.numel()} in {name}"
                for name, weight in model.get_submodule(found[0]).named_parameters(recurse=False)
                if (count := int((~torch.isfinite(weight)).sum()))
            ]
    what = f" (its weights are not finite): {', '.join(broken)}" if broken else ""
    return f"they begin in {found[0]}{what}"


def _finite(value: Any) -> bool:
    import torch

    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return all(_finite(item) for item in value)
    return True
