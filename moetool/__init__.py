"""moetool: what a Mixture-of-Experts model costs, where its tokens go and what its experts know."""

__version__ = "0.1.0"
