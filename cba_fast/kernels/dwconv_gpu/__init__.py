"""The kernels and plans that `dwconv_cuda` and `dwconv_triton` launch on a GPU."""
