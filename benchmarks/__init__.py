"""What is compared with what, and the rows measured. Run each as a module from the repository's root."""
