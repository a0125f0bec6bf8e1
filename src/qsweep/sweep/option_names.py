"""Names of the options that there are, and what a command line chooses."""

from collections.abc import Sequence

from qsweep.base.config_files import choice_values, config_folder, group_choices, options_by_choice


def known_options(key: str) -> list[str]:
    """Names of groups and options at the top, and of those in the group that a key is in."""
    from omegaconf import OmegaConf

    from qsweep.sweep.overrides import options_of

    names = [name for name in group_choices() if name != "hydra"]
    config = OmegaConf.load(config_folder("conf") / "config.yaml")
    names += [str(name) for name in config if name not in ("defaults", "hydra")]
    group = key.partition(".")[0]
    if group != key:
        names += [f"{group}.{name}" for _, options in options_by_choice(group) for name in options]
        names += [f"{group}.{name}" for name in options_of(group)]
    return sorted(set(names))


def options_of_files() -> dict[str, str]:
    """Options that a sweep file of ours alone has, as ``size_gb`` and ``budget.fuse``: by name the file."""
    from omegaconf import OmegaConf

    common = {*group_choices(), *OmegaConf.load(config_folder("conf") / "config.yaml")}
    found = {}
    for file in sorted(config_folder("sweeps").glob("*.yaml")):
        for key, value in OmegaConf.load(file).items():
            name = str(key)
            if name in common or name in ("defaults", "hydra"):
                continue
            found[name] = file.stem
            if OmegaConf.is_dict(value):
                found |= {f"{name}.{inner!s}": file.stem for inner in value}
    return found


def chosen_quantizers(overrides: Sequence[str]) -> list[type]:
    """The classes of the quantizers that a command line chooses, or of the default one."""
    from qsweep.sweep.overrides import quantizer_class

    given = dict(o.split("=", 1) for o in overrides if "=" in o)
    names = given.get("quant", "gptq").split(",")
    values = dict(choice_values("quant"))
    found = []
    for name in names:
        options = values.get(name.strip(), {})
        backend = given.get("quant.backend", options.get("backend"))
        cls = quantizer_class({**options, "backend": backend})
        if cls is None:
            return []
        found.append(cls)
    return found
