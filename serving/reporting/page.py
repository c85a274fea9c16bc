"""HTML pages from Jinja templates, and the plots in them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of a page. svg: as svg_element returns it. title: empty where the page has its own."""

    svg: str
    caption: str
    title: str = ""

    @property
    def width_pt(self) -> float:
        """Return the width that the plot was drawn for, in points."""
        found = re.search(r' width="([\d.]+)pt"', self.svg)
        assert found is not None
        return float(found[1])


def page_environment(package: str, filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """Return the environment that renders a package's templates. filters: added to Jinja's.

    Every value is escaped unless the template marks it as safe; undefined names are errors.
    """
    environment = Environment(
        autoescape=True,
        loader=PackageLoader(package, "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment
