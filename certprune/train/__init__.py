"""Training: an objective a file, regularisers that combine with any of them, one loop for all."""
