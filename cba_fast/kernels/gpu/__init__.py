"""The GPU kernels of quantizer, box sweep and ERF ops: their launchers, and those in Triton."""
