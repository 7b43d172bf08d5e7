"""Labelled images: the data sets that are known by name, read from their publishers' files, and any .npz file."""
