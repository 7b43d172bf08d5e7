"""The network as a frozen graph: read (ONNX or torch), simplified, executed."""
