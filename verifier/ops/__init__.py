"""Rules: what each operation is to the engines (import this package to register all)."""
