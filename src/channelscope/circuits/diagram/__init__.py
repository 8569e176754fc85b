"""The drawing of a circuit: positions of its channels and kernels, their pictures, and the SVG and HTML files."""
