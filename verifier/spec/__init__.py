"""Properties: VNN-LIB files and robustness of images, as one Spec."""
