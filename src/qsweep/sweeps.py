"""``python -m qsweep.sweeps``: the sweeps that are kept as files, a line each."""

from pathlib import Path

from qsweep.shipped import folder


def listing() -> list[tuple[str, str]]:
    """Names of the sweep files, and what the first comment of each says."""
    return [(file.stem, first_comment(file)) for file in sorted(folder("sweeps").glob("*.yaml"))]


def first_comment(file: Path) -> str:
    """The first comment of a YAML file; empty if it has none."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")


def main() -> None:
    """Print the list, and how to run one."""
    found = listing()
    width = max((len(name) for name, _ in found), default=0)
    for name, said in found:
        print(f"{name:<{width}}  {said}")
    print(f"\n{'run one:':<{width}}  python -m qsweep --config-name=NAME [overrides]")


if __name__ == "__main__":
    main()
