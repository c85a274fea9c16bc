"""What reports share: plot style, export to SVG, template loader, exact intervals."""
