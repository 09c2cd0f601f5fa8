"""Decoders of transformers to one ONNX graph that generates text: attention is fused while the model is traced."""

from onnxpress.exporter.decoder.tracing import DecoderFacts, describe_decoder, trace_decoder

__all__ = ["DecoderFacts", "describe_decoder", "trace_decoder"]
