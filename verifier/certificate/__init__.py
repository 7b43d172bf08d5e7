"""Certificates of proofs: how they are written, read and checked. See docs/certificate.md, the contract of everything here."""
