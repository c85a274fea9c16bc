"""HTML reports: the plot style, the export to SVG and the template loader that reports share."""
