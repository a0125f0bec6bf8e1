"""Pages as a browser draws them."""

import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def dom_of(page: Path, profile: Path) -> str:
    """What a page is once its scripts have run."""
    return subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--dump-dom", f"file://{page}"],
        capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
