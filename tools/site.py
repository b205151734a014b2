"""Build the documentation site into build/site: `make site`.

The pages request nothing from other hosts. Mermaid, which draws the diagram of the schema, is part
of the site. It is copied from its npm package, so npm must be installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

MERMAID = "mermaid@12.3.0"

_FILES = ("dist/mermaid.esm.min.mjs", "dist/chunks/mermaid.esm.min/")
"""The module, and the parts that it loads for a diagram."""

_START_PAGE = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/">\n'


def main() -> None:
    """Build the site in the checkout."""
    if shutil.which("npm") is None:
        sys.exit("npm is not installed. Install it, for example: apt-get install npm")
    build(CHECKOUT / "build")
    print("The site is in build/site. Open it: python3 -m http.server --directory build/site")


def build(folder: Path) -> Path:
    """Build the site, and fail on any warning.

    Arguments:
        folder: the folder of the site and the intermediate files. An existing site is replaced.

    Returns:
        The folder of the site.
    """
    site, static = folder / "site", folder / "static"
    for path in (site, static):
        shutil.rmtree(path, ignore_errors=True)
    copy_mermaid(static / "mermaid")
    sphinx = [sys.executable, "-m", "sphinx", "--quiet", "--nitpicky", "--fail-on-warning"]
    options = ["--keep-going", "-c", "docs", "-d", folder / "doctrees"]
    settings = ["-D", f"html_static_path={static}"]
    subprocess.run([*sphinx, *options, *settings, ".", site], cwd=CHECKOUT, check=True)
    (site / "index.html").write_text(_START_PAGE, encoding="utf-8")
    return site


def copy_mermaid(target: Path) -> None:
    """Copy the files that a browser needs from the npm package."""
    with tempfile.TemporaryDirectory() as folder:
        pack = ["npm", "pack", "--silent", "--ignore-scripts", MERMAID]
        subprocess.run(pack, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
        (package,) = Path(folder).glob("*.tgz")
        with tarfile.open(package) as archive:
            for member in archive:
                name = member.name.removeprefix("package/")
                content = archive.extractfile(member) if member.isfile() else None
                if content and name.startswith(_FILES) and name.endswith(".mjs"):
                    path = target / name.removeprefix("dist/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())


if __name__ == "__main__":
    main()
