"""A trained, pruned module as an ONNX file that anybody's tools read: masked, compact or sparse.

    nn.Module -> fold -> Graph (float64, batch norms folded) -> [compact] -> to_onnx (float32) -> [to_sparse] -> file -> check_export
"""
from certprune.export.check import Check, LayerSparsity, check_export
from certprune.export.write import ExportReport, Form, export_model

__all__ = ["Check", "ExportReport", "Form", "LayerSparsity", "check_export", "export_model"]
