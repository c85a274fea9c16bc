#!/usr/bin/env -S python3 -I
"""Writes what an image contains as a CycloneDX 1.6 document. usage: sbom.py VENV FILE.

Lists Python packages from an environment's own metadata and Debian packages from dpkg. Standard
library only, and the same input gives the same bytes.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any


def document(components: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the document of these components."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": sorted(components, key=lambda component: str(component["purl"])),
    }


def python_packages(environment: Path) -> Iterator[dict[str, Any]]:
    """Yield a component for each distribution that is installed in a virtual environment."""
    folders = [str(path) for path in environment.glob("lib/python3.*/site-packages")]
    for distribution in distributions(path=folders):
        # As package URLs want it.
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        version = distribution.version
        yield _component(name, version, f"pkg:pypi/{name}@{version}", _license(distribution))


def debian_packages() -> Iterator[dict[str, Any]]:
    """Yield a component for each installed Debian package; nothing where dpkg is absent."""
    try:
        listed = subprocess.run(
            ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"],  # noqa: S607  # the system's
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except FileNotFoundError:
        return
    for line in listed.splitlines():
        name, version, architecture = line.split(" ")
        purl = f"pkg:deb/debian/{name}@{version}?arch={architecture}"
        yield _component(name, version, purl, None)


def _component(name: str, version: str, purl: str, licence: str | None) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    }
    if licence is not None:
        component["licenses"] = [{"license": {"name": licence}}]
    return component


def _license(distribution: Distribution) -> str | None:
    metadata = distribution.metadata
    found = metadata.get("License-Expression") or metadata.get("License")
    # Some packages put the whole text there.
    return str(found) if found and len(str(found)) < 80 else None


def main(environment: Path, target: Path) -> None:
    """Write the document."""
    found = document([*python_packages(environment), *debian_packages()])
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
